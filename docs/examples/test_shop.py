"""How an application tests its workflows."""

from __future__ import annotations

import pytest
import shop
from flask import Flask

from edda_wsgi.testing import WorkflowRunner


@pytest.fixture
def app(edda_database_url: str) -> Flask:
    config = {"TESTING": True, "SQLALCHEMY_DATABASE_URI": edda_database_url, "PACKING_SECONDS": 0}
    return shop.create_app(config)


# whole
def test_an_order_is_shipped(app: Flask, edda_runner: WorkflowRunner) -> None:
    placed = app.test_client().post("/orders/book").get_json()

    result = edda_runner.finish(placed["instance_id"])

    assert result == {"parcel": "parcel with one book", "status": "shipped"}


# alone
def test_reserving_changes_the_status(app: Flask) -> None:
    with app.app_context():
        shop.db.session.add(shop.Order(id=1, item="book"))
        assert shop.reserve.function(None, 1) == "book"
        assert shop.db.session.get_one(shop.Order, 1).status == "reserved"
