"What cannot be read is named and the rest is shown; what is out of date says so; a page reads what it draws."
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import small_disk
from test_browser import Visit, chromium  # noqa: F401 (a fixture)
from test_dash import PAPER, Dash, snapshot

from scalai_nb.core.settings import Settings
from scalai_nb.loop import decisions

sys.path.insert(0, str(Path(__file__).parent/"bench"))


def wide(root: Path, windows: int, columns: int) -> Settings:
    from wide import workspace
    return workspace(root, windows, columns, rows=300)


def test_a_page_opens_only_the_windows_that_it_draws(workspace):
    """Of sixty windows those that are compared, a few at a time; the next page opens only the one that is looked at
    and its reference."""
    from scalai_nb.view.watch import RECENT, Page, Watch
    settings = wide(workspace, 60, 8)
    cold = Watch(settings, ignore=("c003",))
    assert len(cold.windows) == 60 and cold.windows.reads <= RECENT + 12
    page = Page(cold)
    assert len(cold.windows.open) <= 2 and cold.windows.reads <= 2*RECENT + 5*12
    warm = Watch(settings, ignore=("c003",))
    assert warm.windows.reads == 0
    again = Page(warm)
    assert warm.windows.reads <= 1 + 12 and again.static == page.static
    assert [v for _, v in again.since.options][:2] == ["", "all"] and len(again.window.options) == 48


def test_one_broken_decision_and_one_broken_window_cost_nothing_else(workspace):
    from scalai_nb.view.home import lines, summary
    from scalai_nb.view.scores import Scores
    from scalai_nb.view.watch import Page, Watch
    settings = wide(workspace, 6, 4)
    for month in (4, 5):
        decisions.record("late", f"2000-{month:02}", "keep", [], {}, ["2000-02"], 1, settings=settings)
    settings.path("decisions", "late", "2000-05.json").write_text('{"model": "late", "per')
    first = min(Path(settings.path("windows")).rglob("*.parquet"), key=lambda f: f.stat().st_mtime_ns)
    first.write_bytes(first.read_bytes()[:-500])
    watch = Watch(settings)
    assert (
        watch.periods == [f"2000-{m:02}" for m in range(2, 7)]
        and list(watch.decisions) == ["2000-04"]
        and len(watch.unread) == 2
    )
    for view in (Page(watch), Scores(watch)):
        assert 'class="unread"' in view.static and "late/2000-05" in view.static and first.name in view.static
    found = lines(settings)
    assert (
        summary(found)[0] == "act"
        and sum(x.what == "Unreadable" for x in found) == 2
        and any(x.what == "Drift" and x.level != "unknown" for x in found)
    )


def test_a_corrupt_database_is_a_line_of_the_home_page(workspace):
    from scalai_nb.jobs.job_run import JobRun
    from scalai_nb.jobs.record import Record
    from scalai_nb.view.fingerprint import state
    from scalai_nb.view.home import lines
    settings = wide(workspace, 4, 3)
    Record(settings).create(JobRun(name="score", state="succeeded", notebook="score.ipynb"))
    before = state(settings)
    for file in settings.home.glob("scalai.db*"): file.unlink()
    (settings.home/"scalai.db").write_bytes(b"this is no database" * 1000)  # as a broken copy that was put back
    assert state(settings) != before
    found = {x.what: x for x in lines(settings)}
    assert (
        found["Runs"].level == "act" and "read" in found["Runs"].sentence and found["Drift"].level != "unknown"
    ), found


@pytest.mark.slow
def test_an_open_page_says_within_ten_seconds_that_it_is_out_of_date(chromium, workspace):  # noqa: F811
    "Also when the newer one cannot be made, and when the gateway is gone."
    (workspace/"said.txt").write_text("one")
    with Dash(workspace, paper=PAPER) as dash, dash.visitor() as visitor:
        snapshot(visitor, "paper")
        with Visit(chromium, dash) as visit:
            visit.page.goto(f"{dash.url}/apps/paper")
            assert "Out of date" not in visit.page.locator("#asof").inner_text()
            (workspace/"said.txt").unlink()
            decisions.record("late", "2013-06", "keep", [], {}, ["2013-01"], 1, settings=Settings.load(workspace))
            began = time.monotonic()
            visit.page.locator("#asof:is(.old, .failed)", has_text="Out of date").wait_for(timeout=30_000)
            took = time.monotonic() - began
            visit.shot("stale-light")
            visit.page.emulate_media(color_scheme="dark")
            visit.shot("stale-dark")
            visit.page.locator("#asof.failed", has_text="could not be made").wait_for(timeout=60_000)
            dash.end()
            visit.page.locator("#asof.unknown", has_text="do not answer").wait_for(timeout=30_000)
            visit.problems.clear()  # the browser itself reports the failed connection
    assert took < 10, took


@pytest.mark.slow
def test_a_full_disk_is_said_and_the_last_page_stays(workspace):
    "No room for a newer page: the old one is shown as out of date, with what went wrong; room again, and it is made."
    (workspace/"said.txt").write_text("one")
    def inside(dash, script):
        subprocess.run(
            ["nsenter", "-t", str(dash.process.pid), "-m", "sh", "-c", script],
            cwd=workspace,
            capture_output=True,
            timeout=60,
        )
    def changed(text):
        (workspace/"said.txt").write_text(text)
        (workspace/"settings.ini").touch()
    with Dash(workspace, within=small_disk(workspace), paper=PAPER) as dash, dash.visitor() as visitor:
        snapshot(visitor, "paper")
        inside(dash, f"cat /dev/zero > {workspace}/.scalai/rest")
        changed("two")
        snapshot(visitor, "paper", "failed")
        page = visitor.get("/apps/paper")
        assert (
            page.status_code == 200
            and "The window says one" in page.text
            and "Out of date" in page.text
            and "could not be made" in page.text
        )
        assert visitor.get("/").status_code == 200 and "No space left on device" in dash.log.read_text()
        inside(dash, f"rm {workspace}/.scalai/rest")
        changed("three")
        snapshot(visitor, "paper")
        assert "The window says three" in visitor.get("/apps/paper").text


def test_being_made_ends_with_a_reason(workspace):
    "Where the workspace cannot be seen, and where another page takes its time."
    from scalai_nb.dash import snapshot as module
    snapshots = module.Snapshots({}, Settings.load(workspace))
    assert snapshots.delay_reason("drift") == ""
    snapshots.waiting_since["drift"] -= module.TIMEOUT + 1
    snapshots.problem = "OSError: No space left on device"
    assert "No space left" in snapshots.delay_reason("drift")
    snapshots.now["drift"], snapshots.making = "s", "home"
    assert snapshots.delay_reason("drift") == "home is being made first"
    snapshots.seen_at["drift"] = time.monotonic() - module.BLIND_AFTER - 1
    assert snapshots.status("drift") == "unknown"
