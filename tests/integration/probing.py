"""A probe for the engine: what it has passed, and what a test does at some of its points."""

from __future__ import annotations

from collections.abc import Callable


class Points:
    """What a run has passed, and what else is done at some of its points."""

    def __init__(self) -> None:
        self.passed: list[str] = []
        self.at: dict[str, Callable[[], object]] = {}

    def __call__(self, name: str) -> None:
        self.passed.append(name)
        what = self.at.pop(name, None)
        if what is not None and what() is False:
            self.at[name] = what  # it was too early: a claim, say, that found nothing
