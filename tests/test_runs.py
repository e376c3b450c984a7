"Looking at the record from the command line: all of a run, some of the runs, a log as it grows."
import signal
import subprocess

from conftest import SCALAI, here, nobody_left, scalai
from test_jobs import SLOW, started, until_cell, write

from scalai_nb.core.settings import Settings
from scalai_nb.jobs.engine import run
from scalai_nb.jobs.record import Record

RESULT = "from scalai_nb.jobs.result import result\n"


def test_a_run_in_full_and_some_of_many(workspace):
    write(
        workspace / "ingest.ipynb",
        "months = 12",
        RESULT + "result(rows=27_000*months)",
        "from scalai_nb.core import events\nevents.emit('input', table='flights', version=3)\nevents.emit('output',"
        " table='features', version=0)",
    )
    job = run("ingest.ipynb", dict(months=2))
    run(write(workspace/"other.ipynb", "n = 1", "1/0"))
    doc = here("runs", job.id, "--json").doc
    assert [h["state"] for h in doc["history"]] == ["queued", "running", "succeeded"] and [
        t["cell"] for t in doc["timings"]
    ] == [0, 1, 2]
    assert (doc["parameters"], doc["results"], doc["reads"], doc["writes"]) == (
        dict(months=2),
        dict(rows=54_000),
        [dict(table="flights", version=3)],
        [dict(table="features", version=0)],
    )
    said = here("runs", job.id).out
    for words in (
        "months = 2",
        "rows = 54000",
        "flights@3",
        "features@0",
        "MiB at its peak",
        "queued 20",
        "→ succeeded 20",
        "cell 2",
        "python 3.",
        job.host,
    ):
        assert words in said, said
    some = lambda *args: [r["name"] for r in here("runs", *args, "--json").doc["runs"]]
    assert (
        some() == ["other", "ingest"]
        and some("--name", "in*") == ["ingest"]
        and some("--notebook", "other.ipynb") == ["other"]
        and some("--since", "1h", "--state", "failed") == ["other"]
    )
    assert some("--since", "2999-01-01") == [] and some("--notebook", str(workspace/"ingest.ipynb")) == ["ingest"]
    for args, words in (
        (("--since", "soon"), "'soon' is no time"),
        ((job.id, "--state", "failed"), "--state with a run's id"),
        (("--parent", "none"), "no run"),
    ):
        done = here("runs", *args)
        assert done.code == 2 and len(done.lines) == 2 and words in done.lines[0]


def test_a_log_is_followed_to_the_end_of_its_run(workspace):
    write(
        workspace / "job.ipynb",
        "n = 20",
        "import os, time\nprint('line', 0, flush=True)\nwhile not os.path.exists('go'): time.sleep(.02)\nfor i in"
        " range(1, n): print('line', i, flush=True)",
        "raise ValueError('at the end')",
    )
    running, record = started("run", "job.ipynb", cwd=workspace), Record(Settings.load())
    until_cell(record, 1)
    follower = subprocess.Popen(
        [SCALAI, "logs", "last", "-f"], cwd=workspace, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    first = follower.stdout.readline()
    assert first == "line 0\n" and record.get("last").state == "running"
    (workspace/"go").touch()
    out, err = follower.communicate(timeout=60)
    assert [line for line in out.splitlines() if line.startswith("line")] == [
        f"line {i}" for i in range(1, 20)
    ] and "ValueError" in out
    assert follower.returncode == 1 and running.wait(60) == 1 and not err
    done = here("logs", "last", "--follow", "--json")
    assert done.code == 1 and done.doc["state"] == "failed"


def test_who_follows_may_leave(workspace):
    write(workspace/"slow.ipynb", *SLOW)
    running, record = started("run", "slow.ipynb", cwd=workspace), Record(Settings.load())
    id = until_cell(record, 2)
    follower = started("logs", id, "--follow", cwd=workspace)
    assert follower.stdout.readline() == "about to sleep\n"
    follower.send_signal(signal.SIGINT)
    assert follower.wait(60) == 130 and record.get(id).state == "running"
    running.send_signal(signal.SIGTERM)
    assert running.wait(60) == 130
    nobody_left(workspace)


def test_the_steps_of_a_workflow_are_followed_by_name(workspace):
    for name in ("first", "second"): write(workspace/f"{name}.ipynb", "n = 1", f"print('in {name}')")
    (workspace / "two.toml").write_text(
        '[[step]]\nname = "first"\nnotebook = "first.ipynb"\n[[step]]\nname = "second"\nnotebook = "second.ipynb"\n'
    )
    assert scalai("run", "two.toml", cwd=workspace).code == 0
    assert here("logs", "last", "-f").out == "── first\nin first\n── second\nin second\n"
    whole = here("runs", "--json").doc["runs"][0]
    assert {r["name"] for r in here("runs", "--parent", whole["id"], "--json").doc["runs"]} == {"first", "second"}
    assert len(here("runs", "--steps", "--json").doc["runs"]) == 3
