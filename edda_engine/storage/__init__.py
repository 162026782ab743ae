"""SQL: plain synchronous functions whose first argument is a SQLAlchemy Connection; nobody commits here.

One text serves every caller: the committer's thread, an activity's own transaction, a Flask view, the command
line, and an async activity through ``run_sync``. Only :mod:`edda_engine.storage.database` begins and commits.
"""
