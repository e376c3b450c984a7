"""Runs under fire: killed at any moment, on a full disk, under a clock that jumps, with a record that is locked, away,
or restarted."""

import itertools
import json
import os
import random
import resource
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import nbformat
import pytest
from conftest import SCALAI, nobody_left, scalai, until
from servers import Postgres
from test_jobs import SLOW, started, write

from scalai_nb.core.settings import Settings
from scalai_nb.jobs import database as module
from scalai_nb.jobs.engine import run
from scalai_nb.jobs.log import read_back, read_log
from scalai_nb.jobs.parameters import load_notebook
from scalai_nb.jobs.record import Record

until = partial(until, within=60)

TALK = """import os, time
with open('pid', 'w') as f: f.write(str(os.getpid()))
side = os.open('said.txt', os.O_CREAT | os.O_WRONLY | os.O_APPEND)
def say(cell):
    for i in range(20):
        print(f'cell {cell} line {i}', flush=True)
        os.write(side, f'{time.monotonic()} cell {cell} line {i}\\n'.encode())
        time.sleep(.02)"""


def said_so_far(folder: Path) -> list[tuple[float, str]]:
    "When the notebook said what, by its own account, on the clock that all processes share."
    lines = (folder/"said.txt").read_text().splitlines() if (folder/"said.txt").exists() else []
    return [(float(t), text) for t, text in (line.split(" ", 1) for line in lines)]


def shot(folder: Path, victim: str, wait: float, early: bool) -> tuple[subprocess.Popen, float]:
    "Start a run and kill one of its processes, `wait` seconds after it began, or after its notebook said something."
    process = started("run", "job.ipynb", "--json", cwd=folder)
    until = time.monotonic() + 60
    while not early and not said_so_far(folder) and time.monotonic() < until: time.sleep(.01)
    time.sleep(wait)
    try:
        if victim == "kernel" and not early: os.kill(int((folder/"pid").read_text()), signal.SIGKILL)
        elif victim == "group": os.killpg(process.pid, signal.SIGKILL)
        else: process.kill()
    except ProcessLookupError: pass  # it had ended
    return process, time.monotonic()


def killed(folder: Path, victim: str, wait: float, early: bool) -> str:
    "One shot, and whether everything that is left tells the truth about it; how it ended."
    folder.mkdir()
    (folder/"settings.ini").write_text("[workspace]\nhome = .scalai\n")
    write(folder/"job.ipynb", "n = 1", TALK, *(f"say({c})" for c in range(2, 6)))
    process, at = shot(folder, victim, wait, early)
    out, _ = process.communicate(timeout=60)
    nobody_left(folder)
    record = Record(Settings.load(folder))
    runs = record.runs()
    if not runs: return "never began"
    job, lines = runs[0], (record.folder(runs[0].id)/"log.jsonl")
    entries = list(read_log(lines))
    *whole, rest = lines.read_bytes().split(b"\n") if lines.exists() else [b""]
    assert [json.loads(line) for line in whole] == entries, "a line of the log is not whole"
    if out: assert (json.loads(out)["state"], rest) == (job.state, b"")
    assert job.state in (
        ("succeeded", "kernel_died", "lost") if victim == "kernel" else ("succeeded", "lost")
    ), job.state
    assert record.events(job.id)[-1]["state"] == job.state
    if job.state != "succeeded":
        assert job.error["cell"] == next((e["cell"] for e in reversed(entries) if e.get("cell") is not None), None)
    if (book := record.folder(job.id)/"notebook.ipynb").exists(): nbformat.validate(nbformat.read(book, as_version=4))
    said = said_so_far(folder)
    # what the machine itself held up
    stall = max((b - a for (a, x), (b, y) in itertools.pairwise(said) if x.split()[1] == y.split()[1]), default=0)
    kept = "".join(e["text"] for e in entries if e["type"] == "stream")
    lost = [text for t, text in said if t < at - 1 - stall and text + "\n" not in kept]
    assert not lost, f"lost {len(lost)} lines, the last of them {lost[-1]}"
    return job.state


@pytest.mark.slow
def test_twenty_kills_at_any_moment(tmp_path):
    """The kernel, the engine, the whole process group:

    nobody is left, nothing is untrue, and at most the last second is lost."""
    rng = random.Random(7)
    shots = [
        (tmp_path / f"kill-{i:02d}", victim, rng.uniform(0, 1.8), i % 5 == 4)
        for i, victim in enumerate(["kernel", "engine", "group", "engine"] * 5)
    ]
    with ThreadPoolExecutor(3) as pool: ends = list(pool.map(lambda shot: killed(*shot), shots))
    assert ends.count("lost") >= 5 and ends.count("kernel_died") >= 2, ends


