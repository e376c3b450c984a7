"The dashboards as a visitor sees them: a real browser that may reach nothing but this machine."
import csv
import io
import os
import re
import shutil
from pathlib import Path
from urllib.parse import unquote

import pytest
from playwright.sync_api import sync_playwright
from test_dash import Dash, snapshot
from watched import watched

pytestmark = pytest.mark.slow  # a browser, kernels and a workspace of twelve months
OUTPUT = Path(__file__).parent / "output"
APPS = Path(__file__).parents[1] / "apps"
FLAGS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    " --disable-component-update --disable-sync".split()
)


def some(root, *names):
    "No more apps than a test asks for: each has its snapshot made."
    for name in names:
        shutil.copytree(
            APPS, root / "apps", ignore=lambda _, files: {f for f in files if f != f"{name}.ipynb"}, dirs_exist_ok=True
        )


@pytest.fixture(scope="module")
def dash(tmp_path_factory):
    "Three apps on a workspace as the loop leaves it."
    root = tmp_path_factory.mktemp("watched")
    watched(root)
    some(root, "drift", "performance", "runs")
    with Dash(root) as dash: yield dash


@pytest.fixture(scope="module")
def chromium():
    path = (
        os.environ.get("CHROMIUM")
        or shutil.which("chromium")
        or shutil.which("chromium-browser")
        or shutil.which("google-chrome")
    )
    assert (
        path
    ), "There is no Chromium here. Install it (Debian: apt-get install chromium), or name it in the variable CHROMIUM."
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=FLAGS)
        yield browser
        browser.close()


class Visit:
    "A page that must stay on this machine and complain of nothing."
    def __init__(self, chromium, dash, width=1280, scheme="light"):
        self.dash, self.problems = dash, []
        self.page = chromium.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme).new_page()
        self.page.set_default_timeout(120_000)  # a live page is rendered before it is sent
        self.page.on("console", lambda m: self.problems.append(m.text) if m.type == "error" else None)
        self.page.on("response", lambda r: self.problems.append(f"{r.status} {r.url}") if r.status >= 400 else None)
        self.page.on("pageerror", lambda e: self.problems.append(str(e)))
        self.page.route("**/*", self.guard)
        self.page.goto(dash.link)

    def guard(self, route):
        if re.match(r"(http|ws)://127\.0\.0\.1[:/]", route.request.url): return route.continue_()
        self.problems.append(f"asked for {route.request.url}")
        route.abort()

    def __enter__(self): return self
    def __exit__(self, kind, *_):
        self.page.context.close()
        assert kind or not self.problems, self.problems

    def open(self, app, drawn=True):
        "The live page, past the snapshot where there is one already."
        self.page.locator("a.app").filter(has=self.page.get_by_text(app, exact=True)).click()
        self.page.locator("#asof, #loading").first.wait_for(state="attached", timeout=90_000)
        if self.page.locator("a.live").count(): self.page.locator("a.live").click()
        self.page.locator(".scalai .headline").wait_for(timeout=90_000)
        if drawn: self.page.locator(".bqplot svg.svg-figure, .bqplot > svg").first.wait_for(timeout=90_000)
        self.settle()

    def settle(self): self.page.wait_for_timeout(1200)
    def shot(self, name):
        OUTPUT.mkdir(exist_ok=True)
        return self.page.screenshot(path=OUTPUT / f"{name}.png", full_page=True)
    def picture(self, n):
        # all that is drawn, as SVG
        return self.page.locator(".scalai .bqplot").nth(n).evaluate("figure => figure.outerHTML")
    def until(self, true, seconds=60):
        for _ in range(seconds * 10):
            if true(): return
            self.page.wait_for_timeout(100)
        assert true()
    def choose(self, label, word):
        "The option with this word in it: a column that moved says so in its option."
        options = self.page.get_by_label(label, exact=True)
        options.select_option(options.locator("option", has_text=word).first.inner_text())
    def sideways(self): return self.page.evaluate("document.documentElement.scrollWidth - window.innerWidth")


