"""Values to JSON and back by annotation, and what is refused with the path to it."""

from __future__ import annotations

import asyncio
import dataclasses
import enum
import json
import typing
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from typing import Annotated, Any, Literal, NamedTuple, NotRequired, Optional, TypedDict

import pytest
import typing_extensions
from pydantic import BaseModel, Field
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from edda_engine.core.codec import codec_for, hints_of, parse
from edda_engine.errors import ConfigurationError, PayloadError


class Item(BaseModel):
    sku: str
    price: Decimal
    tags: set[str] = set()


class Basket(BaseModel):
    items: list[Item]
    by_name: dict[str, Item]
    note: str | None = None


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Size(enum.IntEnum):
    SMALL = 1
    LARGE = 2


class Word(enum.StrEnum):
    YES = "yes"


@dataclasses.dataclass
class Point:
    x: int
    y: float
    blob: bytes = b""


@dataclasses.dataclass(frozen=True)
class Line:
    start: Point
    end: Point
    label: str | None = None


class Movement(TypedDict):
    sku: str
    count: int
    when: NotRequired[datetime]


class ExtensionMovement(typing_extensions.TypedDict):
    sku: str
    item: Item


class Pair(NamedTuple):
    left: int
    right: UUIDAlias


UUIDAlias = uuid.UUID
Nested = dict[str, list[tuple[int, Point]]]

ITEM = Item(sku="A1", price=Decimal("19.90"), tags={"new", "red"})
BASKET = Basket(items=[ITEM], by_name={"first": ITEM})
NOON = datetime(2026, 3, 1, 12, 30, 15, 123456, tzinfo=UTC)
ID = uuid.UUID("6f1d4f9c-5a3a-4b8e-9a55-0b1f6a0c7e11")

VALUES: list[tuple[Any, Any]] = [
    (Any, {"a": [1, 2.5, "x", None, True]}),
    (None, None),
    (int, 7),
    (int, 2**70),
    (int, -(2**200)),
    (float, 0.1),
    (float, 1e308),
    (float, float("inf")),
    (bool, True),
    (str, "snö 🦊 \u2028 \x01"),
    (dict, {"a": 1}),
    (list, [1, "a"]),
    (Item, ITEM),
    (Basket, BASKET),
    (list[Item], [ITEM, ITEM]),
    (list[list[Item]], [[ITEM], []]),
    (dict[str, Item], {"a": ITEM}),
    (dict[str, list[Basket]], {"a": [BASKET]}),
    (dict[int, str], {1: "a", -2: "b"}),
    (dict[uuid.UUID, Item], {ID: ITEM}),
    (Item | None, ITEM),
    (Item | None, None),
    (Optional[list[Item]], [ITEM]),  # noqa: UP045 (users write it)
    (int | str, "7"),
    (int | str, 7),
    (datetime, NOON),
    (datetime, NOON.astimezone(timezone(timedelta(hours=5, minutes=30)))),
    (datetime, NOON.replace(tzinfo=None)),
    (date, date(2026, 2, 28)),
    (time, time(23, 59, 1)),
    (timedelta, timedelta(days=3, microseconds=5)),
    (Decimal, Decimal("0.10")),
    (Decimal, Decimal("12345678901234567890.123456789")),
    (uuid.UUID, ID),
    (bytes, b"\x00\xff\xfeplain"),
    (tuple[int, str, Decimal], (1, "a", Decimal("2.50"))),
    (tuple[int, ...], (1, 2, 3)),
    (tuple[()], ()),
    (set[int], {3, 1}),
    (frozenset[str], frozenset({"a"})),
    (set[tuple[int, str]], {(1, "a")}),
    (Colour, Colour.BLUE),
    (Size, Size.LARGE),
    (Word, Word.YES),
    (dict[Colour, int], {Colour.RED: 1}),
    (list[Colour], [Colour.RED]),
    (Point, Point(1, 2.5, b"\xff\x00")),
    (Line, Line(Point(1, 2.0), Point(3, 4.0), "l")),
    (list[Point], [Point(1, 2.0)]),
    (Nested, {"a": [(1, Point(1, 1.0))]}),
    (Movement, {"sku": "A1", "count": 2}),
    (Movement, {"sku": "A1", "count": 2, "when": NOON}),
    (list[Movement], [{"sku": "A1", "count": 2}]),
    (Optional[Movement], {"sku": "A1", "count": 2}),  # noqa: UP045
    (dict[str, Movement], {"m": {"sku": "A1", "count": 2}}),
    (ExtensionMovement, {"sku": "A1", "item": ITEM}),
    (Pair, Pair(1, ID)),
    (Literal["a", "b"], "b"),
    (Annotated[int, Field(gt=0)], 4),
    (Annotated[list[Item], "unhashable", []], [ITEM]),
]


