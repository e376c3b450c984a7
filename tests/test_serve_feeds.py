"What a real `scalai serve` feeds: alarms, decisions, probation, log, scores."
import json
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
from conftest import ROOT, scalai, until
from test_serve import GOOD, KEY, documents, inputs, made, own, serving  # noqa: F401
from test_serve_live import counted, folder, kill_observer, observer, state  # noqa: F401

from scalai_nb.core.settings import Settings
from scalai_nb.data.profile import profile
from scalai_nb.data.profile_store import record
from scalai_nb.data.table import Table
from scalai_nb.loop.decisions import decisions
from scalai_nb.loop.live_evaluation import due_periods, find_all_live
from scalai_nb.loop.live_trial import live_trials
from scalai_nb.loop.model_file import Model
from scalai_nb.monitor.alarms import Alarms
from scalai_nb.monitor.windows import window
from scalai_nb.serving.labels import labels
from scalai_nb.serving.live import inputs_source, live_windows, scores_source, shadow_source
from scalai_nb.serving.score import score
from scalai_nb.training.registry import Registry
from scalai_nb.view.watch import Watch


def send(url: str, folder: Path, rows: list[dict]) -> None:  # noqa: F811
    answer = httpx.post(f"{url}/models/churn/predict", json={"rows": rows})
    assert answer.status_code == 200, answer.text


def rows_of(folder: Path) -> list[dict]:  # noqa: F811
    "The table's rows, as a client sends them."
    return documents(Table("customers", Settings(root=folder)).arrow(), inputs(folder, "churn"))


def days_back(folder: Path, days: int) -> str:  # noqa: F811
    "Today's live windows once more, as those of a day that is over."
    settings, day = Settings(root=folder), f"{datetime.now(UTC) - timedelta(days=days):%Y-%m-%d}"
    for source in (inputs_source("churn"), scores_source("churn", 1)):
        (now,) = live_windows(source, settings).values()
        record(source, {day: now}, f"{source}{day}", by="period", settings=settings)
    return day


def test_drifted_requests_raise_an_alarm_by_hand_and_by_the_nightly_workflow(folder):  # noqa: F811
    file = folder/"models/churn.toml"
    file.write_text(file.read_text() + 'ignore = ["tiny"]\n')  # what is nearer to 0 than 1e-30 is 0 to a model
    sent = rows_of(folder)
    moved = [{**r, "tenure": 300} for r in sent]
    with serving(folder, "churn", "--workers", "1") as (url, _):
        send(url, folder, sent[:600])
        assert until(lambda: counted(folder) == 600)
        today = f"{datetime.now(UTC):%Y-%m-%d}"
        calm = scalai("alarms", "look", "churn.live", "--period", today, "--json", cwd=folder)
        assert calm.code == 0 and json.loads(calm.out)["alarms"] == [], calm
        send(url, folder, moved)
        assert until(lambda: counted(folder) == 600 + len(moved))
        look = scalai("alarms", "look", "churn.live", "--period", today, "--exit-code", cwd=folder)
        assert look.code == 1 and "tenure" in look.out, look
    settings = Settings(root=folder)
    opened = lambda: {(a.source, a.opened) for a in Alarms(settings).find()}
    assert opened() == {("churn.live", today)} and "tenure" in {a.subject for a in Alarms(settings).find()}
    listed = scalai("alarms", "list", "--json", cwd=folder)
    assert {a["source"] for a in json.loads(listed.out)["alarms"]} == {"churn.live"}
    assert decisions(settings, "churn", live=True) == []  # a look by hand decides nothing
    settings.path("alarms.db").unlink()
    day = days_back(folder, 1)
    shutil.copytree(ROOT/"workflows", folder/"workflows")
    done = scalai("run", "workflows/live.toml", "--json", cwd=folder)
    assert done.code == 0, done.out[-2000:]
    live, retrain = json.loads(done.out)["steps"]
    assert (live["results"]["drifted"], retrain["state"]) == ([f"live {day}"], "skipped")
    assert opened() == {("churn.live", day)} and "tenure" in {a.subject for a in Alarms(settings).find()}
    (decided,) = decisions(settings, "churn", live=True)
    assert decided["action"] == "alert" and "tenure" in decided["evidence"]["drifted"], decided
    assert decisions(settings, "churn") == []  # the table's windows have a log of their own


