"""The shop's settings; the environment says where the database and the payment service are."""

from __future__ import annotations

import os

SQLALCHEMY_DATABASE_URI = os.environ.get("SHOP_DATABASE_URL", "sqlite:///shop.db")

SHOP_PAYMENT_URL = os.environ.get("SHOP_PAYMENT_URL", "http://127.0.0.1:8001")
# How long packing a parcel takes, so that one can watch an order move (and kill something meanwhile).
SHOP_PACKING_SECONDS = float(os.environ.get("SHOP_PACKING_SECONDS", "0.3"))

EDDA = {
    "SERVICE_NAME": "shop",
    "WORKFLOWS": ["example_flask_app.workflows"],
    "DEFAULT_RETRY_POLICY": {"max_attempts": 10, "initial_interval": 0.2, "max_interval": 5.0},
}