@pytest.mark.parametrize(
    ("annotation", "value"), VALUES, ids=[f"{number}-{str(pair[0])[:40]}" for number, pair in enumerate(VALUES)]
)
def test_a_value_comes_back_equal_and_of_the_same_type(annotation: Any, value: Any) -> None:
    codec = codec_for(annotation)
    text, live = codec.round_trip(value, owner="activity 'a'")
    replayed = codec.decode_parsed(parse(text), owner="activity 'a'")
    assert json.loads(text) is not Ellipsis
    assert (live, type(live)) == (value, type(value))
    assert (replayed, type(replayed)) == (value, type(value))


def test_the_items_of_a_restored_list_are_models() -> None:
    _, restored = codec_for(list[Item]).round_trip([ITEM], owner="o")
    assert [type(item) for item in restored] == [Item]


def test_the_values_of_a_restored_dict_are_models_with_their_own_types_restored() -> None:
    _, restored = codec_for(dict[str, Basket]).round_trip({"b": BASKET}, owner="o")
    assert type(restored["b"].by_name["first"].price) is Decimal
    assert type(restored["b"].items[0].tags) is set


def test_fields_of_a_restored_typed_dict_have_their_types() -> None:
    _, restored = codec_for(Movement).round_trip({"sku": "A1", "count": 2, "when": NOON}, owner="o")
    assert type(restored["when"]) is datetime


def test_a_decimal_keeps_its_trailing_zeros() -> None:
    _, restored = codec_for(Decimal).round_trip(Decimal("19.90"), owner="o")
    assert str(restored) == "19.90"


def test_an_aware_datetime_keeps_its_instant_and_its_offset() -> None:
    moment = NOON.astimezone(timezone(timedelta(hours=-3)))
    _, restored = codec_for(datetime).round_trip(moment, owner="o")
    assert (restored, restored.utcoffset()) == (moment, timedelta(hours=-3))


def test_a_value_given_as_plain_data_becomes_the_annotated_type() -> None:
    _, restored = codec_for(Item).round_trip({"sku": "A1", "price": "19.90"}, owner="o")
    assert restored == Item(sku="A1", price=Decimal("19.90"))


def test_the_order_of_keys_is_kept() -> None:
    text, restored = codec_for(dict).round_trip({"z": 1, "a": 2, "m": 3}, owner="o")
    assert (text, list(restored)) == ('{"z":1,"a":2,"m":3}', ["z", "a", "m"])


def test_a_tuple_without_annotation_is_a_list_live_as_on_replay() -> None:
    text, live = codec_for(Any).round_trip((1, 2), owner="o")
    assert (live, parse(text)) == ([1, 2], [1, 2])


def test_a_missing_annotation_means_any_value() -> None:
    import inspect

    assert codec_for(inspect.Parameter.empty).annotation is Any


def test_a_model_where_nothing_is_annotated_is_plain_data_live_as_on_replay() -> None:
    text, live = codec_for(Any).round_trip(ITEM.model_copy(update={"tags": set()}), owner="o")
    assert live == parse(text) == {"sku": "A1", "price": "19.90", "tags": []}


