"""What the gunicorn hooks do in one worker; whole servers are in tests/e2e."""

from __future__ import annotations

import json
from pathlib import Path

from tests.integration.flask_apps import run_python

WORKER = """
import gc, json, os, signal, tempfile, types
from flask import Flask
from edda_wsgi import EddaFlask, gunicorn
from tests.support import eventually

app = Flask("shop", instance_path=os.getcwd())
app.get("/")(lambda: "ok")
EddaFlask(app)
application = app.extensions["edda"]
heard = []
signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
worker = types.SimpleNamespace(tmp=tempfile.TemporaryFile(), cfg=types.SimpleNamespace(graceful_timeout=30))

gunicorn.post_worker_init(worker)
application.start_engine().result(30)
os.utime(worker.edda_sign_of_life, (0, 0))
facts = {"claims": [application._engine.is_claiming], "keeps_what_is_loaded": gc.get_freeze_count() > 10_000}
signal.raise_signal(signal.SIGTERM)
eventually(lambda: not application._engine.is_claiming)
facts["claims"].append(application._engine.is_claiming)
worker.tmp.close()
gunicorn.worker_exit(None, worker)
facts["gave_a_sign"] = os.fstat(worker.edda_sign_of_life).st_mtime > 0
app.test_client().get("/")
print(json.dumps(facts | {"heard": heard, "runs_again": application.is_running}))
"""


def test_a_worker_takes_no_more_work_from_sigterm_on_and_no_late_request_begins_anew(tmp_path: Path) -> None:
    facts = json.loads(run_python(WORKER, folder=tmp_path, PYTHONPATH=str(Path(__file__).parents[2])))

    assert facts == {
        "claims": [True, False],
        "keeps_what_is_loaded": True,
        "heard": [15],
        "gave_a_sign": True,
        "runs_again": False,
    }
