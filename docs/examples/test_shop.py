"""How an application tests its workflows."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import shop
from flask import Flask


@pytest.fixture
def app(tmp_path: Path) -> Iterator[Flask]:
    url = f"sqlite:///{tmp_path / 'test.db'}"
    app = shop.create_app({"TESTING": True, "SQLALCHEMY_DATABASE_URI": url, "PACKING_SECONDS": 0})
    yield app
    with app.app_context():
        shop.edda.shutdown()


# whole
def test_an_order_is_shipped(app: Flask) -> None:
    placed = app.test_client().post("/orders/book").get_json()
    with app.app_context():
        shop.edda.start_worker()
        result = shop.edda.result(placed["instance_id"], timeout=30)
    assert result == {"parcel": "parcel with one book", "status": "shipped"}


# alone
def test_reserving_changes_the_status(app: Flask) -> None:
    with app.app_context():
        shop.db.session.add(shop.Order(id=1, item="book"))
        assert shop.reserve.function(None, 1) == "book"
        assert shop.db.session.get_one(shop.Order, 1).status == "reserved"