def test_two_codecs_of_one_annotation_are_one() -> None:
    assert codec_for(list[Item]) is codec_for(list[Item])


def test_an_annotation_without_a_json_form_is_refused_when_it_is_declared() -> None:
    class Socket:
        pass

    with pytest.raises(ConfigurationError, match=r"Socket.*names no type that can be stored as JSON"):
        codec_for(Socket)


# What cannot be stored.


class Base(DeclarativeBase):
    pass


class Order(Base):
    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True)


def _generator() -> Iterator[int]:
    yield 1


def _deep(depth: int) -> Any:
    value: Any = "bottom"
    for _ in range(depth):
        value = [value]
    return value


def _itself() -> Any:
    value: list[Any] = []
    value.append(value)
    return value


def _itself_in_a_dict() -> Any:
    value: dict[str, Any] = {}
    value["me"] = value
    return {"a": value}


class Explosive(BaseModel):
    name: str

    def __eq__(self, other: object) -> bool:
        raise RuntimeError("never compare me")

    __hash__ = None  # type: ignore[assignment]


REFUSED: list[tuple[str, Any, Callable[[], Any], str, str]] = [
    ("nul", Any, lambda: {"a": ["x", "b\0d"]}, "$['a'][1]", "NUL character"),
    ("nul_in_str", str, lambda: "\0", "$", "NUL character"),
    ("nul_in_key", Any, lambda: {"a": {"k\0": 1}}, "$['a']", "key with a NUL character"),
    ("nul_in_model", Item, lambda: Item(sku="a\0", price=Decimal(1)), "$.sku", "NUL character"),
    ("nul_in_dataclass", Line, lambda: Line(Point(1, 1), Point(1, 1), "\0"), "$.label", "NUL character"),
    ("lone_surrogate", Any, lambda: {"a": ["ok", "\ud800"]}, "$['a'][1]", "lone surrogate"),
    ("lone_surrogate_in_str", str, lambda: "a\udfff", "$", "lone surrogate"),
    ("lone_surrogate_in_key", Any, lambda: {"a": {"\ud800": 1}}, "$['a']", "key with a lone surrogate"),
    ("lone_surrogate_in_model", Basket, lambda: BASKET.model_copy(update={"note": "\ud800"}), "$.note", "surrogate"),
    ("nan_in_any", Any, lambda: {"a": [1.0, float("nan")]}, "$['a'][1]", "is nan, which JSON has no form for"),
    ("infinity_in_any", Any, lambda: [float("inf")], "$[0]", "is inf, which JSON has no form for"),
    ("minus_infinity", dict, lambda: {"a": float("-inf")}, "$['a']", "is -inf"),
    ("integer_keys", Any, lambda: {"a": {1: "x"}}, "$['a']", "the key 1, a int, which JSON turns into a string"),
    ("integer_keys_in_dict", dict, lambda: {1: "x"}, "$", "the key 1, a int"),
    ("none_key", Any, lambda: {None: 1}, "$", "the key None"),
    ("bool_key", Any, lambda: {True: 1}, "$", "the key True"),
    ("tuple_key", Any, lambda: {(1, 2): 1}, "$", "the key (1, 2)"),
    ("orm_object", Any, lambda: {"order": Order(id=1)}, "$['order']", "is a Order, which has no JSON form"),
    ("orm_object_in_list", list, lambda: [1, Order(id=1)], "$[1]", "is a Order"),
    ("plain_object", Any, lambda: [object()], "$[0]", "is a object"),
    ("function", Any, lambda: {"f": print}, "$['f']", "which has no JSON form"),
    ("generator", Any, _generator, "$", "is a generator"),
    ("generator_for_list", list[int], _generator, "$", "is a generator"),
    ("generator_inside", Any, lambda: {"rows": _generator()}, "$['rows']", "is a generator"),
    ("itself", Any, _itself, "$[0]", "nested too deeply or contains itself"),
    ("itself_in_a_dict", Any, _itself_in_a_dict, "$['a']", "nested too deeply or contains itself"),
    ("very_deep", Any, lambda: _deep(50_000), "$", "nested too deeply or contains itself"),
    ("wrong_type", int, lambda: "seven", "$", "does not fit its annotation"),
    ("wrong_field", Basket, lambda: {"items": [{"sku": "a", "price": "x"}], "by_name": {}}, "$.items[0].price", "fit"),
    ("wrong_literal", Literal["a"], lambda: "c", "$", "does not fit its annotation"),
    ("none_for_a_model", Item, lambda: None, "$", "does not fit its annotation"),
    ("constraint", Annotated[int, Field(gt=0)], lambda: -1, "$", "greater than 0"),
]


