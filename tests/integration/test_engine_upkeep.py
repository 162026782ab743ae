"""A worker deletes by itself what nobody will read any more."""

from __future__ import annotations

import asyncio

import pytest

from edda_engine.runtime import upkeep
from edda_engine.storage.received import is_first_delivery
from tests.integration.engines import Tables, edda, run, storage, until


def test_a_worker_forgets_messages_and_received_events_whose_time_is_over(
    sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upkeep, "INTERVAL_SECONDS", 0.05)
    monkeypatch.setattr(upkeep, "_RECEIVED", 2)
    tables = Tables(sqlite_url)
    with storage(sqlite_url) as database:
        for number, seconds in enumerate([-1, -1, -1, -1, -1, 3600]):
            run(
                database,
                lambda conn, number=number, seconds=seconds: is_first_delivery(
                    conn, service="tests", source="/till", event_id=str(number), keep_seconds=seconds
                ),
            )

    async def main() -> None:
        async with edda(sqlite_url, message_retention_days=0.2 / 86_400) as app:
            for number in range(3):
                await app.publish("nobody has subscribed", number)
            await until(lambda: tables.value("SELECT count(*) FROM edda_received_events") == 1)
            await until(lambda: tables.value("SELECT count(*) FROM edda_inbox") == 0, timeout=30)

    asyncio.run(main())
    assert tables.value("SELECT event_id FROM edda_received_events") == "5"
