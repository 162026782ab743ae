"""What is done in one process wakes the others. The workers here poll once a minute: what happens in time was woken."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sqlalchemy import event
from sqlalchemy.exc import OperationalError

from edda_engine import EddaApp, WorkflowContext, activity, sleep, wait_event, workflow
from edda_engine.core.ports import NewInstance
from edda_engine.core.status import Status
from edda_engine.events import event_message
from edda_engine.runtime import claimer
from edda_engine.storage import claiming, serial
from edda_engine.storage.delivery import deliver
from edda_engine.storage.messages import insert_messages
from edda_engine.storage.starts import insert_instance
from tests.integration.engines import SERVICE, Gate, Tables, edda, interrupted_at, run, storage, until
from tests.integration.flask_apps import environment_of
from tests.integration.test_engine_outages import Proxy

ROOT = Path(__file__).parents[2]
RARELY = 60.0


def elsewhere(url: str, *command: object) -> None:
    """Do something in a process of its own, which has ended when this returns."""
    done = _begin_elsewhere(url, *command)
    out, _ = done.communicate(timeout=60)
    assert done.returncode == 0, out


def _begin_elsewhere(url: str, *command: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "tests.integration.elsewhere", url, *map(str, command)],
        cwd=ROOT, env=environment_of(PYTHONPATH=str(ROOT)), text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


@contextlib.contextmanager
def living_elsewhere(url: str, *command: object) -> Iterator[subprocess.Popen[str]]:
    """A process that goes on until it is killed, here or by the test."""
    process = _begin_elsewhere(url, *command)
    try:
        yield process
    finally:
        process.kill()
        print(process.communicate()[0])


def declare_number() -> Any:
    @workflow
    async def number(ctx: WorkflowContext, n: int) -> int:
        return n

    return number


class Points:
    """A probe that counts."""

    def __init__(self) -> None:
        self.passed: Counter[str] = Counter()

    def __call__(self, point: str) -> None:
        self.passed[point] += 1

    @property
    def claims(self) -> int:
        """Transactions that tried to claim."""
        return self.passed["claim.before_commit"]


async def settle(points: Points) -> None:
    """Until no claim was made for a quarter of a second."""
    async with asyncio.timeout(20):
        before = -1
        while before != points.claims:
            before = points.claims
            await asyncio.sleep(0.25)


# Starts.


@pytest.mark.parametrize("how", ["request", "script"])
def test_a_start_in_another_process_is_claimed_at_once(database_url: str, how: str) -> None:
    declare_number()

    async def main() -> Any:
        async with edda(database_url, poll_interval_seconds=RARELY) as app:
            await asyncio.to_thread(elsewhere, database_url, how, "from-elsewhere", 0)
            return await app.result("from-elsewhere", timeout=20)

    assert asyncio.run(main()) == 7


@pytest.mark.parametrize("how", ["request", "script"])
def test_a_delayed_start_in_another_process_is_claimed_when_it_is_due(database_url: str, how: str) -> None:
    declare_number()

    async def main() -> Any:
        async with edda(database_url, poll_interval_seconds=RARELY) as app:
            await asyncio.to_thread(elsewhere, database_url, how, "later", 1.5)
            await app.result("later", timeout=20)
            return await app.get("later")

    found = asyncio.run(main())
    assert 1.5 <= (found.started_at - found.created_at).total_seconds() < 10


def test_starts_before_and_after_a_fork_are_claimed_at_once(postgres_url: str) -> None:
    declare_number()

    async def main() -> list[Any]:
        async with edda(postgres_url, poll_interval_seconds=RARELY) as app:
            await asyncio.to_thread(elsewhere, postgres_url, "fork", "before", "after")
            return [await app.result(each, timeout=20) for each in ("before", "after-parent", "after-child")]

    assert asyncio.run(main()) == [1, 2, 2]


def test_what_a_full_worker_has_no_room_for_is_claimed_by_another_at_once(database_url: str) -> None:
    gate = Gate()

    @activity
    def wait_here(ctx: WorkflowContext) -> str:
        gate.hold()
        return ctx.worker_id

    @workflow
    async def occupies(ctx: WorkflowContext) -> str:
        return await wait_here(ctx)

    async def main() -> tuple[set[Any], set[str]]:
        rarely = {"poll_interval_seconds": RARELY, "max_running": 1}
        tables = Tables(database_url)
        async with edda(database_url, **rarely) as first:
            ids = [await first.start(occupies)]
            await gate.is_reached()
            async with edda(database_url, **rarely) as second:
                ids.append(await first.start(occupies))
                await until(
                    lambda: tables.value("SELECT count(*) FROM edda_instances WHERE locked_by IS NOT NULL") == 2
                )
                gate.open()
                workers = {first.worker_id, second.worker_id}
                return {await first.result(each, timeout=20) for each in ids}, workers

    results, workers = asyncio.run(main())
    assert results == workers


def test_what_a_stopping_worker_hands_back_goes_on_elsewhere_at_once(database_url: str) -> None:
    gate = Gate()
    runs: list[str] = []

    @activity
    def wait_here(ctx: WorkflowContext) -> str:
        runs.append(ctx.worker_id)
        gate.hold()
        return ctx.worker_id

    @workflow
    async def interrupted(ctx: WorkflowContext) -> str:
        return await wait_here(ctx)

    async def main() -> tuple[Any, str]:
        first = edda(database_url, poll_interval_seconds=RARELY)
        await first.initialize()
        instance_id = await first.start(interrupted)
        await gate.is_reached()
        async with edda(database_url, poll_interval_seconds=RARELY) as second:
            await interrupted_at(gate, first)
            return await second.result(instance_id, timeout=20), second.worker_id

    result, second = asyncio.run(main())
    assert result == second
    assert len(runs) == 2


# Timers and messages.


def test_a_timer_that_a_dead_process_has_parked_fires_without_a_poll(database_url: str) -> None:
    @workflow
    async def sleeper(ctx: WorkflowContext, seconds: float) -> str:
        await sleep(ctx, seconds)
        return ctx.worker_id

    async def main() -> tuple[Any, str]:
        waiting = "SELECT count(*) FROM edda_instances WHERE status = 'waiting_for_timer'"
        async with edda(database_url, poll_interval_seconds=RARELY) as app:
            with living_elsewhere(database_url, "park", "parked", 4) as process:
                await until(lambda: Tables(database_url).value(waiting) == 1, timeout=60)
                process.kill()
                return await app.result("parked", timeout=40), app.worker_id

    result, worker = asyncio.run(main())
    assert result == worker


def test_a_thousand_timers_that_are_due_at_once_all_fire(database_url: str) -> None:
    number = declare_number()

    async def main() -> int:
        tables = Tables(database_url)
        async with edda(database_url, poll_interval_seconds=RARELY) as app:
            first = await number.options(delay=3600).start(1)
            tables.execute(
                "INSERT INTO edda_instances (instance_id, workflow_name, service, status, input, source_hash, wake_at,"
                " lock_timeout_seconds, created_at, updated_at, priority, lock_epoch)"
                " WITH RECURSIVE many(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM many WHERE n < 1000)"
                " SELECT 'many-' || n, workflow_name, service, status, input, source_hash, wake_at, lock_timeout_seconds,"
                " created_at, updated_at, 0, 0 FROM edda_instances, many WHERE instance_id = :id",
                id=first,
            )
            soon = "datetime('now', '+2 seconds')" if tables.is_sqlite else "now() + interval '2 seconds'"
            tables.execute(f"UPDATE edda_instances SET wake_at = {soon}")
            app._wake()
            await until(lambda: tables.value("SELECT count(*) FROM edda_instances WHERE status = 'completed'") == 1001)
            return tables.value("SELECT max(lock_epoch) FROM edda_instances")

    assert asyncio.run(main()) == 1


@pytest.mark.parametrize("service", [SERVICE, "another"])
def test_an_event_from_another_process_wakes_the_workflow_that_waits_for_it(database_url: str, service: str) -> None:
    @workflow
    async def waits(ctx: WorkflowContext) -> Any:
        return (await wait_event(ctx, "paid")).data

    async def main() -> Any:
        tables = Tables(database_url)
        async with edda(database_url, poll_interval_seconds=RARELY) as app:
            instance_id = await app.start(waits)
            await until(lambda: tables.status(instance_id) == Status.WAITING_FOR_EVENT)
            await asyncio.to_thread(elsewhere, database_url, "send", "paid", service)
            return await app.result(instance_id, timeout=20)

    assert asyncio.run(main()) == {"n": 7}


def test_an_event_that_another_worker_delivers_is_heard_by_the_one_that_holds_the_instance(database_url: str) -> None:
    gate = Gate()

    @activity
    def wait_here(ctx: WorkflowContext) -> None:
        gate.hold()

    @workflow
    async def waits_and_works(ctx: WorkflowContext) -> Any:
        _, found = await ctx.first_of(wait_event(ctx, "paid"), wait_here(ctx))
        return found.data

    async def main() -> Any:
        async with (
            edda(database_url, poll_interval_seconds=RARELY) as holder,
            EddaApp(service_name="another", db_url=database_url, poll_interval_seconds=RARELY) as deliverer,
        ):
            instance_id = await holder.start(waits_and_works)
            await gate.is_reached()
            await until(lambda: Tables(database_url).value("SELECT count(*) FROM edda_waits") == 1)
            await deliverer.send_event("paid", "tests", {"n": 7})
            try:
                return await holder.result(instance_id, timeout=20)
            finally:
                gate.open()

    assert asyncio.run(main()) == {"n": 7}


def test_an_event_that_a_sibling_delivers_which_does_not_know_the_workflow_wakes_it_at_once(postgres_url: str) -> None:
    @workflow
    async def known_only_here(ctx: WorkflowContext) -> Any:
        return (await wait_event(ctx, "paid")).data

    async def main() -> Any:
        tables = Tables(postgres_url)
        async with edda(postgres_url, poll_interval_seconds=RARELY) as app:
            instance_id = await app.start(known_only_here)
            await until(lambda: tables.status(instance_id) == Status.WAITING_FOR_EVENT)
            with living_elsewhere(postgres_url, "send as worker", "paid"):
                return await app.result(instance_id, timeout=40)

    assert asyncio.run(main()) == {"n": 7}


# What is lost is found.


def without_notification(tables: Tables, instance_id: str) -> None:
    """A start of which nobody is told, as when its process died right after the commit."""
    tables.execute(
        "INSERT INTO edda_instances (instance_id, workflow_name, service, status, input, source_hash, wake_at,"
        " lock_timeout_seconds, created_at, updated_at, priority, lock_epoch)"
        " VALUES (:id, 'number', 'tests', 'pending', '{\"n\": 7}', 'x', '2001-01-01 00:00:00.000', 300,"
        " '2001-01-01 00:00:00.000', '2001-01-01 00:00:00.000', 0, 0)",
        id=instance_id,
    )


def test_a_lost_notification_delays_until_the_poll(postgres_url: str) -> None:
    declare_number()

    async def main() -> Any:
        async with edda(postgres_url) as app:
            await app.result(await app.start(declare_number(), 1), timeout=20)
            without_notification(Tables(postgres_url), "lost")
            return await app.result("lost", timeout=20)

    assert asyncio.run(main()) == 7


def test_without_listen_a_start_in_another_process_is_found_by_the_poll(postgres_url: str) -> None:
    declare_number()

    async def main() -> tuple[Any, int]:
        tables = Tables(postgres_url)
        async with edda(postgres_url, listen=False) as app:
            listening = tables.value(
                "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND query LIKE 'LISTEN%'"
            )
            await asyncio.to_thread(elsewhere, postgres_url, "script", "polled", 0)
            return await app.result("polled", timeout=20), listening

    assert asyncio.run(main()) == (7, 0)


def listening_pids(tables: Tables) -> list[int]:
    """Who holds the lock of a worker that is alive; who is delivering holds another one for a moment."""
    query = (
        "SELECT DISTINCT pid FROM pg_locks WHERE locktype = 'advisory' AND objsubid = 1 AND granted"
        " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
        " AND NOT (classid = 0 AND objid = :turn)"
    )
    return [row["pid"] for row in tables.rows(query, turn=serial._KEY)]


def test_after_its_connection_was_ended_a_worker_listens_again(postgres_url: str) -> None:
    declare_number()

    async def main() -> Any:
        tables = Tables(postgres_url)
        async with edda(postgres_url, poll_interval_seconds=RARELY) as app:
            (pid,) = listening_pids(tables)
            tables.value("SELECT pg_terminate_backend(:pid)", pid=pid)
            await until(lambda: listening_pids(tables) not in ([], [pid]))
            await asyncio.to_thread(elsewhere, postgres_url, "script", "after", 0)
            return await app.result("after", timeout=20)

    assert asyncio.run(main()) == 7


def test_what_was_notified_while_nobody_listened_is_found_when_the_worker_listens_again(postgres_url: str) -> None:
    declare_number()

    async def main() -> Any:
        tables = Tables(postgres_url)
        async with edda(postgres_url, poll_interval_seconds=RARELY) as app:
            await app.result(await app.start(declare_number(), 1), timeout=20)
            without_notification(tables, "missed")
            (pid,) = listening_pids(tables)
            tables.value("SELECT pg_terminate_backend(:pid)", pid=pid)
            return await app.result("missed", timeout=20)

    assert asyncio.run(main()) == 7


def test_what_was_started_while_the_database_was_out_of_reach_is_found_when_it_is_back(postgres_url: str) -> None:
    declare_number()
    proxy = Proxy(postgres_url)

    async def main() -> Any:
        proxy.open()
        async with edda(proxy.url, poll_interval_seconds=RARELY) as app:
            proxy.shut()
            await until(lambda: not app._engine._liveness.is_listening)  # type: ignore[union-attr]
            await asyncio.to_thread(elsewhere, postgres_url, "script", "meanwhile", 0)
            proxy.open()
            await until(lambda: Tables(postgres_url).status("meanwhile") == Status.COMPLETED)
            return await _result_of(app, "meanwhile")

    async def _result_of(app: EddaApp, instance_id: str) -> Any:
        async with asyncio.timeout(20):
            while True:
                with contextlib.suppress(Exception):  # connections of the pool that were cut
                    return await app.result(instance_id, timeout=5)

    try:
        assert asyncio.run(main()) == 7
    finally:
        proxy.close()


# Nothing is asked in vain.


def test_an_idle_worker_does_not_claim(database_url: str) -> None:
    number, points = declare_number(), Points()

    async def main() -> tuple[int, int]:
        async with edda(database_url, poll_interval_seconds=0.02, probe=points) as app:
            await app.result(await app.start(number, 1), timeout=20)
            await settle(points)
            before, looks = points.claims, points.passed["claim.after_commit"]
            await until(lambda: points.passed["claim.after_commit"] >= looks + 10)
            return before, points.claims

    before, after = asyncio.run(main())
    assert after == before


def test_due_instances_that_nobody_here_can_run_are_not_claimed_in_vain(database_url: str) -> None:
    number, points = declare_number(), Points()

    async def main() -> tuple[int, int]:
        tables = Tables(database_url)
        async with edda(database_url, poll_interval_seconds=0.02, probe=points) as app:
            for _ in range(20):
                await number.options(delay=3600).start(1)
            tables.execute("UPDATE edda_instances SET workflow_name = 'unknown', wake_at = '2001-01-01 00:00:00.000'")
            await app.result(await app.start(number, 1), timeout=20)
            await settle(points)
            before, looks = points.claims, points.passed["claim.after_commit"]
            await until(lambda: points.passed["claim.after_commit"] >= looks + 10)
            return before, points.claims

    before, after = asyncio.run(main())
    assert after == before


def test_a_due_instance_whose_row_is_locked_does_not_make_a_worker_spin(postgres_url: str) -> None:
    number, points = declare_number(), Points()

    async def main() -> tuple[int, Any]:
        tables = Tables(postgres_url)
        async with edda(postgres_url, poll_interval_seconds=0.5, probe=points) as app:
            instance_id = await number.options(delay=3600).start(7)
            await settle(points)
            with tables._engine.connect() as slow:
                slow.exec_driver_sql("UPDATE edda_instances SET wake_at = now()")
                slow.exec_driver_sql("SAVEPOINT s")
                before = points.claims
                with tables._engine.begin() as other:  # due for all to see, and locked by the first again
                    slow.rollback()
                    other.exec_driver_sql("UPDATE edda_instances SET wake_at = now()")
                slow.exec_driver_sql("SELECT 1 FROM edda_instances FOR UPDATE")
                app._wake()
                await until(lambda: points.claims > before)
                held, began = points.claims, time.monotonic()
                await until(lambda: time.monotonic() > began + 1.2)
                claims = points.claims - held
                slow.rollback()
            return claims, await app.result(instance_id, timeout=20)

    claims, result = asyncio.run(main())
    assert claims <= 10  # ever more seldom, until as often as it polls
    assert result == 7


def test_commits_that_make_nothing_due_cause_no_claim_on_sqlite(sqlite_url: str) -> None:
    number, points = declare_number(), Points()

    async def main() -> tuple[int, int]:
        tables = Tables(sqlite_url)
        tables.execute("CREATE TABLE counted (n INTEGER)")
        async with edda(sqlite_url, poll_interval_seconds=RARELY, probe=points) as app:
            await app.result(await app.start(number, 1), timeout=20)
            await settle(points)
            before = points.claims
            for n in range(200):
                tables.execute("INSERT INTO counted VALUES (:n)", n=n)
            await app.result(await app.start(number, 1), timeout=20)  # was still awake
            await settle(points)
            return before, points.claims

    before, after = asyncio.run(main())
    assert after <= before + 2


def test_two_idle_workers_on_one_host_do_not_ask_the_database_whether_the_other_lives(postgres_url: str) -> None:
    number = declare_number()
    asked: list[str] = []

    async def main() -> int:
        often = {"poll_interval_seconds": RARELY, "recovery_interval_seconds": 0.01}
        async with edda(postgres_url, **often) as first, edda(postgres_url, **often):
            await first.result(await first.start(number, 1), timeout=20)
            service = first._database.service
            event.listen(service, "before_cursor_execute", lambda *args: asked.append(args[2]))
            began = time.monotonic()
            await until(lambda: time.monotonic() > began + 1.5)
            return sum("pg_locks" in statement for statement in asked)

    assert asyncio.run(main()) <= 3


def test_a_worker_of_another_host_is_judged_by_its_advisory_lock(postgres_url: str) -> None:
    number = declare_number()
    tables = Tables(postgres_url)
    entered = (
        "INSERT INTO edda_workers (worker_id, service, host, pid, process_started, advisory_key, workflows, version,"
        " started_at, heartbeat_at) VALUES ('far', 'tests', 'another host', 1, 'x', 77, '[]', '0', now(), now())"
    )

    async def main() -> tuple[int, Any]:
        async with edda(postgres_url, poll_interval_seconds=RARELY, recovery_interval_seconds=0.05) as app:
            instance_id = await number.options(delay=3600).start(7)
            with psycopg.connect(postgres_url, autocommit=True) as sign_of_life:
                sign_of_life.execute("SELECT pg_advisory_lock(77)")
                tables.execute(entered)
                tables.execute(
                    "UPDATE edda_instances SET status = 'running', locked_by = 'far', lock_epoch = 1,"
                    " wake_at = now() + interval '1 hour', lock_expires_at = now() + interval '1 hour'"
                )
                app._engine._liveness.look_for_new_siblings()  # type: ignore[union-attr]
                await until(lambda: [each.worker_id for each in app._engine._liveness._watched] == ["far"])  # type: ignore[union-attr]
                began = time.monotonic()
                await until(lambda: time.monotonic() > began + 0.5)
                lives = tables.value("SELECT count(*) FROM edda_workers WHERE worker_id = 'far'")
            return lives, await app.result(instance_id, timeout=20)

    assert asyncio.run(main()) == (1, 7)
    assert tables.value("SELECT count(*) FROM edda_workers WHERE worker_id = 'far'") == 0


def test_a_short_lease_is_renewed_however_rarely_the_worker_polls(database_url: str) -> None:
    gate = Gate()
    runs: list[str] = []

    @activity
    def long_one(ctx: WorkflowContext) -> str:
        runs.append(ctx.worker_id)
        gate.hold()
        return "done"

    @workflow(lock_timeout_seconds=0.8)
    async def patient(ctx: WorkflowContext) -> str:
        return await long_one(ctx)

    async def main() -> Any:
        rarely = {"poll_interval_seconds": RARELY}
        async with edda(database_url, **rarely) as first, edda(database_url, **rarely):
            instance_id = await first.start(patient)
            await gate.is_reached()
            began = time.monotonic()
            await until(lambda: time.monotonic() > began + 2.5)
            gate.open()
            return await first.result(instance_id, timeout=20)

    assert asyncio.run(main()) == "done"
    assert len(runs) == 1


def test_what_becomes_due_between_a_claim_and_the_look_that_follows_is_claimed(database_url: str) -> None:
    number = declare_number()
    tables = Tables(database_url)
    late: list[str] = []

    def make_due(point: str) -> None:
        if point == "claim.after_commit" and late:
            tables.execute(
                "UPDATE edda_instances SET wake_at = '2001-01-01 00:00:00.000' WHERE instance_id = :id", id=late.pop()
            )

    async def main() -> Any:
        async with edda(database_url, poll_interval_seconds=RARELY, probe=make_due) as app:
            await number.options(instance_id="late", delay=3600).start(7)
            late.append("late")
            await app.result(await app.start(number, 1), timeout=20)
            return await app.result("late", timeout=20)

    assert asyncio.run(main()) == 7


@pytest.mark.parametrize("looks_ahead", [True, False])
def test_a_start_that_is_claimed_first_keeps_a_message_of_which_nobody_was_told_no_longer_than_itself(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch, looks_ahead: bool
) -> None:
    """It is found by the look after the claim; while that is put off, by the claim for the next start."""
    number = declare_number()

    @workflow
    async def hears(ctx: WorkflowContext) -> Any:
        return (await wait_event(ctx, "paid")).data

    tables, points, claim_new = Tables(postgres_url), Points(), claiming.claim_new
    found: list[Any] = []

    def counted(*args: Any, **about: Any) -> Any:
        found.append(claim_new(*args, **about))
        return found[-1]

    async def main() -> Any:
        async with edda(postgres_url, poll_interval_seconds=RARELY, probe=points) as app:
            instance_id = await app.start(hears)
            await until(lambda: tables.instance(instance_id)["status"] == Status.WAITING_FOR_EVENT)
            await settle(points)
            if not looks_ahead:
                monkeypatch.setattr(claimer, "_BEGIN_SECONDS", RARELY)
            event = event_message("paid", "test", 1, instance_id=instance_id, max_payload_bytes=1000)
            with storage(postgres_url) as database:
                run(database, lambda conn: insert_messages(conn, [event]))  # nobody is told of it
            await number.options(instance_id="first").start(1)
            await app.result("first", timeout=20)
            if not looks_ahead:
                assert tables.instance(instance_id)["status"] == Status.WAITING_FOR_EVENT
                await number.options(instance_id="second").start(2)
            return await app.result(instance_id, timeout=20)

    monkeypatch.setattr(claiming, "claim_new", counted)
    assert asyncio.run(main()) == 1
    assert len(found) == 1


def test_a_new_start_of_whose_claim_nobody_came_to_know_runs_all_the_same(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    number, tables, points = declare_number(), Tables(postgres_url), Points()
    lost: list[Any] = []

    def loses_the_answer(*args: Any, **about: Any) -> Any:
        found = claim_new(*args, **about)
        lost.extend(found)
        raise OperationalError("", {}, psycopg.OperationalError("the answer is lost"))

    claim_new = claiming.claim_new

    async def main() -> Any:
        async with edda(postgres_url, poll_interval_seconds=RARELY, probe=points) as app:
            await settle(points)
            monkeypatch.setattr(claiming, "claim_new", loses_the_answer)
            await number.options(instance_id="first").start(7)
            return await app.result("first", timeout=20)

    assert asyncio.run(main()) == 7
    assert [lease.instance_id for lease in lost] == ["first"]
    assert tables.instance("first")["takeovers"] == 0


def test_new_starts_leave_a_place_to_one_that_is_due_and_of_which_nobody_was_told(postgres_url: str) -> None:
    tables, is_over = Tables(postgres_url), asyncio.Event()

    @workflow
    async def hears(ctx: WorkflowContext) -> None:
        await wait_event(ctx, "never")

    @activity
    async def hold(ctx: WorkflowContext) -> None:
        await is_over.wait()

    @workflow
    async def holds(ctx: WorkflowContext) -> None:
        await hold(ctx)

    points = Points()

    async def main() -> None:
        async with edda(postgres_url, poll_interval_seconds=RARELY, max_running=2, probe=points) as app:
            old = await app.start(hears)
            await until(lambda: tables.instance(old)["status"] == Status.WAITING_FOR_EVENT)
            await settle(points)
            epoch = tables.instance(old)["lock_epoch"]
            tables.execute("UPDATE edda_instances SET priority = 100, wake_at = '2001-01-01'")
            with storage(postgres_url) as database:
                for name in ("first", "second"):
                    new = NewInstance(name, "holds", SERVICE, "{}", "hash", 60.0)
                    run(database, lambda conn, new=new: insert_instance(conn, new))  # type: ignore[misc]
            app._wake(for_start=True)
            await until(lambda: tables.instance(old)["lock_epoch"] > epoch)
            is_over.set()

    asyncio.run(main())


def test_what_one_statement_has_claimed_goes_on_although_the_delivery_after_it_fails(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    @workflow
    async def hears(ctx: WorkflowContext) -> Any:
        return (await wait_event(ctx, "paid")).data

    tables = Tables(postgres_url)
    failed: list[bool] = []

    def fails_once(*args: Any, **options: Any) -> Any:
        if failed:
            return deliver(*args, **options)
        failed.append(True)
        raise RuntimeError("the delivery has failed")

    async def main() -> Any:
        async with edda(postgres_url, poll_interval_seconds=RARELY) as app:
            instance_id = await app.start(hears)
            await until(lambda: tables.instance(instance_id)["status"] == Status.WAITING_FOR_EVENT)
            stray = event_message("paid", "test", 0, instance_id="nobody", max_payload_bytes=1000)
            with storage(postgres_url) as database:
                run(database, lambda conn: insert_messages(conn, [stray]))  # nobody is told of it
            monkeypatch.setattr(claimer, "deliver", fails_once)
            await app.send_event("paid", "test", 1, instance_id=instance_id)
            return await app.result(instance_id, timeout=20)

    assert asyncio.run(main()) == 1
    assert failed
    assert "Claiming failed; it is tried again" in caplog.text
    assert tables.value("SELECT max(takeovers) FROM edda_instances") == 0