@pytest.mark.parametrize("lines", [400, 4])  # small ones for the notebook, large ones for files of their own
def test_a_disk_that_is_full_ends_the_run_and_says_so(workspace, lines):
    "Files may have one MiB here: neither the log nor the notebook can hold what is printed."
    write(
        workspace / "loud.ipynb",
        f"n = {lines}",
        "import time\nfor i in range(n):\n    print('x'*(4_000_000//n if n > 9 else 4_000_000))\n    time.sleep(.01)",
        "print('never')",
    )
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
    env = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}  # Python 3.11 would keep half of a file
    done = subprocess.run(
        [SCALAI, "run", "loud.ipynb", "--json"],
        cwd=workspace,
        env=env,
        capture_output=True,
        text=True,
        preexec_fn=limit,
    )
    doc = json.loads(done.stdout)
    assert (done.returncode, doc["state"], doc["error"]["kind"], doc["error"]["cell"]) == (
        1,
        "failed",
        "DiskFull",
        1,
    ), doc
    assert "Traceback" not in done.stderr
    record = Record(Settings.load())
    assert record.get("last").error == doc["error"]
    folder = record.folder(doc["id"])
    assert any(e["type"] == "cell" for e in read_log(folder / "log.jsonl")) and (
        folder / "log.jsonl"
    ).read_bytes().endswith(b"\n")
    nbformat.validate(nbformat.read(folder/"notebook.ipynb", as_version=4))
    # no half-written one
    assert {f.name for f in folder.iterdir()} <= {
        "log.jsonl",
        "notebook.ipynb",
        "record.json",
        "kernel.log",
        "outputs",
    }
    nobody_left(workspace)


def test_a_place_that_is_gone_when_the_notebook_is_to_go_there(workspace):
    (workspace/"out").mkdir()
    path = write(workspace/"job.ipynb", "n = 1", "import os\nos.rename('out', 'away')\nopen('out', 'w').close()")
    job = run(path, output=workspace/"out/job.ipynb")
    assert (job.state, job.error["kind"], job.error["cell"]) == (
        "failed",
        "OSError",
        None,
    ) and "could not be written" in job.error["message"]
    assert load_notebook(job.output)["cells"][1]["metadata"]["papermill"]["status"] == "completed"
    assert Record(Settings.load()).get("last").to_dict() == job.to_dict()


def test_a_clock_that_jumps(workspace, monkeypatch):
    "Hours and days, forth and back: durations, order, states and limits hold."
    path = write(workspace/"job.ipynb", "n = 1", "import time\ntime.sleep(.5)", "print(n)")
    real, jumps, began = time.time, itertools.cycle([0, -7200, 90_000, 3600, -86_400]), time.monotonic()
    monkeypatch.setattr(time, "time", lambda: real() + next(jumps))
    job = run(path, timeout=60)
    took = time.monotonic() - began
    doc = (record := Record(Settings.load())).document(record.get(job.id))
    assert (job.state, [h["state"] for h in doc["history"]]) == ("succeeded", ["queued", "running", "succeeded"])
    assert .5 <= job.seconds <= took and .5 <= doc["timings"][1]["seconds"] <= job.seconds
    assert run(path, timeout=.2).state == "timed_out"


def test_an_error_whose_text_no_database_takes(workspace):
    job = run(write(workspace/"job.ipynb", "n = 1", r"raise ValueError('nul \0')"))
    job.state, job.error = "lost", dict(cell=1, kind="ValueError", message="nul \0 and half \ud800")
    Record(Settings.load()).update(job)
    assert Record(Settings.load()).get("last").error == job.error


# A record that does not answer: SQLite held by another program, PostgreSQL stopped.
WAITS = (
    "n = 1",
    "from pathlib import Path\nimport time\nPath('began').touch()\nwhile not Path('go').exists(): time.sleep(.02)",
    "from scalai_nb.jobs.result import result\nprint('done')\nresult(n=n)",
)


@contextmanager
def held(workspace: Path):
    "Nobody else may write to the record."
    db = sqlite3.connect(workspace/".scalai/scalai.db", isolation_level=None)
    db.execute("BEGIN IMMEDIATE")
    try: yield
    finally: db.close()


@contextmanager
def stopped(server: Postgres):
    server.stop()
    try: yield
    finally:
        server.start()
        server.connect().close()


def ended_in_its_log(record: Record) -> bool:
    return any(
        next(read_back(f), {}).get("state") == "succeeded" for f in record.settings.path("runs").glob("*/log.jsonl")
    )


def meanwhile(workspace: Path, away, after) -> Record:
    """Run a notebook in which the record goes away after it began; `after` is called when it has ended, the record
    still away. It is true at last."""
    record, path, answers = Record(Settings.load()), write(workspace/"job.ipynb", *WAITS), []
    thread = threading.Thread(target=lambda: answers.append(run(path)))
    thread.start()
    until((workspace/"began").exists)
    with away:
        (workspace/"go").touch()
        until(lambda: ended_in_its_log(record))
        after(thread)
    thread.join(60)
    assert [(a.state, a.results) for a in answers] == [("succeeded", dict(n=1))]
    assert load_notebook(answers[0].output)["metadata"]["scalai"]["state"] == "succeeded"
    until(lambda: record.get(answers[0].id).state == "succeeded")
    doc = record.document(record.get(answers[0].id))
    assert (doc["results"], [h["state"] for h in doc["history"]], [t["cell"] for t in doc["timings"]]) == (
        dict(n=1),
        ["queued", "running", "succeeded"],
        [0, 1, 2],
    )
    return record


