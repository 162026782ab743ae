"""``edda-framework``, waiting: ``sleep`` and ``receive``; the sender is another process with the same library.

    bench_framework_waiting.py --db postgresql://... --bench event [--workflows 4] [--opt warmup=0]

``warmup``  how many events are sent before those that count.
"""

from __future__ import annotations

from typing import Any

from common import arguments, fresh_database, leave
from edda import WorkflowContext, activity, publish, receive, sleep, subscribe, workflow
from framework import SYSTEM, VERSION, launch, result_of, wait_for
from waits import BENCHES, Library, Notes, run, sender

CHANNEL = "arrived"

given = arguments(*BENCHES)
notes = Notes()


@activity
def steps(ctx: WorkflowContext, key: int) -> int:
    return notes.steps(key)


@activity
def arrives(ctx: WorkflowContext, key: int, sent_at: float) -> int:
    return notes.arrives(key, sent_at)


@workflow
async def sleeper(ctx: WorkflowContext, key: int, seconds: int) -> int:
    notes.asks(key, seconds)
    await sleep(ctx, seconds)
    notes.wakes(key)
    return await steps(ctx, key)


@workflow
async def receiver(ctx: WorkflowContext, key: int) -> int:
    await subscribe(ctx, CHANNEL, mode="direct")
    message = await receive(ctx, CHANNEL)
    return await arrives(ctx, key, message.data["sent_at"])


def send_for_others() -> None:
    app = launch(given.db, given.pool)

    def send(instance_id: str, sent_at: float) -> None:
        sending = publish(
            app.storage,
            f"{CHANNEL}:{instance_id}",
            {"sent_at": sent_at},
            target_instance_id=instance_id,
            worker_id=app.worker_id,
        )
        wait_for(sending)

    sender(send)


def main() -> None:
    if given.bench == "sender":
        send_for_others()
        leave()
    if not given.keep_db:
        fresh_database(given.db)
    app = launch(given.db, given.pool)

    def start(flow: Any, **values: Any) -> str:
        return str(wait_for(flow.start(**values)))

    library = Library(
        system=SYSTEM,
        version=VERSION,
        body="async",
        notes=notes,
        start_sleeper=lambda key, seconds: start(sleeper, key=key, seconds=max(1, round(seconds))),
        start_receivers=lambda keys: [start(receiver, key=key) for key in keys],
        result=lambda instance_id: wait_for(result_of(app, instance_id)),
        address=lambda instance_id: instance_id,
        waiting_query=(
            "SELECT count(*) FROM workflow_instances WHERE status = 'waiting_for_message' AND locked_by IS NULL"
        ),
    )
    run(library, given)
    leave()


if __name__ == "__main__":
    main()
