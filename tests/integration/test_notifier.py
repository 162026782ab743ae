"""What is told to other processes, and when: after the commit, many as one, never by the user's own connections."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest
from sqlalchemy import event

from edda_engine.runtime.notifier import TOGETHER_SECONDS, Notifier
from edda_engine.storage.notifications import OUTBOX_CHANNEL, WAKE_CHANNEL
from edda_wsgi import WorkflowContext, workflow
from tests.integration.engines import Tables, storage
from tests.integration.flask_apps import Shop, open_shop, saved_instances
from tests.support import eventually


class Listener:
    """Hears what is notified in a database."""

    def __init__(self, conn: psycopg.Connection[Any]) -> None:
        self._conn = conn
        self._heard: deque[tuple[str, str]] = deque()  # several may come in one packet
        for channel in (WAKE_CHANNEL, OUTBOX_CHANNEL):
            conn.execute(f"LISTEN {channel}".encode())

    def next(self) -> tuple[str, str]:
        """Wait for a notification."""
        if not self._heard:
            self._heard += [(each.channel, each.payload) for each in self._conn.notifies(timeout=20, stop_after=1)]
        return self._heard.popleft()

    def rest(self, seconds: float = 0.3) -> list[tuple[str, str]]:
        """All that have come, until nothing comes for a while."""
        found = list(self._heard)
        self._heard.clear()
        while more := [(each.channel, each.payload) for each in self._conn.notifies(timeout=seconds)]:
            found += more
        return found


@pytest.fixture
def listener(postgres_url: str) -> Iterator[Listener]:
    with psycopg.connect(postgres_url, autocommit=True) as conn:
        yield Listener(conn)


@contextmanager
def notifying(url: str, **options: Any) -> Iterator[Notifier]:
    with storage(url) as database:
        notifier = Notifier(lambda: database, **options)
        try:
            yield notifier
        finally:
            notifier.close()


@pytest.fixture
def client(postgres_url: str) -> Iterator[Shop]:
    """An application that runs no workflows itself."""
    with open_shop(postgres_url, role="client", service_name="shop") as shop:
        with shop.app.app_context():
            shop.edda.find_instances()
        yield shop


def declare_order() -> Any:
    @workflow
    async def order(ctx: WorkflowContext, number: int) -> int:
        return number

    return order


def notifier_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "edda-notifier"]


def connections(tables: Tables) -> int:
    """Of the application, besides the listener's and this look."""
    return int(tables.value("SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()")) - 2


# After the commit, and apart from it.


def test_a_start_is_notified_after_its_commit_and_not_before(client: Shop, listener: Listener) -> None:
    order = declare_order()
    with client.app.app_context():
        order.start(number=1)
        client.session().flush()
        before = listener.rest()
        client.session().commit()
        heard = listener.next()

    assert before == []
    assert heard == (WAKE_CHANNEL, "shop")
    assert len(saved_instances(client.database_url)) == 1


def test_a_start_that_is_rolled_back_is_not_notified(client: Shop, listener: Listener) -> None:
    order = declare_order()
    with client.app.app_context():
        order.start(number=1)
        client.session().rollback()

    assert listener.rest() == []


def test_a_start_that_commits_at_once_is_notified(client: Shop, listener: Listener) -> None:
    order = declare_order()
    with client.app.app_context():
        order.options(session=None).start(number=1)

    assert listener.next() == (WAKE_CHANNEL, "shop")


def test_a_message_is_notified_to_the_workers_of_all_services(client: Shop, listener: Listener) -> None:
    with client.app.app_context():
        client.edda.send_event("paid", "test", {"n": 1})
        client.session().commit()

    assert listener.next() == (WAKE_CHANNEL, "")


def test_an_event_for_the_outbox_is_notified_to_the_relays(client: Shop, listener: Listener) -> None:
    with client.app.app_context():
        client.edda.send_event_transactional("order.placed", "test", {"n": 1})
        client.session().commit()

    assert listener.next() == (OUTBOX_CHANNEL, "")


def test_the_connections_of_the_application_never_notify(client: Shop, listener: Listener) -> None:
    order = declare_order()
    executed: list[str] = []
    with client.app.app_context():
        event.listen(client.engine, "before_cursor_execute", lambda *args: executed.append(args[2]))
        order.start(number=1)
        client.edda.send_event("paid", "test", {"n": 1})
        client.session().commit()
        listener.next()

    assert any("INSERT INTO edda_instances" in statement for statement in executed)
    assert [statement for statement in executed if "notify" in statement.lower()] == []


