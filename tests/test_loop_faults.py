"The loop when it is killed, repeated, or asked about the past: what was decided stays decided."
import hashlib
import multiprocessing
import shutil
import signal
import time
from pathlib import Path

import nbformat
import onnx
import pyarrow.csv as pacsv
import pytest
from conftest import Done, here, leaves, nobody_left, own_copy, scalai, started
from test_demo import content
from test_jobs import write
from test_loop import another

from scalai_nb.core.errors import Unreachable
from scalai_nb.core.settings import Settings
from scalai_nb.data.profile_store import periods
from scalai_nb.data.table import Table
from scalai_nb.jobs.record import Record
from scalai_nb.loop.decisions import conclude, decisions, record, settle
from scalai_nb.loop.flights import month_rows, write_weather
from scalai_nb.loop.probation import restore, serving_version, trial
from scalai_nb.training.registry import Registry

FLOW = """
[[step]]
name = "score"
notebook = "score.ipynb"
each = ["2013-01", "2013-02", "2013-03"]
as = "period"
parameters = { period = "${period}" }
"""

SCORE = """
import os, time
from pathlib import Path
import pandas as pd
from scalai_nb.data.write import write
from scalai_nb.jobs.result import result
by = Path(".scalai/champion").read_text()
rows = pd.DataFrame({"id": [1, 2], "version": [by, by]})
done = write(rows, "scores", period=period, mode="replace-period", batch=f"{by} on {period}")
if period == "2013-02" and Path("kill").exists():
    Path(".scalai/champion").write_text("2")  # a later one, as after a retraining
    os.kill(int(Path("kill").read_text()), 9)
    time.sleep(60)
"""


def test_a_lost_run_s_own_commit_is_its_own(workspace):
    "Killed between the commit and the end of the step: what was scored before stays as it was."
    write(workspace/"score.ipynb", 'period: str = ""', SCORE, "result(version=done.version, by=by)")
    (workspace/"flow.toml").write_text(FLOW)
    (workspace/".scalai").mkdir()
    # in the state, as the registry is: a file of the workspace would be an input of the step
    (workspace/".scalai/champion").write_text("1")
    runner = started("run", "flow.toml")
    (workspace/"kill").write_text(str(runner.pid))
    runner.communicate(timeout=120)
    assert runner.returncode == -signal.SIGKILL
    nobody_left(workspace)
    (workspace/"kill").unlink()
    lost = next(r for r in Record(Settings.load()).runs(state="lost", nested=True) if r.kind == "notebook")
    assert not lost.writes and Table("scores").version == 1
    states = lambda: [s["state"] for s in scalai("run", "flow.toml", "--json").doc["steps"]]
    assert states() == ["skipped", "succeeded", "succeeded"]
    assert sorted(Table("scores").arrow()["version"].to_pylist()) == ["1", "1", "2", "2", "2", "2"]
    other = scalai("run", "score.ipynb", "-p", "period=2013-01")  # another's commit still counts
    assert other.code == 0
    # the second was as the first one asked for, and ends as before
    assert states() == ["succeeded", "succeeded", "skipped"]


def small_demo(folder: Path) -> Path:
    """The demo on a few thousand flights a month.

    Its network is not chosen by measured speed, on which no two runs agree."""
    from scalai_nb.loop.demo import workspace
    root = workspace(folder).root
    settings = (root/"settings.ini").read_text()
    assert "[retrain]" not in settings
    # whatever so small a model loses by it
    (root/"settings.ini").write_text(settings + "\n[retrain]\ntrigger = drift\n")
    write_weather(root/"data")
    for month in range(1, 4):
        rows = month_rows(month, 7, 2).slice(0, 12_000)
        pacsv.write_csv(rows, root/"data"/f"flights-2013-{month:02}.csv")
    book = nbformat.read(file := root/"workflows"/"compress.ipynb", 4)
    cell = next(c for c in book.cells if "budget=file.compress.budget" in c.source)
    cell.source = cell.source.replace("file.compress.budget", 'file.compress.budget, recipes=("float32",)')
    nbformat.write(book, file)
    model = root/"models"/"late.toml"
    model.write_text(model.read_text().replace("epochs = 3", "epochs = 1"))
    return root


