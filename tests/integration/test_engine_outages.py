"""The database goes away and comes back: nothing lost, nothing twice, nothing to restart."""

from __future__ import annotations

import asyncio
import logging
import socket
import threading
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import psycopg
import pytest
from sqlalchemy import make_url

from edda_engine import EddaApp, WorkflowContext, activity, workflow
from edda_engine.errors import DatabaseUnavailableError
from tests.integration.engines import Tables, edda, storage, until, write_note


class Proxy:
    """A TCP door to a PostgreSQL server that the test opens and shuts; its port is its own from the start."""

    def __init__(self, url: str) -> None:
        made = make_url(url)
        host = made.query.get("host") or made.host or "127.0.0.1"
        self._target: tuple[str, Any]
        if str(host).startswith("/"):
            self._target = "unix", f"{host}/.s.PGSQL.{made.port or 5432}"
        else:
            self._target = "tcp", (str(host), made.port or 5432)
        self._door = self._bound(0)
        self.port: int = self._door.getsockname()[1]
        self.url = made.set(host="127.0.0.1", port=self.port, query={}).render_as_string(False)
        self._pairs: list[socket.socket] = []

    def open(self) -> None:
        """Let connections through from now on."""
        self._door.listen(50)
        threading.Thread(target=self._accept, args=(self._door,), daemon=True).start()

    def shut(self) -> None:
        """Cut every connection, and refuse new ones."""
        self._close(self._door)
        for each in self._pairs:
            self._close(each)
        self._pairs.clear()
        self._door = self._bound(self.port)

    def close(self) -> None:
        """The end."""
        self.shut()
        self._close(self._door)

    @staticmethod
    def _bound(port: int) -> socket.socket:
        door = socket.socket()
        door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        door.bind(("127.0.0.1", port))
        return door

    @staticmethod
    def _close(each: socket.socket) -> None:
        with suppress(OSError):
            each.shutdown(socket.SHUT_RDWR)
        each.close()

    def _accept(self, door: socket.socket) -> None:
        while True:
            try:
                ours, _ = door.accept()
                kind, address = self._target
                theirs = socket.socket(socket.AF_UNIX if kind == "unix" else socket.AF_INET)
                theirs.connect(address)
            except OSError:
                return
            self._pairs += [ours, theirs]
            for source, sink in ((ours, theirs), (theirs, ours)):
                threading.Thread(target=self._pump, args=(source, sink), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)
        self._close(source)
        self._close(sink)


@pytest.fixture
def proxy(postgres_url: str) -> Iterator[Proxy]:
    made = Proxy(postgres_url)
    yield made
    made.close()


def cut_all_connections(admin_url: str, url: str) -> int:
    """What a restart of the server does to its clients."""
    with psycopg.connect(admin_url, autocommit=True) as conn:
        found = conn.execute(
            "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity"
            " WHERE datname = %s AND pid <> pg_backend_pid()",
            [make_url(url).database],
        ).fetchone()
    assert found is not None
    return int(found[0])


def test_connections_cut_in_the_middle_lose_nothing_and_repeat_nothing(
    postgres_url: str, postgres_admin_url: str
) -> None:
    tables = Tables(postgres_url)
    tables.make_notes()

    @activity
    def through_the_session(ctx: WorkflowContext, name: str) -> None:
        write_note(ctx, name)

    @activity
    async def without_session(ctx: WorkflowContext, number: int) -> int:
        return number + 1

    @workflow
    async def ten_steps(ctx: WorkflowContext, name: str) -> int:
        number = 0
        for step in range(5):
            await through_the_session(ctx, f"{name}-{step}")
            number = await without_session(ctx, number)
        return number

    async def main() -> tuple[list[int], list[int]]:
        cuts = []
        async with edda(postgres_url) as app:
            ids = [await app.start(ten_steps, f"w{number:02d}") for number in range(30)]
            for least in (20, 80, 140):
                await until(lambda least=least: tables.value("SELECT count(*) FROM edda_history") >= least)  # type: ignore[misc]
                # Right after a cut there may be none to cut for a moment.
                cuts.append(await until(lambda: cut_all_connections(postgres_admin_url, postgres_url)))
            await until(
                lambda: tables.value("SELECT count(*) FROM edda_instances WHERE status = 'completed'") == 30,
                timeout=40,
            )
            return [await app.result(each, timeout=20) for each in ids], cuts

    results, cuts = asyncio.run(main())
    assert min(cuts) > 0
    assert results == [5] * 30
    assert tables.notes() == sorted(f"w{number:02d}-{step}" for number in range(30) for step in range(5))
    assert tables.value("SELECT count(*) FROM edda_history") == 300


