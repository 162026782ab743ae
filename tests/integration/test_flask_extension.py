"""EddaFlask: set up without side effects, several applications, when the engine starts, forks."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import inspect, text

from edda_wsgi import ConfigurationError, EddaFlask, WorkflowContext, workflow
from tests.integration.flask_apps import (
    FLASK_SQLALCHEMY,
    LITE,
    SESSIONMAKER,
    Note,
    Shop,
    driver_url,
    environment_of,
    open_shop,
    outside,
    run_python,
    saved_instances,
    saved_notes,
)
from tests.support import eventually


@pytest.fixture
def shop(database_url: str) -> Iterator[Shop]:
    with open_shop(database_url) as opened:
        yield opened


class Threads:
    """The threads that have started since the test began."""

    def __init__(self) -> None:
        self._before = set(threading.enumerate())

    def names(self) -> list[str]:
        return [thread.name for thread in threading.enumerate() if thread not in self._before]


@pytest.fixture
def threads() -> Threads:
    return Threads()


def connections_to(database_url: str) -> int:
    """How many others are connected to a PostgreSQL database."""
    with outside(database_url) as engine, engine.connect() as conn:
        found: int = conn.execute(
            text(
                "SELECT count(*) FROM pg_stat_activity"
                " WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'"
            )
        ).scalar_one()
        return found


def declare_order() -> Any:
    @workflow
    async def order(ctx: WorkflowContext, number: int) -> int:
        return number * 10

    return order


# Setting up.


def test_a_factory_makes_applications_that_run_workflows(database_url: str) -> None:
    order = declare_order()
    db, edda = SQLAlchemy(), EddaFlask()

    def create_app() -> Flask:
        app = Flask("shop")
        app.config.update(TESTING=True, SQLALCHEMY_DATABASE_URI=driver_url(database_url))
        db.init_app(app)
        edda.init_app(app, db=db)
        return app

    app = create_app()
    with app.app_context():
        edda.start_worker()
        instance_id = order.start(number=2)
        db.session.commit()

        assert edda.result(instance_id, timeout=20) == 20
        edda.shutdown()
        db.engine.dispose()


def test_init_app_starts_no_thread_and_opens_no_connection(postgres_url: str) -> None:
    before = threading.active_count()

    app = Flask("shop")
    app.config["SQLALCHEMY_DATABASE_URI"] = driver_url(postgres_url)
    EddaFlask(app, db=SQLAlchemy(app))

    assert threading.active_count() == before
    assert connections_to(postgres_url) == 0


def test_init_app_makes_no_file(tmp_path: Path) -> None:
    app = Flask("shop", instance_path=str(tmp_path / "instance"))

    EddaFlask(app)

    assert list(tmp_path.iterdir()) == []


def test_init_app_works_with_a_database_that_is_down(tmp_path: Path) -> None:
    app = Flask("shop")
    app.config["SQLALCHEMY_DATABASE_URI"] = "postgresql+psycopg://nobody@127.0.0.1:1/nothing"

    EddaFlask(app, db=SQLAlchemy(app))

    assert "edda" in app.extensions


def test_init_app_twice_on_one_application_is_refused() -> None:
    app = Flask("shop")
    edda = EddaFlask(app)

    with pytest.raises(ConfigurationError, match="'shop' has edda already"):
        edda.init_app(app)


@pytest.mark.parametrize("wrong", [object(), "sqlite:///app.db", SQLAlchemy], ids=["object", "url", "class"])
def test_a_db_that_makes_no_sessions_is_refused_with_a_sentence(wrong: object) -> None:
    with pytest.raises(ConfigurationError, match=r"EddaFlask\(db=\.\.\.\) takes the SQLAlchemy object"):
        EddaFlask(Flask("shop"), db=wrong)


def test_a_sessionmaker_without_an_engine_is_refused_at_its_first_use() -> None:
    from sqlalchemy.orm import sessionmaker

    app = Flask("shop")
    edda = EddaFlask(app, db=sessionmaker())

    with app.app_context(), pytest.raises(ConfigurationError, match="must be bound to an Engine"):
        edda.find_instances()


def test_an_in_memory_database_is_refused_with_a_sentence() -> None:
    app = Flask("shop")
    app.config["SQLALCHEMY_DATABASE_URI"] = "sqlite://"
    edda = EddaFlask(app, db=SQLAlchemy(app))

    with app.app_context(), pytest.raises(ConfigurationError, match=r"in-memory.*sqlite:///app\.db"):
        edda.find_instances()


def test_a_database_of_another_kind_is_refused_with_a_sentence() -> None:
    app = Flask("shop")
    edda = EddaFlask(app, database_url="nonsense")

    with app.app_context(), pytest.raises(ConfigurationError, match="not a database URL"):
        edda.find_instances()


def test_an_extension_without_application_says_what_to_call() -> None:
    with pytest.raises(ConfigurationError, match=r"Call edda\.init_app\(app, db=db\) first"):
        EddaFlask().get("anything")


def test_an_application_without_edda_says_what_to_call() -> None:
    order = declare_order()

    with Flask("shop").app_context(), pytest.raises(ConfigurationError, match=r"'shop' has no edda.*init_app"):
        order.start(number=1)


def test_without_any_database_a_sqlite_file_in_the_instance_folder_is_used(tmp_path: Path) -> None:
    order = declare_order()
    app = Flask("shop", instance_path=str(tmp_path / "instance"))
    app.testing = True
    edda = EddaFlask(app)

    edda.start_worker()
    with app.app_context():
        instance_id = order.start(number=3)
    result = edda.result(instance_id, timeout=20)
    edda.shutdown()

    assert result == 30
    assert (tmp_path / "instance" / "edda.db").exists()


def test_a_database_url_of_its_own_is_separate_from_the_session(database_url: str, tmp_path: Path) -> None:
    order = declare_order()
    app_url = f"sqlite:///{tmp_path / 'application.db'}"
    with open_shop(app_url, config={"EDDA_DATABASE_URL": database_url}) as shop:
        with shop.app.app_context():
            shop.session().add(Note(text="a"))
            instance_id = order.start(number=1)
            shop.session().rollback()

        assert saved_instances(database_url) == [instance_id]
        assert saved_notes(app_url) == []
        with outside(app_url) as engine:
            assert not inspect(engine).has_table("edda_instances")


# Several applications.


@pytest.mark.parametrize("kind", [FLASK_SQLALCHEMY, LITE, SESSIONMAKER])
def test_two_applications_in_one_process_run_their_own_instances(
    database_url: str, tmp_path_factory: pytest.TempPathFactory, kind: str
) -> None:
    other_url = f"sqlite:///{tmp_path_factory.mktemp('second') / 'second.db'}"
    with (
        open_shop(database_url, kind=kind, name="first") as first,
        open_shop(other_url, kind=kind, name="second") as second,
    ):
        of_app = {"first": first, "second": second}

        def sign(ctx: WorkflowContext) -> str:
            from flask import current_app

            of_app[current_app.name].session(ctx).add(Note(text=current_app.name))
            return current_app.name

        assert first.run(sign) == "first"
        assert second.run(sign) == "second"

        assert saved_notes(database_url) == ["first"]
        assert saved_notes(other_url) == ["second"]
        assert len(saved_instances(database_url)) == 1
        assert len(saved_instances(other_url)) == 1


def test_one_extension_for_two_applications_asks_the_current_one(
    database_url: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    order = declare_order()
    db, edda = SQLAlchemy(), EddaFlask()
    urls = {"first": database_url, "second": f"sqlite:///{tmp_path_factory.mktemp('second') / 'second.db'}"}
    apps = []
    for name, url in urls.items():
        app = Flask(name)
        app.config.update(TESTING=True, SQLALCHEMY_DATABASE_URI=driver_url(url))
        db.init_app(app)
        edda.init_app(app, db=db)
        apps.append(app)

    for number, app in enumerate(apps):
        with app.app_context():
            edda.start_worker()
            instance_id = order.options(instance_id=app.name).start(number=number)
            db.session.commit()
            assert edda.result(instance_id, timeout=20) == number * 10
    with pytest.raises(ConfigurationError, match=r"several applications.*app\.app_context\(\)"):
        edda.get("first")
    for app in apps:
        with app.app_context():
            edda.shutdown()
            db.engine.dispose()

    assert [saved_instances(url) for url in urls.values()] == [["first"], ["second"]]


def test_a_start_in_an_activity_goes_to_the_application_that_runs_it(
    database_url: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    order = declare_order()
    other_url = f"sqlite:///{tmp_path_factory.mktemp('second') / 'second.db'}"
    with open_shop(database_url, name="first") as first, open_shop(other_url, name="second"):

        def start_one(ctx: WorkflowContext) -> str:
            return order.start(number=4)

        assert first.edda.result(first.run(start_one), timeout=20) == 40


# When the engine starts.


def test_the_first_request_starts_the_engine(database_url: str, threads: Threads) -> None:
    order = declare_order()
    with open_shop(database_url, testing=False) as shop:

        @shop.app.post("/")
        def create() -> str:
            instance_id = order.start(number=1)
            shop.session().commit()
            return instance_id

        before = threads.names()
        instance_id = shop.app.test_client().post("/").text

        assert before == []
        assert shop.edda.result(instance_id, timeout=20) == 10
        assert "edda-loop" in threads.names()


def test_many_first_requests_at_once_start_one_engine(database_url: str, threads: Threads) -> None:
    with open_shop(database_url, testing=False) as shop:
        at_once = threading.Barrier(8)

        @shop.app.get("/")
        def view() -> str:
            return "ok"

        def ask() -> None:
            at_once.wait(10)
            shop.app.test_client().get("/")

        browsers = [threading.Thread(target=ask) for _ in range(8)]
        for browser in browsers:
            browser.start()
        for browser in browsers:
            browser.join(20)

        assert threads.names().count("edda-loop") == 1


def test_a_request_of_an_application_under_test_starts_nothing(shop: Shop, threads: Threads) -> None:
    @shop.app.get("/")
    def view() -> str:
        return "ok"

    shop.app.test_client().get("/")

    assert threads.names() == []


NOTIFIER = "edda-notifier"
"""Tells the workers of other processes that something was committed; ends when it has nothing to tell."""


def test_a_request_of_a_client_starts_no_engine(database_url: str, threads: Threads) -> None:
    order = declare_order()
    with open_shop(database_url, testing=False, role="client") as shop:

        @shop.app.post("/")
        def create() -> str:
            instance_id = order.start(number=1)
            shop.session().commit()
            return instance_id

        instance_id = shop.app.test_client().post("/").text

        assert set(threads.names()) <= {NOTIFIER}
        assert shop.edda.get(instance_id).status == "pending"


def test_an_app_context_and_its_starts_start_no_engine(database_url: str, threads: Threads) -> None:
    order = declare_order()
    with open_shop(database_url, testing=False) as shop:
        with shop.app.app_context():
            instance_id = order.start(number=1)
            shop.session().commit()
            shop.edda.find_instances()

        assert set(threads.names()) <= {NOTIFIER}
        assert shop.edda.get(instance_id).status == "pending"


@pytest.mark.parametrize("command", [["shell"], ["routes"], ["edda", "list"], ["edda", "check"]], ids=" ".join)
def test_commands_that_are_no_servers_start_no_engine(tmp_path: Path, command: list[str]) -> None:
    (tmp_path / "shop.py").write_text(
        "import atexit, threading\nfrom flask import Flask\nfrom edda_wsgi import EddaFlask\n"
        f"app = Flask(__name__, instance_path={str(tmp_path / 'instance')!r})\nEddaFlask(app)\n"
        "seen = set()\nstart = threading.Thread.start\n"
        "def note(thread):\n    seen.add(thread.name)\n    start(thread)\n"
        "threading.Thread.start = note\natexit.register(lambda: print('threads', sorted(seen)))\n"
    )
    script = f"""
        import io, sys
        sys.stdin = io.StringIO("")
        from flask.cli import main
        sys.argv = ["flask", "--app", "shop", *{command!r}]
        main()
    """

    assert "threads []" in run_python(script, folder=tmp_path)


def test_start_worker_again_is_the_same_worker(shop: Shop) -> None:
    assert shop.edda.start_worker() == shop.edda.start_worker()


def test_after_shutdown_no_thread_and_no_session_connection_is_left(shop: Shop, threads: Threads) -> None:
    order = declare_order()
    with shop.app.app_context():
        pool = shop.engine.pool
        shop.edda.start_worker()
        instance_id = order.options(session=None).start(number=1)
        shop.edda.result(instance_id, timeout=20)

    shop.edda.shutdown()

    assert eventually(lambda: threads.names() == [])
    assert pool.checkedout() == 0


def test_shutdown_without_an_engine_does_nothing(shop: Shop, threads: Threads) -> None:
    shop.edda.shutdown()
    shop.edda.shutdown()

    assert threads.names() == []


def test_shutdown_of_a_process_that_only_started_closes_its_connections(postgres_url: str) -> None:
    order = declare_order()
    app = Flask("shop")
    app.config.update(TESTING=True, SQLALCHEMY_DATABASE_URI=driver_url(postgres_url))
    db = SQLAlchemy(app)
    edda = EddaFlask(app, db=db)
    with app.app_context():
        order.start(number=1)
        db.session.commit()

        edda.shutdown()
        db.engine.dispose()

    assert eventually(lambda: connections_to(postgres_url) == 0, timeout=3)


def test_a_worker_started_after_a_shutdown_goes_on(shop: Shop) -> None:
    order = declare_order()
    with shop.app.app_context():
        first = shop.edda.start_worker()
        shop.edda.shutdown()
        instance_id = order.options(session=None).start(number=1)
        second = shop.edda.start_worker()

    assert shop.edda.result(instance_id, timeout=20) == 10
    assert first != second


def test_shutdown_lets_a_running_activity_finish(shop: Shop) -> None:
    reached, go_on = threading.Event(), threading.Event()

    def write_slowly(ctx: WorkflowContext) -> str:
        shop.session().add(Note(text="slow"))
        reached.set()
        go_on.wait(20)
        return "done"

    shop.start(write_slowly)
    reached.wait(20)
    timer = threading.Timer(0.5, go_on.set)
    timer.start()
    shop.edda.shutdown(timeout=15)
    timer.join()

    assert saved_notes(shop.database_url) == ["slow"]


def test_shutdown_on_the_loops_own_thread_does_not_hang(shop: Shop) -> None:
    async def stop_itself(ctx: WorkflowContext) -> str:
        try:
            shop.edda.shutdown(timeout=1)
        except Exception as error:
            return type(error).__name__
        return "stopped"

    assert shop.run(stop_itself) == "UsageError"


# Forks.

FORK = """
import json, os, sys, threading
from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import text
from edda_wsgi import EddaFlask, WorkflowContext, workflow

