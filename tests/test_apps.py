"""All dashboards of a whole workspace, as a visitor walks through them: a real browser that reaches nothing but this
machine."""

import re
import shutil

import pytest
from axe_playwright_python.sync_playwright import Axe
from conftest import until
from test_browser import APPS, Visit, chromium, drawn, rows  # noqa: F401 (a fixture)
from test_dash import VIEWER, Dash
from watched import ingested, registered, watched

from scalai_nb.core.settings import Settings
from scalai_nb.training.registry import Registry

pytestmark = pytest.mark.slow
ALL = ["Home", "Drift", "Performance", "Quality", "Model", "Runs"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    "Windows, scores, decisions, runs, a table with a quarantine and a model with three versions."
    root = tmp_path_factory.mktemp("whole")
    for make in (watched, ingested, registered): make(root)
    shutil.copytree(APPS, root/"apps")
    with Dash(root) as dash:
        dash.root = root
        yield dash


def snapshot(dash, app: str) -> None:
    "Wait until an app has one, however busy the machine is."
    with dash.visitor() as visitor: until(lambda: visitor.get(f"/api/snapshots/{app}").status_code == 200, 300)


def test_a_visitors_whole_path(chromium, whole):
    """Home → drift → a column → performance → promote:

    each page leads to the next, and only the last one changes anything."""
    for app in ("home", "drift"): snapshot(whole, app)
    with Visit(chromium, whole) as visit:
        page = visit.page
        page.goto(f"{whole.url}/apps/home")
        assert "need you" in page.locator(".headline").inner_text() and page.locator("table tr").count() >= 7
        visit.shot("path-1-home")
        page.get_by_role("link", name="Drift", exact=True).click()
        page.locator("a.live").click()
        page.get_by_label("Window", exact=True).select_option("2013-10", timeout=90_000)
        page.locator("h2", has_text="2013-10 against its reference").wait_for()
        page.get_by_label("Column", exact=True).select_option("dep_delay · moved")
        page.locator("h3", has_text="Where its values went").wait_for()
        visit.until(lambda: "→ 17" in page.locator("ul.why").inner_text() and "column=dep_delay" in page.url)
        visit.shot("path-2-drift")
        page.get_by_role("link", name="How good the scores were").click()
        visit.until(lambda: "2013-10" in page.locator("tr.now").inner_text(), 90)
        assert "retrain" in page.locator("tr.now").inner_text()
        with page.expect_download() as got:
            page.get_by_label("Download auc-by-window as PNG").click()  # of the live page's own figure
        assert drawn(got.value.path())[1]
        assert (
            next(r for r in rows(page.get_by_label("Download auc-by-window as CSV")) if r["window"] == "2013-10")[
                "estimate_trusted"
            ]
            == "False"
        )
        visit.shot("path-3-performance")
        page.goto(f"{whole.url}/apps/model?version=3")
        page.get_by_role("button", name="Promote version 3 …").click(timeout=90_000)
        page.get_by_role("button", name="Promote version 3", exact=True).click()
        page.get_by_text("Say why").wait_for()
        page.get_by_label("Why (it is kept)").fill("three epochs are better than one")
        page.get_by_role("button", name="Promote version 3", exact=True).click()
        page.get_by_text("late, version 3 serves now.").wait_for()
        assert "Version 3 of late serves" in page.locator(".headline").inner_text()
        visit.shot("path-4-promote")
    found = Registry(Settings.load(whole.root)).champion("late")
    assert found.version == 3 and found.tags["reason"].startswith("three epochs")


def test_who_only_looks_promotes_nothing(chromium, whole):
    "A viewer sees the same page, with a button that cannot be pressed and the reason beside it."
    with Visit(chromium, whole) as visit:
        page = visit.page
        page.context.clear_cookies()
        page.goto(f"{whole.url}/apps/model?version=1&token={VIEWER}")
        button = page.get_by_role("button", name="Promote version 1 …")
        button.wait_for(timeout=90_000)
        assert button.is_disabled() and "as a viewer" in page.locator(".scalai").first.inner_text()


def serious(page) -> str:
    "What axe finds that would keep somebody out."
    return "\n".join(
        f"{v['id']}: {v['help']}: {[n['html'][:160] for n in v['nodes'][:4]]}"
        for v in Axe().run(page).response["violations"]
        if v["impact"] in ("serious", "critical")
    )


@pytest.mark.parametrize("path", ["/", "/login", *(f"/apps/{a.lower()}" for a in ALL)])
def test_axe_finds_nothing_serious(chromium, whole, path):
    if path.startswith("/apps"): snapshot(whole, path.split("/")[2])
    with Visit(chromium, whole) as visit:
        visit.page.goto(whole.url + path)
        for scheme in ("light", "dark"):
            visit.page.emulate_media(color_scheme=scheme)
            assert not (found := serious(visit.page)), found


@pytest.mark.parametrize("app", ALL)
def test_live_on_a_phone_at_night_and_on_a_desk_by_day(chromium, whole, app):
    "Nothing runs off the side, the dark page is dark, and axe finds nothing serious."
    with Visit(chromium, whole, width=390, scheme="dark") as visit:
        if app == "Home": visit.shot("start-phone")
        visit.open(app, drawn=app != "Home")
        visit.shot(f"{app.lower()}-phone-dark")
        assert visit.sideways() <= 0
        ground = visit.page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert max(map(int, re.findall(r"\d+", ground)[:3])) < 60, ground
        visit.page.set_viewport_size({"width": 1280, "height": 900})
        visit.page.emulate_media(color_scheme="light")
        visit.settle()
        assert not (found := serious(visit.page)), found