def test_a_question_is_answered_although_its_pooled_connection_was_cut_meanwhile(
    postgres_url: str, postgres_admin_url: str
) -> None:
    @workflow
    async def nothing(ctx: WorkflowContext) -> None: ...

    async def main() -> tuple[str, str]:
        async with edda(postgres_url) as app:
            instance_id = await nothing.start()
            await app.result(instance_id, timeout=20)
            before = (await app.get(instance_id)).status
            assert cut_all_connections(postgres_admin_url, postgres_url) > 0
            return before, (await app.get(instance_id)).status

    assert asyncio.run(main()) == ("completed", "completed")


def test_a_database_that_is_down_for_a_while_is_waited_for(
    postgres_url: str, proxy: Proxy, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    tables = Tables(postgres_url)
    tables.make_notes()
    stage: list[str] = []
    may_go_on = threading.Event()

    @activity
    def before(ctx: WorkflowContext) -> None:
        write_note(ctx, "before")
        stage.append("before")

    @activity
    def during(ctx: WorkflowContext) -> str:
        stage.append("during")
        assert may_go_on.wait(30)
        return "during"

    @activity
    def after(ctx: WorkflowContext) -> None:
        write_note(ctx, "after")

    @workflow
    async def three_steps(ctx: WorkflowContext) -> str:
        await before(ctx)
        found = await during(ctx)
        await after(ctx)
        return found

    async def main() -> str:
        proxy.open()
        async with edda(proxy.url) as app:
            instance_id = await app.start(three_steps)
            await until(lambda: stage == ["before", "during"])
            proxy.shut()
            may_go_on.set()
            await until(lambda: "steps wait to be saved" in caplog.text)
            proxy.open()
            await until(lambda: tables.status(instance_id) == "completed")
            result: str = await app.result(instance_id, timeout=20)
            return result

    assert asyncio.run(main()) == "during"
    assert tables.notes() == ["after", "before"]
    assert stage == ["before", "during"]


def test_asking_a_database_that_is_down_says_so_and_works_again_afterwards(proxy: Proxy) -> None:
    @workflow
    async def quick(ctx: WorkflowContext) -> int:
        return 1

    async def main() -> int:
        proxy.open()
        async with edda(proxy.url) as app:
            proxy.shut()
            with pytest.raises(DatabaseUnavailableError, match="The database did not answer"):
                await app.start(quick)
            proxy.open()
            result: int = await app.result(await _started(app), timeout=20)
            return result

    async def _started(app: EddaApp) -> str:
        while True:
            try:
                return await app.start(quick)
            except DatabaseUnavailableError:
                continue  # a connection of the pool that was cut; each failure removes one

    assert asyncio.run(main()) == 1


def test_an_application_that_starts_before_its_database_waits_for_it(
    proxy: Proxy, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)

    @workflow
    async def quick(ctx: WorkflowContext) -> str:
        return "done"

    async def main() -> str:
        app = edda(proxy.url)
        starting = asyncio.create_task(app.initialize())
        await until(lambda: "The database does not answer; waiting for it" in caplog.text)
        assert not starting.done()
        proxy.open()
        await starting
        try:
            result: str = await app.result(await app.start(quick), timeout=20)
            return result
        finally:
            await app.shutdown()

    assert asyncio.run(main()) == "done"


def test_initialize_gives_up_in_time_with_a_sentence_and_can_be_called_again(proxy: Proxy) -> None:
    async def main() -> None:
        app = edda(proxy.url)
        with pytest.raises(DatabaseUnavailableError, match=r"did not answer within 0\.3 s"):
            await app.initialize(timeout=0.3)
        proxy.open()
        await app.initialize()
        await app.shutdown()

    asyncio.run(main())


def test_a_worker_whose_connection_is_cut_while_it_enters_itself_begins_all_the_same(
    postgres_url: str, postgres_admin_url: str
) -> None:
    tables = Tables(postgres_url)
    with storage(postgres_url):  # makes the tables
        pass

    @activity
    async def begun(ctx: WorkflowContext) -> str:
        return "begun"

    @workflow
    async def begin(ctx: WorkflowContext) -> str:
        return await begun(ctx)

    def cut_who_waits_for_a_lock() -> bool:
        with psycopg.connect(postgres_admin_url, autocommit=True) as conn:
            found = conn.execute(
                "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity"
                " WHERE datname = %s AND wait_event_type = 'Lock'",
                [make_url(postgres_url).database],
            ).fetchone()
        return found is not None and found[0] == 1

    async def main() -> Any:
        with psycopg.connect(postgres_url) as in_the_way:
            in_the_way.execute("LOCK TABLE edda_workers IN ACCESS EXCLUSIVE MODE")
            app = edda(postgres_url)
            beginning = asyncio.create_task(app.initialize())
            await until(cut_who_waits_for_a_lock)
            in_the_way.rollback()
        await beginning
        try:
            assert tables.value("SELECT count(*) FROM edda_workers") == 1
            return await app.result(await app.start(begin), timeout=20)
        finally:
            await app.shutdown()

    assert asyncio.run(main()) == "begun"
