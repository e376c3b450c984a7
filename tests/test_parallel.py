"Steps that run at the same time, what they may take, and what is known before they run."
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import nobody_left, scalai
from test_jobs import started, write

from scalai_nb.core.errors import BadRequest
from scalai_nb.core.settings import Settings
from scalai_nb.jobs.plan import plan
from scalai_nb.jobs.record import Record
from scalai_nb.jobs.workflow import Workflow

RESULT = "from scalai_nb.jobs.result import result\n"
MEET = (
    "import os, time\nopen(me, 'w').close()\nend = time.monotonic() + 60\nwhile not os.path.exists(other) and"
    " time.monotonic() < end: time.sleep(.02)\nassert os.path.exists(other), 'it ran alone'"
)
COUNT = (
    "import os, time\nos.makedirs('at', exist_ok=True)\nopen(f'at/{name}', 'w').close()\ntime.sleep(.3)\nseen ="
    " len(os.listdir('at'))\nos.remove(f'at/{name}')"
)


def step(name: str, notebook: str, needs: str = "[]", **more) -> str:
    return f'[[step]]\nname = "{name}"\nnotebook = "{notebook}"\nneeds = {needs}\n' + "".join(
        f"{k} = {v}\n" for k, v in more.items()
    )


def flow(workspace: Path, name: str, *steps: str, head: str = 'warm = ["json"]\n') -> Workflow:
    (workspace/f"{name}.toml").write_text(head + "".join(steps))
    return Workflow.load(workspace/f"{name}.toml")


def test_steps_that_do_not_wait_for_each_other_meet(workspace):
    write(workspace/"meet.ipynb", "me = ''\nother = ''", MEET, RESULT + "result(me=me)")
    write(workspace/"both.ipynb", "a = ''\nb = ''", RESULT + "result(both=a + b)")
    job = flow(
        workspace,
        "meet",
        step("a", "meet.ipynb", parameters='{ me = "a", other = "b" }'),
        step("b", "meet.ipynb", parameters='{ me = "b", other = "a" }'),
        step("both", "both.ipynb", '["a", "b"]', parameters='{ a = "${a.me}", b = "${b.me}" }'),
    ).run(jobs=2)
    assert (job.state, job.results) == ("succeeded", dict(me="b", both="ab")), job.error
    nobody_left(workspace)


def test_a_sweep_keeps_its_limit_and_its_result_does_not_depend_on_it(workspace):
    write(workspace/"point.ipynb", "lr: float\nname: str", COUNT, RESULT + "result(auc=lr*len(name), seen=seen)")
    write(workspace/"best.ipynb", "auc: list[float]", RESULT + "result(best=max(auc))")
    found = {}
    for jobs, limit in ((4, 2), (1, 4)):
        shutil.rmtree(workspace/".scalai", ignore_errors=True)
        job = flow(
            workspace,
            "sweep",
            step("point", "point.ipynb", grid='{ lr = [0.5, 1.0], name = ["a", "bb"] }', at_once=limit),
            step("best", "best.ipynb", '["point"]', parameters='{ auc = "${point.auc}" }'),
        ).run(jobs=jobs)
        assert job.ok, job.error
        seen = job.results.pop("seen")
        assert max(seen) <= min(jobs, limit) and (jobs == 1 or len(seen) == 4)
        found[jobs] = job.state, job.results, [(s.name, s.state) for s in job.steps]
    assert found[1] == found[4]
    assert found[4][1] == dict(lr=[.5, .5, 1., 1.], name=["a", "bb", "a", "bb"], auc=[.5, 1., 1., 2.], best=2.)
    assert [name for name, _ in found[4][2]] == [
        "point[lr=0.5,name=a]",
        "point[lr=0.5,name=bb]",
        "point[lr=1.0,name=a]",
        "point[lr=1.0,name=bb]",
        "best",
    ]