app = Flask("shop")
app.config.update(TESTING=True, SQLALCHEMY_DATABASE_URI=os.environ["SHOP_URL"])
db = SQLAlchemy(app)
edda = EddaFlask(app, db=db)

@workflow
async def order(ctx: WorkflowContext, number: int) -> str:
    return ctx.worker_id

def backends():
    # What identifies this process's connection: the server's process, or the handle.
    with app.app_context():
        if db.engine.dialect.name == "postgresql":
            return db.session.execute(text("SELECT pg_backend_pid()")).scalar()
        return id(db.session.connection().connection.dbapi_connection)

def work():
    with app.app_context():
        worker_id = edda.start_worker()
        ids = [order.options(session=None).start(number) for number in range(5)]
        ran_by = [edda.result(instance_id, timeout=30) for instance_id in ids]
    notifier = edda._application()._notifier
    notifier.notify("")  # as a worker does that has no room
    is_beside_engine = notifier.is_beside_engine
    return {"worker_id": worker_id, "ran_by": ran_by, "backend": backends(), "is_beside_engine": is_beside_engine}

facts = {"parent": work(), "children": []}
for _ in range(2):
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            loops = [t.name for t in threading.enumerate()].count("edda-loop")
            told = work() | {"loops_inherited": loops, "worker_id_before": None}
            os.write(write, json.dumps(told).encode())
            edda.shutdown()
            status = 0
        finally:
            os._exit(status)
    os.close(write)
    with os.fdopen(read) as pipe:
        facts["children"].append(json.loads(pipe.read()))
    assert os.waitpid(child, 0)[1] == 0
