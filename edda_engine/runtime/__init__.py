"""What runs: the services of one worker, wired together only in :mod:`edda_engine.runtime.engine`."""
