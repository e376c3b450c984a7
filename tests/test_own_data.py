"A user's own file, from `scalai init --from` to a model in service: three tasks, and what can be wrong with it."

import json
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import scalai, succeeded

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
    from scalai_nb.data.period import PERIOD
    raw = sn.Table("rows", settings).arrow(filter=[(PERIOD, "==", window)])
    scores, found = sn.Table(f"{target}_scores", settings).to_pandas(), model.predict(raw)
    assert len(scores) == len(raw)  # rows without a label are scored, not trained on
    if task == "regression": assert "score" not in scores
    else: assert set(scores.prediction) <= set(rows[target].dropna()) and scores.score.between(0, 1).all()
    said = scores.prediction if task == "regression" else scores.score
    np.testing.assert_allclose(np.sort(said), np.sort(found.max(1) if found.ndim == 2 else found), rtol=1e-5)
    more = succeeded("score", target, "../rows.csv", cwd=work)  # into the model's own table
    table = sn.Table(f"{target}_scores", settings).to_pandas()
    assert (more["table"], len(table)) == (f"{target}_scores", len(raw) + len(rows))
    assert {"label", *shlex.split(options)[1::2]} - {"time_hour"} <= set(table)


@pytest.mark.slow
def test_a_training_that_is_stopped_says_from_where_it_goes_on(tmp_path):
    flowers().to_csv(tmp_path/"rows.csv", index=False)
    succeeded("init", "work", "--from", "rows.csv", "--target", "species", cwd=tmp_path)
    work = tmp_path/"work"
    succeeded("run", "workflows/ingest.ipynb", cwd=work)
    file = work/"models"/"species.toml"
    file.write_text(file.read_text().replace("[train]\n", "[train]\nepochs = 120\n", 1))
    train = [str(Path(sys.executable).with_name("scalai")), "train", "species"]
    process = subprocess.Popen(train, cwd=work, text=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
                               start_new_session=True)
    end = time.monotonic() + 120
    while not list(work.glob(".scalai/fits/*/checkpoints/step-*")) and time.monotonic() < end: time.sleep(.02)
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=60)[1].splitlines()
    assert (process.returncode, said[-2]) == (130, "scalai: Cancelled."), said
    (folder,) = work.glob(".scalai/fits/*")
    assert said[-1] == f"It goes on from its last checkpoint with resume={str(folder)!r}."
    done = succeeded("train", "species", "--resume", str(folder.relative_to(work)), cwd=work)
    assert any(note.startswith("resumed at step") for note in done["notes"]), done["notes"]
    wrong = scalai("train", "species", "--resume", "contracts", cwd=work)
    assert wrong.code == 2 and "is no folder of a training" in wrong.err and not list((work/"contracts").glob(".lock"))


def harvest() -> pd.DataFrame:
    "A number of which a network learns the waves and trees the steps."
    rng, n = np.random.default_rng(0), 1_500
    x = pd.DataFrame(rng.normal(size=(n, 6)).round(3), columns=list("abcdef")).assign(
        soil=rng.choice(["red", "green", "blue", "grey"], n))
    wave, step = 3*np.sin(2*x.a) + 2*x.d*x.e, 4*((x.b > .3) & (x.c > 0)) + 3*(x.soil == "red")
    return x.assign(crop=(100 + wave + step + rng.normal(0, 2, n)).round(3))


def models_by_name(settings) -> dict[str, dict]:  # network → the float candidate of its newest frontier
    "What compress measured."
    found = {}
    for file in sorted(settings.path("frontiers").glob("*/frontier.json"), key=lambda f: f.stat().st_mtime):
        params = json.loads((settings.path("fits", file.parent.name)/"run.json").read_text())["params"]
        found[params.get("network", "network")] = json.loads(file.read_text())["base"]
    return found


