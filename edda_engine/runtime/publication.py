"""One publication: the event handed to the publisher, and what its answer, or its failure, means."""

from __future__ import annotations

import asyncio
import random

from edda_engine.errors import PublishLaterError, PublishRefusedError
from edda_engine.outbox.outgoing import OutgoingEvent, Publisher
from edda_engine.runtime.probes import Probe
from edda_engine.storage.outbox import ClaimedEvent, Dead, Delayed, Published

LONGEST_PUBLICATION_SECONDS = 300.0
LONGEST_DELAY_SECONDS = 600.0
LONGEST_RETRY_AFTER_SECONDS = 30 * 86_400.0

_ERROR_CHARACTERS = 1000


async def publish(publisher: Publisher, claimed: ClaimedEvent, *, probe: Probe) -> Published | Delayed | Dead:
    """Hand one event over. Every failure but a refusal for good means another try, for ever."""
    probe("relay.publish.before")
    try:
        async with asyncio.timeout(LONGEST_PUBLICATION_SECONDS):
            await publisher.publish(_outgoing(claimed))
    except PublishRefusedError as error:
        return Dead(claimed.seq, _storable(error))
    except asyncio.CancelledError as error:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise
        return _delayed(claimed, error)  # the publisher has cancelled itself
    except (Exception, SystemExit, KeyboardInterrupt) as error:  # the edge of user code
        return _delayed(claimed, error)
    probe("relay.publish.after")
    return Published(claimed.seq)


def delay_seconds(attempts: int, retry_after: float | None, *, random: float) -> float:
    """How long to wait after so many tries in vain: what the broker asks for, else twice as long each time.

    :param random: From 0 to 1; spreads what failed together, and never asks sooner than the broker said.
    """
    if retry_after is not None and retry_after > 0:
        return min(retry_after, LONGEST_RETRY_AFTER_SECONDS) * (1 + 0.1 * random)
    doubled = 2.0 ** min(attempts - 1, 60)
    return min(LONGEST_DELAY_SECONDS, doubled) * (1 - 0.2 * random)


def _delayed(claimed: ClaimedEvent, error: BaseException) -> Delayed:
    retry_after = error.retry_after_seconds if isinstance(error, PublishLaterError) else None
    delay = delay_seconds(claimed.attempts + 1, retry_after, random=random.random())
    return Delayed(claimed.seq, delay, _storable(error))


def _outgoing(claimed: ClaimedEvent) -> OutgoingEvent:
    event = claimed.event
    return OutgoingEvent(
        event_id=event.event_id,
        type=event.type,
        source=event.source,
        time=claimed.created_at,
        content_type=event.content_type,
        subject=event.subject,
        ordering_key=event.ordering_key,
        instance_id=claimed.instance_id,
        attempt=claimed.attempts + 1,
        data_json=event.data_json,
        data_binary=event.data_binary,
    )


def _storable(error: BaseException) -> str:
    """What an error says, as any database takes it."""
    try:
        said = str(error)
    except Exception:  # a __str__ of the user's
        said = ""
    if not isinstance(error, (PublishLaterError, PublishRefusedError)):
        said = f"{type(error).__name__}: {said}" if said else type(error).__name__
    return said.encode(errors="replace").decode().replace("\0", "?")[:_ERROR_CHARACTERS]
