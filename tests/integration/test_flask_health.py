"""Health checks: the view of a server process, and the command of a container."""

from __future__ import annotations

import errno
import threading
from collections.abc import Iterator

import pytest
from sqlalchemy import text

from edda_wsgi import WorkflowContext, activity, workflow
from tests.integration.flask_apps import Note, Shop, open_shop, outside, saved_notes
from tests.support import eventually


@pytest.fixture
def shop(database_url: str) -> Iterator[Shop]:
    with open_shop(database_url) as opened:
        opened.app.get("/healthz")(opened.edda.health)
        yield opened


def asked(shop: Shop) -> tuple[int, dict[str, object]]:
    answer = shop.app.test_client().get("/healthz")
    return answer.status_code, answer.get_json()


def is_well(shop: Shop) -> bool:
    return asked(shop)[0] == 200


def test_a_process_whose_worker_is_at_work_is_well(shop: Shop) -> None:
    shop.edda.start_worker()
    eventually(lambda: is_well(shop))
    assert asked(shop) == (200, {"status": "ok", "checks": {"database": "ok", "tables": "ok", "worker": "ok"}})


def test_a_process_that_should_have_a_worker_and_has_none_is_not_well(shop: Shop) -> None:
    status, body = asked(shop)
    assert status == 503
    assert body["checks"] == {"database": "ok", "tables": "ok", "worker": "It has not started in this process yet."}


def test_a_blocked_event_loop_is_seen(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edda_wsgi.health.LOOP_SECONDS", 0.1)
    released, began = threading.Event(), threading.Event()

    @workflow
    async def blocks(ctx: WorkflowContext) -> None:
        began.set()
        released.wait(30)

    shop.edda.start_worker()
    with shop.app.app_context():
        blocks.options(session=None).start()
    assert began.wait(20)
    status, body = asked(shop)
    released.set()
    assert status == 503
    assert "The event loop has not answered for 0.1 s" in str(body["checks"])
    eventually(lambda: is_well(shop))


def test_a_process_whose_loop_is_blocked_can_be_stopped(
    sqlite_url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("edda_wsgi.loop_thread._BLOCKED_SECONDS", 0.2)
    released, began, went_on = threading.Event(), threading.Event(), threading.Event()

    @workflow
    async def is_stuck(ctx: WorkflowContext) -> None:
        began.set()
        released.wait(30)
        went_on.set()

    with open_shop(sqlite_url) as shop:
        shop.edda.start_worker()
        with shop.app.app_context():
            is_stuck.options(session=None).start()
        assert began.wait(20)
        shop.edda.shutdown(timeout=0.1)
        assert not went_on.is_set()
        assert "this worker stops without handing over" in caplog.text
        released.set()
        eventually(lambda: not [thread for thread in threading.enumerate() if thread.name == "edda-loop"])


@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning")  # they died with their loop
def test_a_loop_that_dies_is_seen_and_what_was_under_way_goes_on_in_a_new_one(
    shop: Shop, caplog: pytest.LogCaptureFixture
) -> None:
    began, go_on = threading.Event(), threading.Event()
    ran: list[str] = []

    @activity
    def hold(ctx: WorkflowContext) -> str:
        ran.append(ctx.worker_id)
        began.set()
        go_on.wait(30)
        shop.session().add(Note(text="held"))
        return ctx.worker_id

    @workflow
    async def holds(ctx: WorkflowContext) -> str:
        return await hold(ctx)

    first = shop.edda.start_worker()
    with shop.app.app_context():
        instance_id = holds.options(session=None).start()
    assert began.wait(20)
    seen = [asked(shop)[0]]

    break_loop(shop)
    eventually(lambda: seen.append(asked(shop)[0]) or len(set(seen)) == 2)  # type: ignore[func-returns-value]
    eventually(lambda: len(ran) == 2)
    eventually(lambda: is_well(shop))
    go_on.set()

    second = shop.edda.start_worker()
    assert shop.edda.result(instance_id, timeout=30) == second
    assert (seen[0], seen[-1]) == (200, 503)
    assert (first, second) == tuple(ran)
    assert saved_notes(shop.database_url) == ["held"]
    assert "The event loop of this process has died" in caplog.text
    with outside(shop.database_url) as engine, engine.connect() as conn:
        assert conn.execute(text("SELECT worker_id FROM edda_workers")).scalars().all() == [second]


def test_a_process_whose_loop_has_died_can_be_stopped(shop: Shop) -> None:
    shop.edda.start_worker()
    break_loop(shop)
    shop.edda.shutdown()
    assert not [thread for thread in threading.enumerate() if thread.name == "edda-loop"]


def break_loop(shop: Shop) -> None:
    """What happens when somebody closes all files of a process, as daemons do."""
    loop = shop.app.extensions["edda"]._loop_thread._loop

    def select(_timeout: float) -> None:
        raise OSError(errno.EBADF, "Bad file descriptor")

    loop._selector.select = select
    loop.call_soon_threadsafe(int)


def test_tables_that_need_an_upgrade_are_seen(shop: Shop) -> None:
    shop.edda.start_worker()
    eventually(lambda: is_well(shop))
    with shop.app.app_context():
        shop.db.session.execute(text("UPDATE edda_alembic_version SET version_num = '0001'"))
        shop.db.session.commit()
    status, body = asked(shop)
    assert status == 503
    assert "flask edda upgrade" in str(body["checks"])


def test_a_dropped_listening_connection_is_seen_until_it_is_back(shop: Shop, database_url: str) -> None:
    if database_url.startswith("sqlite"):
        return  # nothing listens there: the file is watched
    shop.edda.start_worker()
    eventually(lambda: is_well(shop))
    seen: list[int] = []
    with shop.app.app_context():
        shop.db.session.execute(
            text(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query ILIKE '%LISTEN%' AND pid <> pg_backend_pid()"
            )
        )
        shop.db.session.commit()
    eventually(lambda: seen.append(asked(shop)[0]) or seen[-1] == 200)  # type: ignore[func-returns-value]
    assert set(seen) <= {200, 503}


def test_the_command_fails_without_a_worker_on_this_host_and_passes_with_one(shop: Shop) -> None:
    runner = shop.app.test_cli_runner()
    with shop.app.app_context():
        runner.invoke(args=["edda", "upgrade"])
    without = runner.invoke(args=["edda", "health"])
    shop.edda.start_worker()
    with_one = runner.invoke(args=["edda", "health"])
    assert without.exit_code == 1
    assert "No worker of service" in without.output
    assert with_one.exit_code == 0, with_one.output


@pytest.mark.parametrize(
    "sign",
    ["heartbeat_at = '2020-01-01 00:00:00.000+00:00'", "advisory_key = 7"],
    ids=["without a heartbeat", "without a connection that listens"],
)
def test_a_worker_without_a_sign_of_life_does_not_count(shop: Shop, database_url: str, sign: str) -> None:
    if "advisory" in sign and database_url.startswith("sqlite"):
        return  # nothing listens there
    shop.edda.start_worker()
    with shop.app.app_context():
        shop.db.session.execute(text(f"UPDATE edda_workers SET {sign}"))
        shop.db.session.commit()
    done = shop.app.test_cli_runner().invoke(args=["edda", "health"])
    assert done.exit_code == 1
    assert "show no life" in done.output
