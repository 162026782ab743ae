"""Alembic migrations of the edda_ tables."""
