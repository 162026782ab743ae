"""The demo: fifty orders through a killed worker, a killed server and a killed receiver, and an audit of every row.

``python -m example_flask_app.demo --database sqlite``. The exit status is 0 only if every order was fulfilled and
everything was written exactly once. Some orders find no bank that answers, and have to be called off in time.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import httpx
from sqlalchemy import Engine, create_engine, text

from example_flask_app.audit import Check, Neighbours, Wanted, audit
from example_flask_app.models import ARTICLES
from example_flask_app.processes import DATABASES, Manners, Shop, database, end_on_sigterm

CLEAR_LINE = "\r\x1b[K"
LOOK_SECONDS = 0.1
PLAIN_LINE_SECONDS = 2.0
ORDERS_PER_SECOND = 14.0
MANNERS = Manners(packing_seconds=0.2, slow_seconds=1.0, payment_term_seconds=4.0)


class DemoFailedError(Exception):
    """The demo could not be carried through; the message says why."""


@dataclass(frozen=True, slots=True)
class Progress:
    """Where the orders stand."""

    placed: int = 0
    fulfilled: int = 0
    called_off: int = 0
    unfinished: int = 0
    """Workflows under way, but for the packers, who never end."""
    unpublished: int = 0

    @property
    def done(self) -> int:
        """Orders that nothing more happens to."""
        return self.fulfilled + self.called_off


class Display:
    """One updating line on a terminal, plain lines now and then elsewhere."""

    def __init__(self, orders: int) -> None:
        self._orders = orders
        self._is_terminal = sys.stdout.isatty()
        self._started = time.monotonic()
        self._last_line: tuple[float, str] = (0.0, "")

    @property
    def seconds(self) -> float:
        """Since the start."""
        return time.monotonic() - self._started

    def show(self, progress: Progress) -> None:
        """Say where the orders stand."""
        line = f"placed {progress.placed:>3} of {self._orders}   fulfilled {progress.fulfilled:>3}"
        line += f"   called off {progress.called_off:>2}   events to publish {progress.unpublished:>3}"
        if self._is_terminal:
            filled = 30 * progress.done // self._orders
            print(f"{CLEAR_LINE}{self.seconds:5.1f} s  {line}  [{'#' * filled:<30}]", end="", flush=True)
        elif self.seconds - self._last_line[0] >= PLAIN_LINE_SECONDS and line != self._last_line[1]:
            self._last_line = self.seconds, line
            print(f"{self.seconds:5.1f} s  {line}", flush=True)

    def say(self, event: str) -> None:
        """Say what has happened, on a line that stays."""
        clear = CLEAR_LINE if self._is_terminal else ""
        print(f"{clear}{self.seconds:5.1f} s  {event}", flush=True)

    def end(self) -> None:
        """Leave the updating line."""
        if self._is_terminal:
            print(CLEAR_LINE, end="", flush=True)


class Customers:
    """Place orders over HTTP, and send an order again, under the same number, until it is answered."""

    def __init__(self, url: str, orders: list[Wanted], *, deadline: float) -> None:
        self._url, self._orders, self._deadline = url, orders, deadline
        self._stopping = threading.Event()
        self._client = httpx.Client(base_url=url, timeout=5.0)
        self._pool = ThreadPoolExecutor(8, thread_name_prefix="customer")
        self._futures: list[Future[None]] = []
        self._lock = threading.Lock()
        self.sent_again = 0

    def start(self) -> None:
        """Let them come, one after the other."""
        for position, order in enumerate(self._orders):
            due = time.monotonic() + position / ORDERS_PER_SECOND
            self._futures.append(self._pool.submit(self._place, order, due))

    def raise_if_refused(self) -> bool:
        """Whether every order is answered.

        :raises DemoFailedError: one was refused.
        """
        for future in self._futures:
            if future.done():
                future.result()
        return all(future.done() for future in self._futures)

    def close(self) -> None:
        """Send them home."""
        self._stopping.set()
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._client.close()

    def _place(self, order: Wanted, due: float) -> None:
        self._stopping.wait(max(0.0, due - time.monotonic()))
        wish = {
            "number": order.number,
            "customer": f"Customer {order.number}",
            "card": "4242" if order.has_bank else "9999",
            "lines": [{"sku": sku, "quantity": quantity} for sku, quantity in order.lines],
        }
        answer: httpx.Response | None = None
        while not self._stopping.is_set() and time.monotonic() < self._deadline:
            try:
                answer = self._client.post("/orders", json=wish)
            except httpx.TransportError:
                answer = None  # killed while it answered: perhaps it is placed, perhaps not
            if answer is not None and answer.status_code < 500:
                break
            with self._lock:
                self.sent_again += 1
            self._stopping.wait(0.1)
        if not self._stopping.is_set() and (answer is None or answer.status_code not in (200, 202)):
            reason = f"{answer.status_code}: {answer.text}" if answer is not None else "no answer"
            raise DemoFailedError(f"Order {order.number} was refused with {reason}")


_UNFINISHED = "SELECT count(*) FROM edda_instances WHERE completed_at IS NULL"


class Watch:
    """Looks into the database by a connection of its own."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def progress(self) -> Progress:
        """Where the orders stand."""
        with self._engine.connect() as conn:
            counted = dict(conn.execute(text("SELECT status, count(*) FROM shop_order GROUP BY status")).all())
            unfinished = conn.scalar(text(f"{_UNFINISHED} AND workflow_name != 'packer'"))
            unpublished = conn.scalar(text("SELECT count(*) FROM edda_outbox WHERE status != 'published'"))
        return Progress(
            sum(counted.values()), counted.get("fulfilled", 0), counted.get("called off", 0), unfinished, unpublished
        )

    def busiest_worker(self) -> tuple[int, str] | None:
        """The pid and id of the worker with the most running workflows, if any is busy."""
        query = (
            "SELECT w.pid, w.worker_id FROM edda_workers w JOIN edda_instances i ON i.locked_by = w.worker_id"
            " WHERE i.status = 'running' GROUP BY w.pid, w.worker_id ORDER BY count(*) DESC, w.pid"
        )
        with self._engine.connect() as conn:
            found = conn.execute(text(query)).first()
        return (found.pid, found.worker_id) if found is not None else None

    def running(self, worker_id: str | None = None) -> int:
        """How many workflows are being worked on, in one worker or in all."""
        query = f"{_UNFINISHED} AND locked_by " + ("= :worker_id" if worker_id else "IS NOT NULL")
        with self._engine.connect() as conn:
            return conn.scalar(text(query), {"worker_id": worker_id} if worker_id else {}) or 0

    def waiting(self) -> int:
        """How many workflows wait, and hold nothing."""
        with self._engine.connect() as conn:
            return conn.scalar(text(f"{_UNFINISHED} AND status LIKE 'waiting%'")) or 0

    def steps(self) -> int:
        """How many steps are recorded."""
        with self._engine.connect() as conn:
            return conn.scalar(text("SELECT count(*) FROM edda_history")) or 0


