"The whole loop from the outside: rows conserved, nothing done twice, decisions that follow from the data."

import shutil
import signal
import subprocess
from pathlib import Path

import pyarrow as pa
import pytest
from conftest import leaves, naming, nobody_left, own_copy, scalai, started, until

from scalai_nb.core.resources import shipped
from scalai_nb.core.settings import Settings
from scalai_nb.data.table import Table
from scalai_nb.loop.decisions import decisions
from scalai_nb.loop.flights import month_rows, period
from scalai_nb.training.registry import Registry
from scalai_nb.training.reproduce import repeat

pytestmark = pytest.mark.timeout(1800)  # where many others work


def content(folder: Path, name: str, *but: str) -> pa.Table:
    "A table's rows, without some columns, in an order of their own, so that two tables can be compared."
    rows = Table(name, Settings.load(folder)).arrow().drop_columns(list(but))
    return rows.sort_by([(c, "ascending") for c in sorted(rows.column_names)]).select(sorted(rows.column_names))


def test_run_has_the_stated_shape(demo):
    doc = demo.doc
    assert {"id", "state", "notebook", "output", "seconds", "parameters", "results", "error", "steps"} <= set(doc)
    assert doc["state"] == "succeeded" and doc["error"] is None
    names = [s["name"].split("[")[0] for s in doc["steps"]]
    assert names[:4] == ["ingest", "join", "profile", "model"] and names.count("month") == 2
    for leaf in leaves(doc):
        assert leaf["state"] in ("succeeded", "skipped")
        if leaf["state"] == "succeeded": assert Path(demo.folder, leaf["output"]).is_file()


def test_rows_are_conserved(demo):
    settings = Settings.load(demo.folder)
    flights = Table("flights", settings)
    good = {k: p.rows for k, p in flights.profiles(by="period").items()}
    refused = flights.quarantine.arrow()
    for month in range(1, 4):
        given = month_rows(month, shuffle=7).num_rows
        kept = flights.arrow(columns=["month"], filter=[("month", "==", month)]).num_rows
        bad = sum(int(m) == month for m in refused["month"].to_pylist())
        assert given == kept + bad and good[period(month)] == kept and bad > 0
    assert Table("features", settings).rows == sum(good.values())
    assert Table("scores", settings).rows == sum(good[period(m)] for m in (2, 3))


def test_a_second_run_skips_and_takes_seconds(demo):
    again = scalai("demo", demo.folder, "--months", 3, "--shuffle", 7, "--json")
    assert again.code == 0
    states = {leaf["state"] for leaf in leaves(again.doc)}
    assert states == {"skipped"}
    assert again.seconds < demo.seconds/2


def test_the_story_ends_with_the_line_to_type(demo):
    told = scalai("demo", demo.folder, "--months", 3, "--shuffle", 7)
    assert told.code == 0 and "skipped: nothing new to do" in told.out
    line = told.out.splitlines()[-1].removeprefix("Dashboards:").strip()
    assert line.startswith(f"cd {demo.folder} && ") and line.endswith(" dash")
    assert subprocess.run(line + " --help", shell=True, capture_output=True).returncode == 0, line
    for month in range(1, 4): assert period(month) in told.out


def test_nothing_is_left_running(demo):
    nobody_left(demo.folder)


def test_candidates_were_measured_and_one_serves(demo):
    by_name = {leaf["name"]: leaf for leaf in leaves(demo.doc)}
    assert by_name["gate"]["results"]["passed"] is True
    models = scalai("models", "list", "--json", cwd=demo.folder).doc["models"]
    assert any("champion" in m["aliases"] for m in models if m["name"] == "late")


def test_the_record_knows_what_ran(demo):
    runs = scalai("runs", "--json", cwd=demo.folder).doc["runs"]
    assert any(r["id"] == demo.doc["id"] and r["state"] == "succeeded" for r in runs)


def test_another_experiment_wants_another_workspace(demo):
    other = scalai("demo", demo.folder, "--months", 3, "--shuffle", 3)
    assert other.code == 2 and len(other.lines) == 2


@pytest.mark.slow
def test_ranks_are_descendants_of_dask_workers(two_months):
    "Each training process hangs below a worker process that Dask started."
    assert len(two_months.ranks) >= 3, "an agent and two ranks at the least"
    for ancestors in two_months.ranks.values():
        assert any("multiprocessing" in a and "spawn" in a for a in ancestors), ancestors


@pytest.mark.slow
def test_stopped_and_killed_anywhere_it_ends_the_same(two_months, tmp_path):
    """Ctrl-C in the middle of a step:

    exit code 130, the line to type. SIGKILL in others. Nobody is left; and by the same command the tables at last
    are those of an undisturbed demo."""
    folder = tmp_path/"d"
    for step, how in (
        ("flights", signal.SIGINT),  # the notebook that ingests
        ("flights", signal.SIGKILL),
        ("train", signal.SIGKILL),
        ("monitor", signal.SIGKILL),
    ):
        process = started("demo", folder, "--months", 2, "--shuffle", 7)
        def runs():
            assert process.poll() is None, f"{step} was never seen running"
            return running(folder, step)
        until(runs, 600)
        process.send_signal(how)
        out, err = process.communicate(timeout=120)
        assert process.returncode == (130 if how == signal.SIGINT else -how), err
        if how == signal.SIGINT: assert "Traceback" not in err and f"to go on: scalai demo {folder} --months 2" in out
        nobody_left(folder, within=30)
    again = scalai("demo", folder, "--months", 2, "--shuffle", 7, "--json", timeout=1500)
    assert again.code == 0, again.err[-3000:]
    for name in ("flights", "weather", "features"):
        assert content(folder, name).equals(content(two_months.folder, name)), name
    assert Table("scores", Settings.load(folder)).rows == Table("scores", Settings.load(two_months.folder)).rows
    ids = Table("scores", Settings.load(folder)).arrow(columns=["flight_id"])["flight_id"]
    assert len(ids.unique()) == len(ids)
    assert set(decided(folder)) == {period(2)}


