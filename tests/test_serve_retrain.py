"Live traffic that calls for a retraining, whole: alarm, decision, challenger, gate, promotion, and the service swaps."

import httpx
import numpy as np
import pandas as pd
import pytest
from conftest import succeeded, until
from test_serve import serving
from test_serve_live import counted

from scalai_nb.core.settings import Settings
from scalai_nb.loop.decisions import decisions

YESTERDAY = "import time\nreal = time.time\ntime.time = lambda: real() - 86_400\n"  # for the service: its day is over


def hotels(rng: np.random.Generator, count: int, beds: int, first: int) -> pd.DataFrame:
    "A night's price by beds and stars; those of later have more beds, and each costs more."
    rows = pd.DataFrame({"id": np.arange(first, first + count), "beds": rng.integers(beds, beds + 4, count),
                         "stars": rng.integers(1, 6, count)})
    return rows.assign(price=(20*rows.beds + (rows.beds > 4)*40 + 30*rows.stars + rng.normal(0, 20, count)).round(2))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_live_traffic_calls_for_a_retraining_whose_version_then_answers(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    for folder in ("in", "clock"): (tmp_path/folder).mkdir()
    (tmp_path/"clock"/"sitecustomize.py").write_text(YESTERDAY)
    hotels(rng, 1_500, 1, 0).to_csv(tmp_path/"in"/"a.csv", index=False)
    succeeded("init", "w", "--from", "in", "--target", "price", "--key", "id", cwd=tmp_path)
    work, loop = tmp_path/"w", ("run", "workflows/loop.toml")
    file, ini = work/"models"/"price.toml", work/"settings.ini"
    file.write_text(file.read_text().replace("[train]", "[train]\nepochs = 10")
                    .replace("[retrain]", "[retrain]\nwindows = 2"))
    ini.write_text(ini.read_text() + "\n[serve]\nscores = true\nflush = 1\n")
    assert succeeded(*loop, cwd=work)["state"] == "succeeded"
    later = hotels(rng, 1_500, 4, 10_000)  # the contract allows seven beds
    ask = lambda url, rows: httpx.post(f"{url}/models/price/predict", json={"rows": rows}, timeout=60)
    with monkeypatch.context() as patch:
        patch.setenv("PYTHONPATH", str(tmp_path/"clock"))
        with serving(work, "price", "--workers", "1") as (url, _):
            rows = later[["id", "beds", "stars"]].to_dict("records")
            for i in range(0, len(rows), 100): assert ask(url, rows[i:i + 100]).status_code == 200
            assert until(lambda: counted(work, "price.live") == len(rows))
    later.to_csv(tmp_path/"in"/"b.csv", index=False)  # what became true of them
    succeeded("run", "workflows/ingest.ipynb", cwd=work)
    succeeded("labels", str(tmp_path/"in"/"b.csv"), cwd=work)
    with serving(work, "price", "--workers", "1") as (url, _):
        one, truth = [{"beds": 7, "stars": 3}], 20*7 + 40 + 30*3
        before = ask(url, one)
        assert before.headers["x-model-version"] == "1"
        live, retrain = succeeded("run", "workflows/live.toml", cwd=work, timeout=600)["steps"]
        (decided,) = decisions(Settings(root=work), "price", live=True)
        assert decided["action"] == "retrain" and live["results"]["drifted"], decided
        assert retrain["state"] == "succeeded", retrain
        assert until(lambda: ask(url, one).headers["x-model-version"] == "2")
        error = lambda answer: abs(answer.json()["rows"][0]["prediction"] - truth)
        assert error(ask(url, one)) < error(before)
        (decided,) = decisions(Settings(root=work), "price", live=True)
        assert decided["version_after"] == 2, decided
