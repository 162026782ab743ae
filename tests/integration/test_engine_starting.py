"""``start()``: what it checks, what it writes, and whose transaction it joins."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from pydantic import BaseModel
from sqlalchemy import make_url
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

from edda_engine import (
    ConfigurationError,
    InstanceConflictError,
    InstanceNotFoundError,
    InvalidInputError,
    PayloadError,
    ResultTimeoutError,
    UsageError,
    WorkflowContext,
    WorkflowFailedError,
    activity,
    workflow,
)
from tests.integration.engines import NEVER_AGAIN, SOON, Tables, edda, write_note_async


class Order(BaseModel):
    number: int
    customer: str = "nobody"


@asynccontextmanager
async def async_session(url: str) -> AsyncIterator[AsyncSession]:
    """A session of an application's own engine on the same database."""
    drivers = {"postgresql": "postgresql+psycopg", "sqlite": "sqlite+aiosqlite"}
    made = make_url(url)
    engine = create_async_engine(made.set(drivername=drivers[made.get_backend_name()]))
    try:
        async with AsyncSession(engine) as session:
            yield session
    finally:
        await engine.dispose()


def count(url: str) -> int:
    return int(Tables(url).value("SELECT count(*) FROM edda_instances"))


def test_the_same_id_with_the_same_input_starts_nothing_twice(database_url: str) -> None:
    runs: list[int] = []

    @workflow
    async def once(ctx: WorkflowContext, number: int, extra: dict[str, int]) -> int:
        runs.append(number)
        return number

    async def main() -> tuple[str, str, str]:
        async with edda(database_url) as app:
            first = await once.options(instance_id="order-1").start(1, {"a": 1, "b": 2})
            again = await once.options(instance_id="order-1").start(extra={"b": 2, "a": 1}, number=1)
            await app.result(first, timeout=20)
            return first, again, await once.options(instance_id="order-1").start(1, {"a": 1, "b": 2})

    assert asyncio.run(main()) == ("order-1", "order-1", "order-1")
    assert runs == [1]
    assert count(database_url) == 1


def test_the_same_id_with_another_input_is_a_conflict(database_url: str) -> None:
    @workflow
    async def once(ctx: WorkflowContext, number: int) -> None: ...

    async def main() -> None:
        async with edda(database_url):
            await once.options(instance_id="order-1", delay=60).start(1)
            await once.options(instance_id="order-1", delay=60).start(2)

    with pytest.raises(
        InstanceConflictError, match="already runs once; it cannot be started again as once with another input"
    ):
        asyncio.run(main())


def test_the_same_id_with_another_workflow_is_a_conflict(database_url: str) -> None:
    @workflow
    async def once(ctx: WorkflowContext) -> None: ...

    @workflow
    async def other(ctx: WorkflowContext) -> None: ...

    async def main() -> None:
        async with edda(database_url):
            await once.options(instance_id="order-1", delay=60).start()
            await other.options(instance_id="order-1", delay=60).start()

    with pytest.raises(InstanceConflictError, match="cannot be started again as other"):
        asyncio.run(main())


def test_many_starts_of_one_id_at_once_make_one_instance(database_url: str) -> None:
    runs: list[int] = []

    @workflow
    async def once(ctx: WorkflowContext) -> None:
        runs.append(1)

    async def main() -> set[str]:
        async with edda(database_url) as app:
            ids = await asyncio.gather(*(once.options(instance_id="order-1").start() for _ in range(12)))
            await app.result("order-1", timeout=20)
            return set(ids)

    assert asyncio.run(main()) == {"order-1"}
    assert runs == [1]
    assert count(database_url) == 1


