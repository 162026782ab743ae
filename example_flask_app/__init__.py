"""A small shop whose orders are fulfilled by durable workflows."""

from example_flask_app.app import create_app

__all__ = ["create_app"]
