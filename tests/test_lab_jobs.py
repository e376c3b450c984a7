"""JupyterLab as `scalai lab` starts it: its own “create job” on this engine, the form of a job notebook in a cell, a
card for each template."""

import json
import sys
import time
from urllib.parse import quote

import httpx
import nbformat
import numpy as np
import pandas as pd
import pytest
from conftest import SCALAI, scalai
from test_browser import chromium  # noqa: F401 (a fixture)
from test_jobs import write
from test_lab import Lab, idle, notebook, opened, run_all, shot

from scalai_nb.core.resources import shipped
from scalai_nb.core.settings import Settings
from scalai_nb.data.table import Table
from scalai_nb.jobs.record import Record
from scalai_nb.loop.model_file import Model

pytestmark = pytest.mark.slow

RESULT = "from scalai_nb.jobs.result import result\n"


class Workbench(Lab):
    "JupyterLab as `scalai lab` starts it."
    def command(self):
        config = self.root/".jupyter"/"jupyter_config_dir"
        config.mkdir(parents=True, exist_ok=True)
        (config / "jupyter_server_config.json").write_text(
            json.dumps(
                {
                    "ServerApp": {"ip": "127.0.0.1", "port": self.port, "port_retries": 0, "open_browser": False},
                    "IdentityProvider": {"token": "watched"},
                }
            )
        )
        return [str(SCALAI), "lab"]

    def ask(self, method: str, path: str, **body):
        answer = httpx.request(
            method,
            f"http://127.0.0.1:{self.port}/scheduler/{path}",
            headers={"Authorization": "token watched"},
            json=body or None,
            timeout=30,
        )
        assert answer.status_code < 300, answer.text
        return answer.json() if answer.content else None

    def create(self, name: str, file: str, **parameters) -> str:
        return self.ask(
            "POST",
            "jobs",
            name=name,
            input_uri=file,
            runtime_environment_name="here",
            output_formats=["ipynb", "html"],
            parameters=parameters,
        )["job_id"]

    def until(self, id: str, *states: str, within: float = 120) -> dict:
        end = time.monotonic() + within
        while (job := self.ask("GET", f"jobs/{id}"))["status"] not in states:
            assert time.monotonic() < end, job
            time.sleep(.2)
        return job


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    root = tmp_path_factory.mktemp("bench")
    (root/"settings.ini").write_text("[workspace]\nhome = .scalai\n")
    write(
        root / "nightly.ipynb",
        "code: str = '0'\nhalf: float = 1.  # of what\nwait: int = 0",
        "import time\nprint('begun', flush=True)\nfor _ in range(10*wait): time.sleep(.1)",
        RESULT + "result(said=code, whole=1/half)",
    )
    with Workbench(root) as lab: yield lab


