"""DBOS Transact, the same work: ``start_workflow()``, then ``get_result()``.

    bench_dbos.py --db postgresql://... [--concurrency 16] [--opt step=write]

``step``    ``plain`` (the default), or ``write``: each step inserts one row in a datasource transaction.

Runs in an environment of its own, which ``run.py`` makes.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import version
from typing import Any

from common import arguments, fresh_database, leave, throughput, with_driver
from dbos import DBOS, SQLAlchemyDatasource
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

given = arguments("throughput")


@DBOS.step()
def act(i: int) -> dict[str, Any]:
    return {"i": i, "ok": True}


class Base(DeclarativeBase):
    pass


class Row(Base):
    """What a writing step leaves behind."""

    __tablename__ = "row"

    id: Mapped[int] = mapped_column(primary_key=True)
    number: Mapped[int]


def writing_step() -> Callable[[int], dict[str, Any]]:
    datasource = SQLAlchemyDatasource.create(
        database_url=with_driver(given.db), engine_kwargs={"pool_size": given.pool or 20, "max_overflow": 0}
    )
    Base.metadata.create_all(datasource.engine)

    # The level that ours runs at; the library's default, SERIALIZABLE, costs it more.
    @datasource.transaction(isolation_level="READ COMMITTED")
    def insert(i: int) -> dict[str, Any]:
        datasource.sql_session().add(Row(number=i))
        return {"i": i, "ok": True}

    return insert


step: Callable[[int], dict[str, Any]] = act


@DBOS.workflow()
def chain(steps: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for i in range(steps):
        found = step(i)
    return found


def main() -> None:
    global step
    if not given.keep_db:
        fresh_database(given.db)
    config: dict[str, Any] = {
        "name": "bench",
        "system_database_url": with_driver(given.db),
        "application_version": "1",
        "log_level": "ERROR",
        "console_log_level": "ERROR",
        "run_admin_server": False,
    }
    if given.pool:
        config["sys_db_pool_size"] = given.pool
    if given.options.get("step") == "write":
        step = writing_step()
    DBOS(config=config)
    DBOS.launch()

    def one() -> Any:
        return DBOS.start_workflow(chain, given.steps).get_result()

    expected = {"i": given.steps - 1, "ok": True}
    throughput(one, expected=expected, given=given, system="dbos", version=version("dbos"), mode="start_workflow")
    leave()


if __name__ == "__main__":
    main()
