"""An application on psycopg2: its sessions are shared, its workers listen, and its errors are understood."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy import make_url, text

from edda_wsgi import WorkflowContext, WorkflowFailedError, workflow
from tests.integration.flask_apps import Note, Shop, open_shop, saved_notes
from tests.support import eventually


@pytest.fixture
def url(postgres_url: str) -> str:
    return make_url(postgres_url).set(drivername="postgresql+psycopg2").render_as_string(False)


@pytest.fixture
def shop(url: str) -> Iterator[Shop]:
    with open_shop(url, poll_interval_seconds=60.0) as opened:
        assert opened.edda.start_worker()
        yield opened


def test_a_worker_on_psycopg2_is_well_and_hears_of_what_other_processes_start(shop: Shop, url: str) -> None:
    @workflow
    async def order(ctx: WorkflowContext, number: int) -> int:
        return number * 10

    def write(ctx: WorkflowContext) -> str:
        shop.session(ctx).add(Note(text="a"))
        shop.session(ctx).commit()
        return "written"

    shop.app.get("/healthz")(shop.edda.health)
    health = shop.app.test_client().get("/healthz")
    shop.run(write)  # the worker has looked for work, and sleeps for a minute now
    with open_shop(url, role="client", name="client") as client:
        with client.app.app_context():  # it tells workers of its commit as another process does
            instance_id = order.start(7)
            client.session().commit()

        assert eventually(lambda: shop.edda.get(instance_id).status == "completed")

    assert (health.status_code, health.json["checks"]["worker"]) == (200, "ok")
    assert saved_notes(url) == ["a"]


def test_an_activity_that_fails_after_its_commit_keeps_nothing_on_psycopg2(shop: Shop, url: str) -> None:
    def write_then_fail(ctx: WorkflowContext) -> None:
        shop.session(ctx).add(Note(text="a"))
        shop.session(ctx).commit()
        raise ValueError("after the commit")

    with pytest.raises(WorkflowFailedError, match="after the commit"):
        shop.run(write_then_fail)

    assert saved_notes(url) == []


def test_a_statement_that_was_cancelled_is_no_outage_on_psycopg2(shop: Shop) -> None:
    def waits_too_long(ctx: WorkflowContext) -> None:
        shop.session(ctx).execute(text("SET LOCAL statement_timeout = 50"))
        shop.session(ctx).execute(text("SELECT pg_sleep(20)"))

    with pytest.raises(WorkflowFailedError, match="statement timeout"):
        shop.run(waits_too_long)