def test_one_failure_stops_only_what_needs_it_and_is_gone_on_from(workspace):
    write(
        workspace / "fine.ipynb",
        "n = 0",
        "import time, os\nend = time.monotonic() + 30\nwhile not os.path.exists('failed') and time.monotonic() < end:"
        " time.sleep(.02)\ntime.sleep(.2)",
        RESULT + "open('effect', 'a').write('x')\nresult(n=n)",
    )
    write(workspace/"bad.ipynb", "n = 0", "import os\nopen('failed', 'w').close()\nassert os.path.exists('mended')")
    work = flow(
        workspace,
        "two",
        step("fine", "fine.ipynb"),
        step("bad", "bad.ipynb"),
        step("after", "fine.ipynb", '["bad"]'),
        step("more", "fine.ipynb", '["fine"]', parameters="{ n = 2 }"),
    )
    job = work.run(jobs=2)
    assert (job.state, [s.state for s in job.steps]) == ("failed", ["succeeded", "failed", "skipped", "succeeded"])
    (workspace/"mended").touch()
    again = work.run(jobs=2, from_failed=True)
    assert (again.state, [s.state for s in again.steps]) == (
        "succeeded",
        ["skipped", "succeeded", "succeeded", "skipped"],
    )
    assert (workspace/"effect").read_text() == "xxx"


def test_a_forced_step_that_failed_is_run_again_and_not_taken_from_before(workspace):
    (workspace/"fine").touch()
    write(workspace/"first.ipynb", "n = 0", RESULT + "result(n=n)")
    write(workspace/"last.ipynb", "n = 0", "import os\nassert os.path.exists('fine')\nopen('effect', 'a').write('x')")
    work = flow(workspace, "forced", step("first", "first.ipynb"), step("last", "last.ipynb", '["first"]'))
    assert work.run().ok
    (workspace/"fine").unlink()
    assert work.run(from_step="last").state == "failed"
    (workspace/"fine").touch()
    ahead = {s.name: s.action for s in plan(work, from_failed=True).steps}
    assert ahead == {"first": "skip", "last": "run"}
    assert [s.state for s in work.run(from_failed=True).steps] == ["skipped", "succeeded"]
    assert [s.state for s in work.run().steps] == ["skipped", "skipped"]
    assert (workspace/"effect").read_text() == "xx"


def test_an_interrupt_cancels_all_that_run(workspace):
    write(
        workspace / "meet.ipynb",
        "me = ''\nother = ''",
        MEET,
        "open(me + '-met', 'w').close()\nfor i in range(600): time.sleep(.1)",
    )
    flow(
        workspace,
        "meet",
        step("a", "meet.ipynb", parameters='{ me = "a", other = "b" }'),
        step("b", "meet.ipynb", parameters='{ me = "b", other = "a" }'),
        step("c", "meet.ipynb", '["b"]'),
    )
    process = started("run", "meet.toml", "--json", "--jobs", "2", cwd=workspace)
    until = time.monotonic() + 60
    while not ((workspace/"a-met").exists() and (workspace/"b-met").exists()) and time.monotonic() < until:
        time.sleep(.05)
    process.send_signal(signal.SIGINT)
    doc = json.loads(process.communicate(timeout=60)[0])
    assert (process.returncode, doc["state"], [s["state"] for s in doc["steps"]]) == (
        130,
        "cancelled",
        ["cancelled", "cancelled", "skipped"],
    )
    assert [s.state for s in Record(Settings.load()).get("last").steps if s.name != "c"] == ["cancelled", "cancelled"]
    nobody_left(workspace)


@pytest.mark.slow
def test_a_killed_workflow_loses_all_that_ran(workspace):
    write(
        workspace / "meet.ipynb",
        "me = ''\nother = ''",
        MEET,
        "open(me + '-met', 'w').close()\nfor i in range(600): time.sleep(.1)",
    )
    flow(
        workspace,
        "meet",
        step("a", "meet.ipynb", parameters='{ me = "a", other = "b" }'),
        step("b", "meet.ipynb", parameters='{ me = "b", other = "a" }'),
    )
    process = started("run", "meet.toml", "--jobs", "2", cwd=workspace)
    until = time.monotonic() + 60
    while not ((workspace/"a-met").exists() and (workspace/"b-met").exists()) and time.monotonic() < until:
        time.sleep(.05)
    process.kill()
    process.wait()
    nobody_left(workspace)
    lost = Record(Settings.load()).get("last")
    assert (lost.state, sorted(s.state for s in lost.steps)) == ("lost", ["lost", "lost"])


