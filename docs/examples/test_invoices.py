"""How an application tests workflows that wait for weeks."""

from __future__ import annotations

from pathlib import Path

import invoices
import pytest
from flask import Flask
from flask.testing import FlaskClient

from edda_wsgi.testing import WorkflowRunner

RECORDINGS = Path(__file__).parent / "recordings"


# set up
class Mail:
    """A mail service that recognizes what it was asked to send before."""

    def __init__(self) -> None:
        self.sent: dict[str, str] = {}

    def __call__(self, customer: str, text: str, *, key: str) -> None:
        self.sent[key] = f"{customer}: {text}"

    def texts(self) -> list[str]:
        return list(self.sent.values())


@pytest.fixture
def mail() -> Mail:
    return Mail()


@pytest.fixture
def app(edda_database_url: str, mail: Mail) -> Flask:
    return invoices.create_app({"TESTING": True, "SQLALCHEMY_DATABASE_URI": edda_database_url, "SEND_MAIL": mail})


@pytest.fixture
def client(app: Flask) -> FlaskClient:
    return app.test_client()


# time
def test_an_invoice_that_nobody_pays_is_written_off(
    client: FlaskClient, edda_runner: WorkflowRunner, mail: Mail
) -> None:
    billed = client.post("/invoices/ada").get_json()

    assert edda_runner.finish(billed["instance_id"]) == "written off"

    assert mail.texts() == ["ada: Invoice 1 is sent", "ada: Invoice 1 is reminded of"]


def test_the_reminder_comes_after_two_weeks_and_not_before(
    client: FlaskClient, edda_runner: WorkflowRunner, mail: Mail
) -> None:
    client.post("/invoices/ada")

    edda_runner.advance(days=13, hours=23)
    assert mail.texts() == ["ada: Invoice 1 is sent"]

    edda_runner.advance(hours=2)
    assert mail.texts() == ["ada: Invoice 1 is sent", "ada: Invoice 1 is reminded of"]


# events
def test_a_payment_after_the_reminder_is_in_time(client: FlaskClient, edda_runner: WorkflowRunner) -> None:
    billed = client.post("/invoices/ada").get_json()
    edda_runner.advance(days=20)

    client.post("/invoices/1/payments")

    assert edda_runner.finish(billed["instance_id"]) == "paid"


# history
def test_what_is_recorded(app: Flask, edda_runner: WorkflowRunner) -> None:
    with app.app_context():
        invoices.db.session.add(invoices.Invoice(id=7, customer="bo"))
        assert edda_runner.run(invoices.collect, invoice_id=7) == "written off"
        assert invoices.db.session.get_one(invoices.Invoice, 7).status == "written off"

    assert edda_runner.steps() == [
        "write_to_customer:1", "wait_event:1", "write_to_customer:2", "wait_event:2", "close:1",
    ]  # fmt: skip
    assert edda_runner.step("wait_event:1").event_type == "WaitTimedOut"
    assert edda_runner.step("close:1").event_data["input"] == {"invoice_id": 7, "status": "written off"}


# replay
def test_a_run_replays(client: FlaskClient, edda_runner: WorkflowRunner) -> None:
    billed = client.post("/invoices/ada").get_json()
    edda_runner.advance(days=20)
    edda_runner.assert_replays(billed["instance_id"])  # while it waits
    edda_runner.finish(billed["instance_id"])
    edda_runner.assert_replays(billed["instance_id"])  # and to its end


@pytest.mark.parametrize("path", sorted(RECORDINGS.glob("*.json")), ids=lambda path: path.stem)
def test_what_older_code_has_begun_goes_on_with_the_code_of_today(path: Path, edda_runner: WorkflowRunner) -> None:
    edda_runner.assert_replays(path)


# crash
def test_an_invoice_survives_every_crash(app: Flask, edda_runner: WorkflowRunner, mail: Mail) -> None:
    with app.app_context():
        invoices.db.session.add(invoices.Invoice(id=7, customer="bo"))
        invoices.db.session.commit()

    def written_off() -> str:
        return edda_runner.run(invoices.collect, invoice_id=7)

    edda_runner.crash_everywhere(written_off, look=mail.texts, reset=mail.sent.clear)