def test_drift(chromium, dash):
    "From the sentence to a window, to a column, to the bins that moved: each control changes its picture."
    with Visit(chromium, dash) as visit:
        visit.open("Drift")
        page = visit.page
        assert page.title() == "Drift" and "token" not in page.url
        assert "2013-12" in page.locator(".headline").inner_text()
        visit.shot("drift")
        column = visit.picture(1)
        page.get_by_label("Window", exact=True).select_option("2013-10")
        page.locator("h2", has_text="2013-10 against its reference").wait_for()
        visit.until(lambda: visit.picture(1) != column)
        assert "dep_delay" in page.get_by_label("Column", exact=True).locator("option").first.inner_text()
        # a clock that is twenty minutes fast: median −2 → 17 min
        assert "17" in page.locator("ul.why li").first.inner_text()
        assert "points" in page.locator("table").last.inner_text()
        shown = visit.picture(1)
        visit.choose("Column", "carrier")
        visit.until(lambda: visit.picture(1) != shown)
        visit.shot("drift-october")
        grid = page.locator(".scalai .bqplot").first  # a control too
        width, height = (grid.bounding_box()[k] for k in ("width", "height"))
        at = lambda column, row: {
            "x": 110 + (width - 128) * (column + 0.5) / 12,
            "y": 6 + (height - 56) * (row + 0.5) / 13,
        }
        grid.click(position=at(7, 0))
        page.locator("h2", has_text="2013-08 against its reference").wait_for()
        grid.click(position=at(9, 0))  # where a dot says that it moved
        page.locator("h2", has_text="2013-10 against its reference").wait_for()
        assert page.locator("h3").first.inner_text() == "dep_delay"


def test_performance(chromium, dash):
    "With labels and without, before anybody chooses anything; each measure, window and version its own picture."
    with Visit(chromium, dash) as visit:
        visit.open("Performance")
        page = visit.page
        told = page.locator(".scalai").inner_text()
        assert "estimated without labels" in told and re.search(
            r"2013-12: 0\.\d+ with labels .* estimated without \(0\.\d+ … 0\.\d+\)", told
        )
        visit.shot("performance")
        scores = visit.picture(0)
        page.get_by_role("button", name="Sharpness: skill").click()
        visit.until(lambda: visit.picture(0) != scores)
        page.get_by_label("Window", exact=True).select_option("2013-10")
        visit.until(lambda: "2013-10" in page.locator("tr.now").inner_text())
        scores = visit.picture(0)
        page.get_by_label("Segment", exact=True).select_option("origin JFK")
        visit.until(lambda: visit.picture(0) != scores)
        visit.shot("performance-segment")
        page.get_by_label("Version", exact=True).select_option("version 2")
        visit.until(lambda: "2013-12" in page.locator("tr.now").inner_text())
        assert "2013-09" not in page.locator("table").last.inner_text()


def test_runs(chromium, dash):
    "What failed is said first; another run, another picture."
    with Visit(chromium, dash) as visit:
        visit.open("Runs")
        page = visit.page
        assert "needs you" in page.locator(".headline").inner_text()
        assert "25.1 GiB" in page.locator(".scalai").inner_text()
        visit.shot("runs")
        before = visit.picture(0)
        page.get_by_label("Run", exact=True).select_option(index=1)
        page.locator("td", has_text="monitor").wait_for()
        visit.until(lambda: visit.picture(0) != before)
        page.get_by_label("Show", exact=True).select_option("what failed")
        visit.until(lambda: page.get_by_label("Run", exact=True).locator("option").count() == 1)


def drawn(file) -> tuple[int, bool]:  # pixels across; whether there is more than one colour in it
    "What a picture holds."
    import matplotlib.image
    pixels = matplotlib.image.imread(file)
    return pixels.shape[1], len({tuple(p) for p in pixels[::9, ::9, :3].reshape(-1, 3)}) > 4


def rows(link) -> list[dict]:
    "What a download holds."
    return list(
        csv.DictReader(io.StringIO(unquote(link.get_attribute("href")).split(",", 1)[1].removeprefix("\ufeff")))
    )