SMALL = ("--months", 3, "--shuffle", 7, "--shift", 2)


def result(root: Path) -> dict:
    "All that a demo comes to, but for times and identifiers."
    settings = Settings.load(root)
    bare = lambda d: {k: [bare(t) for t in v] if k == "trail" else v for k, v in d.items() if k != "at"}
    # the file also names its training
    network = lambda path: hashlib.sha256(onnx.load(path).graph.SerializeToString()).hexdigest()
    quality = lambda m: {k: v for k, v in m["metrics"].items() if "ms" not in k}
    versions = [
        (m["version"], m["aliases"], m["tags"], network(m["path"]), quality(m))
        for m in Registry(settings).list("late")
    ]
    count = lambda name: (Table(name, settings).rows, periods(name, settings=settings))
    return dict(
        decisions=[bare(d) for d in decisions(settings)],
        replays=decisions(settings, replays=True),
        versions=versions,
        counts={name: count(name) for name in ("flights", "weather", "features", "scores")},
        scores=content(root, "scores", "batch").to_pylist(),
    )


def killed_at(root: Path, step: int, wait: float) -> bool:  # False: it had ended
    "Run the demo, and kill it some seconds after its n-th notebook began."
    process = started("demo", root, *SMALL)
    def began():
        if not (root/".scalai"/"scalai.db").is_file(): return False
        runs = Record(Settings.load(root)).runs(nested=True, limit=None)
        return sum(r.kind == "notebook" for r in runs) >= step
    while process.poll() is None and not began(): time.sleep(.05)
    time.sleep(wait)
    process.kill()
    process.communicate()
    nobody_left(root)
    return process.returncode == -signal.SIGKILL


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory) -> Done:
    "A small demo that nobody killed."
    home = tmp_path_factory.mktemp("small")
    made = small_demo(home/"made")
    done = scalai("demo", shutil.copytree(made, home/"whole"), *SMALL, "--json", timeout=1500)
    assert done.code == 0, done.err[-3000:]
    done.made, done.folder, done.copy = made, home/"whole", home/"whole"
    return done


@pytest.mark.slow
@pytest.mark.timeout(14_000)
def test_the_demo_killed_anywhere_ends_as_an_unbroken_one(unbroken, tmp_path, rounds):
    """A month calls for a retraining, its version serves, and the next month is scored by it. Decisions, versions,
    scores and counts are those of a run that nobody killed."""
    steps, expected = leaves(unbroken.doc), result(unbroken.folder)
    # where something can go wrong; the others are killed now and then
    delicate = ("score", "monitor", "probation", "promote", "gate")
    late = [i for i, s in enumerate(steps) if s["name"].split("[")[0] in delicate]
    assert [d["version_after"] for d in expected["decisions"]][0] == 2, expected["decisions"]
    kills = 0
    for n, rng in enumerate(rounds.seeds(2, soak=30)):
        root = shutil.copytree(unbroken.made, tmp_path/f"{n}")
        for _ in range(rng.choice([1, 1, 2])):
            at = rng.choice(late) if rng.random() < .8 else rng.randrange(len(steps))
            kills += killed_at(root, at + 1, rng.uniform(0, 1.2)*(steps[at]["seconds"] or 1))
        again = scalai("demo", root, *SMALL, "--json", timeout=1500)
        assert again.code == 0, again.err[-3000:]
        found = result(root)
        for what in expected: assert found[what] == expected[what], (n, what)
        shutil.rmtree(root)
    rounds.note(kills=kills, lost=0, doubled=0)


@pytest.fixture
def loop(demo, tmp_path) -> Settings:
    "A copy of the demo's workspace: a model that serves, three months of flights, two decisions."
    return own_copy(demo, tmp_path/"d")


def state(settings: Settings) -> tuple:
    return [(m["version"], m["aliases"], m["tags"]) for m in Registry(settings).list("late")], decisions(settings)