def test_time_runs_out_for_those_that_run_and_those_that_wait(workspace):
    write(workspace/"long.ipynb", "n = 0", "import time\nfor i in range(600): time.sleep(.1)")
    job = flow(workspace, "long", *(step(f"s{n}", "long.ipynb", parameters=f"{{ n = {n} }}") for n in range(3))).run(
        jobs=2, timeout=3
    )
    assert (job.state, job.exit_code, [s.state for s in job.steps]) == ("timed_out", 124, ["timed_out"]*3)
    assert sum("were over before it began" in s.error["message"] for s in job.steps) == 1
    nobody_left(workspace)


def test_every_attempt_is_in_the_record(workspace):
    write(
        workspace / "third.ipynb",
        "n = 0",
        "import os\nopen('tries', 'a').write('x')\nassert os.path.getsize('tries') > 2, 'not yet'",
    )
    retries = "{ times = 3, wait = 0.01, max_wait = 0.02 }"
    work = flow(workspace, "third", step("third", "third.ipynb", retries=retries))
    assert work.run().ok
    tries = Record(Settings.load()).runs(name="third", nested=True)[::-1]
    tries = [r for r in tries if r.kind == "notebook"]
    assert [r.state for r in tries] == ["failed", "failed", "succeeded"]
    assert [r.reason for r in tries] == [
        "it never ran",
        f"attempt 2 of 4: {tries[0].id} failed",
        f"attempt 3 of 4: {tries[1].id} failed",
    ]
    assert [s.state for s in work.run(from_failed=True).steps] == ["skipped"]


def test_what_never_fits_is_refused_and_what_fits_is_kept_apart(workspace, monkeypatch):
    (workspace/"settings.ini").write_text("[workflow]\njobs = 4\ncpus = 2\ngpus = 2\nmemory = 4GiB\n")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    write(
        workspace / "gpu.ipynb", "me = ''\nother = ''", MEET, RESULT + "result(gpu=os.environ['CUDA_VISIBLE_DEVICES'])"
    )
    two = [
        step(
            me,
            "gpu.ipynb",
            parameters=f'{{ me = "{me}", other = "{other}" }}',
            resources='{ gpus = 1, cpus = 1, memory = "2GiB" }',
        )
        for me, other in ("ab", "ba")
    ]
    for lack, text in (
        ("cpus = 3", "needs 3 cpus, and there are 2"),
        ("gpus = 3", "needs 3 gpus, and there are 2"),
        ('memory = "8GiB"', "needs 8.0 GiB memory, and there are 4.0 GiB"),
    ):
        with pytest.raises(BadRequest, match=text):
            flow(workspace, "bad", *two, step("c", "gpu.ipynb", resources=f"{{ {lack} }}")).run()
    assert Record(Settings.load()).runs(nested=True) == []
    job = flow(workspace, "gpu", *two, head="").run()
    assert sorted(s.results["gpu"] for s in job.steps) == ["3", "5"], job.error


