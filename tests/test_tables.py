"""Nineteen tables of others by two commands each; `make test-slow` takes the one that is here anyway.

    python tests/soak.py tests/test_tables.py     # after `make bench-tables` has installed their packages

Trainings are short: what is tested is that the loop holds, not how good it is."""

import os
import re
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import succeeded

import scalai_nb as sn
from scalai_nb.data.period import PERIOD
from scalai_nb.loop.model_file import Model

sys.path.insert(0, str(Path(__file__).parent/"bench"))
import tables as bench

ROWS = 6_000


def storms():
    rows = bench.packaged("storms").drop(columns="category")
    return rows.assign(seen=pd.to_datetime(rows[["year", "month", "day", "hour"]])), "status", "--time seen"


def surveys():
    rows = bench.packaged("surveys")
    rows["date"] = pd.to_datetime(rows[["year", "month", "day"]], errors="coerce")
    return rows.dropna(subset="date"), "species_id", "--time date --key record_id"


OWN = {"storms": storms, "surveys": surveys}
OPTIONS = {"hotel": "--time arrival_date"}


def source(name: str) -> tuple[pd.DataFrame, str, str]:  # rows, target, options
    if name in OWN: rows, target, options = OWN[name]()
    else: (rows, target, _), options = bench.TABLES[name](), OPTIONS.get(name, "")
    return rows.sample(min(ROWS, len(rows)), random_state=0).sort_index(), target, options


def loop(name: str, folder: Path) -> str:
    "From a CSV to pages; whether the model was promoted or kept back."
    rows, target, options = source(name)
    rows.to_csv(folder/f"{name}.csv", index=False)
    succeeded("init", "work", "--from", f"{name}.csv", "--target", target, *options.split(), cwd=folder)
    work = folder/"work"
    file = next((work/"models").glob("*.toml"))
    file.write_text(re.sub(r"\[train\]\n#[^\n]*", "[train]\nepochs = 2", file.read_text()))
    steps = {s["name"]: s for s in succeeded("run", "workflows/loop.toml", cwd=work)["steps"]}
    settings = sn.Settings.load(work)
    model = Model.load("", settings)
    table = sn.Table(model.table, settings)
    assert table.rows == len(rows) and steps["ingest"]["results"]["rows_refused"] == 0, name
    results = {s["name"]: s["results"] for s in steps["challenger"]["steps"]}
    run, action = sn.Registry(settings).run(results["compress"]["run_id"]), results["gate"]["action"]
    assert results["gate"]["verdict"]["rows"] == run.data["validation_rows"], name  # all that are held out
    if action == "promote": scored(model, table, settings, rows)
    for page in ("home", "drift", "performance", "quality"): succeeded("run", f"apps/{page}.ipynb", cwd=work)
    return action


def scored(model: Model, table: sn.Table, settings: sn.Settings, rows: pd.DataFrame) -> None:
    "A window's scores are the model's answers, in the user's words."
    window = list(table.profiles(by="period"))[-1]
    succeeded("run", "workflows/window.toml", "-p", f"period={window}", cwd=settings.root)
    version = sn.Registry(settings).champion(model.name)
    run = sn.Registry(settings).run(version.run_id)
    found = version.predict(table.arrow(filter=[(PERIOD, "==", window)]))
    scores = sn.Table(model.scores, settings).to_pandas()
    said = scores.prediction if run.task == "regression" else scores.score
    want, scale = found.max(1) if found.ndim == 2 else found, max(1., float(np.abs(found).max()))
    np.testing.assert_allclose(np.sort(said)/scale, np.sort(want)/scale, atol=1e-5)
    if run.task != "regression":
        assert set(map(str, scores.prediction)) <= set(map(str, rows[model.target].dropna()))


@pytest.mark.slow
def test_two_commands_lead_from_a_table_of_others_to_pages(rounds, tmp_path):
    names = os.environ.get("SCALAI_TABLES", ",".join(sorted(bench.TABLES, key=lambda n: n != "diabetes"))).split(",")
    names, found = names[:rounds(1, soak=len(names))], {}
    for name in names:
        (tmp_path/name).mkdir()
        found[name] = loop(name, tmp_path/name)
        print(name, found[name], flush=True)
    kept = [n for n, action in found.items() if action != "promote"]
    rounds.note(promoted=len(found) - len(kept), kept_back=" ".join(kept) or "none")
