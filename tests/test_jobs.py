"Jobs that are stopped, killed and left alone: what only whole processes can show."
import json
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from conftest import SCALAI, here, nobody_left, scalai

from scalai_nb.core.errors import BadRequest
from scalai_nb.core.settings import Settings
from scalai_nb.jobs.engine import run
from scalai_nb.jobs.log import read_log
from scalai_nb.jobs.parameters import load_notebook
from scalai_nb.jobs.record import Record
from scalai_nb.jobs.workflow import Workflow


def write(path: Path, *cells: str) -> Path:
    "A notebook from texts; the first is its parameters cell."
    cells = [dict(cell_type="code", id=f"c{i}", metadata=dict(tags=["parameters"] if i == 0 else []), source=text,
                  outputs=[], execution_count=None)
             for i, text in enumerate(cells)]
    meta = dict(kernelspec=dict(name="python3", display_name="Python 3", language="python"))
    path.write_text(json.dumps(dict(nbformat=4, nbformat_minor=5, metadata=meta, cells=cells)))
    return path


def started(*args, cwd) -> subprocess.Popen:
    "The command, in a session of its own, not waited for."
    return subprocess.Popen([str(Path(sys.executable).with_name("scalai")), *args], cwd=cwd, stdout=subprocess.PIPE,
                            stderr=subprocess.DEVNULL, text=True, start_new_session=True)


def until_cell(record: Record, cell: int, within: float = 60):
    "Wait until the newest run's log says that a cell runs."
    end = time.monotonic() + within
    while time.monotonic() < end:
        for folder in sorted(record.settings.path("runs").glob("*")):
            if any(e.get("type") == "cell" and e["cell"] == cell and e["state"] == "running"
                   for e in read_log(folder/"log.jsonl")):
                return folder.name
        time.sleep(.05)
    pytest.fail(f"cell {cell} never started")


SLOW = ("seconds = 60", "print('about to sleep', flush=True)",
        "import time\nfor i in range(10*seconds): time.sleep(.1)", "print('never')")


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_cancels_and_leaves_nobody(workspace, signum):
    write(workspace/"slow.ipynb", *SLOW)
    process, record = started("run", "slow.ipynb", "--json", cwd=workspace), Record(Settings.load())
    id = until_cell(record, 2)
    process.send_signal(signum)
    out, _ = process.communicate(timeout=60)
    doc = json.loads(out)
    assert (process.returncode, doc["state"], doc["error"]["cell"]) == (130, "cancelled", 2)
    assert record.get(id).state == "cancelled"
    assert load_notebook(doc["output"])["cells"][1]["outputs"][0]["text"] == ["about to sleep\n"]
    nobody_left(workspace)


def test_a_killed_runner_leaves_no_kernel_and_is_lost(workspace):
    # never lets another Python thread look
    write(workspace/"busy.ipynb", "seconds = 60", "print('here', flush=True)", "sum(range(10**11))")
    process, record = started("run", "busy.ipynb", cwd=workspace), Record(Settings.load())
    id = until_cell(record, 2)
    process.kill()
    process.wait()
    nobody_left(workspace)
    gone = record.get(id)
    assert (gone.state, gone.error["cell"], gone.error["kind"]) == ("lost", 2, "Lost")
    assert any(e.get("text") == "here\n" for e in read_log(record.folder(id)/"log.jsonl"))
    load_notebook(record.folder(id)/"notebook.ipynb")  # whole
    assert scalai("runs", "--json", cwd=workspace).doc["runs"][0]["state"] == "lost"


def test_many_begin_the_record_at_once(tmp_path):
    "Jobs that start together in a new workspace find one record, whoever of them made it."
    from concurrent.futures import ThreadPoolExecutor

    import sqlalchemy as sa

    from scalai_nb.jobs.database import connect
    with ThreadPoolExecutor(8) as pool:
        for n in range(3):
            for engine in pool.map(lambda _: connect.__wrapped__(f"sqlite:///{tmp_path}/{n}.db"), range(8)):
                assert {"runs", "timings"} <= set(sa.inspect(engine).get_table_names())
                engine.dispose()


