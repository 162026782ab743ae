"""The shop's page and its JSON endpoints."""

from __future__ import annotations

import secrets

from flask import Blueprint, current_app, render_template, request, url_for
from flask.typing import ResponseReturnValue
from pydantic import BaseModel, Field, ValidationError
from sqlalchemy.exc import IntegrityError

from example_flask_app.extensions import db, edda
from example_flask_app.models import Article, Order, OrderLine, order_by_number
from example_flask_app.workflows import Line, Placed, fulfil_order

shop = Blueprint("shop", __name__)

SHOWN_ORDERS = 100
PRINTABLE = r"^[^\x00-\x1f]+$"  # PostgreSQL stores no NUL


class Wish(BaseModel):
    """What a customer sends. The same number sent twice is the same order."""

    number: str = Field(default_factory=lambda: secrets.token_hex(4), pattern=r"^[\w.-]{1,64}$")
    customer: str = Field(min_length=1, max_length=200, pattern=PRINTABLE)
    card: str = Field("4242", max_length=40, pattern=PRINTABLE)
    lines: list[Line] = Field(min_length=1, max_length=10)


@shop.get("/")
def page() -> str:
    """Orders as they move."""
    articles = db.session.scalars(db.select(Article).order_by(Article.sku)).all()
    return render_template("shop.html", articles=articles, database=db.engine.dialect.name)


@shop.post("/orders")
def place_order() -> ResponseReturnValue:
    """Place an order: its row and the start of its workflow are one transaction."""
    try:
        wish = Wish.model_validate_json(request.get_data())
    except ValidationError as error:
        details = error.errors(include_url=False, include_context=False, include_input=False)
        return {"error": "This is no order.", "details": details}, 400
    prices = dict(db.session.execute(db.select(Article.sku, Article.price_cents)).all())
    unknown = sorted({line.sku for line in wish.lines} - prices.keys())
    if unknown:
        return {"error": f"There is no article {', '.join(unknown)}; there are {', '.join(sorted(prices))}."}, 400
    if len({line.sku for line in wish.lines}) < len(wish.lines):
        return {"error": "Each article needs one line only; add up its quantities."}, 400

    placed = Placed(
        number=wish.number,
        card=wish.card,
        total_cents=sum(line.quantity * prices[line.sku] for line in wish.lines),
        lines=wish.lines,
        payment_term_seconds=current_app.config["SHOP_PAYMENT_TERM_SECONDS"],
    )
    order = Order(number=wish.number, customer=wish.customer, card=wish.card, instance_id=f"order-{wish.number}")
    order.lines = [OrderLine(sku=line.sku, quantity=line.quantity, price_cents=prices[line.sku]) for line in wish.lines]
    db.session.add(order)
    try:
        db.session.flush()
    except IntegrityError:
        db.session.rollback()
        return _placed_before(wish)
    fulfil_order.options(instance_id=order.instance_id).start(placed)
    db.session.commit()
    return order.as_json(), 202, {"Location": url_for("shop.show_order", number=order.number)}


@shop.get("/orders")
def list_orders() -> ResponseReturnValue:
    """The newest orders, and what is left on the shelves."""
    orders = db.session.scalars(db.select(Order).order_by(Order.id.desc()).limit(SHOWN_ORDERS)).all()
    counted = db.session.execute(db.select(Order.status, db.func.count()).group_by(Order.status)).all()
    stock = db.session.execute(db.select(Article.sku, Article.quantity).order_by(Article.sku)).all()
    return {"orders": [order.as_json() for order in orders], "counts": dict(counted), "stock": dict(stock)}


@shop.get("/orders/<number>")
def show_order(number: str) -> ResponseReturnValue:
    """One order, with the steps that its workflow has recorded so far."""
    order = order_by_number(number)
    if order is None:
        return {"error": f"There is no order {number}."}, 404
    steps = [
        {
            "step": event.activity_id,
            "event": event.event_type,
            "attempts": event.event_data.get("retry_metadata", {}).get("total_attempts", 1),
            "at": event.created_at.isoformat(),
        }
        for event in edda.history(order.instance_id)
    ]
    return {**order.as_json(), "workflow": edda.get(order.instance_id).status, "steps": steps}


def _placed_before(wish: Wish) -> ResponseReturnValue:
    """The answer to a request that was sent again, perhaps because the first answer was lost."""
    order = order_by_number(wish.number)
    if order is None:
        current_app.logger.error("Order %s could not be saved and does not exist", wish.number)
        return {"error": "The order could not be saved; please send it again."}, 503
    same = [(line.sku, line.quantity) for line in order.lines] == [(line.sku, line.quantity) for line in wish.lines]
    if not same or order.customer != wish.customer:
        return {"error": f"Order {wish.number} exists already and is another one; use a new number."}, 409
    return order.as_json(), 200
