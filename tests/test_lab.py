"""What a cell shows in a real JupyterLab, while it works and when it is done; then the same notebook run without
anybody watching."""

import contextlib
import json
import os
import re
import subprocess
import sys
import warnings
from pathlib import Path

import nbformat
import pytest
import servers
from axe_playwright_python.sync_playwright import Axe
from conftest import scalai
from playwright.sync_api import TimeoutError
from test_browser import OUTPUT, chromium  # noqa: F401 (a fixture)
from test_live import DATA

import scalai_nb as sn
from scalai_nb.core.settings import Settings
from scalai_nb.training import checkpoint

pytestmark = pytest.mark.slow

CELLS = {
    "frame": (
        """import time
import dask.dataframe as dd
from scalai_nb.data.profile import profile
from scalai_nb.loop.flights import flights

def slowly(part):
    time.sleep(.8)  # a source that takes its time
    return part

rows = flights().to_pandas()
frame = dd.from_pandas(rows, npartitions=10).map_partitions(slowly, meta=rows.head(0))"""
    ),
    "live": "profile(frame)",
}


def notebook(path: Path, cells: dict[str, str], kernel: str = "python3"):
    made = [nbformat.v4.new_code_cell(source, id=name) for name, source in cells.items()]
    nbformat.write(
        nbformat.v4.new_notebook(
            cells=made,
            metadata={"kernelspec": {"name": kernel, "display_name": "Python 3 (ipykernel)", "language": "python"}},
        ),
        path,
    )


class Lab:
    "JupyterLab on a folder, with settings of its own."
    def __init__(self, root: Path):
        self.root, self.port = root, servers.free_port()
        own = {
            n: str(root / ".jupyter" / n.lower())
            for n in (
                "JUPYTER_CONFIG_DIR",
                "JUPYTER_DATA_DIR",
                "JUPYTERLAB_SETTINGS_DIR",
                "JUPYTERLAB_WORKSPACES_DIR",
                "IPYTHONDIR",
            )
        }
        self.settings = Path(own["JUPYTERLAB_SETTINGS_DIR"])
        self.set("notification", fetchNews="false")
        self.process = subprocess.Popen(
            self.command(),
            env=os.environ | own | {"OMP_NUM_THREADS": "1"},
            stdout=subprocess.DEVNULL,
            stderr=open(root / "lab.log", "wb"),
            cwd=root,
        )
        servers.wait_for(self.port, self.process, within=90)

    def command(self) -> list[str]:
        return [
            sys.executable,
            "-m",
            "jupyterlab",
            "--allow-root",
            "--no-browser",
            "--ip=127.0.0.1",
            f"--port={self.port}",
            "--ServerApp.port_retries=0",
            f"--ServerApp.root_dir={self.root}",
            "--IdentityProvider.token=watched",
            "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
        ]

    def set(self, what: str, **values):
        "As a person would in Lab's settings."
        place = self.settings/f"@jupyterlab/apputils-extension/{what}.jupyterlab-settings"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(json.dumps(values))

    def link(self, name: str) -> str: return f"http://127.0.0.1:{self.port}/lab/tree/{name}?token=watched&reset"

    def __enter__(self): return self
    def __exit__(self, *_):
        family = [*servers.psutil.Process(self.process.pid).children(recursive=True), self.process]
        for p in family: p.terminate()
        # on a busy machine Lab was seen to outlive its first signal
        for p in servers.psutil.wait_procs(family, 30)[1]: p.kill()
        self.process.wait(30)


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    with Lab(tmp_path_factory.mktemp("lab")) as lab: yield lab


def opened(chromium, lab, name, width=1400, height=1000):
    "A notebook in the browser, its kernel idle."
    page = chromium.new_context(viewport={"width": width, "height": height}).new_page()
    page.goto(lab.link(name))
    page.locator(".jp-Notebook .jp-CodeCell").first.wait_for(timeout=90_000)
    idle(page)
    return page


WATCH = """() => {
  window.seen = [];
  const look = () => { for (const n of document.querySelectorAll('.jp-OutputArea [role=status]')) {
    const paths = [...n.parentElement.querySelectorAll('svg[role=img] path')];
    const text = n.innerText.trim(), pictures = paths.map(p => p.getAttribute('d')), last = window.seen.at(-1);
    if (!last || last.text !== text) window.seen.push({text, pictures});
  } };
  new MutationObserver(look).observe(document.body, {childList: true, subtree: true, characterData: true});
}"""


