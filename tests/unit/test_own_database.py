"""One database has many URLs: those that name the application's own one are recognized."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy import make_url

from edda_wsgi.own_database import is_same

SAME = [
    ("postgresql://shop@db/shop", "postgresql+psycopg://shop@db:5432/shop"),
    ("postgresql+psycopg2://shop:old@db/shop", "postgresql+psycopg://shop:new@DB/shop"),
    ("postgresql://a@localhost/shop", "postgresql://b@127.0.0.1/shop?application_name=edda&sslmode=require"),
    ("postgresql://[::1]:5433/shop", "postgresql://localhost:5433/shop"),
    ("postgresql:///shop?host=/run/postgresql", "postgresql://shop@/shop?host=/run/postgresql&port=5432"),
    ("postgresql://db/shop", "postgresql:///?host=db&dbname=shop"),
    ("postgresql:///shop?host=b:5433&host=a", "postgresql:///shop?host=a,b&port=5432,5433"),
    ("postgresql://db/shop", "postgresql://db/shop?options=-c%20statement_timeout%3D5s"),
    ("postgresql://shop@db", "postgresql://shop@db/shop"),
]
DIFFERENT = [
    ("postgresql://db/shop", "postgresql://db/edda"),
    ("postgresql://db/shop", "postgresql://db:5433/shop"),
    ("postgresql://db/shop", "postgresql://standby/shop"),
    ("postgresql:///shop?host=/run/postgresql", "postgresql://localhost/shop"),
    ("postgresql://db/shop", "postgresql://db/shop?options=-c%20search_path%3Dedda"),
    ("postgresql://db/shop", "sqlite:///shop"),
    ("sqlite:////srv/shop.db", "sqlite:////srv/edda.db"),
    ("sqlite:////srv/shop.db", "sqlite:///shop.db"),
]


@pytest.fixture(autouse=True)
def nothing_set_for_libpq(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PGHOST", "PGPORT", "PGDATABASE"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(("one", "other"), SAME)
def test_urls_of_one_database_are_recognized(one: str, other: str) -> None:
    assert is_same(make_url(one), make_url(other))
    assert is_same(make_url(other), make_url(one))


@pytest.mark.parametrize(("one", "other"), DIFFERENT)
def test_urls_of_different_databases_are_told_apart(one: str, other: str) -> None:
    assert not is_same(make_url(one), make_url(other))
    assert not is_same(make_url(other), make_url(one))


def test_a_path_of_sqlite_is_the_file_that_it_leads_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    monkeypatch.chdir(tmp_path)
    whole = make_url(f"sqlite:///{tmp_path}/shop.db")

    for path in ("shop.db", "./link/shop.db", f"{tmp_path}/link/link/shop.db", "file:shop.db?uri=true"):
        assert is_same(whole, make_url(f"sqlite:///{path}"))


def test_what_libpq_takes_from_the_environment_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGHOST", "db")
    monkeypatch.setenv("PGPORT", "5433")

    assert is_same(make_url("postgresql:///shop"), make_url("postgresql://db:5433/shop"))
    assert not is_same(make_url("postgresql:///shop"), make_url("postgresql://db:5432/shop"))
