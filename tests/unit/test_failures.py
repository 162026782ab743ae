"""Exceptions to JSON and back: of the same type on replay as live."""

from __future__ import annotations

import enum
import json
import sys
import traceback
import types
import uuid
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, SecretStr, ValidationError

from edda_engine.core.failures import (
    MAX_MESSAGE,
    UnknownOriginalError,
    as_replayed,
    decode_error,
    describe,
    encode_error,
)
from edda_engine.core.tagged import NotRecorded, clean
from edda_engine.errors import ActivityTimeoutError, InvalidInputError, PayloadError, RetryExhaustedError, TerminalError


class CardRefused(ValueError):
    def __init__(self, card: str, *, amount: int) -> None:
        super().__init__(f"card {card} refused {amount}")
        self.card, self.amount = card, amount


class Stubborn(Exception):
    def __new__(cls, first: str, second: str) -> Stubborn:
        return super().__new__(cls, first, second)


class Reason(enum.StrEnum):
    STOLEN = "stolen"


class Level(enum.Enum):
    HIGH = (1, "high")


class Wordless(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words")


class Outer:
    class Inner(KeyError):
        pass


class Slotted(Exception):
    __slots__ = ("code",)

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


class ReadOnly(Exception):
    @property
    def answer(self) -> int:
        return 42


def refused_strings(value: object) -> list[str]:
    """The strings in parsed JSON that PostgreSQL does not store: with a NUL or a lone surrogate."""
    if isinstance(value, str):
        is_unicode = value.encode("utf-8", "replace").decode() == value
        return [] if is_unicode and "\0" not in value else [value]
    if isinstance(value, list):
        return [found for item in value for found in refused_strings(item)]
    if isinstance(value, dict):
        return refused_strings(list(value)) + refused_strings(list(value.values()))
    return []


def again(error: BaseException) -> BaseException:
    """What a replay sees of *error*."""
    return decode_error(json.loads(encode_error(error)))


@pytest.mark.parametrize(
    "error",
    [
        ValueError("bad"),
        KeyError("missing"),
        TypeError("a", 2, None, True),
        ZeroDivisionError(),
        TimeoutError("late"),
        StopIteration(3),
        AssertionError(),
        Outer.Inner("x"),
        TerminalError("no card"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_exception_comes_back_with_its_type_its_arguments_and_its_message(error: Exception) -> None:
    replayed = again(error)
    assert (type(replayed), replayed.args, str(replayed)) == (type(error), error.args, str(error))


def test_an_exception_whose_constructor_takes_other_arguments_comes_back_with_its_attributes() -> None:
    replayed = again(CardRefused("4242", amount=7))
    assert isinstance(replayed, CardRefused)
    assert (replayed.card, replayed.amount, str(replayed)) == ("4242", 7, "card 4242 refused 7")


@pytest.mark.parametrize(
    "error",
    [
        RetryExhaustedError("charge", attempts=3, duration_seconds=1.5, errors=["OSError: down"]),
        PayloadError("activity 'a'", "$.x", "is bad"),
        ActivityTimeoutError("charge", 2.0),
        InvalidInputError("order", "missing", signature="(x)"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_errors_of_the_library_come_back_with_message_and_attributes(error: Exception) -> None:
    replayed = again(error)
    assert (type(replayed), str(replayed), vars(replayed)) == (type(error), str(error), vars(error))


def test_attempts_whose_errors_were_not_kept_are_left_out_and_the_others_keep_their_numbers() -> None:
    error = RetryExhaustedError(
        "charge", attempts=60, duration_seconds=9, errors=["E: a", "E: b", "E: c"], numbers=[1, 59, 60]
    )
    assert "failed 60 times in 9.0 s: 1. E: a; 57 left out; 59. E: b; 60. E: c. Handle" in str(error)


def test_parameters_that_an_engine_hides_are_not_recorded() -> None:
    error = ValueError("x")
    error.hide_parameters, error.params = True, {"card": "4242"}  # type: ignore[attr-defined]
    assert "4242" not in encode_error(error)


def test_an_os_error_comes_back_with_its_errno_and_its_filename() -> None:
    replayed = again(FileNotFoundError(2, "No such file", "/etc/nothing"))
    assert isinstance(replayed, FileNotFoundError)
    assert (replayed.errno, replayed.strerror, replayed.filename) == (2, "No such file", "/etc/nothing")
    assert str(replayed) == "[Errno 2] No such file: '/etc/nothing'"


def test_a_plain_os_error_with_an_errno_has_the_class_that_the_errno_gave_it() -> None:
    assert type(again(OSError(111, "refused"))) is ConnectionRefusedError


def test_a_class_that_replaces_new_comes_back() -> None:
    replayed = again(Stubborn("a", "b"))
    assert (type(replayed), replayed.args) == (Stubborn, ("a", "b"))


def test_a_slotted_exception_comes_back_with_its_arguments_and_its_slots() -> None:
    replayed = again(Slotted(7))
    assert isinstance(replayed, Slotted)
    assert (replayed.args, replayed.code) == ((7,), 7)


MANY = [
    None, True, 2**80, 1.5, float("inf"), "", "a\0b", "\ud800", b"\x00\xff", Decimal("1.50"), [], ["a", ["b"]], (), ("a", (1,)), {1, 2},
    frozenset({"x"}), {}, {"a": {"b": None}}, {"$tuple": [1]}, {1: "one", (2, 3): "two", "a\0": 3}, datetime(2026, 3, 1, 12, tzinfo=UTC),
    datetime(2026, 3, 1), date(2026, 3, 1), time(12, 30), timedelta(days=-1, microseconds=5), uuid.UUID(int=7), Reason.STOLEN, Level.HIGH,
    Path("/etc/x"),
]  # fmt: skip


@pytest.mark.parametrize("value", MANY, ids=repr)
def test_a_value_in_an_exception_comes_back_as_it_was(value: object) -> None:
    error = ValueError(value, "second")
    error.detail = value  # type: ignore[attr-defined]
    text = encode_error(error)
    replayed: Any = decode_error(json.loads(text, parse_constant=pytest.fail))
    assert (replayed.args, vars(replayed)) == (error.args, vars(error))
    assert (type(replayed.args[0]), type(replayed.detail)) == (type(value), type(value))
    assert refused_strings(json.loads(text)) == []


def test_an_exception_kept_by_another_one_comes_back() -> None:
    error = ValueError("outer")
    error.orig = CardRefused("4242", amount=7)  # type: ignore[attr-defined]
    replayed: Any = again(error)
    assert (type(replayed.orig), replayed.orig.amount) == (CardRefused, 7)


def test_what_has_no_plain_form_says_so_when_it_is_used_and_the_rest_is_kept() -> None:
    error = ValueError("x")
    error.response, error.status = SecretStr("secret"), 503  # type: ignore[attr-defined]
    replayed: Any = again(error)
    assert (repr(replayed.response), replayed.status) == ("<SecretStr>", 503)
    with pytest.raises(AttributeError, match=r"'headers' cannot be asked of <SecretStr>.*Keep the text"):
        replayed.response.headers


def test_an_argument_without_a_plain_form_changes_neither_the_others_nor_the_message() -> None:
    error = ValueError("bad thing", object)
    replayed = again(error)
    assert (replayed.args[0], str(replayed)) == ("bad thing", str(error))
    assert str(again(KeyError(object))) == str(KeyError(object))
    assert str(again(ValueError(object))) == str(object)


def test_a_value_that_contains_itself_or_is_too_large_is_not_recorded() -> None:
    endless: list[object] = []
    endless.append(endless)
    error = ValueError("x")
    error.endless, error.many, error.wide = endless, [endless] * 100, list(range(100_000))  # type: ignore[attr-defined]
    error.me = error  # type: ignore[attr-defined]
    assert len(encode_error(error, with_traceback=False)) < 10_000
    replayed: Any = again(error)
    assert {type(value) for value in (replayed.endless, replayed.many, replayed.wide)} == {NotRecorded}


def test_an_enum_that_is_gone_comes_back_as_its_value(monkeypatch: pytest.MonkeyPatch) -> None:
    recorded = json.loads(encode_error(ValueError(Level.HIGH)))
    monkeypatch.delattr(sys.modules[__name__], "Level")
    assert decode_error(recorded).args == ((1, "high"),)


def test_a_tag_of_a_newer_version_is_not_taken_for_a_value() -> None:
    recorded = json.loads(encode_error(ValueError("x"))) | {"args": [{"$new": 1}]}
    assert isinstance(decode_error(recorded).args[0], NotRecorded)


def test_a_record_of_release_0_1_0_is_read_as_that_release_read_it() -> None:
    recorded = {
        "type": "builtins:KeyError",
        "message": "m",
        "args": [["a", 1], "x"],
        "attributes": {"code": [1], "d": {"$set": [1]}},
    }
    replayed = decode_error(recorded)
    assert (replayed.args, vars(replayed)) == ((("a", 1), "x"), {"code": [1], "d": {"$set": [1]}})


# Classes that keep something outside of their ``__dict__``.


class Parcel(BaseModel):
    weight: int
    items: list[int]


def raised_by(call: str) -> BaseException:
    try:
        eval(call, {"Parcel": Parcel})
    except BaseException as error:
        return error
    raise AssertionError(call)


@pytest.mark.parametrize(
    "call",
    [
        "b'\\xff'.decode()",
        "'\\ud800'.encode()",
        "compile('a b', 'x', 'exec')",
        "open('/nope')",
        "__import__('no.such')",
        "None.x",
        "nope",
    ],
)
def test_an_exception_of_python_comes_back_with_all_that_it_tells(call: str) -> None:
    error = raised_by(call)
    replayed = again(error)
    told = [
        name
        for name in ("errno", "filename", "object", "start", "reason", "lineno", "text", "msg", "name")
        if hasattr(error, name)
    ]
    assert told
    assert [getattr(replayed, name) for name in told] == [getattr(error, name) for name in told]
    assert (type(replayed), str(replayed)) == (type(error), str(error))


def test_a_coding_error_in_a_long_text_still_tells_the_place() -> None:
    replayed = again(raised_by("(b'a' * 30_000 + b'\\xff').decode()"))
    assert isinstance(replayed, UnicodeDecodeError)
    assert (replayed.start, replayed.reason) == (30_000, "invalid start byte")


def test_a_validation_error_of_pydantic_comes_back_with_its_problems() -> None:
    error = raised_by("Parcel(weight='heavy', items=[1, object()])")
    replayed = again(error)
    assert isinstance(error, ValidationError)
    assert isinstance(replayed, ValidationError)
    assert (replayed.title, replayed.error_count()) == ("Parcel", 2)
    problem, its_copy = error.errors(include_url=False)[0], replayed.errors(include_url=False)[0]
    assert its_copy == problem
    assert str(again(replayed)) == str(replayed)


def test_tuples_among_the_arguments_come_back_as_tuples() -> None:
    assert again(KeyError(("a", 1))).args == (("a", 1),)


def test_an_attribute_that_became_read_only_does_not_hide_the_error() -> None:
    recorded = json.loads(encode_error(ReadOnly("x"))) | {"attributes": {"answer": 1, "other": 2}}
    replayed = decode_error(recorded)
    assert isinstance(replayed, ReadOnly)
    assert (replayed.answer, vars(replayed)) == (42, {"other": 2})


# The cause.


def test_the_cause_comes_back_with_its_type_and_its_own_cause() -> None:
    error = RuntimeError("outer")
    error.__cause__ = ValueError("middle")
    error.__cause__.__cause__ = KeyError("inner")
    replayed = again(error)
    assert isinstance(replayed.__cause__, ValueError)
    assert isinstance(replayed.__cause__.__cause__, KeyError)
    assert replayed.__cause__.__cause__.__cause__ is None


def test_an_endless_chain_of_causes_is_cut() -> None:
    error: BaseException = ValueError("0")
    for number in range(1, 50):
        outer = ValueError(str(number))
        outer.__cause__ = error
        error = outer
    replayed: BaseException | None = again(error)
    depth = 0
    while replayed is not None:
        depth, replayed = depth + 1, replayed.__cause__
    assert depth == 6


def test_a_chain_that_contains_itself_is_cut() -> None:
    error = ValueError("me")
    error.__cause__ = error
    assert isinstance(again(error).__cause__, ValueError)


# Classes that cannot be imported.


def test_a_class_declared_in_a_function_is_replaced_by_its_nearest_ancestor() -> None:
    class Local(CardRefused):
        pass

    replayed = again(Local("4242", amount=7))
    assert (type(replayed), str(replayed)) == (CardRefused, "card 4242 refused 7")


def test_a_local_class_is_replaced_live_too_so_that_except_catches_the_same() -> None:
    class Local(ValueError):
        pass

    live = as_replayed(Local("x"))
    assert (type(live), str(live)) == (ValueError, "x")
    assert "Local" in live.__notes__[0]
    assert vars(again(live)) == vars(live)


def test_live_an_error_has_lost_what_it_will_have_lost_on_replay_and_keeps_its_traceback() -> None:
    try:
        try:
            raise KeyError("first")
        except KeyError as first:
            raise CardRefused("4242", amount=7) from first
    except CardRefused as error:
        error.response = object()  # type: ignore[attr-defined]
        live: Any = as_replayed(error)
    assert (type(live), live.amount, type(live.response)) == (CardRefused, 7, NotRecorded)
    shown = "".join(traceback.format_exception(live))
    assert shown.count("in test_live_an_error_has_lost") == 2
    assert "KeyError: 'first'" in shown


def test_an_error_raised_while_another_was_handled_shows_that_one_to_people() -> None:
    error = ValueError("second")
    error.__context__ = KeyError("first")
    assert "KeyError: 'first'" in "".join(traceback.format_exception(as_replayed(error)))


def test_notes_come_back() -> None:
    error = ValueError("x")
    error.add_note("of order 7")
    assert again(error).__notes__ == ["of order 7"]


def test_a_class_that_cannot_be_made_comes_back_as_its_nearest_ancestor_that_can(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recorded = json.loads(encode_error(raised_by("Parcel(weight='heavy', items=[])"))) | {
        "validation": {},
        "args": ["m"],
    }
    assert repr(decode_error(recorded)) == "ValueError('m')"


def test_a_local_exception_straight_from_exception_is_an_exception() -> None:
    class Local(Exception):
        pass

    assert isinstance(again(Local("x")), Exception)
    assert str(again(Local("x"))).endswith("x")
    assert type(as_replayed(Local("x"))) is type(again(Local("x")))


def _module_with_errors(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    module = types.ModuleType("shop_errors")
    exec(
        "class ShopError(LookupError): pass\nclass SoldOut(ShopError): pass\nclass Odd(Exception): pass",
        module.__dict__,
    )
    monkeypatch.setitem(sys.modules, "shop_errors", module)
    return module


def test_a_class_that_no_longer_exists_comes_back_as_its_nearest_ancestor(monkeypatch: pytest.MonkeyPatch) -> None:
    module = _module_with_errors(monkeypatch)
    recorded = json.loads(encode_error(module.SoldOut("A1")))
    del module.SoldOut
    assert type(decode_error(recorded)) is module.ShopError


def test_a_class_whose_module_no_longer_exists_comes_back_as_its_builtin_ancestor(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    module = _module_with_errors(monkeypatch)
    recorded = json.loads(encode_error(module.SoldOut("A1")))
    monkeypatch.delitem(sys.modules, "shop_errors")
    replayed = decode_error(recorded)
    assert (type(replayed), replayed.args) == (LookupError, ("A1",))


def test_an_exception_none_of_whose_classes_exist_is_named_in_what_stands_for_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    module = _module_with_errors(monkeypatch)
    recorded = json.loads(encode_error(module.Odd("what")))
    monkeypatch.delitem(sys.modules, "shop_errors")
    replayed = decode_error(recorded)
    assert (type(replayed), str(replayed)) == (UnknownOriginalError, "Odd: what")


def test_a_name_that_is_no_longer_an_exception_is_not_made(monkeypatch: pytest.MonkeyPatch) -> None:
    module = _module_with_errors(monkeypatch)
    recorded = json.loads(encode_error(module.Odd("what")))
    module.Odd = print  # type: ignore[attr-defined]
    assert type(decode_error(recorded)) is UnknownOriginalError


def test_a_module_that_raises_when_imported_does_not_hide_the_error() -> None:
    recorded = json.loads(encode_error(ValueError("x"))) | {"type": "this.is.not:A", "bases": ["builtins:ValueError"]}
    assert type(decode_error(recorded)) is ValueError


@pytest.mark.parametrize("recorded", [{}, {"type": ""}, {"type": ":"}, {"type": "builtins:print", "message": "x"}])
def test_a_record_that_names_nothing_still_comes_back_as_an_error(recorded: dict[str, str]) -> None:
    assert isinstance(decode_error(recorded), UnknownOriginalError)


# Messages.


@pytest.mark.parametrize("message", ["a\0b", "a\ud800b", "\0\udfff"])
def test_a_message_that_a_database_refuses_is_escaped(message: str) -> None:
    assert refused_strings(json.loads(encode_error(ValueError(message)))) == []
    assert type(again(ValueError(message))) is ValueError


def test_a_key_among_the_attributes_that_a_database_refuses_is_not_stored() -> None:
    error = ValueError("ok")
    error.__dict__["a\0b"] = 1
    error.__dict__["\ud800"] = 2
    assert refused_strings(json.loads(encode_error(error))) == []


def test_an_endless_message_is_cut() -> None:
    replayed = again(ValueError("x" * 1_000_000))
    assert len(str(replayed)) == MAX_MESSAGE
    assert str(replayed).endswith("x…")


def test_an_exception_whose_str_raises_is_described_all_the_same() -> None:
    assert describe(Wordless()) == ("Wordless", "<Wordless without a readable message>")
    assert type(again(Wordless("x"))) is Wordless


def test_an_integer_beyond_64_bits_among_the_arguments_survives() -> None:
    assert again(ValueError(2**80)).args == (2**80,)


def test_clean_leaves_ordinary_text_alone() -> None:
    assert clean("snö 🦊\n") == "snö 🦊\n"


def test_a_traceback_is_kept_for_people_and_left_out_on_demand() -> None:
    try:
        raise ValueError("here")
    except ValueError as error:
        kept, left_out = json.loads(encode_error(error)), json.loads(encode_error(error, with_traceback=False))
    assert "test_a_traceback_is_kept_for_people" in kept["traceback"]
    assert "traceback" not in left_out


# Groups.


def test_an_exception_group_comes_back_with_its_parts() -> None:
    group = ExceptionGroup("several", [ValueError("a"), ExceptionGroup("inner", [KeyError("b")])])
    replayed = again(group)
    assert type(replayed) is ExceptionGroup
    assert replayed.message == "several"
    assert [type(part) for part in replayed.exceptions] == [ValueError, ExceptionGroup]
    matched, _rest = replayed.split(KeyError)
    assert matched is not None


def test_except_star_catches_a_replayed_group() -> None:
    caught: list[object] = []
    try:
        raise again(ExceptionGroup("several", [ValueError("a"), OSError(2, "b")]))
    except* OSError as found:
        caught += [error.args for error in found.exceptions]
    except* ValueError as found:
        caught += [error.args for error in found.exceptions]
    assert caught == [(2, "b"), ("a",)]


def test_a_group_of_local_classes_comes_back_as_a_group_of_ancestors() -> None:
    class Local(ValueError):
        pass

    group = ExceptionGroup("several", [Local("a")])
    live, replayed = as_replayed(group), again(group)
    assert isinstance(replayed, ExceptionGroup)
    assert isinstance(live, ExceptionGroup)
    assert [type(part) for part in replayed.exceptions] == [ValueError]
    assert [type(part) for part in live.exceptions] == [ValueError]


def test_a_base_exception_group_comes_back_as_one() -> None:
    replayed = again(BaseExceptionGroup("stop", [KeyboardInterrupt()]))
    assert type(replayed) is BaseExceptionGroup
    assert [type(part) for part in replayed.exceptions] == [KeyboardInterrupt]