def test_a_running_engine_with_room_notifies_nobody_of_its_own_starts(postgres_url: str, listener: Listener) -> None:
    order = declare_order()
    with open_shop(postgres_url, service_name="shop") as shop:
        shop.edda.start_worker()
        with shop.app.app_context():
            ids = [order.options(session=None).start(number=number) for number in range(5)]
        for number, each in enumerate(ids):
            assert shop.edda.result(each, timeout=20) == number
        heard = listener.rest()

    assert heard == []


# Many as one.


def test_many_notes_within_a_moment_become_few_notifications(postgres_url: str, listener: Listener) -> None:
    with notifying(postgres_url) as notifier:
        for _ in range(1000):
            notifier.notify("shop")
        notifier.close()
        heard = listener.rest()

    assert set(heard) == {(WAKE_CHANNEL, "shop")}
    assert len(heard) < 100


def test_notes_of_different_kinds_are_all_sent(postgres_url: str, listener: Listener) -> None:
    with notifying(postgres_url) as notifier:
        notifier.notify("one")
        notifier.notify("two")
        notifier.notify("")
        notifier.notify_relays()
        notifier.close()
        heard = listener.rest()

    assert set(heard) == {(WAKE_CHANNEL, "one"), (WAKE_CHANNEL, "two"), (WAKE_CHANNEL, ""), (OUTBOX_CHANNEL, "")}


def test_the_last_note_of_a_burst_is_not_forgotten(postgres_url: str, listener: Listener) -> None:
    with notifying(postgres_url) as notifier:
        for number in range(50):
            notifier.notify("first")
            listener.next()
            notifier.notify(f"second {number}")  # while the first one's pause lasts
            assert listener.next() == (WAKE_CHANNEL, f"second {number}")


# Without waking somebody for it.


def is_resting(notifier: Notifier) -> bool:
    """Whether its thread has a connection, and nothing to do; and the pause after the last note is over."""
    return notifier._idle is not None and time.monotonic() - notifier._posted_at > TOGETHER_SECONDS