@pytest.mark.parametrize(
    ("annotation", "make", "path", "problem"), [case[1:] for case in REFUSED], ids=[case[0] for case in REFUSED]
)
def test_a_value_that_cannot_be_stored_is_refused_with_its_owner_and_its_path(
    annotation: Any, make: Callable[[], Any], path: str, problem: str
) -> None:
    with pytest.raises(PayloadError) as caught:
        codec_for(annotation).round_trip(make(), owner="activity 'a' (a:1)")
    assert problem in caught.value.problem
    assert caught.value.owner == "activity 'a' (a:1)"
    assert caught.value.path.startswith(path)
    assert "activity 'a' (a:1): the value at $" in str(caught.value)
    assert caught.value.path == path or "nested too deeply" in problem


def test_a_coroutine_is_refused_with_the_advice_to_await_it() -> None:
    async def fetch() -> int:
        return 1

    forgotten = fetch()
    try:
        with pytest.raises(PayloadError, match="at \\$ is a coroutine; await it"):
            codec_for(Any).round_trip(forgotten, owner="o")
    finally:
        forgotten.close()


def test_a_coroutine_inside_a_list_is_refused_with_its_place() -> None:
    async def fetch() -> int:
        return 1

    forgotten = fetch()
    try:
        with pytest.raises(PayloadError) as caught:
            codec_for(Any).round_trip([1, forgotten], owner="o")
        assert (caught.value.path, "coroutine" in caught.value.problem) == ("$[1]", True)
    finally:
        forgotten.close()


def test_an_async_generator_and_a_future_are_refused() -> None:
    async def rows() -> typing.AsyncIterator[int]:
        yield 1

    async def main() -> list[str]:
        problems = []
        for value in (rows(), asyncio.get_running_loop().create_future()):
            with pytest.raises(PayloadError) as caught:
                codec_for(Any).round_trip(value, owner="o")
            problems.append(caught.value.problem.split(";")[0])
        return problems

    assert asyncio.run(main()) == ["is a async_generator", "is a Future"]


def test_a_start_path_is_kept_in_front() -> None:
    with pytest.raises(PayloadError) as caught:
        codec_for(Any).round_trip({"a": object()}, owner="o", path="$.order")
    assert caught.value.path == "$.order['a']"


def test_nan_survives_where_a_float_is_annotated() -> None:
    _, restored = codec_for(list[float]).round_trip([float("nan"), float("-inf")], owner="o")
    assert restored[0] != restored[0]
    assert restored[1] == float("-inf")


def test_the_word_nan_in_a_string_is_only_a_word() -> None:
    assert codec_for(Any).round_trip(["NaN", "Infinity"], owner="o")[1] == ["NaN", "Infinity"]


def test_a_backslash_u0000_that_is_text_and_not_a_nul_passes() -> None:
    assert codec_for(str).round_trip("C:\\u0000", owner="o")[1] == "C:\\u0000"


