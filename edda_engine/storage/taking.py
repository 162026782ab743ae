"""The units by which a body gets something: taking for a wait, subscribing, putting back.

Each is written at most once, like a step: what history has already is its answer.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from datetime import datetime
from typing import Any, assert_never

from sqlalchemy import Connection
from sqlalchemy.dialects import postgresql, sqlite

from edda_engine.core.events import EventType, event_json
from edda_engine.core.ports import ChannelMode, WaitKind
from edda_engine.errors import ChannelModeConflictError, UsageError
from edda_engine.storage import channels, history, receiving, waits
from edda_engine.storage.messages import QUEUE
from edda_engine.storage.schema import inbox, messages
from edda_engine.storage.units import AlreadyRecorded, Open, PutBack, Refused, Saved, Step, Subscribe, Take
from edda_engine.storage.waits import Ask, NotSubscribed, StillOpen, Taken, TimeIsUp

_Key = tuple[str, str]
Got = AlreadyRecorded | Open | Refused | Saved


def commit_takes(conn: Connection, takes: Sequence[Take]) -> dict[_Key, Got]:
    """Take for waits, or register them; what became of each."""
    if not takes:
        return {}
    by_key = {(take.holder.instance_id, take.key.activity_id): take for take in takes}
    asks = [Ask(*key, take.mailbox, take.request, receiving.begun_json(take)) for key, take in by_key.items()]
    known = waits.look(conn, asks)
    # A commit whose acknowledgement was lost is made again: what it took must not be taken twice.
    recorded = [key for key in by_key if known[key].is_recorded]
    outcomes: dict[_Key, Got] = {}
    if recorded:
        outcomes |= {key: AlreadyRecorded(event) for key, event in history.load_steps(conn, recorded).items()}
        asks = [ask for ask in asks if ask.key not in outcomes]
    ended: list[Step] = []
    for ask, answer in zip(asks, waits.settle(conn, asks, known), strict=True):
        take = by_key[ask.key]
        match answer:
            case StillOpen(due):
                outcomes[ask.key] = Open(due)
            case NotSubscribed():
                outcomes[ask.key] = Refused(_not_subscribed(take))
            case Taken(message_json, taken_json):
                kind = EventType.EVENT_RECEIVED if take.request.kind is WaitKind.EVENT else EventType.MESSAGE_RECEIVED
                text = event_json(take.about, result_json=message_json, taken_json=taken_json)
                ended.append(take.ended(kind, text))
            case TimeIsUp():
                is_timer = take.request.kind is WaitKind.TIMER
                kind = EventType.TIMER_FIRED if is_timer else EventType.WAIT_TIMED_OUT
                ended.append(take.ended(kind, event_json(take.about)))
            case _:
                assert_never(answer)
    if ended:
        history.insert_steps(conn, [step.as_row() for step in ended])
    for step in ended:
        outcomes[step.holder.instance_id, step.key.activity_id] = AlreadyRecorded(step.as_recorded())
    return outcomes


def commit_subscription(conn: Connection, unit: Subscribe) -> Got:
    """Subscribe or unsubscribe, and record it."""
    key = (unit.holder.instance_id, unit.key.activity_id)
    recorded = history.load_steps(conn, [key]).get(key)
    if recorded is not None:
        return AlreadyRecorded(recorded)
    channel, mode = unit.change.channel, unit.change.mode
    if mode is None:
        channels.unsubscribe(conn, mailbox=unit.mailbox, channel=channel)
    else:
        conflict = channels.subscribe(conn, mailbox=unit.mailbox, channel=channel, mode=mode)
        if conflict is not None:
            return Refused(ChannelModeConflictError(channel, conflict.recorded, str(mode)))
    history.insert_steps(conn, [unit.step.as_row()])
    return Saved()


def put_back(conn: Connection, unit: PutBack) -> None:
    """Return what a withdrawn wait had taken to where it lay, and record the withdrawal in its place."""
    key = (unit.holder.instance_id, unit.key.activity_id)
    recorded = history.load_steps(conn, [key]).get(key)
    if recorded is None:
        history.insert_steps(conn, [unit.step.as_row()])
        waits.forget(conn, [key])
        return
    if "taken" in recorded.event_data:
        _restore_message(conn, recorded.event_data["taken"], recorded.event_data["result"], unit.mailbox)
    # Under the name of the call itself, whoever gave it up: a replay asks for the call.
    history.replace_step(conn, key, unit.step.event_type, event_json(recorded.name))


def _restore_message(conn: Connection, taken: dict[str, Any], message: dict[str, Any], mailbox: str) -> None:
    dialect_insert: Any = postgresql.insert if conn.dialect.name == "postgresql" else sqlite.insert
    binary = message.get("data_base64")
    values = {
        "seq": taken["seq"],
        "message_id": message["id"],
        "kind": taken["kind"],
        "name": taken["name"],
        "data": json.dumps(message["data"]) if "data" in message else None,
        "data_binary": None if binary is None else base64.b64decode(binary),
        "metadata": json.dumps(message["metadata"]),
        "is_new": False,
        "published_at": datetime.fromisoformat(message["published_at"]),
    }
    # An update that changes nothing locks the row: whoever has taken the message last must not delete it now.
    there = dialect_insert(messages).values(**values)
    conn.execute(there.on_conflict_do_update(index_elements=["seq"], set_={"is_new": messages.c.is_new}))
    receiver = QUEUE if taken["is_queued"] else mailbox
    conn.execute(dialect_insert(inbox).values(receiver=receiver, is_new=True, **taken).on_conflict_do_nothing())


def _not_subscribed(take: Take) -> UsageError:
    channel = take.request.name
    modes = ", ".join(repr(str(mode)) for mode in ChannelMode)
    return UsageError(
        f"receive(ctx, {channel!r}): this instance is not subscribed to the channel, so nothing would ever come. Call"
        f" subscribe(ctx, {channel!r}, mode=...) first (modes: {modes})."
    )
