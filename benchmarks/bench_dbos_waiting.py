"""DBOS Transact, waiting: ``DBOS.sleep`` and ``DBOS.recv``; the sender is a process with a ``DBOSClient``.

    bench_dbos_waiting.py --db postgresql://... --bench event [--workflows 200] [--opt body=async]

``body``   ``def`` (the default), or ``async``: ``sleep_async`` and ``recv_async`` in coroutines on one event loop.
``pause``  seconds between two events, instead of a few hundredths.

Runs in an environment of its own, which ``running.py`` makes.
"""

from __future__ import annotations

import asyncio
import threading
from importlib.metadata import version
from typing import Any

from common import arguments, fresh_database, leave, with_driver
from dbos import DBOS, DBOSClient
from waits import BENCHES, Library, Notes, run, sender

FOR_EVER_SECONDS = 3600

given = arguments(*BENCHES)
notes = Notes()


@DBOS.step()
def steps(key: int) -> int:
    return notes.steps(key)


@DBOS.step()
def arrives(key: int, sent_at: float) -> int:
    return notes.arrives(key, sent_at)


@DBOS.step()
async def steps_async(key: int) -> int:
    return notes.steps(key)


@DBOS.step()
async def arrives_async(key: int, sent_at: float) -> int:
    return notes.arrives(key, sent_at)


@DBOS.workflow()
def sleeper(key: int, seconds: float) -> int:
    DBOS.sleep(notes.asks(key, seconds))
    notes.wakes(key)
    return steps(key)


@DBOS.workflow()
async def sleeper_async(key: int, seconds: float) -> int:
    await DBOS.sleep_async(notes.asks(key, seconds))
    notes.wakes(key)
    return await steps_async(key)


@DBOS.workflow()
def receiver(key: int) -> int:
    message = DBOS.recv(timeout_seconds=FOR_EVER_SECONDS)
    return arrives(key, message["sent_at"])


@DBOS.workflow()
async def receiver_async(key: int) -> int:
    message = await DBOS.recv_async(timeout_seconds=FOR_EVER_SECONDS)
    return await arrives_async(key, message["sent_at"])


def launch() -> None:
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


def main() -> None:
    if given.bench == "sender":
        client = DBOSClient(system_database_url=with_driver(given.db))
        sender(lambda workflow_id, sent_at: client.send(workflow_id, {"sent_at": sent_at}))
        leave()
    if not given.keep_db:
        fresh_database(given.db)
    launch()
    body = given.options.get("body", "def")
    if body == "async":
        loop = asyncio.new_event_loop()
        threading.Thread(target=loop.run_forever, daemon=True).start()

        def start(flow: Any, *values: Any) -> Any:
            return asyncio.run_coroutine_threadsafe(DBOS.start_workflow_async(flow, *values), loop).result()

        def result(handle: Any) -> Any:
            return asyncio.run_coroutine_threadsafe(handle.get_result(), loop).result()
    else:

        def start(flow: Any, *values: Any) -> Any:
            return DBOS.start_workflow(flow, *values)

        def result(handle: Any) -> Any:
            return handle.get_result()

    sleeping, receiving = (sleeper_async, receiver_async) if body == "async" else (sleeper, receiver)
    library = Library(
        system="dbos",
        version=version("dbos"),
        body=body,
        notes=notes,
        start_sleeper=lambda key, seconds: start(sleeping, key, seconds),
        start_receivers=lambda keys: [start(receiving, key) for key in keys],
        result=result,
        address=lambda handle: handle.workflow_id,
        # recv writes down its deadline once it has looked for a message in vain.
        waiting_query=(
            "SELECT count(*) FROM dbos.workflow_status w WHERE w.status = 'PENDING' AND EXISTS (SELECT FROM"
            " dbos.operation_outputs o WHERE o.workflow_uuid = w.workflow_uuid AND o.function_name = 'DBOS.sleep')"
        ),
    )
    run(library, given)
    leave()


if __name__ == "__main__":
    main()
