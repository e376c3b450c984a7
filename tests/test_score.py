"Scoring that is repeated, interrupted, or done again with another version counts each row once."
import shutil

import numpy as np
import pandas as pd
import pytest
import torch

from scalai_nb.compression.export import export
from scalai_nb.core.errors import BadRequest
from scalai_nb.core.settings import Settings
from scalai_nb.data import profile_store
from scalai_nb.data.prep import Prep
from scalai_nb.data.profile import profile
from scalai_nb.data.table import Table
from scalai_nb.data.write import write
from scalai_nb.serving.score import Scorer, score
from scalai_nb.training.models import MLP
from scalai_nb.training.registry import Registry
from scalai_nb.training.run import Run

KNOWN = ["carrier", "origin", "dest", "distance", "dep_delay"]


@pytest.fixture(scope="module")
def june(_flights):
    "Six thousand flights of June and July."
    rows = (
        _flights.loc[_flights["month"].isin([6, 7]), [*KNOWN, "month", "arr_delay"]]
        .dropna(subset=["arr_delay"])
        .sample(6000, random_state=0)
        .reset_index(drop=True)
    )
    return rows.assign(
        id=[f"f{i}" for i in range(len(rows))],
        period="2013-0" + rows["month"].astype(str),
        late=rows["arr_delay"] >= 15,
    ).drop(columns="arr_delay")


@pytest.fixture(scope="module")
def made(june, tmp_path_factory):
    "A workspace with a table `features` and two versions of the model `late`, the first of them champion."
    folder = tmp_path_factory.mktemp("made")
    settings = Settings(root=folder)
    write(june, "features", period="period", settings=settings)
    prep, registry = Prep.fit(profile(june[KNOWN])), Registry(settings)
    for n in (1, 2):
        torch.manual_seed(n)
        run = Run(id=f"r{n}", model=MLP(len(prep.features)).eval(), prep=prep, target="late", task="binary",
                  data={"table": "features", "version": 0, "rows": len(june)})
        registry.register("late", export(run.model, prep, folder/f"{n}.onnx", target="late"), run)
    registry.promote("late", 1, "first")
    return folder


@pytest.fixture
def serving(workspace, made):
    "A copy of it, which is the working directory."
    shutil.copytree(made, workspace, dirs_exist_ok=True)
    return workspace


def test_champion_then_its_successor(serving, june):
    only = june[june["month"] == 6]
    where = [("month", "==", 6)]
    first = score("late", "features", label="late", key="id", period="2013-06", where=where)
    assert (first["model_version"], first["rows"], first["already"]) == (1, len(only), False)
    assert score("late", "features", label="late", key="id", period="2013-06", where=where)["already"]
    assert Table("scores").arrow().num_rows == len(only)
    Registry().promote("late", 2, "better")
    second = score("late", "features", label="late", key="id", period="2013-06", where=where)
    rows = Table("scores").arrow()
    assert (
        second["model_version"] == 2 and rows.num_rows == len(only) and set(rows["model_version"].to_pylist()) == {2}
    )
    window = profile_store.recall("scores", period="2013-06", by="label")
    assert sum(p.rows for p in window.values()) == len(
        only
    ), "the window of the first version is replaced, not added to"
    Registry().rollback("late")
    assert (
        score("late", "features", label="late", key="id", period="2013-06", where=where)["already"] is False
    ), "what was replaced has to be written again"
    assert set(Table("scores").arrow()["model_version"].to_pylist()) == {1} and Table(
        "scores"
    ).arrow().num_rows == len(only)
    assert score("late", "features", label="late", key="id", period="2013-06", where=where) | {
        "seconds": 0,
        "version": 0,
    } == first | {"seconds": 0, "version": 0, "already": True}
    rows = Table("scores").arrow()
    served = Scorer(Registry().champion("late").path)
    got = dict(zip(rows["id"].to_pylist(), rows["score"].to_pylist()))
    assert np.allclose([got[i] for i in only["id"]], served.score(only), atol=1e-6)


