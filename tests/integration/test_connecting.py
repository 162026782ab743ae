"""Whatever connects to the database for us does so as it was told: also the pool of async activities."""

from __future__ import annotations

import asyncio

import pytest
from sqlalchemy import make_url, text

from edda_engine import ConfigurationError, EddaApp, WorkflowContext, activity, workflow
from tests.integration.engines import edda
from tests.integration.flask_apps import open_shop

OFTEN = 8
"""psycopg prepares a statement at its sixth execution, unless it is told otherwise."""
COUNT = text("SELECT count(*) FROM pg_prepared_statements")


@activity
async def prepares_async(ctx: WorkflowContext) -> int:
    for _ in range(OFTEN):
        await ctx.session.execute(text("SELECT 1"))
    return int(await ctx.session.scalar(COUNT))


@activity
def prepares(ctx: WorkflowContext) -> int:
    for _ in range(OFTEN):
        ctx.session.execute(text("SELECT 1"))
    return int(ctx.session.scalar(COUNT))


@workflow
async def prepares_both(ctx: WorkflowContext) -> list[int]:
    return [await prepares(ctx), await prepares_async(ctx)]


@pytest.mark.parametrize(("threshold", "prepared"), [("none", False), ("0", True)])
def test_prepare_threshold_in_the_url_holds_for_sync_and_async_activities(
    postgres_url: str, threshold: str, prepared: bool
) -> None:
    url = make_url(postgres_url).update_query_dict({"prepare_threshold": threshold}).render_as_string(False)

    async def main() -> list[int]:
        async with edda(url) as app:
            return await app.result(await prepares_both.start(), timeout=20)

    assert [count > 0 for count in asyncio.run(main())] == [prepared, prepared]


def test_a_prepare_threshold_that_is_no_number_is_refused_with_what_is_needed() -> None:
    with pytest.raises(ConfigurationError, match=r"prepare_threshold=never.*or none to prepare nothing"):
        EddaApp(db_url="postgresql://nowhere/shop?prepare_threshold=never")


def test_async_activities_connect_with_the_connect_args_of_the_applications_engine(postgres_url: str) -> None:
    given = {"prepare_threshold": None, "application_name": "web"}

    async def looks(ctx: WorkflowContext) -> tuple[str, int]:
        for _ in range(OFTEN):
            name = await ctx.session.scalar(text("SELECT current_setting('application_name')"))
        return str(name), int(await ctx.session.scalar(COUNT))

    with open_shop(postgres_url, config={"SQLALCHEMY_ENGINE_OPTIONS": {"connect_args": given}}) as shop:
        assert shop.run(looks) == ["web", 0]