def idle(page):
    """Wait for the kernel's first word; a reload asks for it again, as a person would where Lab has missed it (once in
    CI)."""
    bar = page.locator("#jp-main-statusbar")
    ready = bar.get_by_text("Python 3 (ipykernel) | Idle")
    try: ready.wait_for(timeout=60_000)
    except TimeoutError:
        warnings.warn(f"Lab was reloaded; its status bar said {bar.inner_text()!r}")  # pytest lists it
        page.reload()
        ready.wait_for(timeout=90_000)


def run_all(page):
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Run All Cells", exact=True).click()


def shot(page, name):
    OUTPUT.mkdir(exist_ok=True)
    page.screenshot(path=OUTPUT/f"{name}.png")


def test_completion_lists_the_names_of_the_front_door(chromium, lab):
    "`sn.` and Tab, before anything else was imported: every public name, and none of Python's own."
    notebook(lab.root/"door.ipynb", {"import": "import scalai_nb as sn", "type": ""})
    page = opened(chromium, lab, "door.ipynb")
    run_all(page)
    idle(page)
    page.locator(".jp-CodeCell .cm-content").last.click()
    page.keyboard.type("sn.")
    box = page.locator(".jp-Completer:visible")
    for _ in range(12):  # Lab gives a kernel one second to answer (`providerTimeout`); then a person presses Tab again
        page.keyboard.press("Tab")
        with contextlib.suppress(TimeoutError):
            box.wait_for(timeout=5_000)
            break
    shot(page, "lab-completion")
    offered = {t.strip() for t in box.locator(".jp-Completer-match").all_inner_texts()}
    assert {n for n in sn.__all__ if not n.startswith("_")} <= offered, offered
    page.context.close()


def test_a_profile_fills_in_while_partitions_arrive(chromium, lab):
    "At least three pictures before the last, none lost, none older than the one before; then the static page."
    notebook(lab.root/"live.ipynb", CELLS)
    page = opened(chromium, lab, "live.ipynb")
    page.evaluate(WATCH)
    run_all(page)
    page.wait_for_function("window.seen.length >= 3", timeout=90_000)
    shot(page, "lab-live")
    page.get_by_text("profiled 10 of 10 partitions · 336,776 rows").wait_for(timeout=90_000)
    page.locator(".jp-OutputArea-executeResult .scalai-sheet").wait_for(timeout=30_000)
    *before, last = page.evaluate("window.seen")
    done = [
        tuple(int(n.replace(",", "")) for n in re.match(r"(\d+) of 10 partitions · ([\d,]+) rows", s["text"]).groups())
        for s in before
    ]
    assert (
        len(before) >= 3 and done == sorted(done) and len({json.dumps(s["pictures"]) for s in before}) == len(before)
    ), done
    assert all(abs(rows - parts*33_677) <= parts for parts, rows in done) and not last["pictures"]
    result = page.locator(".jp-OutputArea-executeResult .scalai-sheet")
    assert result.locator("tbody tr").count() == 19 and result.locator("svg[role=img]").count() == 16
    assert result.locator("li").first.inner_text() == "year is constant: always 2013."
    result.scroll_into_view_if_needed()
    shot(page, "lab-done")
    page.context.close()


MESSY = {
    "messy": (
        """import numpy as np, pandas as pd
from scalai_nb.data.profile import profile
from scalai_nb.loop.flights import month_rows
some = month_rows(1).to_pandas().head(20_000)
origin = some.origin.where(some.index % 50 > 0, some.origin.str.lower() + " ")
profile(pd.DataFrame({
    "flight_id": [f"{c}-{i}" for i, c in enumerate(some.carrier)], "year": some.year, "origin": origin, "from": origin,
    "miles": some.distance, "km": some.distance*1.609344, "air_time": some.air_time,
    "fare": np.random.default_rng(0).pareto(1.2, len(some))*100,
    "gate": pd.Series([12, "B7", None, 4.5]*5_000, dtype=object),
    "cancelled": [1 if i % 500 == 0 else 0 for i in range(len(some))],
    "seat": some.flight.astype(str), "<b>note</b>": None}))"""
    ),
    "wide": (
        """profile(pd.DataFrame({f"sensor_{i:03}": np.random.default_rng(i).normal(i, 1 + i, 500)
                      for i in range(300)}))"""
    ),
}
REMARKS = [
    "flight_id looks like an identifier",
    "year is constant",
    "origin spells 3 values in several ways",
    "fare is skewed to the right",
    "gate mixes types",
    "cancelled is nearly constant",
    "seat holds numbers as text",
    "<b>note</b> is empty",
    "origin and from hold the same values equally often",
    "miles and km",
    "air_time",
]


