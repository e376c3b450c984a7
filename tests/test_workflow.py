"Workflows that are stopped and killed, and kernels that are forked."
import json
import os
import signal
import time
from pathlib import Path

import pytest
from conftest import nobody_left, scalai
from test_jobs import started, write

from scalai_nb.core.settings import Settings
from scalai_nb.jobs.log import read_log
from scalai_nb.jobs.record import Record
from scalai_nb.jobs.workflow import Workflow

RESULT = "from scalai_nb.jobs.result import result\n"


@pytest.fixture
def chain(workspace) -> Path:
    "Three steps: the second takes a while, the third uses both."
    write(workspace/"first.ipynb", "n = 2", RESULT + "result(n=n, parts=list(range(n)))")
    write(
        workspace / "second.ipynb",
        "n = 0\nwait = 0.0",
        "import time\nfor i in range(int(10*wait)): time.sleep(.1)",
        RESULT + "open('effect', 'a').write('x')\nresult(double=2*n)",
    )
    write(workspace/"third.ipynb", "n = 0\ndouble = 0", RESULT + "result(sum=n + double)")
    (workspace/"chain.toml").write_text("""
warm = ["json"]
[parameters]
n = 2
wait = 0.0
[[step]]
name = "first"
notebook = "first.ipynb"
parameters = { n = "${n}" }
[[step]]
name = "second"
notebook = "second.ipynb"
parameters = { n = "${first.n}", wait = "${wait}" }
[[step]]
name = "third"
notebook = "third.ipynb"
parameters = { n = "${first.n}", double = "${second.double}" }
""")
    return workspace


def until_runs(record: Record, name: str, within: float = 60):
    "Wait until the step's second cell runs, the one that takes its time."
    end = time.monotonic() + within
    while time.monotonic() < end:
        for r in record.runs(name=name, state="running", nested=True):
            if any(e.get("type") == "cell" and e["cell"] == 1 for e in read_log(record.folder(r.id)/"log.jsonl")):
                return
        time.sleep(.05)
    pytest.fail(f"{name} never ran")


def test_json_is_alone_on_stdout_and_progress_on_stderr(chain):
    done = scalai("run", "chain.toml", "--json", cwd=chain)
    assert done.code == 0, done.err
    assert [(s["name"], s["state"]) for s in done.doc["steps"]] == [
        ("first", "succeeded"),
        ("second", "succeeded"),
        ("third", "succeeded"),
    ]
    assert done.doc["results"] == dict(n=2, parts=[0, 1], double=4, sum=6)
    assert sum(line.startswith("✓") for line in done.lines) == 4  # three steps and the whole
    again = scalai("run", "chain.toml", "--json", cwd=chain)
    assert [s["state"] for s in again.doc["steps"]] == ["skipped"]*3 and again.doc["results"] == done.doc["results"]
    assert (chain/"effect").read_text() == "x"
    nobody_left(chain)


def test_changed_code_runs_again_a_touched_file_and_an_equal_result_do_not(chain):
    flow = Workflow.load(chain/"chain.toml")
    flow.run(warm=False)
    os.utime(chain/"first.ipynb")
    write(chain/"second.ipynb", "n = 0\nwait = 0.0", RESULT + "result(double=2*n)")  # the same result by other code
    states = [s.state for s in flow.run(warm=False).steps]
    assert states == ["skipped", "succeeded", "skipped"]


def test_an_interrupt_cancels_the_workflow_and_its_forked_kernel(chain):
    process, record = started("run", "chain.toml", "--json", "-p", "wait=60", cwd=chain), Record(Settings.load())
    until_runs(record, "second")
    process.send_signal(signal.SIGINT)
    doc = json.loads(process.communicate(timeout=60)[0])
    assert (process.returncode, doc["state"], [s["state"] for s in doc["steps"]]) == (
        130,
        "cancelled",
        ["succeeded", "cancelled", "skipped"],
    )
    nobody_left(chain)


def test_a_killed_workflow_is_lost_leaves_nobody_and_goes_on(chain):
    process, record = started("run", "chain.toml", "-p", "wait=60", cwd=chain), Record(Settings.load())
    until_runs(record, "second")
    process.kill()
    process.wait()
    nobody_left(chain)
    lost = record.get("last")
    assert (lost.state, [s.state for s in lost.steps]) == ("lost", ["succeeded", "lost"])
    done = scalai("run", "chain.toml", "--json", "--from-failed", cwd=chain, SCALAI_JOBS__TIMEOUT="3")
    assert (done.code, done.doc["state"], [s["state"] for s in done.doc["steps"]]) == (
        124,
        "timed_out",
        ["skipped", "timed_out", "skipped"],
    )
    good = scalai("run", "chain.toml", "--json", cwd=chain)
    assert good.doc["state"] == "succeeded" and (chain/"effect").read_text() == "x"