def test_a_table_that_is_gone_or_newer_runs_its_steps_again(workspace):
    emit = (
        "from scalai_nb.core import events\nfrom scalai_nb.core.delta_log import newest, store\nfrom"
        " scalai_nb.core.settings import Settings\nplace = store(None, 'tables', 'flights')\n"
    )
    write(
        workspace / "make.ipynb",
        "n = 1",
        emit
        + "import pyarrow as pa\nfrom deltalake import write_deltalake\nwrite_deltalake(place, pa.table(dict(n=[n])),"
        " mode='overwrite')\nevents.emit('output', table='flights', version=newest('flights'))\nopen('made',"
        " 'a').write('x')",
    )
    write(
        workspace / "use.ipynb",
        "n = 1",
        emit + "events.emit('input', table='flights', version=newest('flights'))\nopen('used', 'a').write('x')",
    )
    work = flow(
        workspace,
        "tables",
        step("make", "make.ipynb"),
        step("use", "use.ipynb", '["make"]'),
        head='warm = ["deltalake", "pyarrow"]\n',
    )
    def states(): return [(s.state, s.reason.split(":")[0].split(" since ")[0]) for s in work.run().steps]
    done = lambda: (len((workspace/"made").read_text()), len((workspace/"used").read_text()))
    assert [s for s, _ in states()] == ["succeeded", "succeeded"] and [s for s, _ in states()] == [
        "skipped",
        "skipped",
    ]
    import pyarrow as pa
    from deltalake import write_deltalake
    place = workspace/".scalai"/"tables"/"flights"
    write_deltalake(place, pa.table(dict(n=[9])), mode="append")  # somebody else's rows
    assert [s.action for s in plan(work).steps] == ["run", "perhaps"]
    assert states() == [("succeeded", "table flights has a new version"), ("succeeded", "what it builds on changed")]
    assert done() == (2, 2) and [s for s, _ in states()] == ["skipped", "skipped"]
    shutil.rmtree(place)
    assert states() == [
        ("succeeded", "table flights, which it wrote, is gone"),
        ("succeeded", "table flights was made anew"),
    ] and done() == (3, 3)
    assert [s for s, _ in states()] == ["skipped", "skipped"]


def test_a_plan_writes_nothing_and_only_takes_the_rest_from_before(workspace):
    write(workspace/"first.ipynb", "n = 2", RESULT + "result(n=n)")
    write(workspace/"second.ipynb", "n = 0", RESULT + "result(double=2*n)")
    (workspace / "two.toml").write_text(
        '[parameters]\nn = 2\n'
        + step("first", "first.ipynb", parameters='{ n = "${n}" }')
        + step("second", "second.ipynb", '["first"]', parameters='{ n = "${first.n}" }')
    )
    fresh = scalai("run", "two.toml", "--dry-run", "--json", cwd=workspace)
    assert (fresh.code, [(s["name"], s["action"]) for s in fresh.doc["plan"]]) == (
        0,
        [("first", "run"), ("second", "run")],
    ) and not (workspace / ".scalai").exists()
    none = scalai("run", "two.toml", "--only", "second", cwd=workspace)
    assert none.code == 2 and none.lines == [
        "scalai: Step 'second' needs 'first', which has not ended well in any of the last 0 runs of two.",
        "Run it first: scalai run two.toml --only first",
    ]
    work = Workflow.load(workspace/"two.toml")
    assert work.run(dict(n=3)).results == dict(n=3, double=6)
    write(workspace/"second.ipynb", "n = 0", RESULT + "result(double=20*n)")
    before = {f: f.read_bytes() for f in (workspace/".scalai"/"runs").rglob("*") if f.is_file()}
    told = scalai("run", "two.toml", "-p", "n=3", "--dry-run", cwd=workspace)
    assert (
        told.code == 0
        and told.out.splitlines()[0] == "two: 1 to run, 0 may run, 1 skipped"
        and "its code changed since" in told.out.splitlines()[2]
    )
    assert (
        before == {f: f.read_bytes() for f in (workspace / ".scalai" / "runs").rglob("*") if f.is_file()}
        and len(Record(Settings.load()).runs(nested=True)) == 3
    )
    only = work.run(only="second")
    assert (only.parameters, only.results, [s.state for s in only.steps]) == (
        dict(n=3),
        dict(n=3, double=60),
        ["skipped", "succeeded"],
    )


def test_a_result_of_a_wrong_type_is_known_from_the_last_run(workspace):
    write(workspace/"first.ipynb", "n = 2", RESULT + "x = [n]\nresult(n=x)")
    write(workspace/"second.ipynb", "n = 0", RESULT + "result(double=2*n)")
    flow(workspace, "one", step("first", "first.ipynb")).run()
    work = flow(
        workspace,
        "two",
        step("first", "first.ipynb"),
        step("second", "second.ipynb", '["first"]', parameters='{ n = "${first.n}" }'),
    )
    with pytest.raises(BadRequest, match="must be int, and .{first.n} is a list"): work.run()
    wide = flow(
        workspace,
        "wide",
        step("second", "second.ipynb", parameters='{ n = "${n}" }'),
        head='[parameters]\nn = "many"\n',
    )
    with pytest.raises(BadRequest, match="must be int, not 'many'"): wide.run()
    assert len(Record(Settings.load()).runs()) == 1


