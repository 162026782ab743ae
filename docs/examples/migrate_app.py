"""Flask-Migrate beside edda's own tables."""

from __future__ import annotations

from typing import Any

from flask import Flask
from flask_migrate import Migrate
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy.orm import Mapped, mapped_column

from edda_wsgi import EddaFlask
from edda_wsgi.migrations import include_object

# extensions
db = SQLAlchemy()
edda = EddaFlask()
migrate = Migrate()


class Item(db.Model):  # type: ignore[name-defined]
    id: Mapped[int] = mapped_column(primary_key=True)


# factory
def create_app(config: dict[str, Any] | None = None) -> Flask:
    app = Flask(__name__)
    app.config.from_prefixed_env()
    app.config.update(config or {})
    db.init_app(app)
    edda.init_app(app, db=db)
    migrate.init_app(app, db, include_object=include_object)
    return app
