"""How the tests of the documentation load its examples and run them."""

from __future__ import annotations

import asyncio
import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from flask import Flask

from edda_engine import EddaApp

DOCS = Path(__file__).parents[2] / "docs"
EXAMPLES = DOCS / "examples"

Load = Callable[[str], ModuleType]


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Iterator[Load]:
    """Import an example afresh: the registry of workflows forgets it after each test."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    loaded: list[str] = []

    def load_one(name: str) -> ModuleType:
        loaded.append(name)
        sys.modules.pop(name, None)
        return importlib.import_module(name)

    yield load_one
    for name in [*loaded, *(path.stem for path in EXAMPLES.glob("*.py"))]:
        sys.modules.pop(name, None)


@contextmanager
def working(app: Flask, edda: Any) -> Iterator[None]:
    """The application's workflows run in this process, inside the block."""
    with app.app_context():
        edda.start_worker()
        try:
            yield
        finally:
            edda.shutdown()


def run_with(app: EddaApp, ask: Callable[[], Any]) -> Any:
    """What *ask* answers while *app* runs."""

    async def main() -> Any:
        async with app:
            return await ask()

    return asyncio.run(main())
