"""The asyncio front door: the same engine, without Flask."""

from __future__ import annotations

import asyncio

from sqlalchemy import text

from edda_engine import EddaApp, WorkflowContext, activity, workflow


@activity
async def create_account(ctx: WorkflowContext, name: str) -> int:
    await ctx.session.execute(text("CREATE TABLE IF NOT EXISTS account (id INTEGER PRIMARY KEY, name TEXT)"))
    added = await ctx.session.execute(text("INSERT INTO account (name) VALUES (:name) RETURNING id"), {"name": name})
    return int(added.scalar_one())


@activity
async def greet(ctx: WorkflowContext, name: str) -> str:
    return f"Welcome, {name}!"


@workflow
async def register(ctx: WorkflowContext, name: str) -> str:
    account_id = await create_account(ctx, name)
    greeting = await greet(ctx, name)
    return f"{greeting} Your account is number {account_id}."


async def main(db_url: str = "sqlite:///users.db") -> str:
    async with EddaApp(service_name="users", db_url=db_url) as app:
        instance_id = await register.start(name="Ada")
        greeting: str = await app.result(instance_id, timeout=30)
        for event in await app.history(instance_id):
            print(event.activity_id, event.event_type)  # noqa: T201
        return greeting


# transaction
async def register_in_session(session: object, name: str) -> str:
    return await register.options(session=session).start(name=name)


# end
if __name__ == "__main__":
    print(asyncio.run(main()))  # noqa: T201
