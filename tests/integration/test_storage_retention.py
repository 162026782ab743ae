"""Retention of messages: what nobody will read goes, what a live instance has yet to read stays."""

from __future__ import annotations

from sqlalchemy import Connection, text

from edda_engine.core.ports import ChannelMode, NewInstance, OutgoingMessage
from edda_engine.storage import channels, migrate
from edda_engine.storage.database import Database
from edda_engine.storage.delivery import deliver
from edda_engine.storage.messages import insert_messages
from edda_engine.storage.retention import prune_messages
from edda_engine.storage.starts import insert_instance

DAY = 86_400.0


def message(number: int, channel: str, addressee: str | None = None) -> OutgoingMessage:
    return OutgoingMessage(f"m{number}", "message", channel, "{}", addressee, str(number))


def instance(conn: Connection, instance_id: str, status: str) -> None:
    insert_instance(conn, NewInstance(instance_id, "flow", "edda", "{}", "hash", 300.0))
    conn.execute(text("UPDATE edda_instances SET status = :s WHERE instance_id = :i"), {"s": status, "i": instance_id})


def left(conn: Connection) -> set[tuple[str, str]]:
    rows = conn.execute(text("SELECT i.receiver, m.message_id FROM edda_inbox i JOIN edda_messages m ON m.seq = i.seq"))
    return {(row[0], row[1]) for row in rows}


def make_old(conn: Connection) -> None:
    conn.execute(text("UPDATE edda_messages SET published_at = '2020-01-01 00:00:00.000+00:00'"))


def test_only_what_no_live_instance_will_read_is_pruned(database_url: str) -> None:
    database = Database.from_url(database_url)
    migrate.upgrade(database)
    with database.write() as conn:
        for instance_id, status in (("live", "waiting_for_message"), ("ended", "completed"), ("late", "running")):
            instance(conn, instance_id, status)
        channels.subscribe(conn, mailbox="live", channel="news", mode=ChannelMode.BROADCAST)
        channels.subscribe(conn, mailbox="late", channel="jobs", mode=ChannelMode.COMPETING)
        insert_messages(
            conn,
            [
                message(1, "news"),
                message(2, "jobs"),
                message(3, "unheard"),
                message(4, "__direct__", "late"),
                message(5, "__direct__", "ended"),
                message(6, "__direct__", "nobody"),
            ],
        )
        deliver(conn)
        make_old(conn)

    with database.write() as conn:
        prune_messages(conn, retention_seconds=DAY)
        assert left(conn) == {("live", "m1"), ("", "m2"), ("late", "m4")}
    with database.write() as conn:
        assert prune_messages(conn, retention_seconds=DAY) == 0
        assert conn.execute(text("SELECT count(*) FROM edda_messages")).scalar() == 3
    database.close()


def test_what_the_successor_of_a_run_has_yet_to_read_is_kept_until_that_ends(sqlite_url: str) -> None:
    database = Database.from_url(sqlite_url)
    migrate.upgrade(database)
    with database.write() as conn:
        instance(conn, "run", "recurred")
        instance(conn, "next", "waiting_for_message")
        conn.execute(text("UPDATE edda_instances SET mailbox = 'run' WHERE instance_id = 'next'"))
        insert_messages(conn, [message(1, "__direct__", "run")])
        deliver(conn)
        make_old(conn)

        assert prune_messages(conn, retention_seconds=DAY) == 0
        conn.execute(text("UPDATE edda_instances SET status = 'completed' WHERE instance_id = 'next'"))
        prune_messages(conn, retention_seconds=DAY)
        assert left(conn) == set()
    database.close()


def test_what_is_new_enough_is_kept_although_nobody_reads_it(database_url: str) -> None:
    database = Database.from_url(database_url)
    migrate.upgrade(database)
    with database.write() as conn:
        insert_messages(conn, [message(1, "unheard"), message(2, "__direct__", "nobody")])
        deliver(conn)

        assert prune_messages(conn, retention_seconds=DAY) == 0
        assert left(conn) == {("", "m1"), ("nobody", "m2")}
    database.close()


def test_pruning_goes_in_bounded_batches(database_url: str) -> None:
    database = Database.from_url(database_url)
    migrate.upgrade(database)
    with database.write() as conn:
        insert_messages(conn, [message(number, "unheard") for number in range(1200)])
        while deliver(conn).is_unfinished:
            pass
        make_old(conn)

    with database.write() as conn:
        assert prune_messages(conn, retention_seconds=DAY) == 2000
        assert prune_messages(conn, retention_seconds=DAY) == 400
        assert prune_messages(conn, retention_seconds=DAY) == 0
    database.close()