class Demo:
    """One run: the orders come in, the killer goes round, and at the end everything must be there."""

    def __init__(
        self, shop: Shop, watch: Watch, customers: Customers, display: Display, *, orders: int, deadline: float
    ):
        self._shop, self._watch, self._customers, self._display = shop, watch, customers, display
        self._orders, self._deadline = orders, deadline
        self.interrupted = 0

    def run(self) -> None:
        """Kill a worker, the receiver and the server, and wait for the end.

        :raises DemoFailedError: it does not come in time, or the server has given up.
        """
        orders = self._orders
        self._until(lambda now: now.placed >= 0.4 * orders and self._kill_worker(), "a worker to be busy")
        self._until(lambda now: now.placed >= 0.5 * orders and self._kill_receiver(), "half of the orders")
        self._until(lambda now: now.placed >= 0.8 * orders and self._kill_server(), "the server to be busy")
        self._until(lambda now: now.unpublished > 0 and self._start_receiver(), "an event to be published")
        self._until(
            lambda now: (
                self._customers.raise_if_refused() and now.done >= orders and now.unfinished == now.unpublished == 0
            ),
            "every order to be done and told of",
        )

    def _until(self, has_come: Callable[[Progress], bool], what: str) -> None:
        while True:
            now = self._watch.progress()
            self._display.show(now)
            if has_come(now):
                return
            if self._shop.has_ended:
                raise DemoFailedError("The server has ended by itself.")
            self._customers.raise_if_refused()
            if time.monotonic() > self._deadline:
                raise DemoFailedError(
                    f"Waited too long for {what}: {now.placed} placed, {now.fulfilled} fulfilled, {now.called_off} called"
                    f" off, {now.unfinished} workflows unfinished, {now.unpublished} events unpublished."
                )
            time.sleep(LOOK_SECONDS)

    def _kill_worker(self) -> bool:
        found = self._watch.busiest_worker()
        if found is None or not self._shop.owns(found[0]):
            return False
        pid, worker_id = found
        os.kill(pid, signal.SIGKILL)
        count = self._watch.running(worker_id)
        self.interrupted += count
        waiting = self._watch.waiting()
        self._display.say(f"killed worker {pid} with SIGKILL while it ran {count} workflows and {waiting} waited")
        return True

    def _kill_receiver(self) -> bool:
        self._shop.receiver.kill()
        self._display.say("killed the receiver of the shop's events; they have to wait")
        return True

    def _start_receiver(self) -> bool:
        self._shop.receiver.start()
        self._display.say("started the receiver again")
        return True

    def _kill_server(self) -> bool:
        if self._watch.running() == 0:
            return False
        self._shop.kill()
        count = self._watch.running()
        self.interrupted += count
        waiting = self._watch.waiting()
        self._shop.start()
        self._display.say(
            f"killed the whole server while it ran {count} workflows and {waiting} waited; started it again"
        )
        return True