def test_a_file_is_scored_as_the_models_table_would_take_it(serving, june):
    "Points between thousands look like decimal points; the table file knows better."
    rows = june[june["distance"] >= 1_000].head(40).assign(dep_delay=lambda x: x["dep_delay"].round())
    point = lambda n: f"{int(n):,}".replace(",", ".")
    file = rows.assign(distance=rows["distance"].map(point), dep_delay=rows["dep_delay"].map("{:.0f}".format))
    file.to_csv("new.csv", sep=";", index=False)
    (serving/"tables").mkdir()
    (serving/"tables"/"features.toml").write_text('[read]\ndecimal = ","\n')
    score("late", "new.csv", "scores_of_file", key="id")
    score("late", rows, "scores_of_frame", key="id")
    one, other = (Table(f"scores_of_{n}").arrow().sort_by("id") for n in ("file", "frame"))
    assert one["id"] == other["id"] and np.allclose(one["score"], other["score"], atol=1e-6)
    assert Scorer(Registry().champion("late").path).score(rows.assign(distance=rows["distance"]/1_000)).std() > 0
    file.assign(distance="far").to_csv("bad.csv", sep=";", index=False)
    with pytest.raises(BadRequest, match="40 rows do not fit: distance: not a"):
        score("late", "bad.csv", "none", key="id")
    assert not Table("none").exists


def test_a_column_names_the_periods(serving, june):
    score("late", june[june["month"] == 6], label="late", key="id", period="2013-06")
    score("late", "features", label="late", key="id", period="period")
    found = profile_store.recall("scores", by=("period", "label"))
    assert set(found) == {(p, l) for p in ("2013-06", "2013-07") for l in "01"}
    assert Table("scores").arrow().num_rows == len(june), "June is replaced"
    assert {p: n for p, n in june.groupby("period").size().items()} == {
        p: sum(w.rows for (q, _), w in found.items() if q == p) for p in ("2013-06", "2013-07")
    }


def test_killed_between_window_and_rows(serving, monkeypatch, june):
    "A window without its rows does not count, and scoring again heals it."
    from scalai_nb.data import write as module
    score("late", june[june["month"] == 7], label="late", key="id", period="2013-07")
    whole = module.write
    monkeypatch.setattr(module, "write", lambda *a, **k: (_ for _ in ()).throw(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        score("late", june[june["month"] == 6], label="late", key="id", period="2013-06")
    assert list(profile_store.recall("scores", by="period")) == ["2013-07"]
    monkeypatch.setattr(module, "write", whole)
    score("late", june[june["month"] == 6], label="late", key="id", period="2013-06")
    assert (
        sum(p.rows for p in profile_store.recall("scores", period="2013-06", by="label").values())
        == (june["month"] == 6).sum()
    )


def test_sources_and_kinds_of_frames_score_alike(serving, june, tmp_path):
    import pyarrow as pa
    june.to_parquet(tmp_path/"june.parquet")
    want = Scorer(serving/"1.onnx").score(june)
    for n, source in enumerate(
        (
            june,
            pa.Table.from_pandas(june, preserve_index=False),
            str(tmp_path / "june.parquet"),
            "features",
            Table("features"),
        )
    ):
        score("late@1", source, table=f"s{n}", key="id")
        rows = Table(f"s{n}").arrow()
        got = pd.Series(rows["score"].to_numpy(), rows["id"].to_pandas())
        assert np.allclose(got.loc[june["id"]], want, atol=1e-6), n
        assert profile_store.recall(f"s{n}", by=None)[None].rows == len(june)


def test_bad_requests_write_nothing(serving, june):
    for given, said in (
        (dict(model="lates"), "no model 'lates'"),
        (dict(model="late@7"), "no version 7"),
        (dict(model="none.onnx"), "no model file"),
        (dict(source="features", key="idd"), "lack idd"),
        (dict(source=june.iloc[:0]), "no rows to score"),
        (dict(source="missing.parquet"), "missing.parquet"),
        (dict(where=[("month", "==", 6)]), "needs a table"),
    ):
        with pytest.raises(BadRequest, match=said): score(**{"model": "late", "source": june, **given})
    assert not Table("scores").exists
