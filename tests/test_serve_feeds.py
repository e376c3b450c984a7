"What live traffic feeds: alarms, decisions, probation, the request log and the scores table, by a real `scalai serve`."
import json
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import numpy as np
import pytest
from conftest import ROOT, scalai, until
from test_serve import GOOD, documents, inputs, made, own, serving  # noqa: F401
from test_serve_live import counted, folder  # noqa: F401

from scalai_nb.core.settings import Settings
from scalai_nb.data.profile_store import record
from scalai_nb.data.table import Table
from scalai_nb.loop.decisions import decisions
from scalai_nb.monitor.alarms import Alarms
from scalai_nb.serving.live import inputs_source, live_windows, scores_source


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


def test_drifted_requests_raise_an_alarm_by_hand_and_by_the_window_job(folder):  # noqa: F811
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
    (alarm,) = Alarms(settings).find()
    assert (alarm.source, alarm.subject, alarm.opened) == ("churn.live", "tenure", today)
    listed = scalai("alarms", "list", "--json", cwd=folder)
    assert [a["source"] for a in json.loads(listed.out)["alarms"]] == ["churn.live"]
    for file in settings.path("decisions", "churn", "live").glob("*.json"): file.unlink()
    settings.path("alarms.db").unlink()
    day = days_back(folder, 1)
    shutil.copytree(ROOT/"workflows", folder/"workflows")
    done = scalai("run", "workflows/live.ipynb", "--json", cwd=folder)
    assert done.code == 0, done.out[-2000:]
    assert json.loads(done.out)["results"]["drifted"] == [f"live {day}"]
    (alarm,) = Alarms(settings).find()
    assert (alarm.source, alarm.subject, alarm.opened) == ("churn.live", "tenure", day)
    (decided,) = decisions(settings, "churn", live=True)
    assert decided["action"] == "alert" and "tenure" in decided["evidence"]["drifted"], decided
    assert decisions(settings, "churn") == []  # the table's windows have a log of their own
