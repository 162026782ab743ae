"""Record the histories of release 0.1.0: ``python -m tests.compat.record_0_1_0``.

Run once, by that release. A later release adds a module and a script of its own; it never records these again.
"""

from __future__ import annotations

import asyncio
import json
import re
import tempfile
from pathlib import Path
from typing import Any

from sqlalchemy import create_engine, text

from edda_engine import EddaApp
from tests.compat.release_0_1_0 import RECORDED

FOLDER = Path(__file__).parent / "histories"
STEPS = "SELECT activity_id, seq, branch, position, event_type, event_data, format, created_at FROM edda_history"
INSTANCE = "SELECT instance_id, workflow_name, input, output, source_hash, created_at FROM edda_instances"


async def run(url: str) -> None:
    async with EddaApp(service_name="compat", db_url=url) as app:
        for name, declared in RECORDED.items():
            await declared.options(instance_id=f"recorded-{name}").start(count=3, words=["ab", "cd"])  # type: ignore[attr-defined]
            await app.result(f"recorded-{name}", timeout=20)


def recording(url: str, name: str) -> dict[str, Any]:
    engine = create_engine(url)
    with engine.connect() as conn:
        which = {"id": f"recorded-{name}"}
        instance = dict(conn.execute(text(f"{INSTANCE} WHERE instance_id = :id"), which).mappings().one())
        steps = conn.execute(text(f"{STEPS} WHERE instance_id = :id ORDER BY seq"), which).mappings().all()
    engine.dispose()
    return {
        "release": "0.1.0",
        "revision": "0001",
        "instance": instance,
        "steps": [dict(step) | {"event_data": without_folders(step["event_data"])} for step in steps],
    }


def without_folders(event_data: str) -> str:
    """Tracebacks name files; which machine recorded them is nobody's business."""
    return re.sub(r'(File \\")/[^"]*/', r"\1", event_data)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        url = f"sqlite:///{folder}/recording.db"
        asyncio.run(run(url))
        for name in RECORDED:
            path = FOLDER / f"release_0_1_0-{name}.json"
            path.write_text(json.dumps(recording(url, name), indent=2) + "\n")
            print(path)


if __name__ == "__main__":
    main()
