"""The outbox in the database: who may publish which row, in which order, and what is left afterwards."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from sqlalchemy import Connection, text

from edda_engine.core.ports import OutboxEvent
from edda_engine.storage import outbox, outbox_upkeep
from edda_engine.storage.database import Database
from edda_engine.storage.outbox import Claim, Dead, Delayed, HandedBack, Outcome, Published
from tests.integration.engines import run, storage
from tests.support import eventually


def write(database: Database, *names: str) -> None:
    """Events, each in a transaction of its own; ``"a1"`` has the ordering key ``"a"``, ``"-1"`` has none."""
    for name in names:
        run(database, lambda conn, name=name: outbox.insert_events(conn, [(None, None, _event(name))]))  # type: ignore[misc]


def claim(database: Database, relay_id: str = "r", *, limit: int = 100, **options: Any) -> list[str]:
    return names_of(claimed(database, relay_id, limit=limit, **options))


def claimed(database: Database, relay_id: str = "r", *, limit: int = 100, **options: Any) -> Claim:
    options = {"lock_seconds": 60.0} | options
    return run(database, lambda conn: outbox.claim_due(conn, relay_id=relay_id, limit=limit, **options))


def names_of(claim: Claim) -> list[str]:
    return [each.event.event_id for each in claim.events]


def record(database: Database, *outcomes: Outcome, relay_id: str = "r") -> set[int]:
    return run(database, lambda conn: outbox.record(conn, relay_id=relay_id, outcomes=outcomes))


def publish(database: Database, claim: Claim, relay_id: str = "r") -> None:
    held = record(database, *(Published(each.seq) for each in claim.events), relay_id=relay_id)
    assert held == {each.seq for each in claim.events}


def seq_of(database: Database, name: str) -> int:
    return int(look(database, "seq", name))


def look(database: Database, column: str, name: str) -> Any:
    query = text(f"SELECT {column} FROM edda_outbox WHERE event_id = :name")
    with database.read() as conn:
        return conn.execute(query, {"name": name}).scalar_one()


def pass_time(database: Database, *names: str) -> None:
    """These rows are due, as if their time had come."""
    statement = text("UPDATE edda_outbox SET next_attempt_at = '2001-01-01 00:00:00.000' WHERE event_id = :name")
    for name in names:
        run(database, lambda conn, name=name: conn.execute(statement, {"name": name}))  # type: ignore[misc]


def is_due(database: Database, name: str) -> bool:
    def ask(conn: Connection) -> bool:
        query = "SELECT count(*) FROM edda_outbox WHERE event_id = :name AND next_attempt_at <= :now"
        now = "strftime('%Y-%m-%d %H:%M:%f', 'now')" if database.is_sqlite else "now()"
        return bool(conn.execute(text(query.replace(":now", now)), {"name": name}).scalar_one())

    with database.read() as conn:
        return ask(conn)


def test_a_claimed_event_is_as_it_was_written(database: Database) -> None:
    event = OutboxEvent(
        "e-1", "order.placed", "shop", "application/json", data_json='{"b": 1, "a": "ö"}', subject="7", ordering_key="k"
    )
    picture = OutboxEvent("e-2", "picture", "shop", "image/png", data_binary=b"\x00\xff")
    run(database, lambda conn: outbox.insert_events(conn, [("i-1", "step:1", event), (None, None, picture)]))

    first, second = claimed(database).events

    assert (first.event, first.attempts, first.instance_id) == (event, 0, "i-1")
    assert (second.event, second.instance_id) == (picture, None)
    assert first.created_at.tzinfo is not None


def test_rows_without_a_key_are_claimed_up_to_the_limit_the_longest_waiting_first(database: Database) -> None:
    write(database, "-1", "-2", "-3")

    assert claim(database, limit=2) == ["-1", "-2"]
    assert claim(database, limit=2) == ["-3"]
    assert claim(database) == []


def test_rows_of_one_key_are_claimed_together_in_their_order(database: Database) -> None:
    write(database, "a1", "b1", "a2", "-1", "a3")

    assert claim(database) == ["a1", "b1", "a2", "-1", "a3"]


def test_a_row_waits_while_another_relay_publishes_an_earlier_one_of_its_key(database: Database) -> None:
    write(database, "a1")
    first = claimed(database, "r1")
    write(database, "a2", "b1", "a3")

    assert claim(database, "r2") == ["b1"]
    publish(database, first, "r1")
    assert claim(database, "r2") == ["a2", "a3"]


def test_a_retried_row_keeps_back_only_later_rows_of_its_own_key(database: Database) -> None:
    write(database, "a1", "a2", "b1", "-1")
    claim(database)
    seqs = [seq_of(database, name) for name in ("a1", "a2", "b1", "-1")]
    record(database, Delayed(seqs[0], 3600, "503"), HandedBack(seqs[1], waits=True), *map(Published, seqs[2:]))
    write(database, "a3", "b2", "-2")

    assert claim(database) == ["b2", "-2"]
    assert (look(database, "attempts", "a1"), look(database, "attempts", "a2")) == (1, 0)
    pass_time(database, "a1")
    once_more = claimed(database)
    assert names_of(once_more) == ["a1"]
    publish(database, once_more)
    assert claim(database) == ["a2", "a3"]


def test_a_dead_row_keeps_nobody_back(database: Database) -> None:
    write(database, "a1", "a2")
    claim(database)
    first, second = seq_of(database, "a1"), seq_of(database, "a2")
    record(database, Dead(first, "404 Not Found"), HandedBack(second))

    assert claim(database) == ["a2"]
    assert (look(database, "status", "a1"), look(database, "last_error", "a1")) == ("dead", "404 Not Found")


def retried_beside_later_ones(database: Database) -> Claim:
    """``a1`` was refused and is tried again while its relay still has ``a2`` and ``a3``; returns these."""
    write(database, "a1", "a2", "a3")
    first, *later = claimed(database).events
    record(database, Dead(first.seq, "404 Not Found"))
    assert run(database, lambda conn: outbox_upkeep.retry(conn, ["a1"])) == ["a1"]
    return Claim(tuple(later))


def test_an_earlier_row_that_appears_waits_until_no_later_one_is_being_published(database: Database) -> None:
    second, third = retried_beside_later_ones(database).events

    assert claimed(database, "r2") == Claim((), postponed=1)
    record(database, Published(second.seq))
    assert claim(database, "r2") == []
    record(database, Published(third.seq))
    assert claim(database, "r2") == ["a1"]


def test_an_earlier_row_that_appears_is_next_when_a_later_one_has_to_be_tried_again(database: Database) -> None:
    second, third = retried_beside_later_ones(database).events
    assert claim(database, "r2") == []

    record(database, Delayed(second.seq, 500.0, "busy"), HandedBack(third.seq, waits=True))

    assert claim(database, "r2") == ["a1"]
    assert not is_due(database, "a2")


def test_an_earlier_row_that_appears_goes_first_when_the_relay_of_later_ones_is_gone(database: Database) -> None:
    retried_beside_later_ones(database)
    pass_time(database, "a2", "a3")
    assert claim(database, "r2", takes_over=False) == []  # it may only be out of reach
    pass_time(database, "a1")
    assert claim(database, "r2") == ["a1", "a2", "a3"]


def test_two_relays_do_not_claim_rows_of_a_key_at_the_same_moment(postgres_url: str) -> None:
    with storage(postgres_url) as database:
        late = database.engine.connect()
        with late.begin():
            outbox.insert_events(late, [(None, None, _event("a1"))])
            write(database, "a2")
            with database.write() as claiming:
                found = outbox.claim_due(claiming, relay_id="r1", limit=100, lock_seconds=60.0)
                assert names_of(found) == ["a2"]
                late.get_transaction().commit()  # type: ignore[union-attr]
                write(database, "-1")
                assert claim(database, "r2") == ["-1"]
        late.close()
        assert claimed(database, "r2") == Claim((), postponed=1)
        publish(database, found, "r1")
        assert claim(database, "r2") == ["a1"]


def _event(name: str) -> OutboxEvent:
    key = None if name.startswith("-") else name.rstrip("0123456789")
    return OutboxEvent(name, "order.placed", "shop", "application/json", data_json="{}", ordering_key=key)


def test_rows_that_wait_are_looked_at_once_and_are_in_nobodys_way(database: Database) -> None:
    names = [f"a{number}" for number in range(1, 131)]
    write(database, names[0])
    first = claimed(database, "r1")
    write(database, *names[1:], "b1")

    found = claimed(database, "r2", limit=10)

    assert (names_of(found), found.postponed) == (["b1"], 129)
    assert claimed(database, "r2") == Claim(())
    publish(database, first, "r1")
    taken: list[str] = []
    while events := claimed(database, "r2").events:
        taken += [each.event.event_id for each in events]
        publish(database, Claim(events), "r2")
    assert taken == names[1:]


def test_no_row_is_postponed_past_the_end_of_the_one_it_waits_for(postgres_url: str) -> None:
    with storage(postgres_url) as database:
        write(database, "a1", "a2")
        run(database, lambda conn: outbox.claim_due(conn, relay_id="r1", limit=1, lock_seconds=60.0))
        first = seq_of(database, "a1")

        with database.write() as finishing:  # recorded, and not committed: what waits must not be put off now
            outbox.record(finishing, relay_id="r1", outcomes=[Published(first)])
            assert claimed(database, "r2") == Claim(())
        assert claim(database, "r2") == ["a2"]


def test_who_finishes_a_row_waits_for_the_claim_that_puts_off_the_next_one(postgres_url: str) -> None:
    with storage(postgres_url) as database, ThreadPoolExecutor(1) as pool:
        write(database, "a1", "a2")
        run(database, lambda conn: outbox.claim_due(conn, relay_id="r1", limit=1, lock_seconds=60.0))
        first = seq_of(database, "a1")

        with database.write() as claiming:
            found = outbox.claim_due(claiming, relay_id="r2", limit=100, lock_seconds=60.0)
            finishing = pool.submit(record, database, Published(first), relay_id="r1")
            eventually(lambda: is_waiting_for_a_lock(database))
        finishing.result(30)

        assert found.postponed == 1
        assert claim(database, "r2") == ["a2"]


def is_waiting_for_a_lock(database: Database) -> bool:
    query = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    with database.read() as conn:
        return bool(conn.exec_driver_sql(query).scalar_one())


def test_one_key_takes_only_some_of_the_room(database: Database) -> None:
    names = [f"a{number}" for number in range(1, 41)]
    write(database, *names, "b1", "-1")

    found = claimed(database, limit=40)

    assert names_of(found) == [*names[: outbox.ROWS_OF_A_KEY], "b1", "-1"]
    publish(database, found)
    assert claim(database, limit=40) == names[outbox.ROWS_OF_A_KEY : 2 * outbox.ROWS_OF_A_KEY]


def test_rows_of_a_relay_whose_lock_has_expired_are_taken_over(database: Database) -> None:
    write(database, "a1", "a2", "-1")
    dead = claimed(database, "r1")
    pass_time(database, "a1", "a2", "-1")

    assert claim(database, "r2", takes_over=False) == []
    assert sorted(claim(database, "r2")) == ["-1", "a1", "a2"]
    assert record(database, *(Published(each.seq) for each in dead.events), relay_id="r1") == set()
    assert {look(database, "status", name) for name in ("a1", "a2", "-1")} == {"publishing"}


def test_a_renewed_lock_keeps_others_away(database: Database) -> None:
    write(database, "-1", "-2")
    claim(database, "r1", lock_seconds=0.001)
    first, second = seq_of(database, "-1"), seq_of(database, "-2")

    kept = run(database, lambda conn: outbox.renew(conn, relay_id="r1", seqs=[first], lock_seconds=60.0))

    assert kept == {first}
    assert claim(database, "r2") == ["-2"]
    assert run(
        database, lambda conn: outbox.renew(conn, relay_id="r1", seqs=[first, second], lock_seconds=60.0)
    ) == {first}  # fmt: skip


def test_a_relay_does_not_take_over_from_itself_what_it_is_at_work_on(database: Database) -> None:
    write(database, "a1", "a2", "-1", "-2")
    seqs = [each.seq for each in claimed(database, lock_seconds=0.001).events]
    write(database, "a3", "-3")

    found = claimed(database, under_way=seqs[:3])

    assert names_of(found) == ["-2", "-3"]
    assert claim(database, "r2") == ["a1", "a2", "-1"]


def test_what_a_dead_relay_held_is_due_at_once_when_it_is_released(database: Database) -> None:
    write(database, "a1", "a2", "-1")
    claim(database, "r1")
    write(database, "-2")
    claim(database, "r3")

    run(database, lambda conn: outbox.release_relay(conn, "r1"))

    assert claim(database, "r2") == ["a1", "a2", "-1"]


def test_what_a_relay_does_not_know_of_is_released_and_the_rest_stays(database: Database) -> None:
    write(database, "-1", "-2")
    first = claimed(database, "r1").events[0]

    run(database, lambda conn: outbox.release_relay(conn, "r1", except_for=[first.seq]))

    assert claim(database, "r2") == ["-2"]


def test_only_rows_that_were_published_long_ago_are_pruned_in_bounded_batches(database: Database) -> None:
    write(database, "-1", "-2", "-3", "-4", "-5")
    seqs = [each.seq for each in claimed(database).events]
    record(database, *map(Published, seqs[:4]), Dead(seqs[4], "no"))
    old = text("UPDATE edda_outbox SET published_at = '2001-01-01 00:00:00.000' WHERE event_id IN ('-1', '-2', '-3')")
    run(database, lambda conn: conn.execute(old))

    def prune() -> int:
        return run(database, lambda conn: outbox_upkeep.prune(conn, older_than_seconds=3600, limit=2))

    assert [prune(), prune(), prune()] == [2, 1, 0]
    assert left(database) == ["-4", "-5"]


def left(database: Database) -> list[str]:
    with database.read() as conn:
        entries = outbox_upkeep.listed(conn, statuses=(), limit=100)
    return sorted(entry.event_id for entry in entries)


def test_a_dead_row_that_is_retried_begins_anew(database: Database) -> None:
    write(database, "a1", "a2")
    record(database, *(Dead(each.seq, "no") for each in claimed(database).events))

    retried = run(database, lambda conn: outbox_upkeep.retry(conn, ["a2", "unknown"]))

    assert retried == ["a2"]
    assert (look(database, "attempts", "a2"), look(database, "last_error", "a2")) == (0, "no")
    assert run(database, lambda conn: outbox_upkeep.retry_dead(conn, limit=10)) == ["a1"]
    assert claim(database) == ["a1", "a2"]


def test_a_purged_row_lets_the_next_one_of_its_key_go(database: Database) -> None:
    write(database, "a1", "a2")
    first, second = (each.seq for each in claimed(database).events)
    record(database, Delayed(first, 3600, "503"), HandedBack(second, waits=True))
    assert not is_due(database, "a2")

    assert run(database, lambda conn: outbox_upkeep.purge(conn, ["a1"])) == ["a1"]

    assert claim(database) == ["a2"]
    assert run(database, lambda conn: outbox_upkeep.purge(conn, ["a2"])) == []


def test_dead_rows_are_purged_by_age(database: Database) -> None:
    write(database, "-1", "-2", "-3")
    seqs = [each.seq for each in claimed(database).events]
    record(database, Dead(seqs[0], "no"), Dead(seqs[1], "no"), Published(seqs[2]))
    old = text("UPDATE edda_outbox SET created_at = '2001-01-01 00:00:00.000' WHERE event_id = '-1'")
    run(database, lambda conn: conn.execute(old))

    purged = run(database, lambda conn: outbox_upkeep.purge_dead(conn, older_than_seconds=3600, limit=10))

    assert purged == ["-1"]
    assert left(database) == ["-2", "-3"]


def plan(database: Database, run_it: Any) -> list[str]:
    """How the database answers the SELECTs of *run_it*."""
    from sqlalchemy import event

    statements: list[tuple[str, Any]] = []

    def note(_conn: Any, _cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        if "edda_outbox" in statement:
            statements.append((statement, parameters))

    event.listen(database.service, "before_cursor_execute", note)
    try:
        run(database, run_it)
    finally:
        event.remove(database.service, "before_cursor_execute", note)
    explain = "EXPLAIN QUERY PLAN " if database.is_sqlite else "EXPLAIN "
    plans: list[str] = []
    with database.read() as conn:
        if not database.is_sqlite:
            conn.exec_driver_sql("SET enable_seqscan = off")  # there are too few rows to matter
        for statement, parameters in statements:
            rows = conn.exec_driver_sql(explain + statement, _single(parameters)).all()
            plans.append("\n".join(str(row[-1]) for row in rows))
    return plans


def _single(parameters: Any) -> Any:
    return (
        parameters[0] if isinstance(parameters, Sequence) and isinstance(parameters[0], (dict, tuple)) else parameters
    )


def test_a_claim_and_a_record_use_indexes(database: Database) -> None:
    write(database, "a1", "a2", "-1", "-2")
    if not database.is_sqlite:
        run(database, lambda conn: conn.exec_driver_sql("ANALYZE edda_outbox"))

    def work(conn: Connection) -> None:
        claim = outbox.claim_due(conn, relay_id="r", limit=100, lock_seconds=60.0)
        outbox.record(conn, relay_id="r", outcomes=[Published(each.seq) for each in claim.events])

    plans = plan(database, work)

    assert "ix_edda_outbox_due" in plans[0]
    assert any("ix_edda_outbox_ordering_key" in found for found in plans)
    assert any("ix_edda_outbox_publishing" in found for found in plans)
    scans = [found for found in plans if "Seq Scan" in found or "SCAN edda_outbox\n" in found + "\n"]
    assert scans == []
