"""The served shop of the end-to-end tests, for requests that no client would send."""

from __future__ import annotations

from tests.e2e.test_cloudevents_gunicorn import dies_at, server

__all__ = ["dies_at", "server"]