def decided(folder: Path) -> dict[str, str]:
    return {d["period"]: d["action"] for d in decisions(Settings.load(folder))}


@pytest.mark.slow
def test_shuffled_months_are_kept_and_a_planted_shift_retrains(tmp_path):
    done = scalai("demo", tmp_path/"d", "--months", 4, "--shuffle", 7, "--shift", 4, "--json", timeout=1500)
    assert done.code == 0, done.err[-3000:]
    assert decided(tmp_path/"d") == {period(2): "keep", period(3): "keep", period(4): "retrain"}
    entry = next(d for d in decisions(Settings.load(tmp_path/"d")) if d["period"] == period(4))
    assert entry["outcome"] in ("promoted", "refused") and any("dep_delay" in r for r in entry["reasons"])


@pytest.mark.slow
def test_a_challenger_that_learnt_nothing_is_refused(two_months, tmp_path):
    folder = own_copy(two_months, tmp_path/"d").root
    before = scalai("models", "show", "late", "--json", cwd=folder).doc["version"]
    done = scalai(
        "run",
        "workflows/model.toml",
        "-p",
        "periods=[\"2013-01\"]",
        "-p",
        "judged=2013-02",
        "-p",
        "shuffle_labels=true",
        "-p",
        "strict=true",
        "--json",
        cwd=folder,
    )
    assert done.code == 1 and done.doc["state"] == "failed"
    gate = next(leaf for leaf in leaves(done.doc) if leaf["name"] == "gate")
    assert "Refused" in gate["error"]["message"]
    assert scalai("models", "show", "late", "--json", cwd=folder).doc["version"] == before


@pytest.mark.slow
def test_a_moved_workspace_is_whole(tmp_path):
    """After the demo its folder has another name and the first is gone:

    nothing names it; the demo is done already; it scores, compresses, repeats a training, and every dashboard and
    log opens."""
    here, there = tmp_path/"first folder", tmp_path/"second"
    made = scalai("demo", here, "--months", 2, "--shuffle", 7, "--json", timeout=1500)
    assert made.code == 0, made.err[-3000:]
    shutil.move(here, there)
    # what was said at the time
    settings, told = Settings.load(there), ("/log.jsonl", "/notebook.ipynb", "/_delta_log/")
    registry = Registry(settings)
    assert registry.champion("late").path.is_relative_to(there)  # whoever opens the registry brings its paths along
    assert [n for n in naming(here, there) if not any(t in n for t in told)] == []

    again = scalai("demo", there, "--months", 2, "--shuffle", 7, "--json")
    assert again.code == 0 and {leaf["state"] for leaf in leaves(again.doc)} == {"skipped"}, again.err
    for run in scalai("runs", "--steps", "--limit", 200, "--json", cwd=there).doc["runs"]:
        assert run["output"] is None or Path(run["output"]).is_file() and not run["output"].startswith(str(here)), run
    gate = next(leaf for leaf in leaves(again.doc) if leaf["name"] == "gate")
    assert scalai("logs", gate["id"], cwd=there).code == 0
    flow = scalai(
        "run",
        "workflows/model.toml",
        "-p",
        'periods=["2013-01"]',
        "-p",
        "judged=2013-02",
        "--from",
        "gate",
        "--json",
        cwd=there,
    )
    assert flow.code == 0, flow.err[-3000:]  # the files it is about are those that were made before

    scored = scalai(
        "score", "late", there / ".scalai" / "tables" / "features", "again", "--key", "flight_id", "--json", cwd=there
    )
    assert scored.code == 0, scored.err[-3000:]
    assert scalai("compress", "late", "--json", cwd=there).code == 0
    repeated = repeat(registry.run(registry.champion("late").run_id), settings=settings)
    assert "to the bit" in repeated.params["notes"][-1]
    for app in sorted(shipped("apps").glob("*.ipynb")):
        shown = scalai("run", app, "-o", tmp_path/app.name, cwd=there)
        assert shown.code == 0 and str(here) not in (tmp_path/app.name).read_text(), (app.name, shown.err[-2000:])
    assert not here.exists()


def running(folder: Path, step: str) -> bool:
    "Whether the record says that a step's notebook runs now."
    if not (folder/"settings.ini").is_file() or not (folder/".scalai"/"scalai.db").is_file(): return False
    from scalai_nb.jobs.record import Record
    return any(Path(r.notebook).stem == step for r in Record(Settings.load(folder)).runs(state="running", nested=True))