def test_a_job_created_in_lab_runs_on_this_engine(chromium, bench):
    "By a person, in the form; then how each ended, on the page and in the record."
    failing = bench.create("ill", "nightly.ipynb", half="0")
    wrong = bench.create("wrong", "nightly.ipynb", half="a lot")
    slow = bench.create("slow", "nightly.ipynb", wait="60")
    page = chromium.new_context(viewport={"width": 1400, "height": 1000}).new_page()
    page.goto(bench.link("nightly.ipynb"))
    page.locator(".jp-Notebook .jp-CodeCell").first.wait_for(timeout=90_000)
    page.locator(".jp-DirListing-item", has_text="nightly.ipynb").click(button="right")
    page.get_by_role("menuitem", name="Create Job").click()
    # the form knows its notebook
    page.wait_for_function(
        "[...document.querySelectorAll('input')].some(i => i.value.includes('nightly'))", timeout=60_000
    )
    page.get_by_text("Loading …").wait_for(state="hidden", timeout=60_000)  # and its environments
    page.get_by_label("Job name").fill("by hand")
    shot(page, "lab-job-create")
    page.get_by_role("button", name="Create", exact=True).click()
    page.locator("[class*=jobs-list], table").get_by_text("by hand").first.wait_for(timeout=90_000)
    id = next(j["job_id"] for j in bench.ask("GET", "jobs")["jobs"] if j["name"] == "by hand")
    done, ill, refused = (
        bench.until(id, "COMPLETED", "FAILED"),
        bench.until(failing, "COMPLETED", "FAILED"),
        bench.until(wrong, "COMPLETED", "FAILED"),
    )
    assert (done["status"], ill["status"], refused["status"]) == ("COMPLETED", "FAILED", "FAILED")
    assert (
        refused["status_message"].splitlines()[0] == "Parameter 'half' must be float, not 'a lot'."
        and "float division by zero" in ill["status_message"]
    )
    bench.until(slow, "IN_PROGRESS")
    record = Record(Settings.load(bench.root))
    end = time.monotonic() + 60
    while not [r for r in record.runs(name="slow") if r.state == "running"]:
        assert time.monotonic() < end and time.sleep(.1) is None
    bench.ask("PATCH", f"jobs/{slow}", status="STOPPED")
    stopped = bench.until(slow, "STOPPED", "FAILED", "COMPLETED")
    assert stopped["status"] == "STOPPED"
    states = {r.name: r.state for r in record.runs()}
    # what was asked wrongly never began
    assert states == {"by hand": "succeeded", "ill": "failed", "slow": "cancelled"}
    assert record.get(next(t for t in done["tags"] if t.startswith("scalai:"))[7:]).results == {
        "said": "0",
        "whole": 1.0,
    }
    bench.ask("GET", f"jobs/{id}/download_files")
    end = time.monotonic() + 60
    while not (done := bench.ask("GET", f"jobs/{id}"))["downloaded"]:
        assert time.monotonic() < end and time.sleep(.2) is None
    files = {f["file_format"]: bench.root/f["file_path"] for f in done["job_files"]}
    assert [
        o["text"]
        for c in nbformat.read(files["ipynb"], 4).cells
        for o in c.get("outputs", ())
        if o.output_type == "stream"
    ] == ["begun\n"] and "<html" in files["html"].read_text()
    page.reload()
    page.get_by_text("by hand").first.wait_for(timeout=60_000)
    shot(page, "lab-jobs")
    page.context.close()


FORM = {"form": "from scalai_nb.view.form import form\nform('month.ipynb')"}


def test_the_form_of_a_notebook_runs_it(chromium, bench):
    "Filled in, told what is wrong, run, seen to work, stopped; and the two lines when it fails."
    write(
        bench.root / "month.ipynb",
        "from datetime import date\nfrom typing import Literal\nfrom scalai_nb.jobs.parameters import Secret\nmonth:"
        " int  # of 2013\nby: Literal['day', 'week'] = 'day'  # length of a window\nstrict: bool = False  # fail where"
        " rows are missing\nsince: date = date(2013, 1, 1)\nkeys: list[str] = ['carrier']\ntoken: Secret ="
        " 'env:HOME'\nwait: int = 0",
        "import time\nfor i in range(5*wait):\n    print(f'row {i}', flush=True)\n    time.sleep(.2)",
        RESULT + "result(month=month, by=by, keys=keys, since=str(since))",
        "assert not strict, 'rows are missing'",
    )
    notebook(bench.root/"look.ipynb", FORM)
    page = opened(chromium, bench, "look.ipynb")
    run_all(page)
    shown = page.locator(".jp-OutputArea .scalai")
    shown.get_by_role("button", name="Run").wait_for(timeout=60_000)
    shown.get_by_role("button", name="Run").click()
    shown.get_by_role("alert").get_by_text("Parameter 'month' is required.").wait_for()
    shown.get_by_label("month", exact=True).fill("six")
    shown.get_by_label("month", exact=True).press("Tab")
    shown.get_by_text("Parameter 'month' must be int, not 'six'.").wait_for()
    shot(page, "lab-form-wrong")
    shown.get_by_label("month", exact=True).fill("6")
    shown.get_by_label("month", exact=True).press("Tab")
    shown.get_by_label("by", exact=True).select_option("week")
    shown.get_by_label("keys", exact=True).fill("carrier, origin")
    shown.get_by_role("button", name="Run").click()
    shown.get_by_text("month succeeded", exact=True).wait_for(timeout=60_000)
    shot(page, "lab-form-done")
    assert "carrier" in shown.inner_text() and "origin" in shown.inner_text()
    record = Record(Settings.load(bench.root))
    assert record.runs(name="month")[0].results == dict(
        month=6, by="week", keys=["carrier", "origin"], since="2013-01-01"
    )
    shown.get_by_label("wait", exact=True).fill("60")
    shown.get_by_label("wait", exact=True).press("Tab")
    shown.get_by_role("button", name="Run").click()
    shown.get_by_text("row 3").wait_for(timeout=60_000)
    shot(page, "lab-form-running")
    shown.get_by_role("button", name="Stop").click()
    shown.get_by_text("month cancelled", exact=True).wait_for(timeout=60_000)
    shown.get_by_label("wait", exact=True).fill("0")
    shown.get_by_label("strict", exact=True).check()
    shown.get_by_role("button", name="Run").click()
    shown.get_by_text("month failed in cell 3: AssertionError: rows are missing").wait_for(timeout=60_000)
    shot(page, "lab-form-failed")
    assert [r.state for r in record.runs(name="month")] == ["failed", "cancelled", "succeeded"]
    page.context.close()