def test_a_trial_on_an_old_window_changes_nothing(loop):
    "Its labels may say that another version was better; a later window was decided since."
    registry, log = Registry(loop), decisions(loop)
    first, second = registry.champion("late").version, another(loop, worse=True)
    registry.promote("late", second, "promoted")
    settle("late", log[0]["period"], "promoted", second, "promoted", loop)
    record("late", "2013-04", "keep", [], {}, ["2013-01"], second, settings=loop)
    before = state(loop)
    done = trial("late", log[1]["period"], alarmed=True, settings=loop)
    assert (done["outcome"], done["version"], state(loop)) == ("", second, before) and "is over" in done["reason"]
    assert registry.champion("late").version == second != first


def test_a_registry_that_does_not_answer_is_no_vanished_champion(loop):
    before = state(loop)
    at = lambda uri: loop.model_copy(update={"tracking": loop.tracking.model_copy(update={"uri": uri})})
    for settings, why in ((at("http://127.0.0.1:9"), "does not answer|cannot be opened"),
                          (at(f"sqlite:///{loop.root}/other.db"), "has no model 'late', of which version 1 served")):
        for ask in (serving_version, restore):
            with pytest.raises(Unreachable, match=why): ask("late", settings)
        with pytest.raises(Unreachable): trial("late", "2013-03", settings=settings)
    store, kept = loop.path("mlflow.db"), loop.root/"kept.db"
    shutil.copy(store, kept)
    store.write_bytes(b"no database")  # a disk that lost it
    with pytest.raises(Unreachable): restore("late", loop)
    shutil.copy(kept, store)
    assert state(loop) == before


def settles(who: str, times: int):
    for n in range(times): settle("late", "2013-02", "shadow", 1, f"{who} {n}", by=f"{who} {n}")


def test_two_processes_settle_one_decision(workspace):
    "What each says is kept: nobody writes over what another one added meanwhile."
    record("late", "2013-02", "retrain", ["measured loss"], {}, ["2013-01"], 1, "pending")
    team = [multiprocessing.get_context("fork").Process(target=settles, args=(who, 15)) for who in ("gate", "trial")]
    for p in team: p.start()
    for p in team: p.join(60)
    entry = decisions()[0]
    assert sorted(t["by"] for t in entry["trail"]) == sorted(
        f"{who} {n}" for who in ("gate", "trial") for n in range(15)
    )
    assert len(entry["reasons"]) == 31 == len(entry["settled"]) + 1


def test_a_conclusion_that_was_cut_short_is_carried_out_by_the_next(loop, monkeypatch):
    "Killed between the decision's intent, the registry and the decision: the next caller finishes it, however often."
    from scalai_nb.loop import decisions as log
    registry, second = Registry(loop), another(loop)
    record("late", "2013-04", "retrain", ["measured loss"], {}, ["2013-01"], 1, "pending", loop)
    for name in ("_act", "_settled"):  # after the intent; after the registry
        monkeypatch.setattr(log, name, lambda *a: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt): conclude("late", "2013-04", "promoted", second, "better", loop)
        monkeypatch.undo()
        assert decisions(loop)[-1]["outcome"] == "pending"
    from scalai_nb.loop.retrain import unfinished
    assert unfinished("late", "2013-05", loop) == []  # it is no retraining that never ended
    entry = decisions(loop)[-1]
    assert (entry["outcome"], entry["version_after"], registry.champion("late").version) == (
        "promoted",
        second,
        second,
    )
    assert "intent" not in entry and len(entry["trail"]) == 1


@pytest.mark.slow
def test_months_that_were_judged_before_are_replayed(unbroken, tmp_path):
    "Scored by the version of that time, recorded as replays; another version serves, and goes on serving."
    loop = own_copy(unbroken, tmp_path/"d")
    registry, served = Registry(loop), {d["period"]: d["version_before"] for d in decisions(loop)}
    registry.promote("late", another(loop, worse=True), "by hand")
    before, scores = state(loop), content(loop.root, "scores")
    for period in served:
        done = scalai("run", "workflows/window.toml", "-p", f"period={period}", "--json", cwd=loop.root)
        assert done.code == 0, done.out[-3000:]
        by = {s["name"]: s for s in done.doc["steps"]}
        found = {name: s["results"] for name, s in by.items()}
        assert (
            found["score"]["version"] == served[period]
            and found["monitor"]["replay"]
            and found["probation"]["action"] == "keep"
        ), found
        assert by["retrain"]["state"] == "skipped"
    assert state(loop) == before and content(loop.root, "scores").equals(scores)
    again = decisions(loop, replays=True)
    assert [(d["period"], d["replay"], d["version_before"]) for d in again] == [
        (p, True, n) for p, n in served.items()
    ]
    assert [d["evidence"]["auc"] for d in again] == [d["evidence"]["auc"] for d in before[1]]

    first = registry.version("late", 1)
    gated = ["-p", f"run_id={first.run_id}", "-p", f"candidate={first.path}"]  # far better than the one that serves
    gate = lambda judged: scalai(
        "run", "workflows/gate.ipynb", *gated, "-p", f"judged={judged}", "--json", cwd=loop.root
    ).doc["results"]
    found = gate("2013-02")
    assert (found["action"], found["passed"]) == ("keep", True) and "is over" in found["reason"]
    assert gate("2013-03")["action"] == "promote" and state(loop) == before