@pytest.mark.slow
def test_the_mean_of_both_is_promoted_where_it_is_best_and_a_budget_keeps_it_out(tmp_path):
    harvest().to_csv(tmp_path/"rows.csv", index=False)
    succeeded("init", "work", "--from", "rows.csv", "--target", "crop", cwd=tmp_path)
    work = tmp_path/"work"
    file = work/"models"/"crop.toml"
    file.write_text(file.read_text().replace("[train]", "[train]\nepochs = 15"))
    challenger = lambda done: {s["name"]: s["results"] for s in done["steps"]}["challenger"]
    done = challenger(succeeded("run", "workflows/loop.toml", cwd=work))
    import scalai_nb as sn
    settings = sn.Settings.load(work)
    registry, mean = sn.Registry(settings), "mean of TabularMLP and LGBMRegressor"
    champion = registry.champion("crop")
    run, best = registry.run(champion.run_id), max(m["accuracy"] for m in models_by_name(settings).values())
    assert run.network == mean and champion.metrics["r2"] == best == done["metrics"]["r2"], done
    assert len(done["run_ids"]) == 3 and "It is the best of 3 models" in done["why"]
    raw = sn.Table("rows", settings).arrow()
    np.testing.assert_allclose(champion.predict(raw), run.predict(raw), rtol=1e-5)
    assert succeeded("models", "show", "crop", cwd=work)["training"]["class"] == "scalai_nb.training.ensemble:Ensemble"

    measured = models_by_name(settings)
    bound = (measured[mean]["latency_ms"]*measured["LGBMRegressor"]["latency_ms"])**.5
    file.write_text(file.read_text().replace("[compress]", f"[compress]\nlatency_ms = {bound:.4f}"))
    done = challenger(succeeded("run", "workflows/loop.toml", cwd=work))
    assert registry.run(done["run_id"]).network != mean
    assert f"{mean} is left out. No candidate meets the budget: latency_ms" in done["why"]
    assert registry.champion("crop").version == champion.version or done["action"] == "promote"


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


