"""Laws of the codec over generated values: what goes in comes back, or is refused by name."""

from __future__ import annotations

import dataclasses
import enum
import json
import math
import uuid
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from edda_engine.core.codec import codec_for, parse
from edda_engine.core.events import event_json
from edda_engine.core.failures import as_replayed, decode_error, encode_error
from edda_engine.errors import PayloadError

storable_text = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20)
any_text = st.text(st.characters(), max_size=10) | st.sampled_from(["\0", "\ud800", "a\0b", "NaN", "\\u0000"])
integers = st.integers() | st.integers(-(2**200), 2**200)
finite = st.floats(allow_nan=False, allow_infinity=False)

json_values = st.recursive(
    st.none() | st.booleans() | integers | finite | storable_text,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(storable_text, inner, max_size=4),
    max_leaves=25,
)


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


@dataclasses.dataclass(frozen=True)
class Point:
    x: int
    blob: bytes
    when: datetime | None = None


@dataclasses.dataclass(frozen=True)
class Place:
    x: int
    when: datetime | None = None


class Item(BaseModel):
    sku: str
    price: Decimal
    tags: frozenset[str] = frozenset()
    places: list[Place] = []

    __hash__ = object.__hash__


moments = st.datetimes(datetime(1900, 1, 1), datetime(2200, 1, 1), timezones=st.just(UTC))
prices = st.decimals(allow_nan=False, allow_infinity=False, places=2, min_value=-(10**9), max_value=10**9)
points = st.builds(Point, st.integers(), st.binary(max_size=10), st.none() | moments)
items = st.builds(
    Item,
    sku=storable_text,
    price=prices,
    tags=st.frozensets(storable_text, max_size=3),
    places=st.lists(st.builds(Place, st.integers(), st.none() | moments), max_size=2),
)

Typed = tuple[Any, st.SearchStrategy[Any]]

leaves: list[Typed] = [
    (int, integers),
    (float, st.floats(allow_nan=False)),
    (str, storable_text),
    (bool, st.booleans()),
    (bytes, st.binary(max_size=20)),
    (Decimal, prices),
    (uuid.UUID, st.uuids()),
    (datetime, moments),
    (date, st.dates()),
    (timedelta, st.timedeltas(timedelta(days=-1000), timedelta(days=1000))),
    (Colour, st.sampled_from(Colour)),
    (Point, points),
    (Item, items),
]
hashable_leaves = [pair for pair in leaves if pair[0] not in (Item,)]
key_leaves = [pair for pair in leaves if pair[0] in (int, str, uuid.UUID, Colour)]


@st.composite
def typed_values(draw: st.DrawFn, depth: int = 2) -> tuple[Any, Any]:
    """An annotation and a value that fits it."""
    annotation, values = draw(_typed(depth))
    return annotation, draw(values)


def _typed(depth: int) -> st.SearchStrategy[Typed]:
    leaf = st.sampled_from(leaves)
    if depth == 0:
        return leaf
    inner = _typed(depth - 1)
    return st.one_of(
        leaf,
        inner.map(lambda pair: (list[pair[0]], st.lists(pair[1], max_size=3))),  # type: ignore[name-defined]
        inner.map(lambda pair: (pair[0] | None, st.none() | pair[1])),
        inner.map(lambda pair: (tuple[pair[0], ...], st.lists(pair[1], max_size=3).map(tuple))),  # type: ignore[name-defined]
        st.tuples(inner, inner).map(
            lambda two: (tuple[two[0][0], two[1][0]], st.tuples(two[0][1], two[1][1]))  # type: ignore[name-defined]
        ),
        st.sampled_from(hashable_leaves).map(
            lambda pair: (set[pair[0]], st.sets(pair[1], max_size=3))  # type: ignore[name-defined]
        ),
        st.tuples(st.sampled_from(key_leaves), inner).map(
            lambda two: (dict[two[0][0], two[1][0]], st.dictionaries(two[0][1], two[1][1], max_size=3))  # type: ignore[name-defined]
        ),
    )


def types_in(value: Any) -> Any:
    """The types of everything inside, for comparing more than equality does (1 == True == 1.0)."""
    if isinstance(value, dict):
        return dict, sorted((repr(types_in(key)), repr(types_in(inner))) for key, inner in value.items())
    if isinstance(value, (set, frozenset)):
        return type(value), sorted(repr(types_in(inner)) for inner in value)
    if isinstance(value, (list, tuple)):
        return type(value), [types_in(inner) for inner in value]
    return type(value)


def is_storable(text: str) -> bool:
    """Whether both databases take this JSON text, and hand it back as it was."""

    def strings(value: Any) -> list[str]:
        match value:
            case str():
                return [value]
            case list():
                return [found for inner in value for found in strings(inner)]
            case dict():
                return [found for pair in value.items() for inner in pair for found in strings(inner)]
        return []

    text.encode()
    parsed = json.loads(text, parse_constant=lambda word: "\0")
    return all("\0" not in found and found.encode("utf-8", "replace").decode() == found for found in strings(parsed))


@given(json_values)
def test_every_json_value_comes_back_equal_and_of_the_same_types(value: Any) -> None:
    text, live = codec_for(Any).round_trip(value, owner="o")
    replayed = codec_for(Any).decode_parsed(parse(text), owner="o")
    assert live == value
    assert replayed == value
    assert types_in(live) == types_in(value) == types_in(replayed)
    assert is_storable(text)