facts["parent_again"] = work()
edda.shutdown()
print(json.dumps(facts))
"""


END_WITHOUT_SHUTDOWN = """
import os
from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from edda_wsgi import EddaFlask, WorkflowContext, workflow

app = Flask("shop")
app.config.update(SQLALCHEMY_DATABASE_URI=os.environ["SHOP_URL"])
edda = EddaFlask(app, db=SQLAlchemy(app))

@workflow
async def order(ctx: WorkflowContext) -> None: ...

with app.app_context():
    edda.start_worker()
    edda.result(order.options(session=None).start(), timeout=20)
"""


def test_a_process_that_ends_with_its_engine_running_hands_everything_back_quietly(
    database_url: str, tmp_path: Path
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", END_WITHOUT_SHUTDOWN],
        cwd=tmp_path, env=environment_of(SHOP_URL=driver_url(database_url)),
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip

    assert (done.returncode, done.stderr) == (0, "")
    with outside(database_url) as engine, engine.connect() as conn:
        assert conn.execute(text("SELECT count(*) FROM edda_workers")).scalar() == 0


def test_after_a_fork_nothing_inherited_is_used_and_each_process_is_its_own_worker(
    database_url: str, tmp_path: Path
) -> None:
    facts = json.loads(run_python(FORK, folder=tmp_path, SHOP_URL=driver_url(database_url)))

    parent, children, again = facts["parent"], facts["children"], facts["parent_again"]
    worker_ids = [parent["worker_id"], *(child["worker_id"] for child in children)]
    assert len(set(worker_ids)) == 3
    assert again["worker_id"] == parent["worker_id"]
    assert [each["is_beside_engine"] for each in (parent, *children, again)] == [True] * 4
    for child in children:
        # The parent's worker is live too, and may have taken some.
        assert set(child["ran_by"]) <= {child["worker_id"], parent["worker_id"]}
    if database_url.startswith("postgresql"):
        assert len({parent["backend"], *(child["backend"] for child in children)}) == 3
        assert again["backend"] == parent["backend"]


ONLY_CHILDREN_WORK = FORK.replace('"parent": work()', '"parent": backends()').replace(
    'facts["parent_again"] = work()', 'facts["parent_again"] = backends()'
)


def test_children_of_a_process_that_only_loaded_the_application_run_workflows_themselves(
    database_url: str, tmp_path: Path
) -> None:
    facts = json.loads(run_python(ONLY_CHILDREN_WORK, folder=tmp_path, SHOP_URL=driver_url(database_url)))

    for child in facts["children"]:
        assert child["ran_by"] == [child["worker_id"]] * 5
        assert child["is_beside_engine"]
        assert child["backend"] != facts["parent"] or not database_url.startswith("postgresql")
    assert facts["parent_again"] == facts["parent"] or not database_url.startswith("postgresql")


def test_a_worker_that_is_stopped_while_it_is_being_entered_leaves_nothing(database_url: str) -> None:
    is_entered, may_go_on = threading.Event(), threading.Event()

    def holds(point: str) -> None:
        if point == "register.after_commit":
            is_entered.set()
            assert may_go_on.wait(30)

    with open_shop(database_url, probe=holds) as shop:
        starting = shop.edda._application().start_engine()
        assert is_entered.wait(30)
        stopping = threading.Thread(target=shop.edda.shutdown)
        stopping.start()
        eventually(starting.cancelled)
        may_go_on.set()
        stopping.join(30)
        assert not stopping.is_alive()
        with outside(database_url) as engine, engine.connect() as conn:
            assert conn.execute(text("SELECT worker_id FROM edda_workers")).all() == []
    assert [thread.name for thread in threading.enumerate() if thread.name == "edda-committer"] == []
