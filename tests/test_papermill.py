"What papermill's users rely on, with this engine; and what a kernel showed, the same as under nbclient alone."
import base64
import http.server
import json
import re
import subprocess
import sys
import threading
import time
from pathlib import Path
from queue import Empty

import nbformat
import papermill
import pytest
from nbclient import NotebookClient
from nbconvert import HTMLExporter
from papermill.iorw import load_notebook_node
from servers import s3
from test_jobs import mill as invoke
from test_jobs import write

from scalai_nb.core.settings import Settings
from scalai_nb.jobs.engine import run
from scalai_nb.jobs.record import Record

SHOWN = "print({'months': months, 'code': code})"


def mill(*args, code: int = 0):
    "Papermill's command, and how it should end."
    done = invoke(*args)
    assert done.exit_code == code, (done.output, done.exception)
    return done


def book(path="out.ipynb") -> nbformat.NotebookNode: return nbformat.read(path, as_version=4)


def printed(nb) -> str: return "".join(o.get("text", "") for c in nb.cells for o in c.get("outputs", ()))


def tags(nb) -> list: return [tag for c in nb.cells for tag in c.metadata.get("tags", ())]


@pytest.fixture
def notebook(workspace) -> Path: return write(workspace/"in.ipynb", "months = 12\ncode = 'AA'", SHOWN)


GIVEN = [
    (("-p", "months", "3", "-r", "code", "007"), {"months": 3, "code": "007"}),
    (("-y", "{months: 4, code: x}"), {"months": 4, "code": "x"}),
    (("-b", base64.b64encode(b"months: 5").decode()), {"months": 5, "code": "AA"}),
    (("-f", "p.yaml", "-p", "months", "7"), {"months": 7, "code": "file"}),
]


@pytest.mark.parametrize("args, found", GIVEN, ids=["-p -r", "-y", "-b", "-f"])
def test_parameters_in_papermill_s_ways(notebook, args, found):
    Path("p.yaml").write_text("months: 6\ncode: file\n")
    mill("in.ipynb", "out.ipynb", *args)
    assert printed(book()) == f"{found}\n" and tags(book()) == ["parameters", "injected-parameters"]
    assert Record(Settings.load()).get("last").parameters == {k: v for k, v in found.items()
                                                              if (k, v) != ("code", "AA")}


def test_an_injected_cell_is_replaced_when_its_output_is_run_again(notebook):
    mill("in.ipynb", "out.ipynb", "-p", "months", "3")
    mill("out.ipynb", "again.ipynb", "-p", "months", "4")
    assert printed(book("again.ipynb")) == "{'months': 4, 'code': 'AA'}\n" and tags(book("again.ipynb")) == [
        "parameters", "injected-parameters"
    ]
    assert run("again.ipynb", dict(months=5),
               output="third.ipynb").ok and printed(book("third.ipynb")).startswith("{'months': 5")


def test_paths_are_injected_and_hold_parameters(workspace):
    write(workspace/"in.ipynb", "PAPERMILL_INPUT_PATH = PAPERMILL_OUTPUT_PATH = None\nmonths = 1",
          "print(PAPERMILL_INPUT_PATH, PAPERMILL_OUTPUT_PATH)")
    for option, shown in (("--inject-input-path", "in.ipynb None"),
                          ("--inject-output-path", "None out-{months}.ipynb"),
                          ("--inject-paths", "in.ipynb out-{months}.ipynb")):
        mill("in.ipynb", "out-{months}.ipynb", option, "-p", "months", "2")
        assert printed(book("out-2.ipynb")) == shown + "\n"
    assert Record(Settings.load()).get("last").output == str(workspace/"out-2.ipynb")