@pytest.mark.parametrize(
    ("args", "kwargs", "problem"),
    [
        ((), {}, "missing a required argument: 'number'"),
        ((1, "a", 2), {}, "too many positional arguments"),
        ((1,), {"colour": "red"}, "unexpected keyword argument 'colour'"),
        (("one",), {}, r"the argument at \$\.number does not fit its annotation"),
        ((1,), {"name": object()}, r"the argument at \$\.name"),
    ],
)
def test_arguments_that_do_not_fit_the_signature_are_refused_at_once(
    database_url: str, args: tuple[Any, ...], kwargs: dict[str, Any], problem: str
) -> None:
    @workflow
    async def typed(ctx: WorkflowContext, number: int, name: str = "x") -> None: ...

    async def main() -> None:
        async with edda(database_url):
            await typed.start(*args, **kwargs)

    with pytest.raises(InvalidInputError, match=problem) as caught:
        asyncio.run(main())
    assert isinstance(caught.value, TypeError)
    assert "Its signature is typed(number: int, name: str = 'x')" in str(caught.value).replace("'int'", "int").replace(
        "'str'", "str"
    )
    assert count(database_url) == 0


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [
        ((Order(number=7, customer="Ada"),), {}),
        ((), {"order": Order(number=7, customer="Ada")}),
        ((), {"number": 7, "customer": "Ada"}),
        (({"number": 7, "customer": "Ada"},), {}),
    ],
    ids=["model", "model-by-name", "fields", "dict"],
)
def test_one_model_parameter_accepts_the_whole_input(
    database_url: str, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    @workflow
    async def fulfil(ctx: WorkflowContext, order: Order) -> Order:
        assert isinstance(order, Order)
        return order

    async def main() -> Any:
        async with edda(database_url) as app:
            return await app.result(await fulfil.start(*args, **kwargs), timeout=20)

    assert asyncio.run(main()) == Order(number=7, customer="Ada")


def test_an_input_over_the_limit_is_refused_with_both_numbers(database_url: str) -> None:
    @workflow
    async def big(ctx: WorkflowContext, text: str) -> None: ...

    async def main() -> None:
        async with edda(database_url, max_payload_bytes=1000):
            await big.options(delay=60).start("x" * 900)
            await big.start("å" * 600)

    with pytest.raises(InvalidInputError, match=r"takes 1211 bytes of JSON, more than MAX_PAYLOAD_BYTES = 1000"):
        asyncio.run(main())
    assert count(database_url) == 1


@pytest.mark.parametrize("letter", ["x", "å"])
def test_an_activity_result_over_the_limit_fails_once_and_is_not_saved(database_url: str, letter: str) -> None:
    runs: list[int] = []

    @activity(retry_policy=SOON)
    def big(ctx: WorkflowContext) -> str:
        runs.append(ctx.attempt)
        return letter * (1200 if letter == "x" else 600)

    @workflow
    async def calls(ctx: WorkflowContext) -> None:
        await big(ctx)

    async def main() -> None:
        async with edda(database_url, max_payload_bytes=1000) as app:
            await app.result(await calls.start(), timeout=20)

    with pytest.raises(WorkflowFailedError, match="more than MAX_PAYLOAD_BYTES = 1000") as caught:
        asyncio.run(main())
    assert isinstance(caught.value.__cause__, PayloadError)
    assert runs == [1]


def test_a_workflow_result_over_the_limit_fails_the_workflow(database_url: str) -> None:
    @workflow
    async def big(ctx: WorkflowContext) -> str:
        return "x" * 1200

    async def main() -> None:
        async with edda(database_url, max_payload_bytes=1000) as app:
            await app.result(await big.start(), timeout=20)

    with pytest.raises(WorkflowFailedError, match="more than MAX_PAYLOAD_BYTES = 1000") as caught:
        asyncio.run(main())
    assert isinstance(caught.value.__cause__, PayloadError)


def test_a_start_in_a_body_is_refused_with_a_sentence_that_says_what_to_use(database_url: str) -> None:
    @workflow
    async def child(ctx: WorkflowContext) -> None: ...

    @workflow
    async def parent(ctx: WorkflowContext) -> None:
        await child.start()

    async def main() -> None:
        async with edda(database_url) as app:
            await app.result(await parent.start(), timeout=20)

    with pytest.raises(WorkflowFailedError, match=r"Call it in an @activity, or run it inline: await child\(ctx"):
        asyncio.run(main())
    assert count(database_url) == 1


@pytest.mark.parametrize("uses_session", [False, True])
def test_a_start_in_an_activity_is_part_of_its_step(database_url: str, uses_session: bool) -> None:
    tables = Tables(database_url)
    tables.make_notes()
    seen: list[int] = []

    @workflow
    async def child(ctx: WorkflowContext, number: int) -> int:
        return number

    @activity(retry_policy=SOON)
    async def begin(ctx: WorkflowContext) -> str:
        if uses_session:
            await write_note_async(ctx, "begun")
        instance_id = await child.options(instance_id=f"child-{ctx.attempt}").start(ctx.attempt)
        if not tables.is_sqlite:
            seen.append(await asyncio.to_thread(count, database_url))
        if ctx.attempt < 2:
            raise ConnectionError("after the start")
        return instance_id

    @workflow
    async def parent(ctx: WorkflowContext) -> str:
        return await begin(ctx)

    async def main() -> Any:
        async with edda(database_url) as app:
            child_id = await app.result(await parent.start(), timeout=20)
            with pytest.raises(InstanceNotFoundError):
                await app.get("child-1")
            return await app.result(child_id, timeout=20)

    assert asyncio.run(main()) == 2
    assert set(seen) <= {1}
    assert count(database_url) == 2


def test_a_start_in_an_activity_that_fails_for_good_never_was(database_url: str) -> None:
    @workflow
    async def child(ctx: WorkflowContext) -> None: ...

    @activity(retry_policy=NEVER_AGAIN)
    async def begin(ctx: WorkflowContext) -> None:
        await child.start()
        raise ConnectionError("after the start")

    @workflow
    async def parent(ctx: WorkflowContext) -> None:
        await begin(ctx)

    async def main() -> None:
        async with edda(database_url) as app:
            with pytest.raises(WorkflowFailedError):
                await app.result(await parent.start(), timeout=20)

    asyncio.run(main())
    assert count(database_url) == 1


def test_a_start_joins_the_transaction_of_the_given_session(database_url: str) -> None:
    @workflow
    async def joined(ctx: WorkflowContext) -> str:
        return "ran"

    async def main() -> str:
        async with edda(database_url) as app, async_session(database_url) as session:
            instance_id = await joined.options(session=session).start()
            with pytest.raises(InstanceNotFoundError):
                await app.get(instance_id)
            await session.commit()
            return await app.result(instance_id, timeout=20)

    assert asyncio.run(main()) == "ran"


def test_a_start_in_a_session_that_rolls_back_never_was(database_url: str) -> None:
    @workflow
    async def joined(ctx: WorkflowContext) -> str:
        return "ran"

    async def main() -> None:
        async with edda(database_url), async_session(database_url) as session:
            await joined.options(session=session).start()
            await session.rollback()

    asyncio.run(main())
    assert count(database_url) == 0


def test_a_session_that_is_no_async_session_is_refused(database_url: str) -> None:
    @workflow
    async def joined(ctx: WorkflowContext) -> None: ...

    async def main() -> None:
        async with edda(database_url):
            await joined.options(session="session").start()

    with pytest.raises(UsageError, match="takes an AsyncSession"):
        asyncio.run(main())


def test_start_without_a_running_application_says_what_to_call(database_url: str) -> None:
    @workflow
    async def lonely(ctx: WorkflowContext) -> None: ...

    async def main() -> None:
        await lonely.start()

    with pytest.raises(ConfigurationError, match=r"await app\.initialize\(\)"):
        asyncio.run(main())


def test_start_in_a_thread_of_a_sync_activity_says_where_it_can_be_awaited(sqlite_url: str) -> None:
    @workflow
    async def child(ctx: WorkflowContext) -> None: ...

    @activity(retry_policy=NEVER_AGAIN)
    def starts(ctx: WorkflowContext) -> None:
        child.start()

    @workflow
    async def parent(ctx: WorkflowContext) -> None:
        await starts(ctx)

    async def main() -> None:
        async with edda(sqlite_url) as app:
            await app.result(await parent.start(), timeout=20)

    with pytest.raises(
        WorkflowFailedError, match=r"child\.start\(\) was called where nothing can be awaited.*`await child"
    ):
        asyncio.run(main())


def test_start_with_two_running_applications_asks_which_one_is_meant(database_url: str) -> None:
    @workflow
    async def unsure(ctx: WorkflowContext) -> None: ...

    async def main() -> None:
        async with edda(database_url), edda(database_url):
            await unsure.start()

    with pytest.raises(ConfigurationError, match="which of the 2 running EddaApps is meant"):
        asyncio.run(main())


def test_result_gives_up_in_time_and_the_instance_goes_on(database_url: str) -> None:
    @workflow
    async def later(ctx: WorkflowContext) -> str:
        return "done"

    async def main() -> str:
        async with edda(database_url) as app:
            instance_id = await later.options(delay=0.5).start()
            with pytest.raises(ResultTimeoutError, match=r"did not end within 0\.1 s") as caught:
                await app.result(instance_id, timeout=0.1)
            assert isinstance(caught.value, TimeoutError)
            return await app.result(instance_id, timeout=20)

    assert asyncio.run(main()) == "done"


def test_an_unknown_instance_has_no_result_and_no_history(database_url: str) -> None:
    async def main() -> None:
        async with edda(database_url) as app:
            for ask in (app.result, app.get, app.history, app.retry):
                with pytest.raises(InstanceNotFoundError, match="'nobody'"):
                    await ask("nobody")

    asyncio.run(main())


def test_find_instances_filters_and_pages(database_url: str) -> None:
    @workflow
    async def sale(ctx: WorkflowContext, order: Order) -> int:
        return order.number

    async def main() -> tuple[list[str], list[str], list[str], list[str]]:
        async with edda(database_url) as app:
            ids = [
                await sale.options(instance_id=f"sale-{number}").start(number=number, customer="Ada")
                for number in range(5)
            ]
            for each in ids:
                await app.result(each, timeout=20)
            await sale.options(instance_id="sale-late", delay=3600).start(number=1, customer="Bo")
            first = await app.find_instances(limit=4)
            second = await app.find_instances(limit=4, page_token=first.next_page_token)
            assert second.next_page_token is None
            pending = await app.find_instances(status="pending")
            ones = await app.find_instances(input_filters={"order.number": 1}, status="completed")
            flat = await app.find_instances(input_filters={"order.customer": "Bo"})
            return (
                sorted(found.instance_id for page in (first, second) for found in page.instances),
                [found.instance_id for found in pending.instances],
                [found.instance_id for found in ones.instances],
                [found.instance_id for found in flat.instances],
            )

    everything, pending, ones, flat = asyncio.run(main())
    assert everything == ["sale-0", "sale-1", "sale-2", "sale-3", "sale-4", "sale-late"]
    # The fields of a sole model may be the whole input, or stand under the parameter's name.
    assert pending == ["sale-late"]
    assert ones == ["sale-1"]
    assert flat == ["sale-late"]