def test_forked_kernels_compute_like_cold_ones(workspace):
    """torch with autograd, Arrow, BLAS, parallel Numba, a Dask cluster of processes, Delta:

    each in a fork of a process that only imported them."""
    write(
        workspace / "all.ipynb",
        "n = 1",
        "import torch\nx = torch.ones(300, 300, requires_grad=True)\n(x @ x).sum().backward()\ngrad ="
        " float(x.grad[0, 0])",
        "import numpy as np, numba\n@numba.njit(parallel=True)\ndef total(a):\n    s = 0.\n    for i in"
        " numba.prange(len(a)): s += a[i]\n    return s\nparallel = total(np.ones(100_000))",
        "import pyarrow as pa, pyarrow.compute as pc, pandas as pd, tempfile, deltalake\nt = pa.table({'a':"
        " list(range(1000))})\narrow = pc.sum(t['a']).as_py()\nd = tempfile.mkdtemp()\ndeltalake.write_deltalake(d +"
        " '/t', t)\ndelta = deltalake.DeltaTable(d + '/t').to_pyarrow_table().num_rows",
        "from distributed import Client, LocalCluster\nwith LocalCluster(n_workers=1, threads_per_worker=1,"
        " dashboard_address=None) as c, Client(c) as client: dask = client.submit(sum, [1, 2, 3]).result()",
        RESULT
        + "import sys\nresult(grad=grad, parallel=parallel, arrow=arrow, delta=delta, dask=dask, forked=sys.argv[0] =="
        " 'kernel')",
    )
    (workspace / "all.toml").write_text(
        'warm = ["torch", "numba", "pyarrow", "pandas", "deltalake", "distributed"]\n[[step]]\nname = "all"\nnotebook'
        ' = "all.ipynb"\n'
    )
    job = Workflow.load(workspace/"all.toml").run()
    assert job.state == "succeeded", job.error
    assert job.results == dict(grad=600., parallel=1e5, arrow=499_500, delta=1000, dask=6, forked=True)
    nobody_left(workspace)


def test_a_workflow_inside_a_job_shares_the_warm_process(chain):
    write(
        chain / "outer.ipynb",
        "n = 3",
        RESULT
        + "import os\nfrom scalai_nb.jobs.workflow import Workflow\njob ="
        " Workflow.load('parents.toml').run(dict(n=n))\nresult(state=job.state, inner=job.results['parent'],"
        " outer=os.getppid())",
    )
    write(chain/"parent.ipynb", "n = 0", RESULT + "import os\nresult(parent=os.getppid())")
    (chain / "parents.toml").write_text(
        '[parameters]\nn = 0\n[[step]]\nname = "who"\nnotebook = "parent.ipynb"\nparameters = { n = "${n}" }\n'
    )
    (chain/"outer.toml").write_text('warm = ["json"]\n[[step]]\nname = "outer"\nnotebook = "outer.ipynb"\n')
    job = Workflow.load(chain/"outer.toml").run()
    assert job.ok, job.error
    assert job.results["state"] == "succeeded" and job.results["inner"] == job.results["outer"] != os.getpid()
    nobody_left(chain)


def test_two_hundred_unchanged_steps_take_seconds(workspace):
    write(workspace/"step.ipynb", "n = 0", RESULT + "result(n=n)")
    Record(Settings.load())
    (workspace / "many.toml").write_text(
        "".join(
            f'[[step]]\nname = "s{i}"\nnotebook = "step.ipynb"\nneeds = []\nparameters = {{ n = {i % 2} }}\n'
            for i in range(200)
        )
    )
    flow = Workflow.load(workspace/"many.toml")
    (workspace / "two.toml").write_text(
        "".join(
            f'[[step]]\nname = "s{i}"\nnotebook = "step.ipynb"\nneeds = []\nparameters = {{ n = {i} }}\n'
            for i in range(2)
        )
    )
    assert Workflow.load(workspace/"two.toml").run().ok
    began = time.process_time()
    job = flow.run()
    # of a processor, half of it where that is quick and idle
    assert job.ok and all(s.state == "skipped" for s in job.steps) and time.process_time() - began < 4


def test_a_killed_fork_server_costs_one_kernel_not_the_workflow(chain):
    write(
        chain / "shoot.ipynb",
        "n = 0",
        "import os, signal, time\nif not os.path.exists('shot'):\n    open('shot', 'w').close()\n   "
        " os.kill(os.getppid(), signal.SIGKILL)\n    time.sleep(30)",
        RESULT + "import sys\nresult(forked=sys.argv[0] == 'kernel')",
    )
    (chain / "shoot.toml").write_text(
        'warm = ["json"]\n[[step]]\nname = "shoot"\nnotebook = "shoot.ipynb"\nretries = 1\n'
    )
    job = Workflow.load(chain/"shoot.toml").run()
    assert (job.state, job.results) == ("succeeded", dict(forked=True)), job.error
    assert sorted(
        r.state for r in Record(Settings.load()).runs(name="shoot", nested=True) if r.kind == "notebook"
    ) == ["kernel_died", "succeeded"]
    nobody_left(chain)