def test_a_report_hides_its_sources_and_a_prepared_notebook_is_not_run(notebook):
    mill("in.ipynb", "out.ipynb", "--report-mode", "-p", "months", "3")
    assert all(c.metadata.jupyter.source_hidden for c in book().cells) and printed(book())
    mill("in.ipynb", "prepared.ipynb", "--prepare-only", "-p", "months", "3")
    assert tags(book("prepared.ipynb")) == ["parameters",
                                            "injected-parameters"] and not printed(book("prepared.ipynb"))
    assert len(Record(Settings.load()).runs()) == 1


def test_a_working_directory_of_the_kernel_s_own(workspace):
    write(workspace/"in.ipynb", "n = 1", "import os\nprint(os.path.basename(os.getcwd()))")
    (workspace/"elsewhere").mkdir()
    mill("in.ipynb", "out.ipynb", "--cwd", "elsewhere")
    last = Record(Settings.load()).get("last")
    assert printed(book()) == "elsewhere\n" and not list((workspace/"elsewhere").iterdir())
    assert (last.notebook, last.output) == (str(workspace/"in.ipynb"), str(workspace/"out.ipynb"))


def test_output_as_it_comes(workspace, caplog):
    write(workspace/"in.ipynb", "n = 1", "import sys\nprint('to out')\nprint('to err', file=sys.stderr)", "6*7")
    mill("in.ipynb", "out.ipynb", "--stdout-file", "o.txt", "--stderr-file", "e.txt")
    assert (Path("o.txt").read_text(), Path("e.txt").read_text()) == ("to out\n", "to err\n")
    with caplog.at_level("INFO", "papermill"): mill("in.ipynb", "out.ipynb", "--log-output")
    said = [(r.levelname, r.getMessage().strip()) for r in caplog.records]
    assert {("INFO", "to out"), ("WARNING", "to err"), ("INFO", "42")} <= set(said)


def test_a_failed_cell_is_marked_and_the_marks_go(workspace):
    write(workspace/"in.ipynb", "n = 0", "print(1/n)", "print('never')")
    done = mill("in.ipynb", "out.ipynb", code=1)
    assert isinstance(done.exception, papermill.PapermillExecutionError)
    assert (done.exception.ename, done.exception.cell_index) == ("ZeroDivisionError", 1)
    assert tags(book()).count("papermill-error-cell-tag") == 2
    assert "An Exception was encountered at" in book().cells[0].source
    assert [c.metadata.papermill.status for c in book().cells
            if c.cell_type == "code"] == ["completed", "failed", "pending"]
    mill("out.ipynb", "mended.ipynb", "-p", "n", "2")
    assert "papermill-error-cell-tag" not in tags(book("mended.ipynb"))
    assert printed(book("mended.ipynb")) == "0.5\nnever\n"


def test_a_cell_that_may_raise(workspace):
    path = write(workspace/"in.ipynb", "n = 0", "1/n", "print('went on')")
    nb = book(path)
    nb.cells[1].metadata.tags = ["raises-exception"]
    nbformat.write(nb, path)
    assert run(path, output="out.ipynb").ok and printed(book()) == "went on\n"
    done = mill("in.ipynb", "out.ipynb", code=1)  # papermill counts it, when all has run
    assert isinstance(done.exception, papermill.PapermillExecutionError) and printed(book()) == "went on\n"
    assert Record(Settings.load()).get("last").ok


def test_a_limit_for_each_cell(workspace):
    write(workspace/"in.ipynb", "n = 1", "import time\ntime.sleep(.7)", "time.sleep(.7)", "time.sleep(60)")
    done = mill("in.ipynb", "out.ipynb", "--execution-timeout", "4", code=1)
    assert type(done.exception).__name__ == "TimedOut" and [c.metadata.papermill.status
                                                            for c in book().cells] == ["completed"]*3 + ["failed"]