def make_orders(count: int, seed: int) -> list[Wanted]:
    """Orders of one to three articles; one in ten has no bank."""
    choose = random.Random(seed)
    return [
        Wanted(
            f"N-{position:04}",
            tuple((sku, choose.randint(1, 3)) for sku in sorted(choose.sample(sorted(ARTICLES), choose.randint(1, 3)))),
            has_bank=position % 10 != 4,
        )
        for position in range(1, count + 1)
    ]


def print_report(checks: list[Check], remarks: dict[str, str]) -> None:
    """The table, and what else is worth knowing."""
    green, red, plain = ("\x1b[32m", "\x1b[31m", "\x1b[0m") if _in_colour() else ("", "", "")
    width = max(len(check.title) for check in checks)
    print(f"\n{'':<{width}}  {'expected':>8}  {'found':>8}  {'duplicates':>10}  {'lost':>6}")
    for check in checks:
        verdict = f"{green}ok{plain}" if check.holds else f"{red}WRONG{plain}"
        print(
            f"{check.title:<{width}}  {check.expected.total():>8}  {check.found.total():>8}"
            f"  {check.duplicates:>10}  {check.lost:>6}  {verdict}"
        )
    total = f"{sum(check.duplicates for check in checks):>10}  {sum(check.lost for check in checks):>6}"
    print(f"{'in all':<{width}}  {'':>8}  {'':>8}  {total}\n")
    name_width = max(map(len, remarks))
    for name, remark in remarks.items():
        print(f"{name:<{name_width}}  {remark}")
    wrong = [check for check in checks if not check.holds]
    for check in wrong:
        print(f"\n{red}{check.title}{plain}")
        print(f"  too many: {dict(check.found - check.expected)}\n  missing:  {dict(check.expected - check.found)}")
    print(f"\n{red}Something is wrong.{plain}" if wrong else f"\n{green}Everything was done exactly once.{plain}")


def run_demo(kind: str, *, orders: int, seed: int, timeout: float) -> int:
    """Run it in a temporary folder; the exit status."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="edda-demo-", ignore_cleanup_errors=True)))
        display = Display(orders)
        stack.callback(display.end)
        display.say(f"starting the shop on {kind}, with neighbours that refuse, dawdle and hang up")
        deadline = time.monotonic() + timeout
        url = stack.enter_context(database(kind, folder))
        shop = Shop(folder, database_url=url, seed=seed, manners=MANNERS)
        stack.callback(shop.close)
        shop.open()
        engine = create_engine(url)
        stack.callback(engine.dispose)
        watch = Watch(engine)
        wanted = make_orders(orders, seed)
        customers = Customers(shop.url, wanted, deadline=deadline)
        stack.callback(customers.close)
        demo = Demo(shop, watch, customers, display, orders=orders, deadline=deadline)
        try:
            customers.start()
            demo.run()
            took = display.seconds
            status = shop.stop()
            if status != 0:
                raise DemoFailedError(f"The server did not stop cleanly on SIGTERM; its exit status is {status}.")
        except DemoFailedError as error:
            display.end()
            print(f"{error}\n\nThe end of the server's log:\n{shop.log_tail()}", file=sys.stderr)
            return 1
        display.say("all is done, and the server has stopped on SIGTERM; now the audit")
        display.end()
        books = httpx.get(shop.payments.url, timeout=5.0).json()
        neighbours = Neighbours(books["charges"], httpx.get(shop.receiver.url, timeout=5.0).json()["deliveries"])
        with engine.connect() as conn:
            checks = audit(conn, wanted, neighbours)
        manners = ", ".join(f"{count} {manner}" for manner, count in sorted(books["manners"].items()))
        print_report(
            checks,
            {
                "database": kind,
                "time": f"{took:.1f} s",
                "steps recorded": str(watch.steps()),
                "workflows interrupted": f"{demo.interrupted}, by SIGKILL to a worker and to the whole server",
                "requests sent again": f"{customers.sent_again}, cut off by the kills or unanswered for 5 s",
                "payment service": manners,
                "events received": f"{len(neighbours.deliveries)} times in all, {len(neighbours.events)} different ones",
            },
        )
        if all(check.holds for check in checks):
            return 0
        print(f"\nThe end of the server's log:\n{shop.log_tail()}", file=sys.stderr)
        return 1


def main() -> int:
    parser = argparse.ArgumentParser(description="Run the shop through kill -9, and audit every row.")
    parser.add_argument("--database", choices=DATABASES, default="sqlite")
    parser.add_argument("--orders", type=int, default=50, help="how many (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="of orders and troubles (default: %(default)s)")
    parser.add_argument(
        "--timeout", type=float, default=180.0, help="seconds before it gives up (default: %(default)s)"
    )
    given = parser.parse_args()
    if given.orders < 5:
        parser.error("--orders must be at least 5, so that there is a middle to kill in")
    end_on_sigterm()
    try:
        return run_demo(given.database, orders=given.orders, seed=given.seed, timeout=given.timeout)
    except KeyboardInterrupt:
        print("Stopped; nothing is left running.", file=sys.stderr)
        return 128 + signal.SIGINT


def _in_colour() -> bool:
    return sys.stdout.isatty() and "NO_COLOR" not in os.environ


if __name__ == "__main__":
    sys.exit(main())
