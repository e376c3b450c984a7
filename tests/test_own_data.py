"A user's own file, from `scalai init --from` to a model in service: three tasks, and what can be wrong with it."

import json
import shlex
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import succeeded

from scalai_nb.cli.main import capture


def customers() -> pd.DataFrame:
    "Two classes by text, a key with leading zeros, umlauts and spaces in the header, missing labels."
    rng = np.random.default_rng(0)
    n = 1_500
    x = pd.DataFrame({"Kunden-Nr": [f"{i:06}" for i in range(n)], "Größe (m²)": rng.normal(80, 20, n).round(1),
                      "plan": rng.choice(["basic", "plus", "🚀 max"], n), "empty": None, "constant": 7})
    odds = (x["Größe (m²)"] - 80)/15 + (x.plan == "basic")*2 - 2 + rng.logistic(size=n)
    x["churn"] = np.where(odds > 0, "yes", "no")
    x.loc[rng.choice(n, 60, replace=False), "churn"] = None
    return x


def readings() -> pd.DataFrame:
    "A number around a million, with a time."
    from scalai_nb.loop.flights import weather
    x = weather().select(["origin", "time_hour", "temp", "humid", "pressure", "dewp"]).to_pandas().dropna().iloc[::12]
    return x.assign(load=1e6 + 2_000*x.temp + np.random.default_rng(0).normal(0, 3_000, len(x)))


def flowers() -> pd.DataFrame:
    "Three classes by text, no key, no time."
    from sklearn.datasets import load_iris
    data = load_iris(as_frame=True)
    return data.data.assign(species=np.array(["setosa", "versicolor", "virginica"])[data.target])


TABLES = {
    "churn": (customers, "--key 'Kunden-Nr'", "binary"),
    "load": (readings, "--time time_hour", "regression"),
    "species": (flowers, "", "multiclass"),
}


@pytest.mark.slow
@pytest.mark.parametrize("target", TABLES)
def test_two_commands_lead_from_a_file_to_a_model_that_serves(target, tmp_path):
    rows, options, task = TABLES[target]
    rows = rows()
    rows.to_csv(tmp_path/"rows.csv", index=False)
    made = succeeded("init", "work", "--from", "rows.csv", "--target", target, *shlex.split(options), cwd=tmp_path)
    assert (made["table"], made["model"]) == ("rows", target)
    work = tmp_path/"work"
    first = succeeded("run", "workflows/start.ipynb", cwd=work)  # what a person looks at before
    assert (first["results"]["rows"], first["results"]["task"]) == (len(rows), task), first
    done = succeeded("run", "workflows/loop.toml", cwd=work)
    assert done["state"] == "succeeded", done
    (version,) = succeeded("models", "list", cwd=work)["models"]
    assert version["aliases"] == ["champion"]
    again = succeeded("run", "workflows/loop.toml", cwd=work)  # nothing has come: nothing is trained again
    assert len(succeeded("models", "list", cwd=work)["models"]) == 1 and again["state"] == "succeeded"
    assert {s["name"]: s["state"] for s in again["steps"]}["challenger"] == "skipped"

    import scalai_nb as sn
    settings = sn.Settings.load(work)
    window = list(sn.Table("rows", settings).profiles(by="period"))[-1]
    assert succeeded("run", "workflows/window.toml", "-p", f"period={window}", cwd=work)["state"] == "succeeded"
    (decided,) = (json.loads(f.read_text())["evidence"] for f in settings.path("decisions", target).glob("*.json"))
    figures = {"binary": {"auc"}, "multiclass": {"accuracy", "macro_f1"}, "regression": {"r2", "rmse", "mae"}}
    assert {n for names in figures.values() for n in names if decided.get(n) is not None} == figures[task], decided
    model = sn.Registry(settings).champion(target)
    run = sn.Registry(settings).run(model.run_id)
    assert run.task == task
    from scalai_nb.data.table_reader import PERIOD
    raw = sn.Table("rows", settings).arrow(filter=[(PERIOD, "==", window)])
    scores, found = sn.Table(f"{target}_scores", settings).to_pandas(), model.predict(raw)
    assert len(scores) == len(raw)  # rows without a label are scored, not trained on
    if task == "regression": assert "score" not in scores
    else: assert set(scores.prediction) <= set(rows[target].dropna()) and scores.score.between(0, 1).all()
    said = scores.prediction if task == "regression" else scores.score
    np.testing.assert_allclose(np.sort(said), np.sort(found.max(1) if found.ndim == 2 else found), rtol=1e-5)


def faulty(path: Path) -> Path:
    flowers().assign(id=range(150), one="x", none=None, when="soon", twice=[i//2 for i in range(150)]).to_csv(
        path/"f.csv", index=False)
    return path/"f.csv"


@pytest.mark.parametrize("options, message", [
    ("--target spcies", "Did you mean 'species'?"),
    ("--target one", "is 'x' in all rows"),
    ("--target none", "missing in all 150 rows"),
    ("--target species --time when", "--time needs dates"),
    ("--target species --key twice", "twice comes twice in 75 of 150 rows"),
    ("--target id --key id", "is the target and a part of the key"),
    ("--target species --key idd", "Did you mean 'id'?"),
])
def test_what_cannot_be_meant_is_refused_before_anything_is_written(options, message, tmp_path):
    done = capture(f"init {tmp_path/'w'} --from {faulty(tmp_path)} {options}")
    assert done.code == 2 and message in done.err and len(done.err.strip().splitlines()) == 2, done
    assert not (tmp_path/"w").exists()


def test_options_about_a_source_need_one(tmp_path):
    done = capture(f"init {tmp_path/'w'} --target churn")
    assert done.code == 2 and "Add --from FILE" in done.err
    done = capture(f"init {tmp_path/'w'} --from {tmp_path/'nowhere.csv'} --target churn")
    assert done.code == 2 and not (tmp_path/"w").exists(), done


def test_a_second_workspace_of_the_same_folder_is_refused(tmp_path):
    file = faulty(tmp_path)
    assert capture(f"init {tmp_path/'w'} --from {file} --target species").code == 0
    before = sorted(p.name for p in (tmp_path/"w").rglob("*"))
    done = capture(f"init {tmp_path/'w'} --from {file} --target species")
    assert done.code == 2 and "is a workspace already" in done.err
    assert sorted(p.name for p in (tmp_path/"w").rglob("*")) == before
