"""What the world is told of an order: events that leave through the outbox."""

from __future__ import annotations

from edda_wsgi import WorkflowContext, send_event_transactional


def tell(ctx: WorkflowContext, event_type: str, number: str, **content: str) -> None:
    """Tell whoever listens, if the activity that says so is saved. What is told of one order arrives in order."""
    send_event_transactional(
        ctx, event_type, "shop", {"number": number, **content}, subject=number, ordering_key=number
    )
