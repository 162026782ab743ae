"""Hooks: told what happens."""

from __future__ import annotations

from collections import Counter

from edda_engine import HooksBase

counts: Counter[str] = Counter()


class Hooks(HooksBase):
    def on_workflow_complete(self, instance_id: str, workflow_name: str) -> None:
        counts[f"{workflow_name} completed"] += 1

    def on_activity_retry(
        self, instance_id: str, activity_id: str, activity_name: str, error: BaseException, delay_seconds: float
    ) -> None:
        counts[f"{activity_name} retried"] += 1
