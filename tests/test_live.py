"""What a training shows while it runs and when it ends: in a kernel that is busy with it, in a job that nobody
watches, on a terminal."""

import fcntl
import os
import pty
import re
import struct
import sys
import termios
import time
from queue import Empty

import nbformat
import numpy as np
import pytest
from conftest import scalai
from jupyter_client.manager import start_new_kernel

from scalai_nb.core import events
from scalai_nb.core.errors import Cancelled, WorkFailed
from scalai_nb.core.settings import Settings
from scalai_nb.training import checkpoint
from scalai_nb.training.fit import fit
from scalai_nb.training.models import MLP
from scalai_nb.view.live import Drawer

DATA = """import numpy as np
from scalai_nb.training.fit import fit
from scalai_nb.training.models import MLP
X = np.random.default_rng(0).normal(size=(4_000, 8)).astype("float32")
y = X[:, 0] + X[:, 1]*X[:, 2] > 0
"""


@pytest.fixture
def xy():
    X = np.random.default_rng(0).normal(size=(4_000, 8)).astype(np.float32)
    return X, X[:, 0] + X[:, 1]*X[:, 2] > 0


class Paper(Drawer):
    "Pictures kept instead of shown, and a button that is pressed by calling it."
    def __init__(self): super().__init__(every=0); self.pages, self.stops, self.gone = [], [], 0
    def draw(self, html, shown): self.pages.append(re.sub("<[^>]*>", "", html)); return True
    def offer(self, stop): self.stops.append(stop); return self.take_away
    def take_away(self): self.gone += 1


@pytest.fixture
def paper():
    paper = Paper()
    end = events.subscribe(paper, "fit")
    yield paper
    end()


def test_a_training_shows_that_it_starts_learns_validates_and_is_done(paper, xy, tmp_path):
    run = fit(MLP, xy, epochs=2, batch_size=256, settings=Settings(root=tmp_path))
    heads = [p.split(" · ")[0] for p in paper.pages]
    assert heads[0] == "… starting" and re.fullmatch(r"✓ done 2 epochs in .*", heads[-1])
    assert {"▸ training epoch 1 of 2", "◆ validating epoch 2 of 2"} <= {
        h.split(" steps")[0][: len("◆ validating epoch 2 of 2")].strip() for h in heads
    }
    assert any("rows/s" in p and "s left" in p for p in paper.pages) and paper.gone == 1
    assert "<svg" in run._repr_html_() and run.state == "done"


def test_a_failure_and_a_stop_are_shown_as_what_they_are(paper, xy, tmp_path):
    how = dict(batch_size=256, checkpoint_every=5, settings=Settings(root=tmp_path))
    X, y = xy
    with pytest.raises(WorkFailed): fit(MLP, (np.where(X > 1, np.float32(np.nan), X), y), **how)
    assert paper.pages[-1].startswith("✕ failed") and "The loss became nan in epoch 1, batch 1 of" in paper.pages[-1]
    press = events.subscribe(lambda topic, history=(), **told: paper.stops[-1]() if len(history) == 2 else None, "fit")
    try:
        with pytest.raises(Cancelled, match="was stopped in epoch 3 of 50") as stopped: fit(MLP, xy, epochs=50, **how)
    finally:
        press()
    folder = re.search("resume='(.*)'", stopped.value.hint).group(1)
    assert (
        paper.pages[-1].startswith("■ cancelled in epoch 2 of 50")
        and f"resume='{folder}'" in paper.pages[-1].replace("&#x27;", "'")
        and paper.gone == 2
    )
    kept = checkpoint.load(checkpoint.latest(f"{folder}/checkpoints"))[0]
    assert len(kept["history"]) == 2 and len(fit(MLP, xy, epochs=3, resume=folder, **how).history) == 3
    with pytest.raises(Cancelled) as early:
        press = events.subscribe(lambda topic, **told: paper.stops[-1](), "fit")
        try: fit(MLP, xy, epochs=2, batch_size=256, settings=how["settings"])
        finally: press()
    assert "no checkpoint yet" in early.value.hint


def shown(content): return re.sub("<[^>]*>", "", content["data"].get("text/html", ""))


class Kernel:
    "A kernel as JupyterLab talks to it: it may ask for input, and what widgets say goes to a subshell."
    def __init__(self, folder):
        self.manager, self.client = start_new_kernel(
            kernel_name="python3", cwd=str(folder), env=os.environ | {"OMP_NUM_THREADS": "1"}
        )
        self.heard, self.text, self.shell = [], "", self.control("create_subshell_request")["subshell_id"]

    def control(self, kind):
        message = self.client.session.msg(kind, {})
        self.client.control_channel.send(message)
        return self.client.control_channel.get_msg(timeout=60)["content"]

    def press(self, button):
        message = self.client.session.msg(
            "comm_msg", {"comm_id": button, "data": {"method": "custom", "content": {"event": "click"}}}
        )
        message["header"]["subshell_id"] = self.shell
        self.client.shell_channel.send(message)

    def run(self, code, hear=lambda kind, content: None, within=240):
        "The reply to a cell; `hear` gets what comes meanwhile."
        asked, reply, until = self.client.execute(code, allow_stdin=True), None, time.monotonic() + within
        while True:
            assert time.monotonic() < until, self.heard[-20:]
            try: told = self.client.iopub_channel.get_msg(timeout=1)
            except Empty: continue
            kind, content = told["msg_type"], told["content"]
            self.heard.append((kind, content))
            hear(kind, content)
            if (
                kind == "status"
                and content["execution_state"] == "idle"
                and told["parent_header"].get("msg_id") == asked
            ):
                break
        while reply is None or reply["parent_header"].get("msg_id") != asked:
            reply = self.client.shell_channel.get_msg(timeout=60)
        return reply["content"]

    def pictures(self):
        return [
            shown(c)
            for k, c in self.heard
            if k in ("display_data", "update_display_data") and "role=\"status\"" in c["data"].get("text/html", "")
        ]

    def __enter__(self): return self
    def __exit__(self, *_):
        self.client.stop_channels()
        self.manager.shutdown_kernel(now=True)


