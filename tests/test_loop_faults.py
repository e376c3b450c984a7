"The loop when it is killed, repeated, or asked about the past: what was decided stays decided."
import os, signal
from pathlib import Path

import pytest

from conftest import nobody_left, scalai, started
from scalai_nb.core.settings import Settings
from scalai_nb.data.table import Table
from scalai_nb.jobs.record import Record
from test_jobs import write

FLOW = """
[[step]]
name = "score"
notebook = "score.ipynb"
each = ["2013-01", "2013-02", "2013-03"]
as = "period"
parameters = { period = "${period}" }
"""

SCORE = """
import os, time
from pathlib import Path
import pandas as pd
from scalai_nb.data.table import write
from scalai_nb.jobs.result import result
by = Path("champion").read_text()
done = write(pd.DataFrame({"id": [1, 2], "version": [by, by]}), "scores", period=period, mode="replace-period", batch=f"{by} on {period}")
if period == "2013-02" and Path("kill").exists():
    Path("champion").write_text("2")  # a later one, as after a retraining
    os.kill(int(Path("kill").read_text()), 9)
    time.sleep(60)
"""


def test_a_lost_run_s_own_commit_is_its_own(workspace):
    "Killed between the commit and the end of the step: what was scored before stays as it was, and the batch is not written twice."
    write(workspace/"score.ipynb", 'period: str = ""', SCORE, "result(version=done.version, by=by)")
    (workspace/"flow.toml").write_text(FLOW)
    (workspace/"champion").write_text("1")
    runner = started("run", "flow.toml")
    (workspace/"kill").write_text(str(runner.pid))
    runner.communicate(timeout=120)
    assert runner.returncode == -signal.SIGKILL
    nobody_left(workspace)
    (workspace/"kill").unlink()
    lost = next(r for r in Record(Settings.load()).runs(state="lost", nested=True) if r.kind == "notebook")
    assert not lost.writes and Table("scores").version == 1
    done = scalai("run", "flow.toml", "--json").doc
    assert [(s["name"], s["state"]) for s in done["steps"]] == [("score[2013-01]", "skipped"), ("score[2013-02]", "succeeded"), ("score[2013-03]", "succeeded")]
    assert sorted(Table("scores").arrow()["version"].to_pylist()) == ["1", "1", "2", "2", "2", "2"]
    other = scalai("run", "score.ipynb", "-p", "period=2013-01")  # another's commit still counts
    assert other.code == 0
    assert [s["state"] for s in scalai("run", "flow.toml", "--json").doc["steps"]] == ["succeeded"]*3
