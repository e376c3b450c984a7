"What a service's observer records: every answered row once, and a gap where a kill took rows with it."
import json
import os
import signal
import subprocess
import time
from pathlib import Path

import httpx
import psutil
import pyarrow as pa
import pytest
from conftest import until
from test_serve import ARROW, GOOD, LOAD, documents, inputs, made, own, serving, stream, workers  # noqa: F401

from scalai_nb.core.settings import Settings
from scalai_nb.data.profile import profile, total
from scalai_nb.data.table import Table
from scalai_nb.serving.live import ServiceState, inputs_source, live_windows, scores_source, services
from scalai_nb.serving.score import score

FLUSH = 1


@pytest.fixture
def folder(own) -> Path:  # noqa: F811
    "A workspace whose live windows are written every second."
    (own/"settings.ini").write_text(f"[workspace]\nhome = .scalai\n[serve]\nflush = {FLUSH}\n")
    return own


def observer(process: subprocess.Popen) -> psutil.Process | None:
    for p in psutil.Process(process.pid).children():
        try:
            if "serving.observer" in " ".join(p.cmdline()): return p
        except psutil.Error: continue  # it has just ended
    return None


def kill_observer(process: subprocess.Popen):
    "Its end is waited for: what is sent while it dies is a gap."
    gone = observer(process)
    gone.kill()
    gone.wait(30)


def state(folder: Path) -> ServiceState | None:
    found = services(Settings(root=folder))
    return found[0] if found else None


def counted(folder: Path, source: str = "churn.live") -> int:
    return sum(p.rows for p in live_windows(source, Settings(root=folder)).values())


