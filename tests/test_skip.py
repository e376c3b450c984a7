"Whether a step is skipped: only if nothing that its result depends on has changed, and always if nothing has."
import json, os, time
from pathlib import Path

import pytest

from conftest import here
from scalai_nb.core.settings import Settings
from scalai_nb.jobs.record import Record
from scalai_nb.jobs.workflow import Workflow
from test_jobs import write

RESULT = "from scalai_nb.jobs.result import result\n"


@pytest.fixture
def work(workspace, monkeypatch) -> Path:
    "One step that depends on everything that a step can depend on."
    monkeypatch.setenv("REGION", "north")
    monkeypatch.setenv("TOKEN", "first")
    (workspace/"pkg").mkdir()
    (workspace/"pkg"/"__init__.py").write_text("")
    (workspace/"pkg"/"rates.py").write_text("from .tables import RATE\n")
    (workspace/"pkg"/"tables.py").write_text("RATE = 2\n")
    (workspace/"setup_cells.py").write_text("offset = 1\n")
    (workspace/"rows.csv").write_text("1\n2\n")
    (workspace/"more.csv").write_text("5\n")
    write(workspace/"work.ipynb", "from scalai_nb.jobs.parameters import Secret\nrows: str = 'rows.csv'\ntoken: Secret = 'env:TOKEN'",
          "import os\nfrom pkg import rates\n%run setup_cells.py",
          "total = sum(int(x) for x in open(rows)) * rates.RATE + offset + int(open('more.csv').read())",
          RESULT + "open('report.txt', 'w').write(str(total))\nresult(total=total, region=os.environ['REGION'])")
    (workspace/"work.toml").write_text('warm = ["json"]\n[[step]]\nname = "work"\nnotebook = "work.ipynb"\n')
    return workspace


def ran(flow: str = "work.toml", **how) -> list[str]:
    "The steps that were executed."
    job = Workflow.load(flow).run(progress=False, **how)
    assert job.ok, job.error
    return [s.name for s in job.steps if s.state == "succeeded"]


CHANGES = {  # what may change, and how
    "a module that a module imports": lambda at, env: (at/"pkg"/"tables.py").write_text("RATE = 3\n"),
    "a file that %run names": lambda at, env: (at/"setup_cells.py").write_text("offset = 2\n"),
    "a file that a text parameter names": lambda at, env: (at/"rows.csv").write_text("1\n3\n"),
    "a file that nobody declared": lambda at, env: (at/"more.csv").write_text("6\n"),
    "a variable": lambda at, env: env.setenv("REGION", "south"),
    "the value of a secret": lambda at, env: env.setenv("TOKEN", "second"),
    "an installed distribution": lambda at, env: installed(at, env),
}


def installed(at: Path, env):
    folder = at/"elsewhere"/"site-packages"
    (folder/"surprise-1.0.dist-info").mkdir(parents=True)
    (folder/"surprise-1.0.dist-info"/"METADATA").write_text("Metadata-Version: 2.1\nName: surprise\nVersion: 1.0\n")
    env.syspath_prepend(str(folder))


@pytest.mark.parametrize("what", CHANGES)
def test_a_step_runs_again_when_what_it_depends_on_changed(work, monkeypatch, what):
    assert ran() == ["work"]
    assert ran() == []
    CHANGES[what](work, monkeypatch)
    assert ran() == ["work"], f"{what} changed, and the step was skipped"
    assert ran() == []