@pytest.mark.slow
def test_labels_that_come_later_are_learnt_from_and_judged_by(tmp_path):
    "Half of the rows come without their target; it is delivered by key, written as the table's own files are."
    rng, n = np.random.default_rng(0), 400
    rows = pd.DataFrame({"order": [f"{i:05}" for i in range(n)], "km": rng.uniform(1, 20, n).round(1)})
    rows["minutes"] = (10 + 3*rows.km + rng.normal(0, 1, n)).round(1)
    early = rows.assign(minutes=rows.minutes.where(np.arange(n) % 2 == 0))
    early.to_csv(tmp_path/"orders.csv", index=False, sep=";", decimal=",")
    succeeded("init", "w", "--from", "orders.csv", "--target", "minutes", "--key", "order", cwd=tmp_path)
    work = tmp_path/"w"
    file = work/"models"/"minutes.toml"
    file.write_text(file.read_text().replace("[train]", "[train]\nepochs = 2\nbaseline = false\nvalidation = 0.2"))
    succeeded("run", "workflows/ingest.ipynb", cwd=work)
    before = succeeded("train", cwd=work)
    assert (before["rows"] > 150) and not any("came later" in note for note in before["notes"])

    late = rows[1::2].assign(minutes=rows.minutes[1::2])
    late.loc[late.index[0], "minutes"] = None
    late[["order", "minutes"]].to_csv(work/"late.csv", index=False, sep=";", decimal=",")
    done = succeeded("labels", "late.csv", cwd=work)  # key, column, separator and decimal mark are the table's
    assert (done["table"], done["new"], done["empty"]) == ("minutes_scores", n//2 - 1, 1), done
    pd.DataFrame({"order": ["00000"], "label": [999]}).to_csv(work/"mended.csv", index=False, sep=";")
    succeeded("labels", "mended.csv", cwd=work)

    import scalai_nb as sn
    from scalai_nb.loop.gate import judged_rows
    from scalai_nb.loop.model_file import Model
    from scalai_nb.training.split import Split
    settings = sn.Settings.load(work)
    model = Model.load("", settings)
    known = model.labelled_rows([], settings).to_pandas().set_index("order").minutes
    assert len(known) == n - 1 and known["00000"] == 999  # what is said later counts
    truth = rows.set_index("order").minutes.drop(["00000", "00001"])
    pd.testing.assert_series_equal(known[truth.index], truth, check_index_type=False, check_dtype=False)
    after = succeeded("train", cwd=work)
    run = sn.Registry(settings).run(after["run_id"])
    assert run.data["rows"] + run.data["validation_rows"] == n - 1 and run.data["labels"]["version"] == 1
    assert any("came later" in note for note in after["notes"])
    split = Split.parse(tuple(run.data["folds"]))
    judged, _ = judged_rows(model, "", split, settings)
    assert judged.num_rows == run.data["validation_rows"] and run.evaluate(settings=settings).rows == judged.num_rows
    assert run.repeat(settings=settings).data["rows"] == run.data["rows"]  # from its record, labels among it


def test_reading_a_file_says_how_far_and_how_long_still(tmp_path, monkeypatch, capfd):
    import pyarrow as pa
    import pyarrow.csv

    from scalai_nb.core import progress
    from scalai_nb.core.settings import Settings
    from scalai_nb.data.ingest import ingest
    from scalai_nb.data.inspection import inspect_source
    rng, n = np.random.default_rng(0), 1_500_000
    rows = pa.table({"id": np.arange(n), **{f"x{i}": rng.normal(size=n).round(3) for i in range(3)}})
    pyarrow.csv.write_csv(rows, tmp_path/"big.csv")
    monkeypatch.setattr(progress, "FIRST", .02)
    monkeypatch.setattr(progress, "NEXT", .02)
    monkeypatch.setattr(progress.Reading, "left", lambda self: 7.)  # seconds, as if it were slow
    for kind in ("csv", "gz"):
        uri = tmp_path/"big.csv"
        if kind == "gz":
            import gzip
            (uri := tmp_path/"big.csv.gz").write_bytes(gzip.compress((tmp_path/"big.csv").read_bytes(), 1))
        with progress.working(f"Looking at {uri.name}"): inspect_source(uri)
        lines = capfd.readouterr().err.splitlines()
        shares = [int(line.split(" % of ")[0].split()[-1]) for line in lines if " % of " in line]
        assert any(0 < s < 100 for s in shares) and "MB, 7 s left" in "\n".join(lines), lines[-5:]
        assert all(line.startswith(f"… Looking at {uri.name}") for line in lines)
    settings = Settings(root=tmp_path)
    with progress.working("Bringing big.csv into big", topic="ingest"):
        ingest(tmp_path/"big.csv", "big", settings=settings)
    lines = capfd.readouterr().err.splitlines()
    assert any("checksum: " in line for line in lines) and any("rows  " in line and " % of " in line for line in lines)
    assert not progress._active
    first = next(i for i, line in enumerate(lines) if " rows " in line)
    shares = [int(line.split(" % of ")[0].split()[-1]) for line in lines[first:] if " % of " in line]
    assert shares == sorted(shares)  # the rows are one pass, and its share never falls


@pytest.mark.slow
def test_the_first_batch_is_the_reference_and_a_mean_error_is_a_loss(tmp_path):
    "A number, no time: the first file is what later ones are held against; in the second all predictions are too low."
    rng = np.random.default_rng(0)
    def hotel(n, more=0.):
        made = pd.DataFrame({"id": rng.permutation(10**6)[:n], "beds": rng.integers(1, 5, n),
                             "stars": rng.integers(1, 6, n)})
        return made.assign(price=(20*made.beds + 30*made.stars + rng.normal(0, 20, n) + more).round(2))
    (tmp_path/"in").mkdir()
    hotel(1_500).to_csv(tmp_path/"in"/"a.csv", index=False)
    succeeded("init", "w", "--from", "in", "--target", "price", "--key", "id", cwd=tmp_path)
    work = tmp_path/"w"
    file = work/"models"/"price.toml"
    file.write_text(file.read_text().replace("[train]", "[train]\nepochs = 10"))
    assert succeeded("run", "workflows/loop.toml", cwd=work)["state"] == "succeeded"
    def decided(window):
        done = succeeded("run", "workflows/window.toml", "-p", f"period={window}", cwd=work)
        assert done["state"] == "succeeded", done
        return json.loads((work/".scalai"/"decisions"/"price"/f"{window}.json").read_text())
    first = decided("batch-1")
    assert first["action"] == "keep" and "batch-1 is the reference" in first["reasons"][-1], first["reasons"]
    hotel(1_500, 15.).to_csv(tmp_path/"in"/"b.csv", index=False)
    succeeded("run", "workflows/ingest.ipynb", cwd=work)
    second = decided("batch-2")
    (bias,) = [r for r in second["losses"] if r["measure"] == "bias"]
    assert second["action"] == "retrain" and -18 < bias["value"] < -12 and bias["limit"] < 8, second
    assert any("predictions are too low" in r for r in second["reasons"]), second["reasons"]
    assert second["evidence"]["bias_reference"] and second["evidence"]["bias_limit"]
