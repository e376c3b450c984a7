"""Notebooks that do what they should not: print without end, let processes go, hear no signal, close what they print
on. The run says the truth, and the machine is as it was."""

import json
import os
import subprocess
import threading
import time
from pathlib import Path

import psutil
import pytest
from conftest import SCALAI, nobody_left
from test_jobs import started, until_cell, write

from scalai_nb.core.settings import Settings
from scalai_nb.jobs.engine import run
from scalai_nb.jobs.parameters import load_notebook
from scalai_nb.jobs.record import Record

MB = 2**20


def watched(*args, cwd) -> tuple[dict, float]:  # what it said, and its own memory at its peak in MB
    "Run the command; its kernel's memory does not count."
    process = subprocess.Popen(
        [str(SCALAI), *args, "--json"], cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    own, peak = psutil.Process(process.pid), [0]

    def look():
        while process.poll() is None:
            try: peak[0] = max(peak[0], own.memory_info().rss)
            except psutil.NoSuchProcess: return
            time.sleep(.02)
    watcher = threading.Thread(target=look)
    watcher.start()
    out, _ = process.communicate(timeout=500)
    watcher.join()
    return json.loads(out), peak[0]/MB


def outputs(job, cell: int) -> list[dict]:
    "Of a cell, with their texts joined."
    found = load_notebook(job["output"] if isinstance(job, dict) else job.output)["cells"][cell]["outputs"]
    for o in found:
        if "text" in o: o["text"] = "".join(o["text"])
        for mime, data in o.get("data", {}).items():
            if isinstance(data, list): o["data"][mime] = "".join(data)
    return found


def test_text_over_the_limit_is_beside_the_notebook(workspace, monkeypatch):
    monkeypatch.setenv("SCALAI_JOBS__OUTPUT_LIMIT", "5000")
    path = write(
        workspace / "in.ipynb",
        "n = 900",
        "import sys\nfor i in range(n):\n    print(f'line {i:04d}')\n    if i == 100: print('a warning',"
        " file=sys.stderr)\n    if i % 50 == 0: sys.stdout.flush()",
        "print('small')",
    )
    (workspace/"elsewhere").mkdir()
    job = run(path, output=workspace/"elsewhere"/"out.ipynb")
    whole = "".join(f"line {i:04d}\n" for i in range(900))
    shown = next(o for o in outputs(job, 1) if o["output_type"] == "display_data")
    said = "".join(o["text"] for o in outputs(job, 1) if o.get("name") == "stdout")
    file, = (Path(f) for f in shown["metadata"]["scalai"]["files"])
    assert (
        job.state == "succeeded" and file.read_text() == whole and whole.startswith(said) and 4000 < len(said) <= 5000
    )
    assert shown["data"]["text/plain"].startswith(f"{len(whole):,} bytes of stdout are in {file}") and shown["data"][
        "text/plain"
    ].endswith("line 0899\n")
    link = shown["data"]["text/html"].split('href="')[1].split('"')[0]
    assert (workspace/"elsewhere"/link).resolve() == file.resolve()
    assert any(o.get("name") == "stderr" and o["text"] == "a warning\n" for o in outputs(job, 1)) and [
        o["text"] for o in outputs(job, 2)
    ] == ["small\n"]
    # what is in the file is not in the log again
    assert (Record(Settings.load()).folder(job.id)/"log.jsonl").stat().st_size < 20_000


def test_letters_arrive_whole_from_programs_too(workspace):
    path = write(
        workspace / "in.ipynb",
        "n = 30_000",
        "import subprocess, sys\nsubprocess.run([sys.executable, '-c', f\"print('é€😀'*{n})\"],"
        " env={'PYTHONIOENCODING': 'utf-8'})\nimport time; time.sleep(1); sys.stdout.flush()",
        "print('ü'*n, end='')",
    )
    job = run(path)
    assert (outputs(job, 1)[0]["text"], outputs(job, 2)[0]["text"]) == ("é€😀"*30_000 + "\n", "ü"*30_000)


def test_a_million_small_prints_are_one_output(workspace):
    path = write(workspace/"in.ipynb", "n = 2_000", "for i in range(n): print(i, end=' ', flush=True)")
    job = run(path)
    assert [o["text"] for o in outputs(job, 1)] == ["".join(f"{i} " for i in range(2_000))]


def test_an_error_of_many_megabytes_is_told_in_short(workspace, monkeypatch):
    monkeypatch.setenv("SCALAI_JOBS__OUTPUT_LIMIT", "50000")
    job = run(write(workspace/"in.ipynb", "n = 1", "raise ValueError('x'*5_000_000)"))
    assert (job.state, job.error["kind"], len(job.error["message"])) == ("failed", "ValueError", 10_001)
    error, = outputs(job, 1)
    assert (
        Path(job.output).stat().st_size < 60_000
        and Path(error["traceback"][-1].split(" is in ")[1]).stat().st_size > 5_000_000
    )


def test_what_looks_like_ours_and_is_not_does_no_harm(workspace):
    "Outputs with our own MIME types and metadata, wrongly filled."
    path = write(workspace/"in.ipynb", "n = 1", """from IPython.display import publish_display_data as show
show({'application/vnd.scalai.result+json': 5, 'text/plain': 'a'}, {'scalai': {'files': [3]}})
show({'application/scrapbook.scrap.json+json': {'name': 'auc', 'data': .7, 'encoder': 'json', 'version': 1}})
show({'application/scrapbook.scrap.text+json': {'name': 'note', 'data': 'late', 'encoder': 'text', 'version': 1}})
show({'application/scrapbook.scrap.json+json': 'nothing'})""")
    job = run(path, output=workspace/"out.ipynb")
    assert (job.state, job.results) == ("succeeded", dict(auc=.7, note="late"))


def test_display_updates_and_widgets_are_kept_also_when_it_fails(workspace):
    path = write(
        workspace / "in.ipynb",
        "n = 1",
        "from IPython.display import display\nimport ipywidgets as w\nshown = display('first',"
        " display_id=True)\nshown.update('second')\nw.IntSlider(7)",
        "1/0",
    )
    job = run(path)
    data = [o.get("data", {}) for o in outputs(job, 1)]
    assert job.state == "failed" and data[0]["text/plain"] == "'second'"
    state = load_notebook(job.output)["metadata"]["widgets"]["application/vnd.jupyter.widget-state+json"]["state"]
    assert state[data[1]["application/vnd.jupyter.widget-view+json"]["model_id"]]["state"]["value"] == 7


ESCAPED = """import os, subprocess, sys, time
for kind in range(n):
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            if kind % 2: os.execvp('sleep', ['sleep', '300'])
            time.sleep(300)
        os._exit(0)
subprocess.Popen(['sleep', '301'], start_new_session=True)
"""


@pytest.mark.parametrize("end, state", [("", "succeeded"), ("os.kill(os.getpid(), 9)", "kernel_died")])
@pytest.mark.parametrize("warm", [0, 1])
def test_forked_children_are_reaped(workspace, end, state, warm, kept):
    """Also those that are nobody's children any more, in sessions of their own, and also when the kernel was killed at
    once."""
    (workspace/"settings.ini").write_text(f"[jobs]\nwarm = {warm}\n")
    job = run(write(workspace/"in.ipynb", "n = 4", ESCAPED + end))
    assert job.state == state
    nobody_left(workspace) if not warm else none_sleep(workspace)


def none_sleep(folder: Path, within: float = 30):
    "As `nobody_left`, beside the process that is kept."
    until = time.monotonic() + within
    def left(): return [p for p in psutil.process_iter() if _works_in(p, folder)]
    while left() and time.monotonic() < until: time.sleep(.1)
    assert not left()


def _works_in(p: psutil.Process, folder: Path) -> bool:
    try: return p.pid != os.getpid() and p.cwd().startswith(str(folder))
    except psutil.Error: return False


@pytest.fixture
def kept(workspace):
    "Ends what is kept beside the workspace."
    yield
    from scalai_nb.jobs.kernel_pool import release
    release(workspace/".scalai")
    nobody_left(workspace)


def test_a_kernel_that_hears_no_signal_is_ended(workspace):
    write(
        workspace / "deaf.ipynb",
        "n = 1",
        "import signal, time\nfor s in (signal.SIGINT, signal.SIGTERM): signal.signal(s,"
        " signal.SIG_IGN)\nprint('deaf', flush=True)",
        "while True: time.sleep(60)",
    )
    process, record = started("run", "deaf.ipynb", "--json", cwd=workspace), Record(Settings.load())
    until_cell(record, 2)
    process.terminate()
    job = json.loads(process.communicate(timeout=120)[0])
    assert (process.returncode, job["state"], job["error"]["cell"]) == (130, "cancelled", 2) and outputs(job, 1)[0][
        "text"
    ] == "deaf\n"
    nobody_left(workspace)


def test_closed_streams_hang_nothing(workspace):
    job = run(
        write(workspace / "a.ipynb", "n = 1", "import os\nfor fd in (0, 1, 2): os.close(fd)", "print('still here')")
    )
    assert (job.state, [o["text"] for o in outputs(job, 2)]) == ("succeeded", ["still here\n"])
    job = run(
        write(
            workspace / "b.ipynb",
            "n = 1",
            "import sys\nprint('last words')\nsys.stdout.close()",
            "x = 2",
            "print('more')",
        ),
        timeout=60,
    )
    assert (job.state, job.error["cell"], job.error["kind"]) == ("failed", 3, "ValueError") and outputs(job, 1)[0][
        "text"
    ] == "last words\n"
    nobody_left(workspace)


def test_a_notebook_may_have_an_exit_of_its_own(workspace):
    job = run(
        write(
            workspace / "a.ipynb",
            "n = 1",
            "def exit(x=0): return x + 1\nquit = get_ipython = None",
            "from scalai_nb.jobs.result import result\nresult(n=exit(41))",
        )
    )
    assert job.state == "succeeded" and job.error is None
    job = run(
        write(
            workspace / "b.ipynb",
            "n = 1",
            "import sys, os\nsys.exit = os._exit = exit = lambda *a: None\nexit(3)",
            "raise KeyboardInterrupt",
        )
    )
    assert (job.state, job.error["cell"], job.error["kind"]) == ("failed", 2, "KeyboardInterrupt")


def test_two_runs_to_one_place_leave_one_whole_notebook(workspace):
    "The last to end is there, and a reader never meets a mixture or half of one."
    write(
        workspace / "in.ipynb",
        "who = 'a'",
        "import time\nfor i in range(20):\n    print(who*20_000, flush=True)\n    time.sleep(.02)",
    )
    (workspace/"out.ipynb").write_text(json.dumps(dict(cells=[])))
    both = [started("run", "in.ipynb", "-p", f"who={who}", "-o", "out.ipynb", "--json", cwd=workspace) for who in "ab"]
    while any(p.poll() is None for p in both):
        load_notebook(workspace/"out.ipynb")
        time.sleep(.01)
    docs = [json.loads(p.communicate()[0]) for p in both]
    assert [d["state"] for d in docs] == ["succeeded"]*2 and len({d["id"] for d in docs}) == 2
    found = outputs(dict(output=workspace/"out.ipynb"), 2)
    assert (
        len(found) == 1
        and set(found[0]["text"]) in ({"a", "\n"}, {"b", "\n"})
        and len(found[0]["text"]) == 20 * 20_001
    )


@pytest.mark.slow
def test_a_gigabyte_of_text_fills_a_file_and_no_memory(workspace):
    write(
        workspace / "in.ipynb",
        "n = 10**6",
        "line = 'x'*999\nfor i in range(n): print(line)",
        "print('y'*10**8)",
        "print('the end')",
    )
    job, peak = watched("run", "in.ipynb", cwd=workspace)
    assert job["state"] == "succeeded", job["error"]
    file = Path(outputs(job, 1)[-1]["metadata"]["scalai"]["files"][0])
    assert (
        file.stat().st_size == 10**9
        and Path(outputs(job, 2)[-1]["metadata"]["scalai"]["files"][0]).stat().st_size == 10**8 + 1
    )
    assert outputs(job, 3)[0]["text"] == "the end\n" and Path(job["output"]).stat().st_size < 20*MB
    assert peak < 500, f"{peak:.0f} MB"
    for f in file.parent.glob("*"): f.unlink()


@pytest.mark.slow
def test_a_figure_of_200_megabytes_is_a_file(workspace):
    write(
        workspace / "in.ipynb",
        "n = 200_000_000",
        "import os\nfrom IPython.display import Image, display\ndisplay(Image(data=b'\\x89PNG\\r\\n\\x1a\\n' +"
        " os.urandom(n), format='png'))",
        "print('the end')",
    )
    job, peak = watched("run", "in.ipynb", "-o", "out.ipynb", cwd=workspace)
    assert job["state"] == "succeeded", job["error"]
    shown, = outputs(job, 1)
    file = Path(shown["metadata"]["scalai"]["files"][0])
    with open(file, "rb") as f:
        assert f.read(8) == b"\x89PNG\r\n\x1a\n" and file.suffix == ".png" and file.stat().st_size == 200_000_008
    assert (
        "image/png" not in shown["data"]
        and Path(job["output"]).stat().st_size < 100_000
        and outputs(job, 2)[0]["text"] == "the end\n"
    )
    assert peak < 2_000, f"{peak:.0f} MB"
    file.unlink()