def test_what_is_odd_is_said_at_night_and_on_narrow_screens(chromium, lab):
    lab.set("themes", theme="JupyterLab Dark")
    notebook(lab.root/"messy.ipynb", MESSY)
    page = opened(chromium, lab, "messy.ipynb")
    run_all(page)
    page.get_by_text("240 columns more").wait_for(timeout=90_000)
    messy, wide = page.locator(".scalai-sheet").all()
    said = messy.locator("li").all_inner_texts()
    for words in REMARKS: assert any(words in s for s in said), (words, said)
    messy.scroll_into_view_if_needed()
    shot(page, "lab-messy-dark")
    assert wide.locator("tbody tr:visible").count() == 60
    page.get_by_text("240 columns more").click()
    assert wide.locator("tbody tr:visible").count() == 300
    page.set_viewport_size({"width": 640, "height": 900})
    messy.scroll_into_view_if_needed()
    page.wait_for_timeout(500)
    shot(page, "lab-narrow-dark")
    # the table scrolls, not the page
    assert messy.evaluate(
        "s => s.getBoundingClientRect().width <= s.closest('.jp-OutputArea').getBoundingClientRect().width"
    )
    page.context.close()


HOLDS, BESIDE = (
    "fit(MLP, (X, y), epochs=100_000, batch_size=256)",
    "run = fit(MLP, (X, y), epochs=100_000, batch_size=256, ranks=2, wait=False)",
)


@pytest.mark.parametrize("theme, cell", [("Light", HOLDS), ("Dark", BESIDE)])
def test_a_training_shows_its_states_and_is_stopped_by_its_button(chromium, lab, theme, cell):
    """While its cell holds the kernel, and on two ranks beside it; no process is left, and it goes on from its last
    checkpoint."""
    (lab.root/"settings.ini").write_text("[workspace]\nhome = .scalai\n")
    lab.set("themes", theme=f"JupyterLab {theme}")
    notebook(lab.root/"fit.ipynb", {"data": DATA, "fit": cell})
    page = opened(chromium, lab, "fit.ipynb")
    page.evaluate(WATCH)
    run_all(page)
    page.locator("[role=status]", has_text=re.compile(r"epoch ([2-9]|\d\d+) of")).wait_for(timeout=180_000)
    shot(page, f"lab-fit-{theme.lower()}")
    found = Axe().run(page, context={"include": [[".jp-RenderedHTML"], [".widget-button"]]}).response["violations"]
    assert not found, found
    page.set_viewport_size({"width": 640, "height": 900})
    shot(page, f"lab-fit-{theme.lower()}-narrow")
    assert page.locator(".jp-RenderedHTML:has([role=status])").evaluate("p => p.scrollWidth <= p.clientWidth")
    page.get_by_role("button", name="Stop training").click()
    page.locator("[role=status]", has_text="cancelled").wait_for(timeout=120_000)
    shot(page, f"lab-fit-{theme.lower()}-stopped")
    states = list(dict.fromkeys(re.match(r"\W*(\w+)", s["text"])[1] for s in page.evaluate("window.seen")))
    assert states[0] == "starting" and "training" in states and states[-1] == "cancelled", states
    page.get_by_role("button", name="Stop").wait_for(state="detached", timeout=30_000)
    assert not [
        p
        for p in servers.psutil.Process(lab.process.pid).children(recursive=True)
        if "scalai_nb.training.agent" in " ".join(p.cmdline())
    ]
    folder = re.search("resume='(.*)'", page.locator(".jp-RenderedHTML:has([role=status])").inner_text())[1]
    done, given = len(checkpoint.load(checkpoint.latest(f"{folder}/checkpoints"))[0]["history"]), {}
    exec(DATA, given)
    rest = given["fit"](
        given["MLP"],
        (given["X"], given["y"]),
        epochs=done + 1,
        batch_size=256,
        resume=folder,
        settings=Settings(root=lab.root),
    )
    assert rest.state == "done" and len(rest.history) == done + 1
    page.context.close()


HUNT = DATA + """
import sys
from scalai_nb.training.search import search
from scalai_nb.training.search_space import choice, log

def hunt(trials):
    return search(lambda features: MLP(features, (16,)), (X, y),
                  space={"lr": log(1e-3, .1), "batch_size": choice(64, 256)}, trials=trials, epochs=3, name="hunt")

if __name__ == "__main__": hunt(int(sys.argv[1]))
"""
HUNTED = {"beside": """import subprocess, sys, time
from scalai_nb.core.errors import BadRequest
from scalai_nb.training.study import Search
from scalai_nb.view.show import show
beside = subprocess.Popen([sys.executable, "hunt.py", "4"])
def known():
    try: return Search.open("hunt").rows()
    except BadRequest: return []
while beside.poll() is None and not known(): time.sleep(.1)
show(Search.open("hunt"))""", "here": """beside.wait()
from hunt import hunt
found = hunt(6)"""}