@pytest.mark.slow
def test_a_job_whose_registry_does_not_answer_ends_with_three(unbroken, tmp_path):
    loop = own_copy(unbroken, tmp_path/"d")
    before = state(loop)
    away = dict(SCALAI_TRACKING__URI="http://127.0.0.1:9")
    done = scalai("run", "workflows/score.ipynb", "-p", "period=2013-04", "--json", cwd=loop.root, **away)
    assert (done.code, done.doc["error"]["kind"]) == (3, "Unreachable") and state(loop) == before


def test_no_page_says_that_all_is_well_while_an_alarm_is_open(workspace):
    "The command, the first page and the pages of windows and scores read one state, and see it change."
    import numpy as np
    import pandas as pd

    from scalai_nb.core.alerts import Alert, send
    from scalai_nb.data import profile_store
    from scalai_nb.data.profile import profile
    from scalai_nb.monitor.alarms import Alarms
    from scalai_nb.monitor.alpha_spending import Look
    from scalai_nb.view import scores, watch
    from scalai_nb.view.fingerprint import state as stamp
    from scalai_nb.view.home import lines, summary
    settings, rng = Settings.load(), np.random.default_rng(0)
    for month in range(1, 5):
        period = f"2013-{month:02}"
        rows = pd.DataFrame({"x": rng.normal(size=2000)})
        scored = {
            (period, k): profile(pd.DataFrame({"score": rng.beta(2 + 3 * int(k), 5 - 3 * int(k), 1000)})) for k in "01"
        }
        profile_store.record("features", {period: profile(rows)}, batch=period, by="period")
        profile_store.record("scores", scored, batch=period, by=("period", "label"))
        known = {"rows": 2000, "auc": .9, "auc_reference": .9}
        if month > 2: record("late", period, "keep", ["nothing moved"], known, ["2013-01", "2013-02"], 1)
    def seen():
        first = summary([x for x in lines(settings) if x.what in ("Alarms", "Drift", "Performance")])
        return [watch.status(watch.Watch(settings)), scores.status(watch.Watch(settings)), first]
    assert [level for level, *_ in seen()] == ["good"]*3 and seen()[2][1] == "All is well.", seen()
    stamps = [stamp(settings)]
    for source in ("features", "late"): Alarms(settings).saw(Look(source, "2013-03", {"x": "it moved"}, {}, ""))
    stamps.append(stamp(settings))
    assert [level for level, *_ in seen()] == ["attention"]*3, seen()
    assert not any("well" in said for _, said, _ in seen()), seen()
    doc = here("alarms", "list", "--json").doc
    assert [a["state"] for a in doc["alarms"]] == ["open"]*2 and doc["cases"] == []
    for source in ("features", "late"): here("alarms", "acknowledge", source)
    stamps.append(stamp(settings))
    assert all("acknowledged" in said for _, said, _ in seen()) and "All is well" not in seen()[2][1], seen()
    heard = settings.model_copy(update={"alerts": settings.alerts.model_copy(update={"stdout": True})})
    send(Alert("job failed", "nightly failed", "nightly"), heard)
    assert seen()[2][0] == "attention" and "job failed/nightly" in here("alarms", "list").out
    assert here("alarms", "list", "--json").doc["cases"][0]["key"] == "job failed/nightly"
    stamps.append(stamp(settings))
    assert len(set(stamps)) == 4