@given(value=st.none() | st.booleans() | integers | any_text | st.text(st.characters(max_codepoint=127)))
def test_a_value_that_is_not_asked_about_is_written_as_pydantic_writes_it(value: Any) -> None:
    for annotation in (type(value), Any, object):
        try:
            (inside,) = [codec_for(tuple[annotation]).round_trip((value,), owner="test")[0]]
        except PayloadError:
            with pytest.raises(PayloadError):
                codec_for(annotation).round_trip(value, owner="test")
        else:
            text, restored = codec_for(annotation).round_trip(value, owner="test")
            assert f"[{text}]" == inside
            assert type(restored) is type(value)
            assert restored == value
            assert codec_for(annotation).encode(value, owner="test") == text


@given(json_values)
def test_encoding_what_came_back_gives_the_same_text(value: Any) -> None:
    text, live = codec_for(Any).round_trip(value, owner="o")
    assert codec_for(Any).encode(live, owner="o") == text


@given(typed_values())
def test_every_typed_value_comes_back_equal_and_of_the_same_types(pair: tuple[Any, Any]) -> None:
    annotation, value = pair
    text, live = codec_for(annotation).round_trip(value, owner="o")
    replayed = codec_for(annotation).decode_parsed(parse(text), owner="o")
    assert live == value
    assert replayed == value
    assert types_in(live) == types_in(value) == types_in(replayed)
    assert is_storable(text)


@given(typed_values())
def test_a_value_that_came_back_comes_back_again(pair: tuple[Any, Any]) -> None:
    annotation, value = pair
    _, once = codec_for(annotation).round_trip(value, owner="o")
    _, twice = codec_for(annotation).round_trip(once, owner="o")
    assert (twice, types_in(twice)) == (once, types_in(once))


anything = st.recursive(
    st.none() | st.booleans() | integers | st.floats() | any_text | st.binary(max_size=4) | st.builds(object) | items,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner, inner)
        | st.dictionaries(any_text | st.integers() | st.booleans() | st.none(), inner, max_size=3)
    ),
    max_leaves=12,
)


@given(anything)
def test_anything_is_either_stored_so_that_live_and_replay_agree_or_refused_with_a_path(value: Any) -> None:
    codec = codec_for(Any)
    refused: PayloadError | None = None
    try:
        text, live = codec.round_trip(value, owner="activity 'a'")
    except PayloadError as error:
        refused = error
    if refused is not None:
        assert refused.owner == "activity 'a'"
        assert refused.path.startswith("$")
        return
    assert is_storable(text)
    replayed = codec.decode_parsed(parse(text), owner="o")
    assert replayed == live
    assert types_in(replayed) == types_in(live)


@given(st.dictionaries(storable_text, json_values, max_size=3), json_values, storable_text)
def test_an_event_says_what_was_put_into_it(arguments: dict[str, Any], result: Any, name: str) -> None:
    codec = codec_for(Any)
    text = event_json(
        name,
        input_json=codec.encode(arguments, owner="o"),
        result_json=codec.encode(result, owner="o"),
        retry_metadata={"total_attempts": 2},
    )
    assert parse(text) == {
        "activity_name": name,
        "input": arguments,
        "result": result,
        "retry_metadata": {"total_attempts": 2},
    }


raised = st.builds(
    lambda kind, arguments, attributes: with_attributes(kind(*arguments), attributes),
    st.sampled_from([ValueError, KeyError, OSError, RuntimeError, PermissionError, TimeoutError, Exception]),
    st.lists(anything, max_size=4),
    st.dictionaries(st.from_regex(r"[a-z_]{1,8}", fullmatch=True), anything, max_size=3),
)

carried = st.recursive(
    st.none()
    | st.booleans()
    | integers
    | st.floats(allow_nan=False)
    | any_text
    | st.binary(max_size=4)
    | prices
    | moments
    | st.dates()
    | st.timedeltas()
    | st.uuids()
    | st.sampled_from(Colour),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(any_text | st.sampled_from(["$set", "$dict"]) | st.integers() | st.none(), inner, max_size=3)
        | st.frozensets(st.integers() | any_text, max_size=3)
    ),
    max_leaves=12,
)


def with_attributes(error: Exception, attributes: dict[str, Any]) -> Exception:
    error.__dict__.update(attributes)
    return error


@given(raised)
def test_any_exception_can_be_recorded_and_is_live_what_it_is_on_replay(error: Exception) -> None:
    live = as_replayed(error)
    text = encode_error(live)
    replayed = decode_error(json.loads(text))
    assert is_storable(text)
    assert type(replayed) is type(live) is type(error)
    assert str(replayed) == str(live)
    assert repr((replayed.args, vars(replayed))) == repr((live.args, vars(live)))


@given(
    st.lists(carried, max_size=4), st.dictionaries(st.from_regex(r"[a-z]{1,8}", fullmatch=True), carried, max_size=3)
)
def test_plain_values_in_an_exception_come_back_as_they_were(arguments: list[Any], attributes: dict[str, Any]) -> None:
    error = with_attributes(ValueError(*arguments), attributes)
    live = as_replayed(error)
    replayed = decode_error(json.loads(encode_error(live)))
    for found in (live, replayed):
        assert (found.args, vars(found)) == (error.args, vars(error))
        assert types_in([found.args, vars(found)]) == types_in([error.args, vars(error)])


@given(st.floats())
def test_every_float_comes_back_where_a_float_is_annotated(value: float) -> None:
    _, restored = codec_for(float).round_trip(value, owner="o")
    assert restored == value or (math.isnan(restored) and math.isnan(value))
    assert math.copysign(1, restored) == math.copysign(1, value) or math.isnan(value)
