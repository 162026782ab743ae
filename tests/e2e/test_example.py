"""The example shop, its demo, and the application that the README shows, each as a user runs it."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil
import pytest
from sqlalchemy import create_engine

from example_flask_app.audit import Check, Neighbours, Wanted, audit
from example_flask_app.processes import Manners, Shop
from tests.support import eventually

ROOT = Path(__file__).resolve().parents[2]
README_APP = ROOT / "docs" / "examples" / "readme_app.py"
DECLARED_IN = ("example_flask_app",)
DEMO = [sys.executable, "-W", "error", "-m", "example_flask_app.demo"]


@contextmanager
def output_of(process: subprocess.Popen[str]) -> Iterator[list[str]]:
    """The lines a process prints, as they come; the process is gone at the end."""
    lines: list[str] = []
    assert process.stdout is not None
    reader = threading.Thread(target=lambda: lines.extend(process.stdout), daemon=True)
    reader.start()
    try:
        yield lines
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        reader.join()
        process.stdout.close()


@pytest.fixture
def shop(database_url: str, tmp_path: Path) -> Iterator[Shop]:
    """The shop under gunicorn with two workers, and its neighbours."""
    url = database_url.replace("postgresql://", "postgresql+psycopg://")
    manners = Manners(packing_seconds=0.05, slow_seconds=0.5, payment_term_seconds=2.0)
    opened = Shop(tmp_path, database_url=url, seed=1, manners=manners)
    try:
        opened.open()
        yield opened
    finally:
        opened.close()


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_the_demo_finds_every_row_exactly_once_after_its_kills(kind: str) -> None:
    done = subprocess.run(
        [*DEMO, "--database", kind, "--orders", "12", "--timeout", "120"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )

    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    assert "killed worker" in done.stdout
    assert "killed the receiver" in done.stdout
    assert "killed the whole server" in done.stdout
    counted = dict(re.findall(r"^(\w[\w ]+?)  +(\d+ +\d+ +\d+ +\d+)  ok$", done.stdout, re.MULTILINE))
    assert {title: numbers.split() for title, numbers in counted.items() if "pieces" not in title} == {
        "orders placed": ["12", "12", "0", "0"],
        "orders fulfilled": ["11", "11", "0", "0"],
        "orders called off": ["1", "1", "0", "0"],
        "payments": ["11", "11", "0", "0"],
        "charges paid": ["11", "11", "0", "0"],
        "stock movements": [counted["stock movements"].split()[0]] * 2 + ["0", "0"],
        "messages to the packers": ["11", "11", "0", "0"],
        "events published": ["23", "23", "0", "0"],
        "events received": ["23", "23", "0", "0"],
        "stories received in order": ["12", "12", "0", "0"],
    }
    assert re.search(r"^in all +0 +0$", done.stdout, re.MULTILINE)
    assert re.search(r"^events received +\d+ times in all, 23 different ones$", done.stdout, re.MULTILINE)
    assert "Everything was done exactly once." in done.stdout


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_demo_leaves_no_process_behind_when_it_is_interrupted(number: signal.Signals) -> None:
    demo = subprocess.Popen(DEMO, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    with output_of(demo) as lines:
        eventually(lambda: any("killed worker" in line for line in lines), timeout=60)
        children = psutil.Process(demo.pid).children(recursive=True)

        demo.send_signal(number)

        assert demo.wait(timeout=30) == 128 + number
        assert len(children) >= 4
        assert eventually(lambda: not any(child.is_running() for child in children))


def test_serve_prints_its_address_restarts_a_killed_server_and_closes_cleanly_on_ctrl_c(tmp_path: Path) -> None:
    command = [sys.executable, "-W", "error", "-m", "example_flask_app.serve", "--port", "0", "--folder", str(tmp_path)]
    serving = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    with output_of(serving) as lines:
        url = eventually(lambda: re.search(r"The shop is open: (http://\S+)", "".join(lines)), timeout=60)[1]
        eventually(lambda: "Stop it with Ctrl-C" in "".join(lines))
        assert httpx.get(url, timeout=30).status_code == 200
        (master,) = [
            child
            for child in psutil.Process(serving.pid).children()
            if any("gunicorn" in word for word in child.cmdline())
        ]

        master.kill()

        eventually(lambda: "it is started again" in "".join(lines), timeout=30)
        assert httpx.get(url, timeout=30).status_code == 200
        children = psutil.Process(serving.pid).children(recursive=True)
        serving.send_signal(signal.SIGINT)
        assert serving.wait(timeout=30) == 0
        assert eventually(lambda: not any(child.is_running() for child in children))
    assert "Closed. Unfinished orders go on at the next start.\n" in lines


def test_serve_says_what_to_do_when_its_port_is_taken(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = subprocess.run(
            [sys.executable, "-m", "example_flask_app.serve", "--port", port, "--folder", str(tmp_path)],
            cwd=ROOT, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip

    assert done.returncode == 1
    assert done.stderr == f"Port {port} cannot be used (Address already in use). Choose another one with --port.\n"


def test_an_order_goes_from_the_page_through_its_workflows_to_fulfilled(shop: Shop) -> None:
    with httpx.Client(base_url=shop.url, timeout=30) as client:
        page = client.get("/")
        assert page.headers["content-type"].startswith("text/html")
        assert 'data-orders-url="/orders"' in page.text
        assert 'name="tea"' in page.text
        for asset in re.findall(r'(?:href|src)="(/static/[^"]+)"', page.text):
            assert client.get(asset).status_code == 200
        assert not re.search(r'(?:href|src)="(?:https?:)?//', page.text), "the page must work offline"

        wish = {"number": "one", "customer": "Ada", "lines": [{"sku": "tea", "quantity": 2}]}
        placed = client.post("/orders", json=wish)
        assert (placed.status_code, placed.json()["status"], placed.json()["total_cents"]) == (202, "placed", 1780)

        done = eventually(lambda: _if_status(client, "one", "fulfilled"), timeout=60)
        assert [(step["step"], step["event"]) for step in done["steps"]] == [
            ("take_from_shelf:1", "ActivityCompleted"),
            ("note_reserved:1", "ActivityCompleted"),
            ("ask_for_payment:1", "ActivityCompleted"),
            ("wait_event:1", "EventReceived"),
            ("hand_to_packers:1", "ActivityCompleted"),
        ]
        assert re.fullmatch(r"label for Ada, invoice of 1 lines, by packer-[123]", done["remark"])
        listed = client.get("/orders").json()
        assert [order["number"] for order in listed["orders"]] == ["one"]
        assert (listed["counts"], listed["stock"]["tea"]) == ({"fulfilled": 1}, 998)


def test_an_order_sent_again_is_placed_once_and_another_one_of_its_number_is_refused(shop: Shop) -> None:
    wish = {"number": "again", "customer": "Ada", "lines": [{"sku": "mug", "quantity": 1}]}
    with httpx.Client(base_url=shop.url, timeout=30) as client:
        statuses = [client.post("/orders", json=wish).status_code for _ in range(3)]
        other = client.post("/orders", json={**wish, "lines": [{"sku": "mug", "quantity": 2}]})

        assert statuses == [202, 200, 200]
        assert other.status_code == 409
        assert eventually(lambda: _if_status(client, "again", "fulfilled"), timeout=60)
        assert client.get("/orders").json()["stock"]["mug"] == 999


def test_a_declined_card_calls_the_order_off_and_gives_its_pieces_back(shop: Shop) -> None:
    wish = {"number": "poor", "customer": "Bob", "card": "0000", "lines": [{"sku": "honey", "quantity": 3}]}
    with httpx.Client(base_url=shop.url, timeout=30) as client:
        client.post("/orders", json=wish)

        done = eventually(lambda: _if_status(client, "poor", "called off"), timeout=60)

        assert done["remark"] == "the payment was declined"
        assert client.get("/orders").json()["stock"]["honey"] == 1000


def test_an_order_whose_bank_never_answers_is_called_off_when_its_term_is_over_whatever_a_stranger_says(
    shop: Shop,
) -> None:
    wish = {"number": "silent", "customer": "Cy", "card": "9999", "lines": [{"sku": "honey", "quantity": 3}]}
    event = {
        "specversion": "1.0", "type": "payment.settled", "source": "eve", "id": "1", "eddainstanceid": "order-silent",
        "data": {"outcome": "paid", "reference": "none"},
    }  # fmt: skip
    with httpx.Client(base_url=shop.url, timeout=30) as client:
        client.post("/orders", json=wish)
        said = client.post("/events", json=event, headers={"Content-Type": "application/cloudevents+json"})

        done = eventually(lambda: _if_status(client, "silent", "called off"), timeout=60)

        assert said.status_code == 401
        assert [step["event"] for step in done["steps"] if step["step"] == "wait_event:1"] == ["WaitTimedOut"]
        assert done["remark"] == "the payment was withdrawn"
        assert client.get("/orders").json()["stock"]["honey"] == 1000
    (charge,) = httpx.get(shop.payments.url, timeout=30).json()["charges"]
    assert (charge["key"], charge["outcome"]) == ("silent", "withdrawn")


def test_what_the_shop_tells_waits_for_a_receiver_that_is_away_and_arrives_in_order(shop: Shop) -> None:
    wish = {"number": "told", "customer": "Ada", "lines": [{"sku": "tea", "quantity": 1}]}
    shop.receiver.kill()
    with httpx.Client(base_url=shop.url, timeout=30) as client:
        client.post("/orders", json=wish)
        assert eventually(lambda: _if_status(client, "told", "fulfilled"), timeout=60)

    shop.receiver.start()

    def received() -> list[str]:
        neighbours = Neighbours((), httpx.get(shop.receiver.url, timeout=30).json()["deliveries"])
        return [event["type"] for event in neighbours.events]

    assert eventually(lambda: received() == ["order.paid", "order.fulfilled"], timeout=60)


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"\xff{", "This is no order."),
        (b"[]", "This is no order."),
        (b'{"customer": "A"}', "This is no order."),
        (b'{"customer": "A\\u0000", "lines": [{"sku": "tea", "quantity": 1}]}', "This is no order."),
        (b'{"customer": "A", "lines": [{"sku": "tea", "quantity": 0}]}', "This is no order."),
        (b'{"customer": "A", "lines": [{"sku": "gold", "quantity": 1}]}', "There is no article gold"),
    ],
)
def test_the_shop_says_what_is_wrong_with_a_bad_order(
    body: bytes, says: str, sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from example_flask_app import create_app

    monkeypatch.setattr("example_flask_app.settings.SQLALCHEMY_DATABASE_URI", sqlite_url)
    app = create_app()
    app.testing = True
    assert app.test_cli_runner().invoke(args=["init-shop"]).exit_code == 0

    answer = app.test_client().post("/orders", data=body)

    assert answer.status_code == 400
    assert answer.json["error"].startswith(says)
    assert app.test_client().get("/orders/none").status_code == 404
    with app.app_context():
        app.extensions["sqlalchemy"].engine.dispose()


def test_packers_that_are_hired_again_are_the_same_ones(sqlite_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from example_flask_app import create_app

    monkeypatch.setattr("example_flask_app.settings.SQLALCHEMY_DATABASE_URI", sqlite_url)
    app = create_app()
    app.testing = True
    commands = app.test_cli_runner()

    for _ in range(2):
        assert commands.invoke(args=["init-shop"]).exit_code == 0

    found = json.loads(commands.invoke(args=["edda", "list", "--json"]).stdout)["instances"]
    assert sorted(packer["instance_id"] for packer in found) == ["packer-1", "packer-2", "packer-3"]
    with app.app_context():
        app.extensions["sqlalchemy"].engine.dispose()


def test_the_audit_finds_a_duplicate_a_loss_and_a_wrong_stock(sqlite_url: str) -> None:
    engine = create_engine(sqlite_url)
    wanted = [Wanted("a", (("tea", 2),)), Wanted("b", (("tea", 1),)), Wanted("c", (("mug", 1),), has_bank=False)]
    told = [("3", "order.fulfilled"), ("1", "order.paid"), ("1", "order.paid")]
    deliveries = [{"source": "shop", "id": number, "type": kind, "subject": "a"} for number, kind in told]
    charges = [{"reference": "p1", "amount_cents": 1780, "outcome": "paid"}]
    with engine.begin() as conn:
        for statement in _BOOKS_WITH_MISTAKES.split(";"):
            conn.exec_driver_sql(statement)
        checks = audit(conn, wanted, Neighbours(charges, deliveries))
    engine.dispose()

    assert {check.title: (check.duplicates, check.lost) for check in checks} == {
        "orders placed": (0, 1),
        "orders fulfilled": (0, 1),
        "orders called off": (0, 1),
        "payments": (1, 1),
        "charges paid": (0, 1),
        "stock movements": (1, 2),
        "pieces gone from the shelves": (2, 0),
        "messages to the packers": (1, 1),
        "events published": (1, 4),
        "events received": (0, 3),
        "stories received in order": (1, 3),
    }


def test_a_check_does_not_let_a_duplicate_hide_a_loss() -> None:
    check = Check("payments", expected=Counter(["a", "b"]), found=Counter(["a", "a"]))

    assert (check.duplicates, check.lost, check.holds) == (1, 1, False)


def test_the_readme_shows_the_application_that_is_tested() -> None:
    (shown,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)

    assert shown == README_APP.read_text()


def test_the_readme_application_runs_through_a_kill_as_it_says(tmp_path: Path) -> None:
    shutil.copy(README_APP, tmp_path / "shop.py")

    with flask_run(tmp_path) as (process, url):
        placed = httpx.post(f"{url}/orders/tea", timeout=30)
        assert placed.status_code == 202
        assert httpx.get(f"{url}/orders/1", timeout=30).json() == {"status": "placed"}
        eventually(lambda: httpx.get(f"{url}/orders/1", timeout=30).json() == {"status": "paid"}, timeout=60)
        process.kill()

    with flask_run(tmp_path) as (_process, url):
        eventually(lambda: httpx.get(f"{url}/orders/1", timeout=30).json() == {"status": "shipped"}, timeout=60)
    shown = subprocess.run(
        [sys.executable, "-m", "flask", "--app", "shop", "edda", "show", placed.json()["instance_id"]],
        cwd=tmp_path, capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert re.findall(r"[+] +(\S+:\d+)", shown.stdout) == ["charge:1", "ship:1"]


@contextmanager
def flask_run(folder: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """``flask --app shop run`` in *folder*, on a port of its own choice."""
    command = [sys.executable, "-m", "flask", "--app", "shop", "run", "--port", "0"]
    process = subprocess.Popen(
        command,
        cwd=folder,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    with output_of(process) as lines:
        found = eventually(lambda: re.search(r"Running on (http://[\d.:]+)", "".join(lines)), timeout=60)
        yield process, found[1]


def _if_status(client: httpx.Client, number: str, status: str) -> dict[str, object] | None:
    """The order, once it has that status."""
    found = client.get(f"/orders/{number}").json()
    return found if found["status"] == status else None


# Order b: not fulfilled, no payment, but a's payment twice; a movement too many; stock two pieces short.
_BOOKS_WITH_MISTAKES = """
CREATE TABLE shop_order (number TEXT, status TEXT);
INSERT INTO shop_order VALUES ('a', 'fulfilled'), ('b', 'paid');
CREATE TABLE shop_payment (order_number TEXT, amount_cents INTEGER, reference TEXT);
INSERT INTO shop_payment VALUES ('a', 1780, 'p1'), ('a', 1780, 'p2');
CREATE TABLE shop_stock_movement (order_number TEXT, sku TEXT, quantity INTEGER);
INSERT INTO shop_stock_movement VALUES ('a', 'tea', -2), ('b', 'tea', -1), ('b', 'tea', -1);
CREATE TABLE shop_article (sku TEXT, start_quantity INTEGER, quantity INTEGER);
INSERT INTO shop_article VALUES ('tea', 10, 5), ('mug', 10, 10);
CREATE TABLE edda_history (event_type TEXT, event_data TEXT);
INSERT INTO edda_history VALUES ('MessageReceived', '{"result": {"data": "a"}}'), ('MessageReceived', '{"result": {"data": "a"}}'),
  ('EventReceived', '{"result": {"data": "b"}}');
CREATE TABLE edda_outbox (subject TEXT, type TEXT, status TEXT);
INSERT INTO edda_outbox VALUES ('a', 'order.paid', 'published'), ('a', 'order.fulfilled', 'dead'), ('a', 'order.paid', 'published')
"""