def run_cell(page, number):
    page.locator(".jp-Notebook .jp-CodeCell .cm-content").nth(number).click()
    page.keyboard.press("Control+Enter")


def test_a_search_is_watched_beside_it_and_in_its_cell(chromium, lab):
    "The view follows a search of another process; then two trials more, in a cell that shows them as they go."
    (lab.root/"settings.ini").write_text("[workspace]\nhome = .scalai\n\n[cluster]\nworkers = 1\n")
    (lab.root/"hunt.py").write_text(HUNT)
    lab.set("themes", theme="JupyterLab Light")
    notebook(lab.root/"hunt.ipynb", HUNTED)
    page = opened(chromium, lab, "hunt.ipynb")
    page.evaluate(WATCH)
    run_cell(page, 0)
    view = page.locator(".jp-OutputArea .scalai").first
    view.locator("[role=status]").wait_for(timeout=180_000)
    shot(page, "lab-search-begun")
    view.locator(
        "[role=status]", has_text=re.compile(r"4 trials: [^.]*(done|pruned)(?!.*(running|waiting))")
    ).wait_for(timeout=180_000)
    shot(page, "lab-search-view")
    view.screenshot(path=OUTPUT/"lab-search-whole.png")
    run_cell(page, 1)
    page.locator("[role=status]", has_text="(searching, 6 in all)").wait_for(timeout=180_000)
    shot(page, "lab-search-cell")
    page.locator("[role=status]", has_text="(done) 6 trials").wait_for(timeout=180_000)
    shot(page, "lab-search-cell-done")
    said = list(dict.fromkeys(s["text"] for s in page.evaluate("window.seen")))
    beside, here = [s for s in said if "Epochs at most" in s], [s for s in said if s.startswith("(")]
    assert (
        len(beside) >= 2 and "running" in beside[0] and "4 trials" in beside[-1] and "What matters" in beside[-1]
    ), beside
    assert (
        len(here) >= 2
        and here[0].startswith("(searching, 6 in all) 5 trials")
        and here[-1].startswith("(done) 6 trials")
    ), here
    assert view.locator(".bqplot").count() == 2 and view.locator("tbody tr").count() == 4
    dot = view.locator(".bqplot path.element").first
    dot.hover()
    page.locator(".bqplot_mark_tooltip", has_text=re.compile(r"trial \d, (done|pruned): lr")).wait_for(timeout=10_000)
    shot(page, "lab-search-hover")
    page.context.close()


CHOICE = {
    "frontier": (
        """from scalai_nb.compression.benchmark import Candidate
from scalai_nb.compression.frontier import Frontier
from scalai_nb.view.show import show
def candidate(recipe, accuracy, ms, size):
    times = [{"batch": n, "threads": 1, "calls": 150, "p50_ms": ms*part, "p99_ms": 2*ms*part}
             for n, part in ((64, 1.), (1, .1))]
    return Candidate(recipe, accuracy, accuracy - .004, accuracy + .004, None, ms, size, "", memory_bytes=size*3,
                     timings=times)
made = [candidate("float32", .91, .40, 400_000), candidate("int8", .909, .22, 120_000),
        candidate("dynamic", .908, .3, 125_000), candidate("pruned+int8", .899, .15, 70_000)]
show(Frontier(made[0], made, {"accuracy_drop": .01}, 20_000))"""
    )
}


def test_a_candidate_is_chosen_by_its_dot(chromium, lab):
    "At night: what a dot says to a pointer can be read, and a press chooses it in the list and the table."
    lab.set("themes", theme="JupyterLab Dark")
    notebook(lab.root/"choice.ipynb", CHOICE)
    page = opened(chromium, lab, "choice.ipynb")
    run_cell(page, 0)
    view = page.locator(".jp-OutputArea .scalai").first
    dots = view.locator(".bqplot path.element")
    dots.nth(3).wait_for(timeout=90_000)
    shot(page, "lab-frontier")
    assert dots.count() == 4 and view.locator("select").input_value() == "int8"
    dots.first.hover()  # the one without a name beside it
    told = page.locator(".bqplot_mark_tooltip", has_text="dynamic")
    told.wait_for(timeout=10_000)
    page.wait_for_timeout(600)
    assert told.inner_text().split()[0] == "dynamic"
    shot(page, "lab-frontier-hover")
    ink = view.evaluate("v => getComputedStyle(v).color")
    assert (
        told.evaluate("t => getComputedStyle(t).color") == ink
        and told.evaluate("t => getComputedStyle(t).opacity") == "1"
    )
    dots.first.click()
    view.locator("tr.now", has_text="dynamic").wait_for(timeout=30_000)
    assert view.locator("select").input_value() == "dynamic"
    shot(page, "lab-frontier-chosen")
    page.context.close()


