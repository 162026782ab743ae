"""Which database a URL means, and what is said of one that cannot be used."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from edda_engine.errors import ConfigurationError
from edda_engine.storage.database import Database
from edda_engine.storage.urls import normalized_url


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("postgresql://u:p@h:5432/shop?sslmode=require", "postgresql+psycopg://u:p@h:5432/shop?sslmode=require"),
        ("postgres://h/shop", "postgresql+psycopg://h/shop"),
        ("postgresql+psycopg://h/shop", "postgresql+psycopg://h/shop"),
        ("postgresql+psycopg_async://h/shop", "postgresql+psycopg://h/shop"),
        ("sqlite:///shop.db", "sqlite:///shop.db"),
        ("sqlite+pysqlite:///shop.db", "sqlite+pysqlite:///shop.db"),
        ("sqlite+aiosqlite:////srv/shop.db", "sqlite:////srv/shop.db"),
        ("postgresql+psycopg2://h/shop", "postgresql+psycopg2://h/shop"),
    ],
)
def test_a_url_means_a_driver_that_threads_and_coroutines_can_use(given: str, meant: str) -> None:
    assert normalized_url(given).render_as_string(hide_password=False) == meant


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        (
            "postgresql+asyncpg://u:secret@h/shop",
            r"'postgresql\+asyncpg' works in asyncio only.*Use postgresql\+psycopg://",
        ),
        ("postgresql+nosuch://u:secret@h/shop", r"knows no driver 'postgresql\+nosuch'\. Use postgresql\+psycopg://"),
        ("sqlite+nosuch:///x", r"knows no driver 'sqlite\+nosuch'\. Use sqlite://"),
        ("mysql+aiomysql://u:secret@h/shop", "'mysql' is not supported"),
    ],
)
def test_a_url_of_another_driver_is_refused_saying_which_one_to_use(url: str, sentence: str) -> None:
    with pytest.raises(ConfigurationError, match=sentence) as caught:
        normalized_url(url)
    assert "secret" not in str(caught.value)


def test_a_driver_that_is_not_installed_is_named_with_the_one_to_use_instead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg2", None)
    with pytest.raises(
        ConfigurationError, match=r"Install psycopg2, or use postgresql\+psycopg:// and install edda-wsgi"
    ):
        Database.from_url("postgresql+psycopg2://h/shop")


def test_a_sqlite_file_in_a_folder_that_is_missing_says_so_until_the_folder_is_there(tmp_path: Path) -> None:
    folder = tmp_path / "not" / "there"
    database = Database.from_url(f"sqlite:///{folder}/shop.db")
    for begin in (database.read, database.write):
        with (
            pytest.raises(ConfigurationError, match=f"the folder {folder} does not exist. Make it, or correct"),
            begin(),
        ):
            pass
    folder.mkdir(parents=True)
    with database.write() as conn:
        conn.exec_driver_sql("CREATE TABLE t (x)")
    database.close()
