"""The examples of the documentation about waiting and talking run, on SQLite, and do what their pages say."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from types import ModuleType
from typing import Any

import pytest
from flask import Flask

from edda_engine import EddaApp, Status, WorkflowFailedError
from tests.e2e.examples import Load, run_with, working
from tests.integration.engines import Tables, until
from tests.support import eventually

SOON = timedelta(seconds=0.05)


class Running:
    """An application that runs, and what its workflows wait for."""

    def __init__(self, app: EddaApp, url: str) -> None:
        self.app, self._tables = app, Tables(url)

    async def start(self, workflow: Any, *args: Any, waits_for: str | None = None, **kwargs: Any) -> str:
        """Start an instance, and come back once it waits."""
        instance_id: str = await workflow.start(*args, **kwargs)
        if waits_for is not None:
            await self.waits(instance_id, waits_for)
        return instance_id

    async def waits(self, instance_id: str, *names: str) -> None:
        """Come back once an instance waits for all of these."""
        query = "SELECT name FROM edda_waits WHERE instance_id = :id"
        await until(lambda: set(names) <= {row["name"] for row in self._tables.rows(query, id=instance_id)})

    async def result(self, instance_id: str) -> Any:
        """What it returns."""
        return await self.app.result(instance_id, timeout=30)


def run(url: str, ask: Callable[[Running], Awaitable[Any]]) -> Any:
    app = EddaApp("docs", url)
    return run_with(app, lambda: ask(Running(app, url)))


# Timers


def test_timers_page_writes_its_letters_in_order(load: Load, sqlite_url: str) -> None:
    module = load("timers")
    module.TRIAL, module.LAST_DAYS = 2 * SOON, SOON

    async def ask(running: Running) -> Any:
        return await running.result(await running.start(module.trial, "ada"))

    assert run(sqlite_url, ask) == "over"
    assert module.letters == [("ada", "Welcome!"), ("ada", "Two days are left."), ("ada", "That was it.")]


def test_timers_page_reminds_at_once_when_the_moment_has_passed(load: Load, sqlite_url: str) -> None:
    module = load("timers")

    async def ask(running: Running) -> Any:
        in_half_an_hour = datetime.now(UTC) + timedelta(minutes=30)
        return await running.result(await running.start(module.remind, "ada", in_half_an_hour))

    run(sqlite_url, ask)
    assert module.letters == [("ada", "See you in an hour.")]


def test_timers_page_waits_for_the_next_morning(load: Load, sqlite_url: str) -> None:
    module = load("timers")

    async def ask(running: Running) -> Any:
        instance_id = await running.start(module.order_newspaper, "ada")
        await until(lambda: Tables(sqlite_url).status(instance_id) == Status.WAITING_FOR_TIMER)
        return (await running.app.get(instance_id)).wake_at

    wake_at = run(sqlite_url, ask)
    assert (wake_at.hour, wake_at.minute, wake_at.second) == (6, 0, 0)
    assert timedelta(0) < wake_at - datetime.now(UTC) <= timedelta(days=1)
    assert module.next_morning(datetime(2026, 1, 1, 6, tzinfo=UTC)) == datetime(2026, 1, 2, 6, tzinfo=UTC)


def test_timers_page_refuses_a_naive_time(load: Load, sqlite_url: str) -> None:
    module = load("timers")

    async def ask(running: Running) -> Any:
        with pytest.raises(WorkflowFailedError) as failed:
            await running.result(await running.start(module.wake_at_a_naive_time))
        return failed.value.__cause__

    cause = run(sqlite_url, ask)
    assert isinstance(cause, ValueError)
    assert "the time has no zone" in str(cause)


# Events


def test_waiting_page_goes_on_when_its_event_comes(load: Load, sqlite_url: str) -> None:
    module = load("waiting")

    async def ask(running: Running) -> Any:
        instance_id = await running.start(module.order, number=7, waits_for="order.paid")
        await running.app.send_event("order.paid", "bank", {"amount": 30})
        return await running.result(instance_id)

    assert run(sqlite_url, ask) == "order 7: 30 from bank"


def test_waiting_page_keeps_what_was_sent_to_an_instance_before_it_asked(load: Load, sqlite_url: str) -> None:
    module = load("waiting")

    async def ask(running: Running) -> Any:
        instance_id = await module.order.options(delay=0.2).start(number=7)
        await running.app.send_event("order.paid", "bank", {"amount": 30}, instance_id=instance_id)
        return await running.result(instance_id)

    assert run(sqlite_url, ask) == "order 7: 30 from bank"


@pytest.mark.parametrize("name", ["parcel", "careful"])
def test_waiting_page_gives_the_model(load: Load, sqlite_url: str, name: str) -> None:
    module = load("waiting")

    async def ask(running: Running) -> Any:
        instance_id = await running.start(getattr(module, name))
        if name == "careful":
            await running.app.send_event("parcel.weighed", "scales", {"grams": "?"}, instance_id=instance_id)
        weighed = module.Parcel(tracking="X1", grams=900)
        await running.app.send_event("parcel.weighed", "scales", weighed, instance_id=instance_id)
        return await running.result(instance_id)

    assert run(sqlite_url, ask) == {"parcel": "X1 weighs 900 g", "careful": "X1"}[name]


def test_waiting_page_asks_the_next_person_when_nobody_answers(load: Load, sqlite_url: str) -> None:
    module = load("waiting")

    async def ask(running: Running) -> Any:
        module.REMINDER = SOON
        forgotten = await running.start(module.approve_expense, 1)
        told = [await running.result(forgotten)]
        module.REMINDER = timedelta(days=3)
        decided = await running.start(module.approve_expense, 2, waits_for="expense.decided")
        await running.app.send_event("expense.decided", "mail", {"approved": True, "by": "Ada"}, instance_id=decided)
        return [*told, await running.result(decided)]

    assert run(sqlite_url, ask) == ["refused: nobody decided", "approved by Ada"]


# Sending


@pytest.fixture
def sending(load: Load, sqlite_url: str) -> tuple[ModuleType, Flask]:
    module = load("sending")
    return module, module.create_app({"TESTING": True, "SQLALCHEMY_DATABASE_URI": sqlite_url})


def collector(module: ModuleType, number: str) -> str:
    return str(module.collect.options(instance_id=f"collect-{number}", session=None).start(number))


def test_sending_page_sends_with_the_commit_of_a_view_and_not_with_its_rollback(
    sending: tuple[ModuleType, Flask],
) -> None:
    module, app = sending
    with working(app, module.edda):
        forgotten, settled, at_once = (collector(module, number) for number in ("a", "b", "c"))

        for call in ("a/forget", "b/settle", "c/settle-at-once"):
            assert app.test_client().post(f"/invoices/{call}").status_code == 200

        assert module.edda.result(settled, timeout=30) == {"amount": 12}
        assert module.edda.result(at_once, timeout=30) == {"amount": 7}
        eventually(lambda: module.edda.get(forgotten).status == Status.WAITING_FOR_EVENT)


def test_sending_page_sends_with_an_activity_that_succeeds_and_not_with_one_that_fails(
    sending: tuple[ModuleType, Flask],
) -> None:
    module, app = sending
    with working(app, module.edda):
        waiting = collector(module, "d")

        module.settlement.options(session=None).start("d", 9)

        assert module.edda.result(waiting, timeout=30) == {"amount": 9}


def test_sending_page_sends_once_from_a_body(sending: tuple[ModuleType, Flask]) -> None:
    module, app = sending
    with working(app, module.edda):
        waiting = collector(module, "e")
        sender = module.settle_directly.options(session=None).start("e")

        module.edda.result(sender, timeout=30)

        assert module.edda.result(waiting, timeout=30) == {"amount": 5}
        assert [event.event_type for event in module.edda.history(sender)] == ["MessageSent"]


# Channels


def test_channels_page_tells_every_follower_everything(load: Load, sqlite_url: str) -> None:
    module = load("channelling")

    async def ask(running: Running) -> Any:
        followers = [await running.start(module.follow, 3, waits_for="prices") for _ in range(2)]
        looking = await running.start(module.look, waits_for="prices")
        await running.start(module.announce, ["tea", "mug"])
        first = await running.result(looking)
        await running.start(module.reprice, "honey")
        return [await running.result(follower) for follower in followers], first

    followed, first = run(sqlite_url, ask)
    assert [sorted(items) for items in followed] == [["honey", "mug", "tea"]] * 2
    assert followed[0] == followed[1]
    assert followed[0].index("tea") < followed[0].index("mug")
    assert (first["channel"], first["currency"]) == ("prices", "EUR")
    assert datetime.fromisoformat(first["at"]).utcoffset() == timedelta(0)


def test_channels_page_gives_each_image_to_one_resizer(load: Load, sqlite_url: str) -> None:
    module = load("channelling")
    images = [f"image {number}" for number in range(20)]

    async def ask(running: Running) -> Any:
        for image in images:
            await running.app.publish("images", image)
        resizers = [await running.start(module.resizer) for _ in range(3)]
        return [await running.result(resizer) for resizer in resizers]

    resized = run(sqlite_url, ask)
    assert sorted(done for each in resized for done in each) == sorted(f"{image} is small" for image in images)


def test_channels_page_answers_whoever_asked(load: Load, sqlite_url: str) -> None:
    module = load("channelling")

    async def ask(running: Running) -> Any:
        oracle = await running.start(module.oracle, 2)
        askers = [await running.start(module.ask, oracle, text) for text in ("Rain?", "Sun?")]
        return [await running.result(asker) for asker in askers]

    assert run(sqlite_url, ask) == ["Rain? Yes.", "Sun? Yes."]


# Races


@pytest.mark.parametrize(
    ("sent", "expected"),
    [("renewed", "renewed by shop"), ("terminated", "closed: terminated"), (None, "closed: run out")],
)
def test_racing_page_takes_what_comes_first(load: Load, sqlite_url: str, sent: str | None, expected: str) -> None:
    module = load("racing")

    async def ask(running: Running) -> Any:
        if sent is None:
            module.TERM = SOON
            return await running.result(await running.start(module.subscription))
        instance_id = await running.start(module.subscription, waits_for=sent)
        await running.app.send_event(sent, "shop", None)
        return await running.result(instance_id)

    assert run(sqlite_url, ask) == expected


def test_racing_page_races_in_a_plain_workflow(load: Load, sqlite_url: str) -> None:
    module = load("racing")

    async def ask(running: Running) -> Any:
        renewed = await running.start(module.plain_subscription, waits_for="renewed")
        await running.app.send_event("renewed", "shop", None)
        found = [await running.result(renewed)]
        module.TERM = SOON
        return [*found, await running.result(await running.start(module.plain_subscription))]

    assert run(sqlite_url, ask) == ["renewed by shop", "closed: run out"]


def test_racing_page_bounds_a_whole_stretch(load: Load, sqlite_url: str) -> None:
    module = load("racing")

    async def ask(running: Running) -> Any:
        complete = await running.start(module.application)
        for name in ("signature", "passport", "photograph"):
            await running.app.send_event(f"{name}.received", "post", {"pages": 2}, instance_id=complete)
        found = [await running.result(complete)]
        module.TERM = SOON
        return [*found, await running.result(await running.start(module.application))]

    assert run(sqlite_url, ask) == ["complete, 6 pages", "withdrawn"]


@pytest.mark.parametrize("name", ["meeting", "plain_meeting"])
def test_racing_page_waits_for_all(load: Load, sqlite_url: str, name: str) -> None:
    module = load("racing")

    async def ask(running: Running) -> Any:
        instance_id = await running.start(getattr(module, name))
        await running.waits(instance_id, "ada.answered", "grace.answered")
        for guest, answer in (("grace", "gladly"), ("ada", "no")):
            await running.app.send_event(f"{guest}.answered", "mail", answer)
        return await running.result(instance_id)

    assert run(sqlite_url, ask) == ["no", "gladly"]


def test_racing_page_reads_until_it_is_switched_off(load: Load, sqlite_url: str) -> None:
    module = load("racing")

    async def ask(running: Running) -> Any:
        instance_id = await running.start(module.thermostat, 10, waits_for="temperatures")
        for temperature in (19.5, 20.0, 20.5):
            await running.app.publish("temperatures", temperature)
        query = "SELECT count(*) FROM edda_history WHERE event_type = 'MessageReceived'"
        await until(lambda: Tables(sqlite_url).value(query) == 3)
        await running.app.send_event("switch.off", "hand", None, instance_id=instance_id)
        return await running.result(instance_id)

    assert run(sqlite_url, ask) == [19.5, 20.0, 20.5]


# Recurrence


def test_recurring_page_sweeps_again_and_again_with_a_short_history(load: Load, sqlite_url: str) -> None:
    module = load("recurring")
    module.EVERY = timedelta(0)

    async def ask(running: Running) -> Any:
        first = await running.start(module.sweeper)
        await until(lambda: len(module.swept) >= 5)
        await running.app.cancel(first)
        found = await running.app.get(first)
        return found.status, [event.activity_id for event in await running.app.history(first)]

    status, steps = run(sqlite_url, ask)
    assert (status, steps) == (Status.RECURRED, ["sweep:1", "sleep:1"])
    assert module.swept[:5] == [1, 2, 3, 4, 5]


def test_recurring_page_adds_up_every_number_across_its_runs(load: Load, sqlite_url: str) -> None:
    module = load("recurring")
    module.MESSAGES_A_RUN = 3

    async def ask(running: Running) -> Any:
        first = await running.start(module.counter, waits_for="numbers")
        for number in [*range(1, 11), None]:
            await running.app.publish("numbers", number)
        return await running.result(first)

    assert run(sqlite_url, ask) == 55


# Parking


def test_parking_page_runs_what_is_in_finally_at_each_eviction_and_the_step_after_it_once(
    load: Load, sqlite_url: str
) -> None:
    module = load("parking")
    app = EddaApp("docs", sqlite_url, max_parked=0)

    async def ask() -> Any:
        running = Running(app, sqlite_url)
        instance_id = await running.start(module.review, "ada", waits_for="review.answered")
        await until(lambda: not module.watched)  # the body is gone, and its finally has run
        before = list(module.letters)
        await app.send_event("review.answered", "test", "yes", instance_id=instance_id)
        return before, await running.result(instance_id)

    assert run_with(app, ask) == ([], "yes")
    assert (module.letters, module.watched) == (["ada"], set())