def test_a_request_in_the_record_cancels(workspace):
    write(workspace/"slow.ipynb", *SLOW)
    process, record = started("run", "slow.ipynb", "--json", cwd=workspace), Record(Settings.load())
    record.cancel(until_cell(record, 2))
    assert json.loads(process.communicate(timeout=60)[0])["state"] == "cancelled"


def test_a_stubborn_kernel_is_killed_when_time_is_over(workspace):
    path = write(workspace/"stubborn.ipynb", "x = 1",
                 "import time\nwhile True:\n    try: time.sleep(60)\n    except KeyboardInterrupt: pass")
    for limit in (4, 16, 64):  # the first one in which its kernel has begun
        if (job := run(path, timeout=limit)).error["cell"] is not None: break
    assert (job.state, job.error["cell"], job.exit_code) == ("timed_out", 1, 124) and job.seconds < limit + 30
    nobody_left(workspace)


def test_readers_never_meet_half_a_notebook(workspace):
    import threading
    path = write(workspace/"loud.ipynb", "n = 40",
                 "import time\nfor i in range(n):\n    print('x'*100_000)\n    time.sleep(.05)")
    seen, over, out = [], threading.Event(), workspace/"out.ipynb"

    def look():
        while not over.is_set():
            for file in [*workspace.glob(".scalai/runs/*/notebook.ipynb"), *workspace.glob("out.ipynb")]:
                json.loads(file.read_text())
                seen.append(file)
            time.sleep(.005)
    reader = threading.Thread(target=look)
    reader.start()
    try: job = run(path, output=out)
    finally:
        over.set()
        reader.join()
    assert job.state == "succeeded" and len(seen) > 20
    assert sum(len("".join(o["text"])) for o in load_notebook(out)["cells"][1]["outputs"]) == 40*100_001


def mill(*args):
    "Papermill's command with this engine, in this process."
    from click.testing import CliRunner
    from papermill.cli import papermill
    return CliRunner().invoke(papermill, ["--engine", "scalai", "--no-progress-bar", *map(str, args)])


def test_papermill_s_own_command(workspace):
    write(workspace/"in.ipynb", "months = 12", "print(months)",
          "from scalai_nb.jobs.result import result\nresult(rows=months*10)",
          "if months > 12: raise ValueError('no such month')")
    papermill = Path(sys.executable).with_name("papermill")
    done = subprocess.run([papermill, "--engine", "scalai", "in.ipynb", "out.ipynb", "-p", "months", "3",
                           "--no-progress-bar"],
                          cwd=workspace, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert load_notebook(workspace/"out.ipynb")["cells"][1]["metadata"]["tags"] == ["injected-parameters"]
    assert Record(Settings.load()).get("last").results == dict(rows=30)
    bad = mill("in.ipynb", "bad.ipynb", "-p", "months", "13")
    assert bad.exit_code == 1 and "no such month" in str(bad.exception)
    assert Record(Settings.load()).get("last").error == dict(cell=3, kind="ValueError", message="no such month")


def test_a_notebook_of_another_machine(workspace):
    "By its URL, as papermill takes it."
    write(workspace/"in.ipynb", "code = 'x'", "from scalai_nb.jobs.result import result\nresult(code=code)")
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=workspace)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/in.ipynb"
        done = subprocess.run([SCALAI, "run", url, "-p", "code=00123", "--json"], cwd=workspace, capture_output=True,
                              text=True)
        server.shutdown()
    doc = json.loads(done.stdout)
    assert (doc["state"], doc["name"], doc["notebook"],
            doc["results"]) == ("succeeded", "in", url, dict(code="00123")), done.stderr