def test_notebooks_in_memory_and_readers(notebook):
    out = papermill.execute_notebook(book("in.ipynb"), None, dict(months=3), engine_name="scalai", progress_bar=False)
    assert printed(out) == "{'months': 3, 'code': 'AA'}\n"
    assert {n: p["default"]
            for n, p in papermill.inspect_notebook("in.ipynb").items()} == dict(months="12", code="'AA'")
    assert run("in.ipynb", dict(months=3), output="out.ipynb").ok
    read = load_notebook_node("out.ipynb")
    assert (read.metadata.papermill.parameters, read.metadata.papermill.exception) == (dict(months=3, code='AA'), None)
    assert read.metadata.papermill.duration > 0
    assert all(c.metadata.papermill.status == "completed" and c.metadata.papermill.exception is False
               for c in read.cells)


class Store(http.server.BaseHTTPRequestHandler):
    "Notebooks by HTTP, as papermill reads and writes them."
    held: dict = {}
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(self.held[self.path])
    def do_PUT(self):
        self.held[self.path] = self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(201)
        self.end_headers()
    def log_message(self, *_): pass


def test_notebooks_by_http(notebook):
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Store) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        Store.held["/in.ipynb"] = notebook.read_bytes()
        at = f"http://127.0.0.1:{server.server_port}"
        mill(f"{at}/in.ipynb", f"{at}/out.ipynb", "-p", "months", "3")
        server.shutdown()
    assert printed(nbformat.reads(Store.held["/out.ipynb"].decode(), 4)) == "{'months': 3, 'code': 'AA'}\n"
    last = Record(Settings.load()).get("last")
    assert (last.name, last.notebook, last.output) == ("in", f"{at}/in.ipynb", f"{at}/out.ipynb")
    # nothing that looks like an address
    assert sorted(p.name for p in Path().iterdir()) == [".scalai", "in.ipynb", "settings.ini"]