def test_a_window_that_no_known_version_answered_stops_no_other(folder):  # noqa: F811
    "A version that was served pinned, a prep that was served alone, and two days of the champion."
    settings, model = Settings(root=folder), Model.load("churn", Settings(root=folder))
    rows = Table("customers", settings).to_pandas()
    asked = profile(rows[inputs(folder, "churn")])
    given = profile(rows[["tenure"]].astype("float32").set_axis(["score"], axis=1))
    day = lambda back: f"{datetime.now(UTC) - timedelta(days=back):%Y-%m-%d}"
    for back, version in ((4, 2), (3, 0), (2, 1), (1, 1)):
        record("churn.live", {day(back): asked}, f"asked {back}", by="period", settings=settings)
        if not version: continue
        record(f"churn@{version}.live", {day(back): given}, f"given {back}", by="period", settings=settings)
    broken = {}
    found = find_all_live(model, settings, broken=broken)
    assert [(f.period, f.judgement.version.version) for f in found] == \
        [(f"live {day(back)}", version) for back, version in ((4, 2), (3, 1), (2, 1), (1, 1))], broken
    assert not broken and due_periods(model, settings) == []


def test_a_shadow_and_a_canary_are_compared_with_the_champion(folder):  # noqa: F811
    "Counts of both, scores of both, and by key the loss once labels join."
    registry, settings = Registry(Settings(root=folder)), Settings(root=folder)
    (folder/"models/churn.toml").write_text('table = "customers"\ntarget = "churn"\n[serve]\ncanary = 0.5\n'
                                            "[gate]\nmin_labels = 50\n")
    registry.set_trial("churn", "shadow", 2)
    rows = Table("customers", settings).arrow()
    sent = documents(rows, ["customer_id", *inputs(folder, "churn")])
    with serving(folder, "churn", "--workers", "1") as (url, process):
        for i in range(0, 400, 20): send(url, folder, sent[i:i + 20])
        kept = shadow_source("churn", 2)
        assert until(lambda: counted(folder, kept) == 400, 60)
        kill_observer(process)  # what it had flushed is not lost, and nothing is doubled
        registry.set_trial("churn", "shadow", None)
        registry.set_trial("churn", "canary", 2)
        health = lambda: httpx.get(f"{url}/healthz").json()["models"]["churn"]
        assert until(lambda: "canary" in health() and "shadow" not in health())
        for i in range(400, 800): send(url, folder, sent[i:i + 1])
    trials = Table("churn_scores_trials", settings).to_pandas()
    twice = trials[trials.role == "shadow"].customer_id
    assert len(twice) == 400 == twice.nunique()
    apart = trials[trials.customer_id.isin([r["customer_id"] for r in sent[400:800]])]
    assert len(apart) == 400 and set(apart.role) == {"canary", "champion"}
    truth = rows.select(["customer_id", "churn"]).slice(0, 800)
    labels(truth, "churn_scores", "customer_id", "churn", settings=settings)
    told = scalai("models", "trial", "churn", "--json", cwd=folder)
    (found,) = json.loads(told.out)["trials"]
    canary, champion = found["tried"], found["champion"]
    assert canary["role"] == "canary" and canary["requests"] == (apart.role == "canary").sum() > 100
    assert champion["requests"] == 20 + 400 - canary["requests"] and canary["errors"] == 0 < canary["p50"]
    assert canary["labelled"] == canary["requests"] and canary["loss"] > 0
    assert found["gap"]["low"] < found["gap"]["high"]
    assert "loss" in scalai("models", "trial", cwd=folder).out
    registry.set_trial("churn", "canary", None)
    registry.set_trial("churn", "shadow", 2)
    (shadow,) = live_trials(Model.load("churn", settings), settings)
    assert shadow.gap.rows == 400 == shadow.tried.rows and shadow.tried.loss > 0


