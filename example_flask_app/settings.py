"""The shop's settings; the environment says where the database and the neighbours are."""

from __future__ import annotations

import os

SQLALCHEMY_DATABASE_URI = os.environ.get("SHOP_DATABASE_URL", "sqlite:///shop.db")

# Where others reach the shop, and where it reaches them.
SHOP_URL = os.environ.get("SHOP_URL", "http://127.0.0.1:5000")
SHOP_PAYMENT_URL = os.environ.get("SHOP_PAYMENT_URL", "http://127.0.0.1:8001")
SHOP_RECEIVER_URL = os.environ.get("SHOP_RECEIVER_URL", "http://127.0.0.1:8002")

# How long an order waits for its payment.
SHOP_PAYMENT_TERM_SECONDS = float(os.environ.get("SHOP_PAYMENT_TERM_SECONDS", "30"))
# How long packing a parcel takes, so that one can watch an order move (and kill something meanwhile).
SHOP_PACKING_SECONDS = float(os.environ.get("SHOP_PACKING_SECONDS", "0.3"))

EDDA = {
    "SERVICE_NAME": "shop",
    "WORKFLOWS": ["example_flask_app.workflows"],
    "DEFAULT_RETRY_POLICY": {"max_attempts": 10, "initial_interval": 0.2, "max_interval": 5.0},
    # The payment service tells here what came of a charge, and signs it.
    "EVENTS": {
        "URL_PREFIX": "/events",
        "AUTH": "edda_wsgi.auth.check_signature",
        "SECRET": os.environ.get("SHOP_EVENT_SECRET", "known to everybody, so good for trying only"),
    },
    # What the shop has to tell goes there.
    "OUTBOX": {"BACKEND": "edda_engine.outbox.publishers.HttpPublisher", "URL": SHOP_RECEIVER_URL},
}