def test_a_snapshot_first_and_the_state_in_the_link(chromium, dash):
    "The page that was made before opens with its pictures; the live one behind it keeps what it shows in its address."
    with dash.visitor() as visitor: snapshot(visitor, "drift")
    with Visit(chromium, dash) as visit:
        page = visit.page
        page.goto(f"{dash.url}/apps/drift")
        assert re.match(r"As of 20\d\d-\d\d-\d\d \d\d:\d\d:\d\d UTC\.", page.locator("#asof").inner_text())
        assert page.locator(".paper svg[role=img]").count() == 2 and not page.locator(".bqplot").count()
        assert "window: month of 2013" in page.locator(".paper svg[role=img]").first.get_attribute("aria-label")
        visit.shot("drift-snapshot")
        found = rows(page.get_by_label("Download what-moved as CSV"))
        assert {r["window"] for r in found} == {f"2013-{m:02}" for m in range(6, 13)} and next(
            r for r in found if r["window"] == "2013-10" and r["name"] == "dep_delay"
        )["drifted"] == "True"
        with page.expect_download() as got:
            page.get_by_label("Download what-moved as PNG").click()  # no kernel is asked
        assert got.value.suggested_filename == "what-moved.png" and drawn(got.value.path()) == (2 * 1152, True)
        page.locator("a.live").click()
        page.locator(".bqplot svg.svg-figure, .bqplot > svg").first.wait_for(timeout=60_000)
        page.get_by_label("Window", exact=True).select_option("2013-10")
        page.locator("h2", has_text="2013-10 against its reference").wait_for()
        visit.choose("Column", "carrier")
        page.locator("h3", has_text="carrier").wait_for()
        visit.until(lambda: "column=carrier" in page.url)
        with page.expect_download() as got: page.get_by_label("Download carrier-2013-10 as CSV").click()
        told = got.value.path().read_text("utf-8-sig")
        assert (
            got.value.suggested_filename == "carrier-2013-10.csv"
            and told.startswith("value,reference,window")
            and "\nUA," in told
        )
        page.get_by_label("Segment", exact=True).select_option("origin LGA")
        page.locator("h2", has_text="2013-10, origin LGA, against its reference").wait_for()
        visit.until(lambda: "segment=origin%3DLGA" in page.url)
        visit.shot("drift-segment")
        page.goto(page.url)  # somebody else opens the link
        page.locator("h2", has_text="2013-10, origin LGA, against its reference").wait_for(timeout=90_000)
        assert page.locator("h3").first.inner_text() == "carrier"
        assert page.get_by_label("Window", exact=True).locator("option:checked").inner_text() == "2013-10"
        page.goto(f"{dash.url}/apps/performance?measure=bias")
        page.get_by_role("button", name="Level: bias").wait_for(timeout=90_000)
        assert page.get_by_role("button", name="Level: bias").evaluate("b => b.classList.contains('mod-active')")
        page.goto(f"{dash.url}/apps/drift?window=2031-01")
        page.get_by_text("This workspace has no window 2031-01").wait_for(timeout=90_000)


def test_hostile_names_are_text(chromium, tmp_path):
    "A column, a value, a workspace and an app that would be markup or a formula are shown as they are."
    import pandas as pd

    from scalai_nb.core.settings import Settings
    from scalai_nb.data import profile_store
    from scalai_nb.data.profile import profile
    root = tmp_path / "<i>"
    root.mkdir()
    (root / "settings.ini").write_text("[apps]\nkernels = 4\n")
    evil, formula = "<img src=x onerror=alert(1)>", '=HYPERLINK("http://evil.example","pay")'
    for m, share in ((1, .1), (2, .8)):
        rows_ = pd.DataFrame(
            {evil: [formula if i < 1000 * share else "</style><script>alert(2)</script>" for i in range(1000)]}
        )
        profile_store.record(
            "features", {f"2013-0{m}": profile(rows_)}, batch=f"b{m}", by="period", settings=Settings.load(root)
        )
    some(root, "drift")
    with Dash(root) as dash, Visit(chromium, dash) as visit, dash.visitor() as visitor:
        visit.page.on("dialog", lambda d: visit.problems.append(d.message))
        snapshot(visitor, "drift")
        for path in ("/", "/apps/drift", "/apps/drift?live=1", "/apps/drift?window=%3Cscript%3Ealert(3)%3C/script%3E"):
            visit.page.goto(dash.url + path)
            if path == "/": assert "<i>" in visit.page.locator("code").first.inner_text(); continue
            visit.page.locator("h3", has_text=evil).wait_for(timeout=90_000)
            visit.settle()
            assert not visit.page.locator("img[src=x]").count()
            link = visit.page.locator("a.csv").last
            assert [r["value"] for r in rows(link)].count("'" + formula) == 1


def test_an_empty_workspace_says_what_to_run(chromium, tmp_path):
    (tmp_path / "settings.ini").write_text("[workspace]\nhome = .scalai\n")
    some(tmp_path, "home", "drift")
    with Dash(tmp_path) as dash, Visit(chromium, dash) as visit:
        visit.shot("home")
        for app in ("home", "drift"):
            visit.page.goto(f"{dash.url}/apps/{app}")
            visit.page.locator(".headline").wait_for(timeout=90_000)
            assert "scalai ingest FILE TABLE" in visit.page.locator(".headline").inner_text()


def test_a_lost_session_says_so(chromium, workspace):
    "A page whose kernel is gone does not look alive."
    with Dash(workspace, good="import ipywidgets\nipywidgets.HTML('<b id=here>42</b>')") as dash, Visit(
        chromium, dash
    ) as visit:
        visit.page.get_by_role("link", name="The good app").click()
        visit.page.locator("#here").wait_for(timeout=60_000)
        visit.page.locator("#scalai-lost").wait_for(state="hidden")
        for kernel in dash.kernels(): kernel.kill()
        dash.called("scalai_nb.dash.voila_server")[0].kill()
        visit.page.locator("#scalai-lost").wait_for(state="visible", timeout=90_000)
        visit.problems.clear()  # the browser itself reports the failed connection