def test_who_notes_something_while_the_thread_rests_sends_it(
    postgres_url: str, listener: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    with notifying(postgres_url) as notifier:
        notifier.notify("first")
        listener.next()
        eventually(lambda: is_resting(notifier))
        with monkeypatch.context() as patch:
            patch.setattr(notifier, "_send", None)
            for number in range(5):
                notifier.notify(f"another {number}")
                assert listener.next() == (WAKE_CHANNEL, f"another {number}")
                eventually(lambda: is_resting(notifier))
        notifier.notify("at once")
        notifier.notify("in a moment")
        notifier.close(20)
        assert listener.rest() == [(WAKE_CHANNEL, "at once"), (WAKE_CHANNEL, "in a moment")]


def test_what_was_sent_and_not_answered_is_sent_again(
    postgres_url: str, listener: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    def is_cut(*_: Any, **__: Any) -> None:
        raise ConnectionError("the network is gone")

    with notifying(postgres_url) as notifier:
        notifier.notify("first")
        listener.next()
        eventually(lambda: is_resting(notifier))
        monkeypatch.setattr("edda_engine.runtime.notifier.take_answer", is_cut)
        notifier.notify("second")
        notifier.close(20)
        assert listener.rest() == [(WAKE_CHANNEL, "second")] * 2


def test_a_server_that_refuses_a_note_is_asked_again(postgres_url: str, listener: Listener) -> None:
    with notifying(postgres_url) as notifier:
        notifier.notify("first")
        listener.next()
        eventually(lambda: is_resting(notifier))
        notifier.notify("x" * 8000)  # more than a notification may hold
        eventually(lambda: is_resting(notifier))
        notifier.notify("after")
        assert listener.next() == (WAKE_CHANNEL, "after")


def test_what_was_refused_is_sent_again_with_what_comes_next(postgres_url: str, listener: Listener) -> None:
    with notifying(postgres_url) as notifier:
        notifier.notify("first")
        listener.next()
        eventually(lambda: is_resting(notifier))
        assert notifier._post("not a channel", "refused") is True
        notifier._posted = {(WAKE_CHANNEL, "refused")}  # as if the server had been unable for a moment
        eventually(lambda: is_resting(notifier))
        notifier.notify("next")
        notifier.close(20)
        assert set(listener.rest()) == {(WAKE_CHANNEL, "refused"), (WAKE_CHANNEL, "next")}


def test_beside_an_engine_no_connection_is_kept(postgres_url: str, listener: Listener) -> None:
    with notifying(postgres_url, idle_seconds=3600.0) as notifier:
        pool: Any = notifier._find_database().service.pool
        none = pool.checkedout()
        notifier.notify("before")
        listener.next()
        eventually(lambda: is_resting(notifier))
        assert pool.checkedout() == none + 1
        notifier.is_beside_engine = True  # one was started
        notifier.notify("after")
        assert listener.next() == (WAKE_CHANNEL, "after")
        eventually(lambda: pool.checkedout() == none)


def test_who_listens_to_statements_sees_all_notes(postgres_url: str, listener: Listener) -> None:
    executed: list[str] = []
    with storage(postgres_url) as database:
        notifier = Notifier(lambda: database)
        event.listen(database.service, "before_cursor_execute", lambda *args: executed.append(args[2]))
        for number in range(3):
            notifier.notify(f"{number}")
            assert listener.next() == (WAKE_CHANNEL, f"{number}")
            eventually(lambda: notifier._idle is not None)
        notifier.close(20)
    assert len([statement for statement in executed if "pg_notify" in statement]) == 3


# Nothing is held for long, nothing is in the way.


def test_an_idle_notifier_ends_its_thread_and_closes_its_connection_and_begins_again(
    postgres_url: str, listener: Listener
) -> None:
    tables = Tables(postgres_url)
    with notifying(postgres_url, idle_seconds=0.1) as notifier:
        for _ in range(3):
            notifier.notify("shop")
            listener.next()
            eventually(lambda: not notifier_threads())
            eventually(lambda: connections(tables) <= 1)  # the one that made the tables
        for _ in range(2):
            notifier.notify("shop")
            listener.next()
            eventually(lambda: is_resting(notifier))
        eventually(lambda: not notifier_threads())
        eventually(lambda: connections(tables) <= 1)


def hear(listener: Listener, payload: str) -> None:
    """Something else may come before: what was sent earlier, and whose answer nobody had read, is sent again."""
    while listener.next() != (WAKE_CHANNEL, payload):
        pass


def test_a_connection_that_was_ended_while_idle_is_replaced(postgres_url: str, listener: Listener) -> None:
    tables = Tables(postgres_url)
    with notifying(postgres_url, idle_seconds=3600.0) as notifier:  # longer than anybody listens here
        for number in range(3):
            notifier.notify(f"before {number}")
            hear(listener, f"before {number}")
            eventually(lambda: is_resting(notifier))
            idle = (
                "FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
                " AND query ILIKE '%notify%'"
            )
            assert tables.rows(f"SELECT pg_terminate_backend(pid) {idle}")
            eventually(lambda idle=idle: not tables.rows(f"SELECT pid {idle}"))  # type: ignore[misc]
            notifier.notify(f"after {number}")
            hear(listener, f"after {number}")
            eventually(lambda: is_resting(notifier))


def test_a_database_that_is_away_delays_nobody_and_breaks_nothing(postgres_url: str, listener: Listener) -> None:
    with storage(postgres_url) as database, storage(postgres_url) as other:
        found = [database]
        notifier = Notifier(lambda: found[0])
        database.autocommitting = _refuse  # type: ignore[method-assign]
        notifier.notify("lost")
        eventually(lambda: not notifier._noted)
        found[0] = other
        notifier.notify("told")
        assert listener.next() == (WAKE_CHANNEL, "told")
        notifier.close()


def _refuse() -> Any:
    raise OSError("a creator of the user's that cannot get a token")


def test_on_sqlite_nothing_is_sent_and_no_thread_is_started(sqlite_url: str) -> None:
    with notifying(sqlite_url) as notifier:
        notifier.notify("shop")
        notifier.notify_relays()
        assert notifier_threads() == []


def test_closing_sends_what_is_noted_and_leaves_no_thread(postgres_url: str, listener: Listener) -> None:
    with notifying(postgres_url) as notifier:
        notifier.notify("shop")
        notifier.close(20)
        assert notifier_threads() == []
        assert listener.next() == (WAKE_CHANNEL, "shop")
