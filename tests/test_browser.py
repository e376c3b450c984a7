"The dashboards as a visitor sees them: a real browser that may reach nothing but this machine."
import os, re, shutil
from pathlib import Path

import pytest
from playwright.sync_api import sync_playwright

from test_dash import Dash
from watched import watched

OUTPUT = Path(__file__).parent / "output"
APPS = Path(__file__).parents[1] / "apps"
FLAGS = "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update --disable-sync".split()


@pytest.fixture(scope="module")
def dash(tmp_path_factory):
    "The apps on a workspace as the loop leaves it."
    root = tmp_path_factory.mktemp("watched")
    watched(root)
    shutil.copytree(APPS, root / "apps")
    with Dash(root) as dash: yield dash


@pytest.fixture(scope="module")
def chromium():
    path = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    assert path, "There is no Chromium here. Install it (Debian: apt-get install chromium), or name it in the variable CHROMIUM."
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=FLAGS)
        yield browser
        browser.close()


class Visit:
    "A page that must stay on this machine and complain of nothing."
    def __init__(self, chromium, dash, width=1280, scheme="light"):
        self.dash, self.problems = dash, []
        self.page = chromium.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme).new_page()
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

    def open(self, app):
        self.page.get_by_role("link", name=app).click()
        self.page.locator(".scalai .headline").wait_for(timeout=90_000)
        self.page.locator(".bqplot svg.svg-figure, .bqplot > svg").first.wait_for(timeout=30_000)
        self.settle()

    def settle(self): self.page.wait_for_timeout(1200)
    def shot(self, name):
        OUTPUT.mkdir(exist_ok=True)
        return self.page.screenshot(path=OUTPUT / f"{name}.png", full_page=True)
    def picture(self, n): return self.page.locator(".scalai .bqplot").nth(n).evaluate("figure => figure.outerHTML")  # all that is drawn, as SVG
    def until(self, true, seconds=20):
        for _ in range(seconds * 10):
            if true(): return
            self.page.wait_for_timeout(100)
        assert true()
    def sideways(self): return self.page.evaluate("document.documentElement.scrollWidth - window.innerWidth")


def test_drift(chromium, dash):
    "From the sentence to a window, to a column: each control changes its picture."
    with Visit(chromium, dash) as visit:
        visit.open("Drift")
        page = visit.page
        assert page.title() == "Drift" and "token" not in page.url
        assert "2013-12" in page.locator(".headline").inner_text()
        visit.shot("drift")
        scores = visit.picture(0)
        page.get_by_role("button", name="Ranking: AUC").click()
        visit.settle()
        visit.until(lambda: visit.picture(0) != scores)
        assert "estimated without labels" in page.locator(".scalai").inner_text()
        column = visit.picture(2)
        page.get_by_label("Window").select_option("2013-10")
        page.locator("h2", has_text="2013-10 against its reference").wait_for()
        visit.until(lambda: visit.picture(2) != column)
        assert "dep_delay" in page.get_by_label("Column").locator("option").first.inner_text()
        assert "17" in page.locator("ul.why li").first.inner_text()  # a clock that is twenty minutes fast: median −2 → 17 min
        shown = visit.picture(2)
        page.get_by_label("Column").select_option("carrier")
        visit.until(lambda: visit.picture(2) != shown)
        visit.shot("drift-october")


def test_a_cell_answers_to_a_click(chromium, dash):
    "The grid is a control too."
    with Visit(chromium, dash) as visit:
        visit.open("Drift")
        grid = visit.page.locator(".scalai .bqplot").nth(1)
        width, height = (grid.bounding_box()[k] for k in ("width", "height"))
        at = lambda column, row: {"x": 110 + (width - 128) * (column + .5) / 12, "y": 6 + (height - 56) * (row + .5) / 13}
        grid.click(position=at(7, 0))
        visit.page.locator("h2", has_text="2013-08 against its reference").wait_for(timeout=20_000)
        grid.click(position=at(9, 0))  # where a dot says that it moved
        visit.page.locator("h2", has_text="2013-10 against its reference").wait_for(timeout=20_000)
        assert visit.page.locator("h3").first.inner_text() == "dep_delay"


def test_runs(chromium, dash):
    "What failed is said first; another run, another picture."
    with Visit(chromium, dash) as visit:
        visit.open("Runs")
        page = visit.page
        assert "needs you" in page.locator(".headline").inner_text()
        assert "25.1 GiB" in page.locator(".scalai").inner_text()
        visit.shot("runs")
        before = visit.picture(0)
        page.get_by_label("Run").select_option(index=1)
        page.locator("td", has_text="monitor").wait_for()
        visit.until(lambda: visit.picture(0) != before)
        page.get_by_label("Show").select_option("what failed")
        visit.until(lambda: page.get_by_label("Run").locator("option").count() == 1)


@pytest.mark.slow
@pytest.mark.parametrize("app", ["Drift", "Runs"])
def test_on_a_phone_at_night(chromium, dash, app):
    "Nothing runs off the side, and the dark page is dark."
    with Visit(chromium, dash, width=390, scheme="dark") as visit:
        visit.shot("home-phone")
        visit.open(app)
        visit.shot(f"{app.lower()}-phone-dark")
        assert visit.sideways() <= 0
        ground = visit.page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert max(map(int, re.findall(r"\d+", ground)[:3])) < 60, ground


def test_an_empty_workspace_says_what_to_run(chromium, tmp_path):
    (tmp_path / "settings.ini").write_text("[workspace]\nhome = .scalai\n")
    shutil.copytree(APPS, tmp_path / "apps")
    with Dash(tmp_path) as dash, Visit(chromium, dash) as visit:
        visit.shot("home")
        for app in ("Drift", "Runs"):
            visit.page.goto(dash.url)
            visit.page.get_by_role("link", name=app).click()
            visit.page.locator(".headline").wait_for(timeout=90_000)
            assert "scalai demo" in visit.page.locator(".headline").inner_text()


@pytest.mark.slow
def test_a_lost_session_says_so(chromium, workspace):
    "A page whose kernel is gone does not look alive."
    with Dash(workspace, good="import ipywidgets\nipywidgets.HTML('<b id=here>42</b>')") as dash, Visit(chromium, dash) as visit:
        visit.page.get_by_role("link", name="The good app").click()
        visit.page.locator("#here").wait_for(timeout=60_000)
        visit.page.locator("#scalai-lost").wait_for(state="hidden")
        for kernel in dash.kernels(): kernel.kill()
        next(p for p in dash.family() if "scalai_nb.dash.voila" in " ".join(p.cmdline())).kill()
        visit.page.locator("#scalai-lost").wait_for(state="visible", timeout=30_000)
        visit.problems.clear()  # the browser itself reports the failed connection