def test_secrets_are_written_nowhere(workspace, monkeypatch):
    monkeypatch.setenv("TOKEN", "hunter2-hunter2")
    path = write(workspace/"secret.ipynb", "from scalai_nb.jobs.parameters import Secret\ntoken: Secret",
                 "print('token', token)", "from scalai_nb.jobs.result import result\nresult(length=len(token))")
    job = run(path, dict(token="env:TOKEN"))
    assert (job.state, job.results) == ("succeeded", dict(length=15))
    assert not any(b"hunter2" in f.read_bytes() for f in (workspace/".scalai").rglob("*") if f.is_file())


def test_passwords_of_uris_are_written_nowhere(workspace):
    """A URI with its password reaches the kernel, by whichever way the job is started; records, logs, notebooks and
    listings do not hold it."""
    uri = "postgresql://ann:hunter2-hunter2@localhost:5432/db?sslpassword=hunter2too"
    hidden = "postgresql://ann:•••@localhost:5432/db?sslpassword=•••"
    path = write(workspace/"in.ipynb", "uri = 'flights.csv'", "print('from', uri, uri.split('@')[0])",
                 "from scalai_nb.jobs.result import result\nresult(length=len(uri), uri=uri)",
                 "if '@' in uri: raise ValueError(uri)")
    job = run(path, dict(uri=uri), output=workspace/"out.ipynb")
    assert (job.state, job.results, job.parameters) == ("failed", dict(length=len(uri), uri=hidden),
                                                        dict(uri=hidden)) and job.error["message"] == hidden
    (workspace/"flow.toml").write_text(
        '[parameters]\nuri = ""\n[[step]]\nname = "in"\nnotebook = "in.ipynb"\nparameters = { uri = "${uri}" }\n'
    )
    flow = Workflow.load(workspace/"flow.toml")
    done = flow.run(dict(uri=uri))
    assert (done.state, done.parameters, done.steps[0].parameters) == ("failed", dict(uri=hidden), dict(uri=hidden))
    assert done.steps[0].results["length"] == len(uri)
    with pytest.raises(BadRequest, match="had a password among its parameters"): flow.run(from_failed=True)
    assert flow.run(dict(uri=uri), from_failed=True).steps[0].results["length"] == len(uri)
    assert mill("in.ipynb", "also.ipynb", "-p", "uri", uri).exit_code == 1
    assert here("runs", "last", "--json").doc["parameters"] == dict(uri=hidden)
    assert {f.name for f in workspace.rglob("*") if f.is_file() and b"hunter2" in f.read_bytes()} == set()


def test_exit_ends_a_notebook_well_and_a_vanished_kernel_does_not(workspace):
    assert run(write(workspace/"a.ipynb", "x = 1", "import sys\nsys.exit(0)", "1/0")).state == "succeeded"
    assert run(write(workspace/"b.ipynb", "x = 1", "exit()", "1/0")).state == "succeeded"
    job = run(write(workspace/"c.ipynb", "x = 1", "import sys\nsys.exit(3)", "1/0"))
    assert (job.state, job.error) == ("failed", dict(cell=1, kind="SystemExit", message="3"))
    job = run(write(workspace/"d.ipynb", "x = 1", "import os\nos._exit(3)", "1/0"))
    assert (job.state, job.error["cell"]) == ("kernel_died", 1) and "ended with code 3" in job.error["message"]


def test_a_job_may_run_a_job(workspace):
    write(workspace/"inner.ipynb", "n = 1", "from scalai_nb.jobs.result import result\nresult(n=n + 1)")
    outer = write(workspace/"outer.ipynb", "n = 1", "from scalai_nb.jobs.engine import run\n"
                                                    "from scalai_nb.jobs.result import result\n"
                                                    "inner = run('inner.ipynb', dict(n=41))\n"
                                                    "result(n=inner.results['n'], parent=inner.parent)")
    job = run(outer)
    assert (job.state, job.results) == ("succeeded", dict(n=42, parent=job.id))
