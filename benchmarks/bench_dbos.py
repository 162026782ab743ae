"""DBOS Transact, the same work: ``start_workflow()``, then ``get_result()``.

    bench_dbos.py --db postgresql://... [--concurrency 16]

Runs in an environment of its own, which ``run.py`` makes.
"""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

from common import arguments, fresh_database, leave, throughput, with_driver
from dbos import DBOS

given = arguments("throughput")


@DBOS.step()
def act(i: int) -> dict[str, Any]:
    return {"i": i, "ok": True}


@DBOS.workflow()
def chain(steps: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for i in range(steps):
        found = act(i)
    return found


def main() -> None:
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
    DBOS(config=config)
    DBOS.launch()

    def one() -> Any:
        return DBOS.start_workflow(chain, given.steps).get_result()

    expected = {"i": given.steps - 1, "ok": True}
    throughput(one, expected=expected, given=given, system="dbos", version=version("dbos"), mode="start_workflow")
    leave()


if __name__ == "__main__":
    main()