@pytest.mark.slow
def test_notebooks_on_s3_and_through_pipes(notebook, monkeypatch):
    for k, v in dict(AWS_ACCESS_KEY_ID="a", AWS_SECRET_ACCESS_KEY="b", AWS_DEFAULT_REGION="us-east-1").items():
        monkeypatch.setenv(k, v)
    import boto3
    with s3() as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.port}")
        client = boto3.client("s3")
        client.create_bucket(Bucket="books")
        client.put_object(Bucket="books", Key="in.ipynb", Body=notebook.read_bytes())
        mill("s3://books/in.ipynb", "s3://books/out.ipynb", "-p", "months", "3")
        read = lambda key: printed(nbformat.reads(client.get_object(Bucket="books", Key=key)["Body"].read().decode(),
                                                  4))
        assert read("out.ipynb") == "{'months': 3, 'code': 'AA'}\n"
        done = subprocess.run([Path(sys.executable).with_name("scalai"), "run", "in.ipynb", "-p", "months=4", "-o",
                               "s3://books/ours.ipynb"],
                              capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert read("ours.ipynb") == "{'months': 4, 'code': 'AA'}\n"
    pipe = subprocess.run([Path(sys.executable).with_name("papermill"), "--engine", "scalai", "-p", "months", "3"],
                          input=notebook.read_bytes(), capture_output=True)
    assert printed(nbformat.reads(pipe.stdout.decode(), 4)) == "{'months': 3, 'code': 'AA'}\n", pipe.stderr
    assert sorted(p.name for p in Path().iterdir()) == [".scalai", "in.ipynb", "settings.ini"]


# What a kernel showed.
SHOWS = ("n = 3", "import sys\nprint('one')\nprint('two', file=sys.stderr, flush=True)\nprint('three', end='')", "n*2",
         "from IPython.display import HTML, Image, display, clear_output\nimport base64\n"
         "display(HTML('<b>bold</b>'), metadata={'isolated': True})\n"
         "display(Image(base64.b64decode('iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9"
         "awAAAABJRU5ErkJggg==')))",
         "shown = display('first', display_id='d')\nprint('between')", "shown.update('second')",
         "for i in range(3):\n    clear_output(wait=True)\n    print('step', i)",
         "import ipywidgets as w\nslider = w.IntSlider(n, description='flights')\nslider.value = 5\nslider",
         "out = w.Output()\ndisplay(out)\nwith out: print('inside')",
         "print('\\x1b[31mred\\x1b[0m', 'é', '\\U0001F6EB')", "def deep(): raise KeyError('no such gate')\ndeep()")


def plainly(nb) -> nbformat.NotebookNode:
    """A notebook without what differs from kernel to kernel:

    ids of models, times, and where one message of a stream ended."""
    nb = nbformat.from_dict(json.loads(json.dumps(nb, sort_keys=True)))
    for c in nb.cells:
        c.metadata = nbformat.from_dict({"tags": c.metadata.get("tags", [])})
        outputs = []
        for o in c.outputs:
            if o.output_type == "stream" and outputs and outputs[-1].get("name") == o.name: outputs[-1].text += o.text
            else: outputs.append(o)
        c.outputs = outputs
    nb.metadata = nbformat.from_dict({k: v for k, v in nb.metadata.items()
                                      if k in ("kernelspec", "language_info", "widgets")})
    text, ids = json.dumps(nb), []
    for c in nb.cells: ids += re.findall(r"\b[0-9a-f]{32}\b", json.dumps(c.outputs))
    states = nb.metadata.widgets["application/vnd.jupyter.widget-state+json"]["state"]
    for model in ids:
        ids += [i for i in re.findall(r"(?:IPY_MODEL_|\b)([0-9a-f]{32})\b", json.dumps(states.get(model, {})))
                if i not in ids]
    for n, model in enumerate(dict.fromkeys(ids)): text = text.replace(model, f"model-{n}")
    text = re.sub(r"ipykernel_\d+/\d+", "ipykernel", text)
    nb = nbformat.from_dict(json.loads(text))
    mine = nb.metadata.widgets["application/vnd.jupyter.widget-state+json"]
    mine["state"] = dict(sorted((k, v) for k, v in mine["state"].items() if k.startswith("model-")))
    return nb


class Peer(NotebookClient):
    """nbclient, which looks for a reply every second.

    It sends an Output widget's state past zmq.asyncio, on the socket on which it awaits the cell's reply. The send may
    take the socket's only signal that something arrived (libzmq's FD is edge-triggered; ipykernel's pull request 1529
    is the same on the kernel's side), and nbclient then sleeps until the cell's timeout next to a reply that is there:
    in a few of a hundred runs of `SHOWS` on a busy machine. `Client.poll_replies` is our engine's answer. """
    async def async_start_new_kernel_client(self):
        client = await super().async_start_new_kernel_client()
        get = client.shell_channel.get_msg
        async def look(timeout=None):
            end = time.monotonic() + (timeout or float("inf"))
            while True:
                try: return await get(timeout=min(1, max(0, end - time.monotonic())))
                except Empty:
                    if time.monotonic() >= end: raise
        client.shell_channel.get_msg = look
        return client


def test_outputs_are_those_of_nbclient_in_every_reader(workspace):
    path = write(workspace/"in.ipynb", *SHOWS)
    nb = book(path)
    for c in nb.cells: c.metadata.tags = ["raises-exception"] if "KeyError" in c.source else []
    nbformat.write(nb, path)
    assert run(path, output="out.ipynb").ok
    Peer(nb, kernel_name="python3", timeout=60).execute()
    theirs, ours, milled = plainly(nb), plainly(book()), plainly(load_notebook_node("out.ipynb"))
    for a, b in zip(theirs.cells, ours.cells, strict=True): assert a.outputs == b.outputs, a.source
    assert theirs.metadata == ours.metadata and [c.outputs for c in milled.cells] == [c.outputs for c in ours.cells]
    html = lambda nb: re.sub(r"\b[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\b", "some-element",
                             HTMLExporter().from_notebook_node(nb)[0])
    assert html(ours) == html(theirs) and "some-element" in html(ours)
