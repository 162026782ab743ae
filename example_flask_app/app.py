"""The application factory: ``gunicorn -c python:edda_wsgi.gunicorn "example_flask_app:create_app()"``."""

from __future__ import annotations

import click
from flask import Flask

from example_flask_app import models, packing, views
from example_flask_app.extensions import db, edda


def create_app() -> Flask:
    """Make the shop. Opens no connection; ``flask init-shop`` makes its tables and fills its shelves."""
    app = Flask(__name__)
    app.config.from_object("example_flask_app.settings")
    db.init_app(app)
    edda.init_app(app, db=db)
    app.register_blueprint(views.shop)

    @app.cli.command("init-shop")
    @click.option("--quantity", default=models.START_QUANTITY, show_default=True, help="Pieces of each article.")
    def init_shop(quantity: int) -> None:
        """Create the tables, fill the shelves, hire the packers; does nothing to a shop that has them."""
        db.create_all()
        models.fill_shelves(quantity)
        packing.hire_packers()
        db.session.commit()
        click.echo(f"The shop is ready at {db.engine.url.render_as_string()}.")

    return app
