"""How two runs of a test are compared: rows without order, without what differs anyway, whatever their keys."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal

import pytest

from edda_engine.testing.rows import Rows, Table, differences, shown, unknown_columns, volatile_columns

PARCEL = Table(("id", "address"), key="id")
LINE = Table(("id", "parcel_id", "item"), key="id", references={"parcel_id": "parcel"})
PAYMENT = Table(("reference", "amount"))


def parcels(*parcels: tuple[str, str], lines: list[tuple[str, str, str]] | None = None) -> Rows:
    return Rows({"parcel": PARCEL, "line": LINE}, {"parcel": list(parcels), "line": lines or []})


def payments(*rows: tuple[str, str]) -> Rows:
    return Rows({"payment": PAYMENT}, {"payment": list(rows)})


def test_the_order_of_rows_does_not_matter() -> None:
    assert differences(payments(("a", "1"), ("b", "2")), payments(("b", "2"), ("a", "1")), leaving_out=()) == {}


def test_a_row_that_is_there_twice_differs_and_is_shown_with_how_often() -> None:
    found = differences(payments(("a", "1")), payments(("a", "1"), ("a", "1")), leaving_out=())
    assert found == {"payment": ["once without the crash, twice after it:  reference=a, amount=1"]}


def test_a_lost_row_and_a_changed_one_differ() -> None:
    found = differences(payments(("a", "1"), ("b", "2")), payments(("a", "3")), leaving_out=())
    assert [line.partition(":")[0] for line in found["payment"]] == [
        "once without the crash, not there after it",
        "once without the crash, not there after it",
        "not there without the crash, once after it",
    ]


def test_only_a_few_rows_of_many_are_shown() -> None:
    found = differences(payments(*((str(number), "1") for number in range(9))), payments(), leaving_out=())
    assert (len(found["payment"]), found["payment"][-1]) == (6, "and 4 more")


@pytest.mark.parametrize("left_out", ["amount", "payment.amount"])
def test_a_column_can_be_left_out_by_its_name_alone_or_with_its_table(left_out: str) -> None:
    assert differences(payments(("a", "1")), payments(("a", "2")), leaving_out={left_out}) == {}
    assert differences(payments(("a", "1")), payments(("b", "1")), leaving_out={left_out}) != {}


def test_columns_whose_values_differ_between_two_runs_are_volatile_and_others_are_not() -> None:
    first, second = payments(("a", "1"), ("b", "2")), payments(("b", "1"), ("a", "9"))
    assert volatile_columns(first, second) == {"payment.amount"}


def test_a_reference_whose_row_was_numbered_otherwise_is_not_volatile() -> None:
    first = parcels(("1", "Ada"), ("2", "Bo"), lines=[("1", "1", "tea")])
    assert volatile_columns(first, parcels(("1", "Bo"), ("2", "Ada"), lines=[("1", "2", "tea")])) == set()


def test_a_reference_to_another_row_each_time_is_volatile() -> None:
    first = parcels(("1", "Ada"), ("2", "Bo"), lines=[("1", "1", "tea")])
    assert volatile_columns(first, parcels(("1", "Ada"), ("2", "Bo"), lines=[("1", "2", "tea")])) == {"line.parcel_id"}


def test_a_reference_to_a_row_that_is_another_only_in_a_volatile_column_is_not_volatile() -> None:
    first = parcels(("1", "at nine"), lines=[("1", "1", "tea")])
    assert volatile_columns(first, parcels(("2", "at ten"), lines=[("1", "2", "tea")])) == {
        "parcel.id",
        "parcel.address",
    }


def test_a_table_with_more_rows_in_one_run_has_no_volatile_columns() -> None:
    assert volatile_columns(payments(("a", "1")), payments(("a", "1"), ("b", "2"))) == set()


def test_keys_that_were_numbered_otherwise_make_no_difference_and_references_follow_them() -> None:
    lines = [("1", "1", "tea"), ("2", "2", "cup")]
    gaps = [("4", "7", "cup"), ("6", "5", "tea")]
    expected = parcels(("1", "Ada"), ("2", "Bo"), lines=lines)
    assert differences(expected, parcels(("5", "Ada"), ("7", "Bo"), lines=gaps), leaving_out=()) == {}


def test_a_reference_to_another_row_makes_a_difference_however_keys_are_numbered() -> None:
    expected = parcels(("1", "Ada"), ("2", "Bo"), lines=[("1", "1", "tea")])
    found = differences(expected, parcels(("5", "Ada"), ("7", "Bo"), lines=[("3", "7", "tea")]), leaving_out=())
    assert found == {
        "line": [
            "once without the crash, not there after it:  parcel_id=the parcel with address=Ada, item=tea",
            "not there without the crash, once after it:  parcel_id=the parcel with address=Bo, item=tea",
        ]
    }


def test_what_is_left_out_of_a_row_is_left_out_where_it_is_referred_to() -> None:
    expected = parcels(("1", "at nine"), lines=[("1", "1", "tea")])
    found = parcels(("2", "at ten"), lines=[("1", "2", "tea")])
    assert differences(expected, found, leaving_out={"parcel.address"}) == {}


def test_a_key_that_is_no_number_of_the_database_is_compared() -> None:
    assert differences(payments(("a", "1")), payments(("b", "1")), leaving_out=()) != {}


def test_rows_that_refer_to_each_other_in_a_circle_are_shown_to_some_depth() -> None:
    table = Table(("id", "next_id", "name"), key="id", references={"next_id": "ring"})
    ring = Rows({"ring": table}, {"ring": [("1", "2", "a"), ("2", "1", "b")]})
    moved = Rows({"ring": table}, {"ring": [("3", "4", "a"), ("4", "3", "b")]})
    assert differences(ring, moved, leaving_out=()) == {}


def test_names_that_no_column_has_are_found() -> None:
    known = {"amount", "payment.reference"}
    assert unknown_columns(payments(), {*known, "adress", "payment.adress"}) == ["adress", "payment.adress"]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("a", "'a'"),
        (None, "None"),
        (Decimal("1.50"), "1.50"),
        (datetime(2026, 1, 2, tzinfo=UTC), "2026-01-02 00:00:00+00:00"),
        (memoryview(b"x"), "b'x'"),
        ({"b": 1, "a": [2]}, '{"a": [2], "b": 1}'),
    ],
)
def test_values_are_shown_alike_whatever_the_driver_makes_of_them(value: object, text: str) -> None:
    assert shown(value) == text