def test_answers_are_appended_to_the_scores_table_each_once(folder):  # noqa: F811
    "By flushes, across kills of the observer; labels join by key."
    ini = folder/"settings.ini"
    ini.write_text(ini.read_text() + "scores = true\n")
    settings = Settings(root=folder)
    rows = Table("customers", settings).arrow()
    score("churn", "customers", "churn_scores", key=KEY, period="2013-06", keep=("since",), settings=settings)
    sent = documents(rows, ["customer_id", *inputs(folder, "churn")])
    with serving(folder, "churn", "--workers", "1") as (url, process):
        for n in range(3):
            send(url, folder, sent[100*n:100*n + 100])
            assert until(lambda n=n: counted(folder) == 100*n + 100)
            kill_observer(process)
        send(url, folder, sent[300:400])
        send(url, folder, [{k: v for k, v in sent[400].items() if k != "customer_id"}])
        assert until(lambda: counted(folder) == 401)  # the next observer is there
    told = Table("churn_scores", settings).to_pandas()
    live, night = told[told.period.str.startswith("live ")], told[told.period == "2013-06"].set_index("customer_id")
    assert len(night) == len(rows) and len(live) == 401 and live.customer_id.isna().sum() == 1
    keyed = live.dropna(subset="customer_id").set_index("customer_id")
    assert keyed.index.is_unique and (keyed.model_version == 1).all() and set(keyed.task) == {"binary"}
    assert (keyed.score == night.loc[keyed.index].score).all()  # as the night's scores, to the bit
    assert (keyed.prediction == night.loc[keyed.index].prediction).all()
    labels(rows.select(["customer_id", "churn"]), "churn_scores", "customer_id", "churn", settings=settings)
    (name,) = set(live.period)
    family = window("churn_scores", name, settings, by="label")
    assert sum(p.rows for label, p in family.items() if label is not None) == 400
    assert sum(p.rows for p in window("churn_scores", "2013-06", settings, by="label").values()) == len(rows)
    record("customers", {"2013-06": profile(rows)}, "june", by="period", settings=settings)
    watch = Watch(settings, model="churn")  # the page Performance
    assert watch.scored_by() == ["2013-06", name] and watch.measured(name).rows == 400


def test_the_request_log_and_a_disk_that_refuses_it(folder):  # noqa: F811
    "ECS lines with trace and request id, hidden columns; a folder that is gone costs lines, and no answer."
    ini = folder/"settings.ini"
    ini.write_text(ini.read_text() + "log = logs/requests.jsonl\nlog_rows = 1\nlog_redact = region\n")
    path, trace = folder/"logs/requests.jsonl", "4bf92f3577b34da6a3ce929d0e0e4736"
    lines = lambda: [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
    headers = {"traceparent": f"00-{trace}-00f067aa0ba902b7-01", "x-request-id": "mine"}
    with serving(folder, "churn", "--workers", "1") as (url, process):
        post = lambda rows, **more: httpx.post(f"{url}/models/churn/predict", json={"rows": rows}, **more)
        assert post([GOOD]*3, headers=headers).status_code == 200 and post([{**GOOD, "nope": 1}]).status_code == 422
        assert httpx.post(f"{url}/models/nobody/predict", json={}).status_code == 404  # seen by no model
        assert until(lambda: len(lines()) == 3)
        good, refused, lost = lines()
        assert (lost["http.response.status_code"], lost["scalai.model"]) == (404, "")
        told = {k: good[k] for k in ("trace.id", "http.request.id", "http.response.status_code", "scalai.model",
                                     "scalai.version", "scalai.rows", "url.path")}
        assert told == {"trace.id": trace, "http.request.id": "mine", "http.response.status_code": 200,
                        "scalai.model": "churn", "scalai.version": 1, "scalai.rows": 3,
                        "url.path": "/models/churn/predict"}
        (row,) = good["scalai.inputs"]
        assert row["region"] == "[redacted]" and row["tenure"] == GOOD["tenure"] and set(row) >= set(GOOD) - {"id"}
        assert (refused["http.response.status_code"], refused["scalai.rows"]) == (422, 0) and "trace.id" not in refused
        path.unlink()
        path.parent.rmdir()
        path.parent.write_text("no folder")  # a disk that refuses
        for _ in range(5): assert post([GOOD]).status_code == 200
        lost = lambda: state(folder).ledger["log"]["lost"]
        assert until(lambda: state(folder)) and until(lambda: lost() == 5)
        path.parent.unlink()
        assert post([GOOD]).status_code == 200 and until(lambda: len(lines()) == 1)
        process.terminate()
        said = process.stderr.read()
        assert said.count("the request log cannot be written") == 1, said
    ledger = state(folder).ledger
    assert ledger["log"] == {"written": 4, "lost": 5} and ledger["models"]["churn"]["lost"] == 0
