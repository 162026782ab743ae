"""A wait knows what history will say of its end."""

import sqlalchemy as sa
from alembic import op

from edda_engine.storage.types import JsonText

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Waits that are there have none: what comes for them is taken as before."""
    op.add_column("edda_waits", sa.Column("step", JsonText(), nullable=True))