def test_an_integer_beyond_64_bits_survives_without_annotation() -> None:
    text, live = codec_for(Any).round_trip({"n": 2**70}, owner="o")
    assert (live, parse(text)) == ({"n": 2**70}, {"n": 2**70})


def test_moderate_nesting_survives() -> None:
    assert codec_for(Any).round_trip(_deep(50), owner="o")[1] == _deep(50)


def test_a_model_that_refuses_to_be_compared_still_round_trips() -> None:
    _, restored = codec_for(Explosive).round_trip(Explosive(name="x"), owner="o")
    assert restored.name == "x"


def test_a_serializer_of_the_user_that_raises_is_a_payload_error_with_the_reason() -> None:
    from pydantic import field_serializer

    class Broken(BaseModel):
        name: str

        @field_serializer("name")
        def explode(self, name: str) -> str:
            raise RuntimeError("printer on fire")

    with pytest.raises(PayloadError, match="printer on fire"):
        codec_for(Broken).round_trip(Broken(name="x"), owner="o")


def test_a_recorded_value_that_no_longer_fits_its_annotation_names_the_path() -> None:
    with pytest.raises(PayloadError) as caught:
        codec_for(list[Item]).decode_parsed([{"sku": "a", "price": "1"}, {"sku": "b"}], owner="recorded result of 'a'")
    assert (caught.value.owner, caught.value.path) == ("recorded result of 'a'", "$[1].price")


# Annotations.


def test_annotations_that_are_strings_are_resolved() -> None:
    def function(ctx: Any, item: Item) -> list[Item]: ...  # type: ignore[empty-body]

    assert hints_of(function)["return"] == list[Item]


def test_a_model_declared_beside_the_function_is_found_in_its_closure() -> None:
    class Local(BaseModel):
        name: str

    def function(ctx: Any, local: Local) -> list[Local]:
        return [Local(name="x")]

    assert hints_of(function) == {"ctx": Any, "local": Local, "return": list[Local]}


def test_an_annotation_that_cannot_be_resolved_is_left_out_with_a_warning() -> None:
    def function(ctx: Any, item: OnlyForTypeCheckers, count: int) -> int:  # type: ignore[name-defined] # noqa: F821
        return count

    with pytest.warns(UserWarning, match="'OnlyForTypeCheckers' of 'item'.*cannot be resolved"):
        hints = hints_of(function)
    assert hints == {"ctx": Any, "count": int, "return": int}


@pytest.mark.parametrize("depth", range(190, 260, 4))
def test_what_is_encoded_as_an_argument_can_be_read_back_from_the_history_it_is_stored_in(depth: int) -> None:
    from edda_engine.core.events import event_json

    try:
        argument = codec_for(Any).encode(_deep(depth), owner="activity 'a' (a:1)", path="$.rows")
    except PayloadError:
        return  # refused before anything is stored: as good
    event = parse(event_json("a", input_json=f'{{"rows":{argument}}}', result_json="1"))
    assert event["input"]["rows"] == _deep(depth)


def test_a_generator_inside_an_argument_is_refused_and_not_used_up() -> None:
    rows = _generator()
    with pytest.raises(PayloadError):
        codec_for(Any).encode({"rows": rows}, owner="o")
    assert list(rows) == [1]


class Scan(BaseModel):
    name: str
    image: bytes


@pytest.mark.parametrize(("annotation", "wrap"), [(Scan, lambda scan: scan), (list[Scan], lambda scan: [scan])])
def test_bytes_that_are_no_text_in_a_field_of_a_model_come_back_or_are_refused_by_that_fields_path(
    annotation: Any, wrap: Callable[[Scan], Any]
) -> None:
    value = wrap(Scan(name="x", image=b"\xff\xd8\xff"))
    try:
        _, restored = codec_for(annotation).round_trip(value, owner="o")
    except PayloadError as error:
        refused = error
    else:
        assert restored == value
        return
    assert refused.path.endswith(".image")
    assert "base64" in refused.problem