def test_a_locked_record_holds_up_no_run(workspace): meanwhile(workspace, held(workspace), lambda thread: None)


def test_a_record_that_is_locked_for_long_is_written_later(workspace, monkeypatch):
    monkeypatch.setattr(module, "RETRY_TIMEOUT", .3)
    meanwhile(workspace, held(workspace), lambda thread: thread.join(60))  # it returned without its record


ALONE = (
    "from scalai_nb.jobs import database\ndatabase.RETRY_TIMEOUT = .3\nfrom scalai_nb.jobs.engine import run\njob ="
    " run('job.ipynb')\nprint(job.id, job.state)"
)


def test_a_process_that_ended_without_its_record(workspace):
    "What the record never heard stands in the run's own log, and the next look finds it."
    write(workspace/"job.ipynb", *WAITS)
    record = Record(Settings.load())
    process = subprocess.Popen(
        [sys.executable, "-c", ALONE], cwd=workspace, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    until((workspace/"began").exists)
    with held(workspace):
        (workspace/"go").touch()
        out, err = process.communicate(timeout=60)
    id, state = out.split()
    assert (
        (process.returncode, state) == (0, "succeeded")
        and "how the run ended is kept in" in err
        and "Traceback" not in err
    )
    found = record.get(id)
    assert (found.state, found.results, found.error) == ("succeeded", dict(n=1), None) and found.seconds > 0
    assert [t["cell"] for t in record.document(found)["timings"]] == [0, 1, 2]


@pytest.fixture(scope="module")
def postgres():
    with Postgres() as server: yield server


@pytest.fixture
def shared(workspace, postgres, monkeypatch):
    "A workspace whose record is on the server."
    monkeypatch.setenv("SCALAI_JOBS__DATABASE", postgres.uri())
    return workspace


@pytest.mark.slow
def test_the_record_on_postgresql(shared):
    "Two engines at once, history, timings, filters, a request to stop, a killed one."
    for name in "ab":
        write(
            shared / f"{name}.ipynb",
            "n = 2",
            "print('here')",
            "from scalai_nb.jobs.result import result\nresult(n=n, text='a\\0b', share=float('inf'))",
        )
    with ThreadPoolExecutor(2) as pool:
        done = list(pool.map(lambda name: scalai("run", f"{name}.ipynb", "--json", cwd=shared), "ab"))
    assert [(d.code, d.doc["state"], d.doc["results"]) for d in done] == [
        (0, "succeeded", dict(n=2, text="a\0b", share="inf"))
    ] * 2, done[0].err
    doc = scalai("runs", done[0].doc["id"], "--json", cwd=shared).doc
    assert [h["state"] for h in doc["history"]] == ["queued", "running", "succeeded"] and [
        t["cell"] for t in doc["timings"]
    ] == [0, 1, 2]
    assert {
        r["name"] for r in scalai("runs", "--since", "1h", "--state", "succeeded", "--json", cwd=shared).doc["runs"]
    } == {"a", "b"}
    write(shared/"slow.ipynb", *SLOW)
    process, record = started("run", "slow.ipynb", "--json", cwd=shared), Record(Settings.load())
    id = until(lambda: next((r.id for r in record.runs(name="slow", state="running")), None))
    assert scalai("cancel", id, cwd=shared).code == 0
    assert json.loads(process.communicate(timeout=60)[0])["state"] == record.get(id).state == "cancelled"
    process = started("run", "slow.ipynb", cwd=shared)
    id = until(lambda: next((r.id for r in record.runs(name="slow", state="running")), None))
    until(lambda: any(e.get("cell") == 2 for e in read_log(record.folder(id)/"log.jsonl")))
    process.kill()
    process.wait()
    assert (record.get(id).state, record.get(id).error["cell"]) == ("lost", 2)
    nobody_left(shared)


@pytest.mark.slow
def test_postgresql_is_restarted_during_a_run(shared, postgres):
    meanwhile(shared, stopped(postgres), lambda thread: None)


@pytest.mark.slow
def test_postgresql_is_away_for_long(shared, postgres, monkeypatch):
    monkeypatch.setattr(module, "RETRY_TIMEOUT", .3)
    def asked(thread):
        thread.join(60)
        done = scalai("runs", cwd=shared)
        assert (
            done.code == 3
            and len(done.lines) == 2
            and "does not answer" in done.lines[0]
            and postgres.password not in done.err
        )
    meanwhile(shared, stopped(postgres), asked)