ELSEWHERE = """
from jupyter_client.manager import start_new_kernel
manager, client = start_new_kernel(kernel_name="scalai-flights")
client.execute_interactive("import sys; from scalai_nb.core.settings import Settings;"
                           " print(sys.prefix, Settings.load().root)", timeout=60)
manager.shutdown_kernel(now=True)
"""


def test_a_jupyterlab_that_is_there_gets_the_environment_as_a_kernel(chromium, lab, workspace):
    """As a card at night, in a notebook outside of the workspace, and for a Jupyter of another Python; then it is
    taken away."""
    root = workspace/"flights"
    root.mkdir(), (root/"settings.ini").write_text("[workspace]\nhome = .scalai\n")
    theirs = dict(JUPYTER_DATA_DIR=str(lab.root/".jupyter"/"jupyter_data_dir"))
    assert scalai("kernel", "install", cwd=root, **theirs).code == 0
    lab.set("themes", theme="JupyterLab Dark")
    notebook(
        lab.root / "elsewhere.ipynb",
        {"a": "from scalai_nb.core.settings import Settings\nprint(Settings.load().root)\n!which scalai"},
        "scalai-flights",
    )
    page = chromium.new_context(viewport={"width": 1400, "height": 1000}).new_page()
    page.goto(lab.link("").replace("/tree/", ""))
    page.locator(".jp-Launcher .jp-LauncherCard[data-category=Notebook]", has_text="flights (scalai)").wait_for(
        timeout=90_000
    )
    shot(page, "lab-kernel-card")
    page.locator(".jp-DirListing-item", has_text="elsewhere.ipynb").dblclick()
    page.get_by_text("flights (scalai) | Idle").wait_for(timeout=90_000)
    run_all(page)
    page.locator(".jp-OutputArea-output", has_text=str(Path(sys.executable).with_name("scalai"))).wait_for(
        timeout=60_000
    )
    assert str(root) in page.locator(".jp-OutputArea-output").first.inner_text()
    page.context.close()

    other = workspace/"other"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(other)], check=True)
    subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "--python",
            str(other / "bin" / "python"),
            "install",
            "-q",
            "--disable-pip-version-check",
            "jupyter-client",
        ],
        check=True,
    )
    assert scalai("kernel", "install", "--prefix", other, cwd=root).code == 0
    said = subprocess.run([str(other/"bin"/"python"), "-c", ELSEWHERE], capture_output=True, text=True, timeout=120)
    assert said.stdout.split() == [sys.prefix, str(root)], said.stderr[-2000:]
    for where, env in ((["--prefix", other], {}), ([], theirs)):
        assert scalai("kernel", "remove", *where, "--json", cwd=root, **env).doc == {"removed": ["scalai-flights"]}
        assert scalai("kernel", "list", *where, "--json", cwd=root, **env).doc == {"kernels": []}


def test_run_by_nobody_it_is_static_all_the_same(chromium, workspace):
    "The job's notebook as HTML, opened from the disk: no kernel, no script, nothing fetched."
    from nbconvert import HTMLExporter
    notebook(workspace/"live.ipynb", CELLS)
    done = scalai("run", "live.ipynb", "-o", "out.ipynb", cwd=workspace)
    assert done.code == 0, done.err
    body, _ = HTMLExporter(template_name="basic").from_filename("out.ipynb")
    (workspace/"out.html").write_text(f"<!doctype html><meta charset=utf-8><body>{body}")
    page = chromium.new_context(viewport={"width": 1200, "height": 900}, java_script_enabled=False).new_page()
    asked = []
    page.on("request", lambda r: asked.append(r.url))
    page.goto(f"file://{workspace/'out.html'}")
    assert (
        page.get_by_text("profiled 10 of 10 partitions").count() == 1
        and page.locator(".scalai-sheet svg[role=img]").count() == 16
    )
    assert asked == [f"file://{workspace/'out.html'}"] and "<script" not in body
    shot(page, "lab-nobody")
    page.context.close()
