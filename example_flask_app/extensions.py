"""The extensions, made once and given to each application by the factory."""

from __future__ import annotations

from flask_sqlalchemy import SQLAlchemy

from edda_wsgi import EddaFlask

db = SQLAlchemy()
edda = EddaFlask()