def test_a_card_makes_a_notebook_in_the_open_folder(chromium, bench):
    """From a template of the workspace and from one of the workbench; what is there stays, and the kernel is this
    environment's."""
    folder = bench.root/"by hand"
    folder.mkdir()
    there = write(folder/"job.ipynb", "kept = True").read_bytes()
    (bench.root/"templates").mkdir()
    (bench.root/"orders.csv").write_text("day,amount\n2026-01-01,3.5\n2026-01-02,1.5\n")
    notebook(bench.root/"templates"/"weekly_report.ipynb", {"a": "import sys\nprint(sys.prefix)"})
    page, wrong = chromium.new_context(viewport={"width": 1400, "height": 1000}).new_page(), []
    page.on("pageerror", lambda e: wrong.append(str(e)))
    page.goto(bench.link(quote(folder.name)))

    def press(name: str):
        card = page.locator(".jp-Launcher:visible .jp-LauncherCard[data-category=Templates]", has_text=name)
        card.wait_for(timeout=90_000)
        card.scroll_into_view_if_needed()
        shot(page, "lab-cards")
        card.click()
        page.locator(".jp-Notebook:visible .jp-CodeCell").first.wait_for(timeout=60_000)
        idle(page)
        run_all(page)

    press("Weekly report")
    page.locator(".jp-OutputArea-output", has_text=sys.prefix).wait_for(timeout=60_000)
    page.keyboard.press("Control+Shift+L")
    press("Job")
    page.locator(".jp-OutputArea-executeResult .scalai-sheet:visible").wait_for(timeout=240_000)
    shot(page, "lab-card-job")
    assert (
        sorted(f.name for f in folder.glob("*.ipynb")) == ["job-2.ipynb", "job.ipynb", "weekly_report.ipynb"]
        and not wrong
    ), wrong
    assert (folder/"job.ipynb").read_bytes() == there
    page.context.close()


def test_every_template_runs_on_ones_own_file(workspace):
    "All in one kernel, one after the other, in a workspace that holds a file and what is to be predicted of it."
    rng = np.random.default_rng(0)
    x = pd.DataFrame({"size": rng.normal(80, 20, 400).round(1), "plan": rng.choice(["basic", "plus", "max"], 400)})
    x.assign(price=(1000 + 10*x["size"] + rng.normal(0, 50, 400)).round()).to_csv("offers.csv", index=False)
    Model(name="offer", table="offers", target="price").save(Settings.load())
    templates = shipped("share")/"jupyter"/"labextensions"/"scalai-nb"/"templates"
    cells = [c for f in sorted(templates.glob("*.ipynb")) for c in nbformat.read(f, 4).cells]
    for i, c in enumerate(cells): c["id"] = f"cell-{i}"
    assert not [c for c in cells if "flights" in c.source]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), "all.ipynb")
    done = scalai("run", "all.ipynb", "-o", "out.ipynb", "--json", cwd=workspace)
    assert done.code == 0, done.doc["error"]
    assert done.doc["results"]["rows"] == Table("offers").rows == 400 and Table("offers").version == 0