def test_the_button_stops_the_very_cell_that_trains(workspace):
    """Through a subshell, as the main shell is busy; afterwards the saved picture needs no widget, and the training
    goes on."""
    with Kernel(workspace) as kernel:
        kernel.run(DATA)
        buttons = []
        def hear(kind, content):
            if kind == "comm_open" and content["data"]["state"].get("_model_name") == "ButtonModel":
                buttons.append(content["comm_id"])
            if (
                kind == "update_display_data"
                and re.search(r"^▸ training epoch (?!1 )[\d,]+ of", shown(content))
                and len(buttons) == 1
            ):
                kernel.press(buttons[0])
                buttons.append("pressed")
        reply = kernel.run("fit(MLP, (X, y), epochs=100_000, batch_size=256)", hear)
        assert reply["ename"] == "Cancelled" and len(reply["traceback"]) == 1, reply
        seen = kernel.pictures()
        assert (
            seen[0].startswith("… starting")
            and any(s.startswith("▸ training") for s in seen)
            and seen[-1].startswith("■ cancelled")
        )
        last = {
            c["transient"]["display_id"]: c["data"]
            for k, c in kernel.heard
            if k in ("display_data", "update_display_data")
        }
        assert len(last) == 2 and not any("application/vnd.jupyter.widget-view+json" in d for d in last.values())
        folder = re.search("resume='(.*)'", reply["evalue"]).group(1)
        done = len(checkpoint.load(checkpoint.latest(f"{folder}/checkpoints"))[0]["history"])
        kernel.heard.clear()
        assert (
            kernel.run(
                f"assert len(fit(MLP, (X, y), epochs={done + 1}, batch_size=256, resume={folder!r}).history) =="
                f" {done + 1}"
            )["status"]
            == "ok"
        )
        assert kernel.pictures()[-1].startswith(f"✓ done {done + 1:,} epochs")


def test_in_a_job_the_picture_is_static_and_has_no_button(workspace):
    cells = [
        nbformat.v4.new_code_cell(source)
        for source in (DATA, "run = fit(MLP, (X, y), epochs=3, batch_size=256)", "run")
    ]
    nbformat.write(
        nbformat.v4.new_notebook(
            cells=cells, metadata={"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
        ),
        "job.ipynb",
    )
    done = scalai("run", "job.ipynb", "-o", "out.ipynb", cwd=workspace)
    assert done.code == 0, done.err
    book = nbformat.read("out.ipynb", as_version=4)
    shown, = (o.data["text/html"] for o in book.cells[-2].outputs if "data" in o)
    assert "done</b> 3 epochs in" in shown and shown.count("<svg") == 3 and "validation 0." in shown
    assert (
        "ButtonModel" not in str(book)
        and "widget-view" not in str(book)
        and book.cells[-1].outputs[0].data["text/html"].count("<svg") == 3
    )


SCRIPT = DATA + """
import sys
if __name__ == "__main__": fit(MLP, (X, y), epochs=8, batch_size=64, ranks=int(sys.argv[1]))
"""


@pytest.mark.parametrize("ranks", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_on_a_terminal_it_is_one_line_that_nothing_breaks(workspace, ranks):
    "Each line as a person sees it last: what followed the last carriage return."
    (workspace/"train.py").write_text(SCRIPT)
    pid, terminal = pty.fork()
    if pid == 0: os.execvpe(sys.executable, [sys.executable, "train.py", str(ranks)], os.environ)
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))  # rows and columns
    written = b""
    while True:
        try: written += (part := os.read(terminal, 65_536))
        except OSError: break
        if not part: break
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    rows = [[f.rstrip() for f in row.split("\r") if f.strip()] for row in written.decode().split("\n")]
    bars = [f for row in rows for f in row if "%|" in f]
    assert any(
        re.fullmatch(r" *\d+%\|.{8}\| epoch \d/8, [\d,]+ rows/s, \d+ s left, loss [\d.]+.*", b) for b in bars
    ), bars[-5:]
    assert all(re.fullmatch(r" *\d+%\|.{8}\|[^|%]*", b) and len(b) < 100 for b in bars), bars
    assert all("fit: " not in b for b in bars) and re.fullmatch(
        r"fit: 8 epochs in .*, loss [\d.]+, val_loss [\d.]+, val_auc [\d.]+", [row[-1] for row in rows if row][-1]
    )
