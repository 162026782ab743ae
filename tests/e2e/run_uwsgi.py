"""uWSGI from its wheel, with the command line of ``uwsgi``."""

from pyuwsgi import run

if __name__ == "__main__":
    run()