@pytest.fixture
def cluster(workspace):
    "A scheduler and two workers, each a process of its own, without nannies."
    dask, processes = [sys.executable, "-m", "dask"], []
    env = os.environ | dict(
        PYTHONPATH=os.environ.get("PYTHONPATH", ""), DASK_DISTRIBUTED__COMM__TIMEOUTS__CONNECT="30s"
    )
    def start(*args):
        processes.append(
            p := subprocess.Popen(
                [*dask, *args],
                cwd=workspace,
                env=env,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        )
        return p
    file = workspace/"scheduler.json"
    start("scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard", "--scheduler-file", str(file))
    until = time.monotonic() + 60
    while not file.exists() and time.monotonic() < until: time.sleep(.1)
    time.sleep(.2)
    address = json.loads(file.read_text())["address"]
    workers = [
        start(
            "worker",
            address,
            "--no-nanny",
            "--nthreads",
            "1",
            "--no-dashboard",
            "--local-directory",
            str(workspace / f"w{n}"),
            "--name",
            f"w{n}",
        )
        for n in range(2)
    ]
    (workspace/"settings.ini").write_text(f"[cluster]\nkind = address\naddress = {address}\n")
    yield workers
    for p in processes:
        p.kill()
        p.wait()


@pytest.mark.slow
def test_steps_on_the_workers_of_a_cluster_and_one_that_dies(workspace, cluster):
    write(
        workspace / "meet.ipynb",
        "me = ''\nother = ''",
        MEET + "\nprint('met', other)",
        RESULT + "import os\nresult(me=me, parents=[os.getppid()])",
    )
    two = [
        step(me, "meet.ipynb", parameters=f'{{ me = "{me}", other = "{other}" }}', on='"dask"')
        for me, other in ("ab", "ba")
    ]
    job = flow(workspace, "meet", *two, head="").run(jobs=1)
    assert (job.state, [s.results["me"] for s in job.steps]) == ("succeeded", ["a", "b"]), job.error
    assert "met b" in list(Record(Settings.load()).output(job.steps[0].id)) and Path(job.steps[0].output).exists()
    with pytest.raises(BadRequest, match="needs 2 cpus, and the largest worker has 1"):
        flow(workspace, "wide", step("a", "meet.ipynb", on='"dask"', resources="{ cpus = 2 }")).run()

    write(
        workspace / "die.ipynb",
        "n = 0",
        "import os, signal, time, psutil\nif not os.path.exists('shot'):\n    open('shot', 'w').close()\n    worker ="
        " next(p for p in psutil.Process().parents() if 'worker' in p.cmdline())\n   "
        " worker.send_signal(signal.SIGKILL)\n    time.sleep(60)",
        RESULT + "result(done=True)",
    )
    job = flow(workspace, "die", step("die", "die.ipynb", on='"dask"', retries=1), head="").run()
    assert (job.state, job.results) == ("succeeded", dict(done=True)), job.error
    tries = [r for r in Record(Settings.load()).runs(name="die", nested=True) if r.kind == "notebook"][::-1]
    assert [r.state for r in tries] == ["lost", "succeeded"] and "vanished" in tries[0].error["message"]

    write(
        workspace / "long.ipynb",
        "n = 0",
        "import time\nopen('long', 'w').close()\nfor i in range(600): time.sleep(.1)",
    )
    flow(workspace, "long", step("long", "long.ipynb", on='"dask"'), head="")
    process = started("run", "long.toml", "--json", cwd=workspace)
    until = time.monotonic() + 60
    while not (workspace/"long").exists() and time.monotonic() < until: time.sleep(.05)
    process.send_signal(signal.SIGINT)
    doc = json.loads(process.communicate(timeout=60)[0])
    assert (process.returncode, [s["state"] for s in doc["steps"]]) == (130, ["cancelled"])
    assert not [p for p in workspace.glob("scalai-*")]