def load(folder: Path, url: str, connections: int = 16, seconds: float = 8) -> subprocess.Popen:
    (folder/"row.json").write_text(json.dumps({"rows": [GOOD]}))
    command = [*LOAD, f"{url}/models/churn/predict", str(folder/"row.json"), str(connections), str(seconds)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def balance(folder: Path, answered: int) -> dict:
    "Every row that was scored is in a window or in a gap, and every answered row was scored."
    found = state(folder)
    assert found.ended and not found.silent
    churn = found.ledger["models"]["churn"]
    assert churn["rows"] == counted(folder) == counted(folder, scores_source("churn", 1)), churn
    assert churn["rows"] + churn["lost"] == churn["answered"] >= answered, (churn, answered)
    assert churn["lost"] == sum(g["rows"] for g in found.ledger["gaps"])
    return churn | {"gaps": found.ledger["gaps"], "restarts": found.ledger["restarts"]}


def test_live_windows_equal_the_profile_of_the_same_rows(folder):
    "Rows of all forms, of three models, by two workers: inputs in the table's types, scores as `score` writes them."
    settings = Settings(root=folder)
    rows = Table("customers", settings).arrow()
    with serving(folder, "churn", "plan", "charge", "--workers", "2") as (url, _):
        for name in ("churn", "plan", "charge"):
            known = inputs(folder, name)
            sent = documents(rows, known)
            post = lambda body, known=known, name=name: httpx.post(f"{url}/models/{name}/predict", **body)
            answers = [post({"json": {"rows": sent[i:i + 1]}}) for i in range(40)]
            answers += [post({"json": {"rows": sent[40:400]}})]
            answers += [post({"json": {"columns": {c: [r[c] for r in sent[400:700]] for c in known}}})]
            answers += [post({"content": stream(rows.slice(700).select(known)), "headers": ARROW})]
            assert {a.status_code for a in answers} == {200}
            assert post({"json": {"rows": [{**sent[0], "nope": 1}]}}).status_code == 422
        assert until(lambda: counted(folder) == len(rows))  # while it serves
        assert counted(folder, "customers") == len(rows)  # the table's own windows are as before
    for name in ("churn", "plan", "charge"):
        known = [n for n in inputs(folder, name) if n != "tiny"]  # a model takes what is nearer to 0 than 1e-30 for 0
        found = total(live_windows(inputs_source(name), settings).values()).select(known)
        want = profile(rows.select(known))
        assert {c: found[c].type for c in known} == {c: want[c].type for c in known}
        assert found == want
        score(name, "customers", f"{name}_scores", settings=settings)
        told = Table(f"{name}_scores", settings).arrow()
        column = {"churn": "score", "plan": "confidence", "charge": "prediction"}[name]
        seen = total(live_windows(scores_source(name, 1), settings).values())
        wanted = told["prediction" if name == "charge" else "score"]
        assert seen.select([column]) == profile(pa.table({column: wanted}))
    churn = state(folder).ledger["models"]["churn"]
    assert (churn["requests"], churn["refused"], churn["errors"], churn["lost"]) == (44, 1, 0, 0)
    assert churn["answered"] == churn["rows"] == len(rows) and 0 < churn["points"][-1]["p50"] < 1


@pytest.mark.slow
def test_rows_that_a_killed_worker_held_are_a_gap(folder):
    with serving(folder, "churn", "--workers", "2") as (url, process):
        assert until(lambda: state(folder))
        busy = load(folder, url)
        for _ in range(2):
            time.sleep(2.5)
            workers(process)[0].kill()
        found = json.loads(busy.communicate()[0])
    told = balance(folder, found["counts"]["200"])
    assert {g["why"] for g in told["gaps"]} <= {"a worker ended before it had sent them"}
    # a worker hands over four times a second where the machine lets it; on a busy one it holds more
    assert told["lost"] < found["counts"]["200"]/2, (told, found)


@pytest.mark.slow
def test_a_killed_observer_costs_one_interval_and_no_answer(folder):
    with serving(folder, "churn", "--workers", "2") as (url, process):
        assert until(lambda: state(folder))
        busy = load(folder, url, seconds=20)
        for n in range(2):
            assert until(lambda n=n: state(folder).ledger["restarts"] == n)
            time.sleep(2.5*FLUSH)
            observer(process).kill()
        found = json.loads(busy.communicate()[0])
        assert until(lambda: state(folder).ledger["restarts"] == 2)
    assert set(found["counts"]) == {"200"}, found
    told = balance(folder, found["counts"]["200"])
    assert told["lost"] and {g["why"] for g in told["gaps"]} == {"the observer ended before it had written them"}
    assert all(g["from"] < g["to"] for g in told["gaps"])
    assert told["lost"] < 2*(FLUSH + 2)*found["counts"]["200"]/20, (told, found)


@pytest.mark.slow
def test_a_stopped_observer_costs_nothing(folder):
    with serving(folder, "churn", "--workers", "2") as (url, process):
        assert until(lambda: state(folder) and observer(process))
        observer(process).suspend()
        found = json.loads(load(folder, url, seconds=4).communicate()[0])
        observer(process).resume()
    assert set(found["counts"]) == {"200"} and found["p99_ms"] < 500, found
    assert balance(folder, found["counts"]["200"])["lost"] == 0


@pytest.mark.slow
def test_a_killed_parent_and_a_killed_service(folder):
    "Orphans write what they have; where nobody is left, the next service closes the windows."
    with serving(folder, "churn", "--workers", "2") as (url, process):
        assert until(lambda: state(folder))
        busy = load(folder, url, seconds=3)
        time.sleep(2)
        process.kill()
        found = json.loads(busy.communicate()[0])
        assert until(lambda: state(folder).ended, 60)
    balance(folder, found["counts"]["200"])
    before = counted(folder)
    with serving(folder, "churn", "--workers", "1") as (url, process):
        for _ in range(50): assert httpx.post(f"{url}/models/churn/predict", json={"rows": [GOOD]}).status_code == 200
        assert until(lambda: counted(folder) == before + 50)
        for _ in range(5): httpx.post(f"{url}/models/churn/predict", json={"rows": [GOOD]})
        for p in (process, observer(process), *workers(process)): p.kill()
        assert not state(folder).ended
    with serving(folder, "churn", "--workers", "1"):
        assert until(lambda: len(services(Settings(root=folder))) == 3)
    _, killed, _ = services(Settings(root=folder))
    churn = killed.ledger["models"]["churn"]
    assert killed.ended and killed.ledger["killed"] and churn["rows"] + churn["lost"] == churn["answered"] == 55
    assert counted(folder) == before + churn["rows"] >= before + 50


@pytest.mark.slow
def test_a_workspace_that_cannot_be_written_stops_no_answer(folder):
    (folder/".scalai/live").write_text("no folder")
    with serving(folder, "churn", "--workers", "1") as (url, process):
        for _ in range(20):
            assert httpx.post(f"{url}/models/churn/predict", json={"rows": [GOOD]}).status_code == 200
            time.sleep(.1)
        (folder/".scalai/live").unlink()
        assert until(lambda: counted(folder) == 20)  # they waited with the worker
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    assert balance(folder, 20)["lost"] == 0


def test_observation_can_be_off(folder):
    (folder/"settings.ini").write_text("[workspace]\nhome = .scalai\n[serve]\nobserve = false\n")
    with serving(folder, "churn", "--workers", "1") as (url, process):
        assert httpx.post(f"{url}/models/churn/predict", json={"rows": [GOOD]}).status_code == 200
        time.sleep(1)
        assert observer(process) is None and len(workers(process)) == 1
    assert state(folder) is None and not os.path.exists(folder/".scalai/live")
