"""Replay: history in; for each call of the body either its recorded outcome or "do it".

How it thinks. A body is a tree of branches: the body itself is the root, each task or ``ctx.gather`` branch
that makes calls is a child. Within one branch the order of calls is fixed by the code, whatever the timing
was, so each recorded step carries its branch and its position in it. A call is compared with what history
holds at that position: the same id is answered, an empty place is done, anything else is non-determinism.
Places may be empty although later ones are filled: the steps of a gather finish in any order.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from edda_engine.core.events import FORMAT, EventType, Recorded, StepKey
from edda_engine.errors import NewerVersionError, NonDeterminismError, UsageError

_KNOWN_TYPES = frozenset(EventType)


class Branch:
    """One line of calls in a body, numbered by itself so that timing elsewhere does not matter.

    Its *path* is ``""`` for the body itself, ``"1"`` for the first branch it creates, ``"1/2"`` for the second
    branch of that one.
    """

    __slots__ = ("_children", "_counts", "_position", "path")

    def __init__(self, path: str = "") -> None:
        self.path = path
        self._counts: dict[str, int] = {}
        self._position = 0
        self._children = 0

    def child(self) -> Branch:
        """A new branch of this one. The code decides in which order a branch creates others, so that numbers it."""
        self._children += 1
        return Branch(f"{self.path}/{self._children}" if self.path else str(self._children))

    def take(self, function_name: str, manual_id: str | None = None) -> StepKey:
        """Number the next call."""
        self._position += 1
        if manual_id is not None:
            return StepKey(manual_id, self.path, self._position)
        count = self._counts.get(function_name, 0) + 1
        self._counts[function_name] = count
        local = f"{function_name}:{count}"
        return StepKey(f"{self.path}/{local}" if self.path else local, self.path, self._position)

    def derive(self, purpose: str) -> str:
        """Number a value that is derived, not recorded; it takes no position."""
        count = self._counts.get(f"\0{purpose}", 0) + 1
        self._counts[f"\0{purpose}"] = count
        return f"{self.path}/{purpose}:{count}"


class Replay:
    """The recorded past of one run, consumed call by call."""

    def __init__(self, workflow_name: str, instance_id: str, recorded: Iterable[Recorded] = ()) -> None:
        self._workflow_name, self._instance_id = workflow_name, instance_id
        self._by_id: dict[str, Recorded] = {}
        self._by_place: dict[tuple[str, int], Recorded] = {}
        self._asked: set[str] = set()
        self._exchanged: set[str] | None = None
        """Steps that were asked for with other arguments than they are recorded with, if there are any."""
        self._by_arguments: defaultdict[tuple[str, str, Any], list[Recorded]] | None = None
        for event in recorded:
            if event.format > FORMAT or event.event_type not in _KNOWN_TYPES:
                raise NewerVersionError(
                    f"Instance {instance_id!r} has a step {event.activity_id!r} of type {event.event_type!r},"
                    f" format {event.format}, which a newer version of edda wrote (this one reads up to format"
                    f" {FORMAT}). Deploy the newer version here too; the instance waits for it and nothing is lost."
                )
            self._by_id[event.activity_id] = event
            self._by_place[event.branch, event.position] = event
        self._unanswered = len(self._by_id)
        self._inside = _by_branch(self._by_id.values())

    @property
    def is_replaying(self) -> bool:
        """True while there are recorded answers that the body has not asked for yet."""
        return self._unanswered > 0

    def ask(self, key: StepKey, function_name: str, arguments: Callable[[], Any] | None = None) -> Recorded | None:
        """The recorded outcome of this call, or ``None``: do it.

        Arguments may change with the code, so other ones alone are no mismatch. But when those that a step was
        recorded with turn up at another call, two calls have changed places.

        :param arguments: Tells what the call is made with, as JSON values; asked only while there is a past.
        :raises NonDeterminismError: history has another step at this place, or this step at another place.
        :raises UsageError: the id was asked for before in this run.
        """
        if key.activity_id in self._asked:
            raise UsageError(
                f"activity_id {key.activity_id!r} is used twice in instance {self._instance_id!r}."
                " Leave activity_id out, or give each call its own."
            )
        self._asked.add(key.activity_id)
        if not self._by_id:
            return None
        here = self._by_place.get((key.branch, key.position))
        same = self._by_id.get(key.activity_id)
        if here is not None and (here.activity_id != key.activity_id or here.name != function_name):
            raise self._mismatch(key, recorded=_describe(here), asked=f"{function_name!r} ({key.activity_id})")
        if here is None and same is not None:
            raise self._mismatch(
                key,
                recorded=f"{_describe(same)} as step {same.position}{_in_branch(same.branch)}",
                asked=f"it as step {key.position}{_in_branch(key.branch)}",
            )
        if arguments is not None:
            self._compare(key, function_name, here, arguments())
        if here is not None:
            self._unanswered -= 1
        return here

    def _compare(self, key: StepKey, function_name: str, here: Recorded | None, asked_with: Any) -> None:
        if here is not None and here.event_data.get("input") == asked_with:
            return
        for event in self._made_with(function_name, key.branch, asked_with) if asked_with else ():
            is_exchanged = self._exchanged is not None and event.activity_id in self._exchanged
            if is_exchanged or (here is not None and event.activity_id not in self._asked):
                raise self._mismatch(
                    key,
                    recorded=f"these arguments at {_describe(event)}, step {event.position}",
                    asked=f"{function_name!r} with them as step {key.position}: the calls have changed places",
                )
        if here is not None:
            self._exchanged = self._exchanged or set()
            self._exchanged.add(here.activity_id)

    def _made_with(self, function_name: str, branch: str, arguments: Any) -> Sequence[Recorded]:
        """The recorded calls of a function with these arguments; found by them, because all of a history may differ."""
        if self._by_arguments is None:
            self._by_arguments = defaultdict(list)
            for event in self._by_id.values():
                made = (event.name, event.branch, _frozen(event.event_data.get("input")))
                self._by_arguments[made].append(event)
        return self._by_arguments.get((function_name, branch, _frozen(arguments)), ())

    def unasked(self, branch: str) -> list[Recorded]:
        """What is recorded of a branch, and of those below it, and was not asked for yet."""
        return [event for event in self._inside.get(branch, ()) if event.activity_id not in self._asked]

    def skip(self, branch: str) -> None:
        """This branch, and those below it, will not ask for the rest of their steps."""
        for event in self.unasked(branch):
            self._asked.add(event.activity_id)
            self._unanswered -= 1

    def finish(self) -> None:
        """Check that the body asked for everything that is recorded, now that it has ended.

        Only the body's own line counts. A branch may still be under way when the body ends, because another branch
        has failed, and a replay may end before it gets as far as it got live.

        :raises NonDeterminismError: history has steps that the body did not ask for.
        """
        if self._unanswered <= 0:
            return
        left = min(
            (event for event in self._by_id.values() if not event.branch and event.activity_id not in self._asked),
            key=lambda event: (event.branch, event.position),
            default=None,
        )
        if left is not None:
            key = StepKey(left.activity_id, left.branch, left.position)
            raise self._mismatch(key, recorded=_describe(left), asked="nothing: it ended without this step")

    def _mismatch(self, key: StepKey, *, recorded: str, asked: str) -> NonDeterminismError:
        return NonDeterminismError(
            self._workflow_name, self._instance_id, step=key.position, recorded=recorded, asked=asked
        )


def _by_branch(events: Iterable[Recorded]) -> dict[str, list[Recorded]]:
    """The events of each branch but the root, with those of the branches below it."""
    found: dict[str, list[Recorded]] = {}
    for event in events:
        path = event.branch
        while path:
            found.setdefault(path, []).append(event)
            path = path.rpartition("/")[0]
    return found


def _frozen(value: Any) -> Any:
    """A JSON value as a key; two are the same if the values are equal."""
    if isinstance(value, dict):
        return frozenset((name, _frozen(inner)) for name, inner in value.items())
    if isinstance(value, list):
        return tuple(map(_frozen, value))
    return value


def _describe(event: Recorded) -> str:
    return f"{event.name!r} ({event.activity_id})"


def _in_branch(path: str) -> str:
    return f" of branch {path}" if path else ""
