"""Orders, stock, and the two ledgers that must never show anything twice.

``Payment`` and ``StockMovement`` have no unique constraint on purpose: nothing but the workflow engine keeps a row
from being written twice here, and the demo counts them.
"""

from __future__ import annotations

from datetime import UTC, datetime
from enum import StrEnum

from sqlalchemy import CheckConstraint, DateTime, ForeignKey, String
from sqlalchemy.orm import Mapped, mapped_column, relationship

from edda_wsgi import TerminalError
from example_flask_app.extensions import db

START_QUANTITY = 1000

ARTICLES = {
    "tea": ("Darjeeling tea, 250 g", 890),
    "mug": ("Stoneware mug", 1250),
    "honey": ("Heather honey", 740),
    "biscuits": ("Oat biscuits", 320),
}


class OrderStatus(StrEnum):
    """What an order can be; the shop's page shows these words."""

    PLACED = "placed"
    RESERVED = "reserved"
    PAID = "paid"
    PACKED = "packed"
    FULFILLED = "fulfilled"
    CALLED_OFF = "called off"


class Article(db.Model):
    """Something for sale, and how many pieces are left."""

    __tablename__ = "shop_article"
    __table_args__ = (CheckConstraint("quantity >= 0"),)

    sku: Mapped[str] = mapped_column(String(40), primary_key=True)
    title: Mapped[str] = mapped_column(String(200))
    price_cents: Mapped[int]
    start_quantity: Mapped[int]
    quantity: Mapped[int]


class Order(db.Model):
    """A customer's order. The customer's side chooses the number, so that asking twice places one."""

    __tablename__ = "shop_order"

    id: Mapped[int] = mapped_column(primary_key=True)
    number: Mapped[str] = mapped_column(String(64), unique=True)
    customer: Mapped[str] = mapped_column(String(200))
    card: Mapped[str] = mapped_column(String(40))
    status: Mapped[str] = mapped_column(String(20), default=OrderStatus.PLACED)
    remark: Mapped[str] = mapped_column(String(500), default="")
    instance_id: Mapped[str] = mapped_column(String(255))
    created_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), default=lambda: datetime.now(UTC))
    lines: Mapped[list[OrderLine]] = relationship(order_by="OrderLine.id", lazy="selectin")

    def as_json(self) -> dict[str, object]:
        """What the JSON endpoints say about an order."""
        return {
            "number": self.number,
            "customer": self.customer,
            "status": self.status,
            "remark": self.remark,
            "lines": [{"sku": line.sku, "quantity": line.quantity} for line in self.lines],
            "total_cents": sum(line.quantity * line.price_cents for line in self.lines),
            "instance_id": self.instance_id,
        }


class OrderLine(db.Model):
    """So many pieces of one article, at the price of that day."""

    __tablename__ = "shop_order_line"

    id: Mapped[int] = mapped_column(primary_key=True)
    order_id: Mapped[int] = mapped_column(ForeignKey(Order.id), index=True)
    sku: Mapped[str] = mapped_column(ForeignKey(Article.sku))
    quantity: Mapped[int]
    price_cents: Mapped[int]


class Payment(db.Model):
    """Money that the payment service has taken for an order."""

    __tablename__ = "shop_payment"

    id: Mapped[int] = mapped_column(primary_key=True)
    order_number: Mapped[str] = mapped_column(String(64), index=True)
    amount_cents: Mapped[int]
    reference: Mapped[str] = mapped_column(String(64))


class StockMovement(db.Model):
    """Pieces that left the shelf for an order (negative), or came back (positive)."""

    __tablename__ = "shop_stock_movement"

    id: Mapped[int] = mapped_column(primary_key=True)
    order_number: Mapped[str] = mapped_column(String(64), index=True)
    sku: Mapped[str] = mapped_column(String(40))
    quantity: Mapped[int]


def fill_shelves(quantity: int) -> None:
    """Put the articles on the shelves, unless they are there already."""
    for sku, (title, price_cents) in ARTICLES.items():
        if db.session.get(Article, sku) is None:
            db.session.add(
                Article(sku=sku, title=title, price_cents=price_cents, start_quantity=quantity, quantity=quantity)
            )


def the_order(number: str) -> Order:
    """The order of that number, in an activity: without it no attempt can succeed."""
    found = order_by_number(number)
    if found is None:
        raise TerminalError(f"There is no order {number}.")
    return found


def order_by_number(number: str) -> Order | None:
    """The order of that number, if it was placed."""
    return db.session.scalar(db.select(Order).where(Order.number == number))
