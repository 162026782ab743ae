"""A claim that records what has come: exactly what a take would have recorded, and only for who was the last to hold it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from sqlalchemy import Connection

from edda_engine.core.events import StepKey
from edda_engine.core.ports import DIRECT_CHANNEL, NewInstance, OutgoingMessage, WaitKind, WaitRequest
from edda_engine.core.status import Status
from edda_engine.storage import claim_at_once as claiming_at_once
from edda_engine.storage import history
from edda_engine.storage.claim_at_once import Claimed, claim_at_once
from edda_engine.storage.claiming import Lease, claim_due
from edda_engine.storage.commit import AlreadyRecorded, Holder, Open, Take, Wait, commit_units
from edda_engine.storage.database import Database
from edda_engine.storage.messages import insert_messages
from edda_engine.storage.serial import serialize_delivery
from edda_engine.storage.starts import insert_instance
from tests.integration.engines import Tables, nodes, run, storage

PAID = WaitRequest(WaitKind.EVENT, "paid")
DIRECT = WaitRequest(WaitKind.MESSAGE, DIRECT_CHANNEL)
NAMES = ["wf"]
KEY = StepKey("wait:1", "0.1", 2)
SEQ = 7


@pytest.fixture
def database(postgres_url: str) -> Iterator[Database]:
    with storage(postgres_url) as found:
        yield found


@pytest.fixture
def tables(postgres_url: str) -> Tables:
    return Tables(postgres_url)


def take(lease: Lease, request: WaitRequest = PAID, *, key: StepKey = KEY, worker: str = "w") -> Take:
    holder = Holder(lease.instance_id, worker, lease.epoch)
    about = f"wait_event({request.name})" if request.kind is WaitKind.EVENT else "receive"
    return Take(holder, key, SEQ, about, lease.instance_id, request)


def parked(
    database: Database, instance_id: str, *requests: WaitRequest, worker: str = "w", started: bool = True
) -> Lease:
    """An instance whose body waits, suspended in *worker*."""

    def park(conn: Connection) -> Lease:
        if started:
            insert_instance(conn, NewInstance(instance_id, "wf", "tests", "{}", "hash", 60.0))
        (lease,) = claim_due(conn, worker_id=worker, service="tests", names=NAMES, limit=1)
        takes = [
            take(lease, request, key=KEY if number == 1 else StepKey(f"wait:{number}", "0", number), worker=worker)
            for number, request in enumerate(requests or (PAID,), 1)
        ]
        assert commit_units(conn, takes) == [Open(request.seconds) for request in requests or (PAID,)]
        given_back = Wait(
            takes[0].holder, Status.WAITING_FOR_EVENT, None, frozenset(each.key.activity_id for each in takes)
        )
        commit_units(conn, [given_back])
        return lease

    return run(database, park)


def sent(
    database: Database, addressee: str, data: str | None = "1", *, request: WaitRequest = PAID, **content: Any
) -> None:
    metadata = json.dumps(content.pop("metadata", {}))
    message_id = content.pop("message_id", f"m-{data}")
    message = OutgoingMessage(message_id, request.kind, request.name, metadata, addressee, data, **content)
    run(database, lambda conn: insert_messages(conn, [message]))


def claim(database: Database, *, worker: str = "w") -> Claimed:
    return claim_at_once(database.execute_alone, worker_id=worker, service="tests", names=NAMES, limit=10)


def recorded(database: Database, instance_id: str, activity_id: str = KEY.activity_id) -> Any:
    key = (instance_id, activity_id)
    return run(database, lambda conn: history.load_steps(conn, [key])).get(key)


def the_row(tables: Tables, instance_id: str) -> dict[str, Any]:
    """Its one step, but for whose it is, when it was written, and of which message it tells."""
    (row,) = tables.rows(
        "SELECT *, event_data::text AS event_data FROM edda_history WHERE instance_id = :id", id=instance_id
    )
    event = json.loads(row["event_data"])
    event["taken"].pop("seq")
    event["result"].pop("published_at")
    return {**row, "event_data": json.dumps(event), "instance_id": "", "created_at": ""}


def nothing_is_left(tables: Tables) -> bool:
    return not any(tables.rows(f"SELECT * FROM edda_{name}") for name in ("messages", "inbox", "waits"))


@pytest.mark.parametrize("request_", [PAID, DIRECT], ids=["event", "direct"])
@pytest.mark.parametrize(
    ("data", "content"),
    [
        ('{"n":[1,null,"ü"],"q":"\\"\\\\"}', {"metadata": {"ce_source": 'a"b\\ü☃'}}),
        ("null", {"message_id": 'm"\\ü'}),
        (None, {}),
    ],
    ids=["nested", "null", "none"],
)
def test_what_is_recorded_is_what_a_take_records(
    database: Database, tables: Tables, request_: WaitRequest, data: str | None, content: dict[str, Any]
) -> None:
    parked(database, "at once", request_)
    sent(database, "at once", data, request=request_, **content)

    found = claim(database)

    (lease,) = found.leases
    assert not found.has_mail
    assert lease.epoch == 2
    assert lease.received == recorded(database, "at once")
    assert nothing_is_left(tables)

    parked(database, "step by step", request_, worker="gone")
    sent(database, "step by step", data, request=request_, **content)
    (lease,) = claim(database).leases
    assert lease.received is None
    (outcome,) = run(database, lambda conn: commit_units(conn, [take(lease, request_)]))
    assert isinstance(outcome, AlreadyRecorded)
    assert the_row(tables, "at once") == the_row(tables, "step by step")
    assert nothing_is_left(tables)


def test_the_time_at_which_it_was_sent_is_told_as_a_take_tells_it(database: Database, tables: Tables) -> None:
    parked(database, "a")
    sent(database, "a")
    tables.execute("UPDATE edda_messages SET published_at = '2026-03-29 02:30:00.000120+01'")

    claim(database)

    assert recorded(database, "a").event_data["result"]["published_at"] == "2026-03-29T01:30:00.000120+00:00"


def test_a_deadline_that_has_passed_does_not_count_if_something_is_there(database: Database, tables: Tables) -> None:
    parked(database, "a", WaitRequest(WaitKind.EVENT, "paid", 60.0))
    tables.execute("UPDATE edda_waits SET expires_at = now() - interval '1 minute'")
    tables.execute("UPDATE edda_instances SET wake_at = now() - interval '1 minute'")
    sent(database, "a")

    (lease,) = claim(database).leases

    assert lease.received is not None
    assert lease.received.event_type == "EventReceived"


def test_of_several_that_have_come_the_first_is_recorded_and_the_others_lie_in_the_inbox(
    database: Database, tables: Tables
) -> None:
    parked(database, "a")
    sent(database, "a", "0", request=WaitRequest(WaitKind.EVENT, "refunded"))
    for data in ("1", "2"):
        sent(database, "a", data)

    found = claim(database)

    assert not found.has_mail
    (lease,) = found.leases
    assert lease.received is not None
    assert lease.received.event_data["result"]["data"] == 1
    left = tables.rows("SELECT name, is_new FROM edda_inbox ORDER BY seq")
    assert left == [{"name": "refunded", "is_new": False}, {"name": "paid", "is_new": False}]
    assert tables.value("SELECT count(*) FROM edda_messages WHERE NOT is_new") == 2


def test_each_of_many_gets_what_is_its_own(database: Database, tables: Tables) -> None:
    for number in range(5):
        parked(database, f"i{number}")
    for number in (3, 1, 4):
        sent(database, f"i{number}", str(number))

    found = claim(database)

    got = {lease.instance_id: lease.received and lease.received.event_data["result"]["data"] for lease in found.leases}
    assert got == {"i1": 1, "i3": 3, "i4": 4}
    assert [row["instance_id"] for row in tables.rows("SELECT * FROM edda_waits ORDER BY 1")] == ["i0", "i2"]


def by_another(database: Database, _tables: Tables) -> Claimed:
    return claim(database, worker="another")


def held_in_between(database: Database, tables: Tables) -> Claimed:
    tables.execute("UPDATE edda_instances SET lock_epoch = lock_epoch + 1")
    return claim(database)


def registered_by_an_older_version(database: Database, tables: Tables) -> Claimed:
    tables.execute("UPDATE edda_waits SET step = NULL")
    return claim(database)


def with_bytes(database: Database, tables: Tables) -> Claimed:
    tables.execute("UPDATE edda_messages SET data = NULL, data_binary = 'x'")
    return claim(database)


def beside_another_wait(database: Database, tables: Tables) -> Claimed:
    tables.execute("INSERT INTO edda_waits SELECT instance_id, 'wait:2', mailbox, 'timer', '', false FROM edda_waits".replace(
        "false FROM", "false, NULL, now() FROM"
    ))  # fmt: skip
    return claim(database)


def behind_what_lies_there(database: Database, tables: Tables) -> Claimed:
    tables.execute("INSERT INTO edda_inbox VALUES ('a', 'event', 'paid', 0, false, false)")
    return claim(database)


def recorded_before(database: Database, tables: Tables) -> Claimed:
    tables.execute(
        "INSERT INTO edda_history VALUES ('a', 'wait:1', 1, '0', 1, 'EventReceived', '{}', 1, now())"
    )  # fmt: skip
    return claim(database)


@pytest.mark.parametrize(
    "claims",
    [
        by_another,
        held_in_between,
        registered_by_an_older_version,
        with_bytes,
        beside_another_wait,
        behind_what_lies_there,
        recorded_before,
    ],
)
def test_whenever_anything_else_could_be_it_lies_in_the_inbox_for_who_asks(
    database: Database, tables: Tables, claims: Callable[[Database, Tables], Claimed]
) -> None:
    parked(database, "a")
    sent(database, "a")
    steps = 1 if claims is recorded_before else 0

    found = claims(database, tables)

    (lease,) = found.leases
    assert lease.received is None
    assert not found.has_mail
    assert tables.value("SELECT count(*) FROM edda_history") == steps
    assert tables.value("SELECT count(*) FROM edda_waits") == (2 if claims is beside_another_wait else 1)
    assert tables.value("SELECT count(*) FROM edda_inbox i JOIN edda_messages USING (seq) WHERE NOT i.is_new") == 1


def test_what_was_due_is_told_nothing(database: Database, tables: Tables) -> None:
    parked(database, "a")
    tables.execute("UPDATE edda_instances SET wake_at = now()")
    (lease,) = claim(database).leases
    assert lease.received is None
    assert tables.value("SELECT count(*) FROM edda_waits") == 1


def test_while_another_one_delivers_nothing_is_recorded(database: Database, tables: Tables) -> None:
    parked(database, "a")
    sent(database, "a")
    with database.service.connect() as other:
        serialize_delivery(other)
        assert claim(database) == Claimed((), has_mail=True)
        assert recorded(database, "a") is None
        other.rollback()
    assert len(claim(database).leases) == 1
    assert claim(database, worker="another") == Claimed((), has_mail=False)
    assert recorded(database, "a") is not None


@pytest.mark.parametrize("plan", ["force_custom_plan", "force_generic_plan"])
@pytest.mark.parametrize("is_analyzed", [False, True])
def test_the_plan_reads_no_table_in_full(database: Database, tables: Tables, is_analyzed: bool, plan: str) -> None:
    """Whether or not the server knows how large they are, and whether or not it looks at what it is given."""
    of_many = "FROM generate_series(1, 20000) n"
    tables.execute(
        f"INSERT INTO edda_history SELECT 'h' || n, 'wait:1', 1, '0', 1, 'EventReceived', '{{}}', 1, now() {of_many}"
    )
    tables.execute(
        f"INSERT INTO edda_waits SELECT 'h' || n, 'w', 'h' || n, 'event', 'paid', false, NULL, now() {of_many}"
    )
    tables.execute(f"INSERT INTO edda_inbox SELECT 'h' || n, 'event', 'paid', n, false, false {of_many}")
    tables.execute(
        "INSERT INTO edda_messages (message_id, kind, name, addressee, data, metadata, is_new, published_at)"
        f" SELECT 'm' || n, 'event', 'paid', 'h' || n, '1', '{{}}', false, now() {of_many}"
    )
    if is_analyzed:
        tables.execute("ANALYZE")
    parked(database, "a")
    sent(database, "a")
    written = claiming_at_once._CLAIM._for(database.service.dialect)._numbered
    assert written is not None
    given = {"worker_id": "w", "of_service": "tests", "names": NAMES, "at_most": 10, "at_most_new": 5}
    with database.service.connect() as conn:
        raw: Any = conn.connection.dbapi_connection
        cursor = psycopg.ClientCursor(raw)
        cursor.execute(f"SET LOCAL plan_cache_mode = {plan}")
        cursor.execute(f"PREPARE claiming AS {written.sql}")
        places = ", ".join(["%s"] * len(written.names))
        explain = f"EXPLAIN (ANALYZE, FORMAT JSON) EXECUTE claiming({places})"
        (found,) = cursor.execute(explain, written.in_order(given)).fetchone() or ()
        assert cursor.execute("SELECT count(*) FROM edda_history WHERE instance_id = 'a'").fetchone() == (1,)
        raw.rollback()
        cursor.execute("DEALLOCATE claiming")
    read = [
        node["Relation Name"]
        for node in nodes(found[0]["Plan"])
        if node["Node Type"] == "Seq Scan" and node["Actual Rows"] + node.get("Rows Removed by Filter", 0) > 1000
    ]
    assert read == []
