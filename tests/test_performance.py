"Performance figures against scikit-learn, intervals against their promise, labels in every order of arrival."

import json
import sys

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT, here
from onnx import TensorProto, helper, numpy_helper

from scalai_nb.compression.export import OPSET, finish, write
from scalai_nb.core.stats import auc_of_counts
from scalai_nb.data import profile_store
from scalai_nb.data.prep import Prep
from scalai_nb.data.profile import profile
from scalai_nb.data.table import Table
from scalai_nb.monitor.cost import CostMatrix, cheapest, cost
from scalai_nb.monitor.performance import (
    LIMITS,
    MEASURES,
    _within,
    by_segment,
    calibration,
    counts,
    ece,
    performance,
    pr_auc,
    surprise,
)
from scalai_nb.monitor.regression_metrics import regression_metrics
from scalai_nb.serving import labels as labels_of
from scalai_nb.serving.labels import labelled, labels, outcomes, residuals
from scalai_nb.serving.score import score

sys.path.insert(0, str(ROOT/"tests/bench"))


@pytest.fixture(scope="module")
def scored(_flights):
    """The flights that arrived, with the scores of a model that knows the schedule and of one that knows the
    departure, both learnt from January."""
    from sklearn.linear_model import LogisticRegression
    rows = _flights.dropna(subset=["arr_delay", "dep_delay"]).reset_index(drop=True)
    rows = rows.assign(late=rows["arr_delay"] >= 15)
    for name, columns in {
        "schedule": ["sched_dep_time", "distance", "day"],
        "departure": ["dep_delay", "sched_dep_time", "distance"],
    }.items():
        X = rows[columns].clip(upper=rows[columns].quantile(.99), axis=1)
        X = (X - X.mean()) / X.std()
        january = rows["month"] == 1
        rows[name] = LogisticRegression().fit(X[january], rows["late"][january]).predict_proba(X)[:, 1]
    return rows


def family(rows, name): return profile(pd.DataFrame({"score": rows[name], "late": rows["late"]}), by="late")


def truths(rows, name) -> dict:
    "What scikit-learn says of the rows themselves."
    from sklearn import metrics
    y, s = rows["late"].to_numpy(), rows[name].to_numpy()
    loss, base = metrics.log_loss(y, s), y.mean()
    return {
        "auc": metrics.roc_auc_score(y, s),
        "pr_auc": metrics.average_precision_score(y, s),
        "logloss": loss,
        "brier": metrics.brier_score_loss(y, s),
        "bias": s.mean() - base,
        "skill": 1 - loss / metrics.log_loss(y, np.full(len(y), base)),
        "precision": metrics.precision_score(y, s >= 0.3),
        "recall": metrics.recall_score(y, s >= 0.3),
    }


@pytest.mark.parametrize("name, months", [("schedule", [2]), ("departure", range(1, 13))])
def test_figures_are_those_of_scikit_learn(scored, name, months):
    rows = scored[scored["month"].isin(months)]
    found, truth = performance(family(rows, name), threshold=.3), truths(rows, name)
    lo, hi, down, up = counts(family(rows, name))
    bound = {"auc": auc_of_counts(down, up, hi > lo)[2], "pr_auc": pr_auc(down, up, hi > lo)[2]} | {
        k: v[2] for k, v in surprise(lo, hi, down, up).items()
    }
    for measure, value in truth.items():
        assert abs(getattr(found, measure) - value) <= bound.get(measure, 0.003) + 1e-9, (
            measure,
            getattr(found, measure),
            value,
        )
        assert found.intervals[measure][0] <= value <= found.intervals[measure][1]
    assert max(v for k, v in bound.items() if k != "pr_auc") < 2e-3 and bound["pr_auc"] < .02, bound
    groups = pd.qcut(rows[name].rank(method="first"), 15, labels=False)
    gap = rows.groupby(groups.to_numpy()).agg(s=(name, "mean"), y=("late", "mean"), n=("late", "size"))
    assert abs(found.ece - (abs(gap["s"] - gap["y"]) * gap["n"]).sum() / len(rows)) < .002
    json.dumps(found.to_dict(), allow_nan=False)


def test_parts_add_up_whatever_the_cut(scored):
    rows, rng = scored.iloc[:30_000], np.random.default_rng(0)
    whole = performance(family(rows, "departure"))
    for pieces in (2, 7):
        cut = rng.integers(0, pieces, len(rows))
        parts = [family(rows[cut == i], "departure") for i in rng.permutation(pieces)]
        assert performance({l: sum(p[l] for p in parts) for l in (False, True)}).to_dict() == whole.to_dict()
    regression = residuals(rows["dep_delay"], rows["arr_delay"]).to_pandas()
    parts = profile(regression[cut < 3]) + profile(regression[cut >= 3])
    whole, summed = (regression_metrics(p) for p in (profile(regression), parts))
    assert summed.quantiles == whole.quantiles and [summed.mae, summed.rmse, summed.bias, summed.r2] == pytest.approx(
        [whole.mae, whole.rmse, whole.bias, whole.r2], rel=1e-9
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", ["schedule", "departure"])
def test_intervals_hold_what_they_promise(scored, name):
    "Samples of two thousand of a third of a million flights: in 95 of 100 the interval holds the figure of all."
    truth, rng, times, rows = truths(scored, name), np.random.default_rng(1), 150, scored[[name, "late"]]
    lo, hi, down, up = counts(family(scored, name))
    truth["ece"] = ece(calibration((lo + hi) / 2, down, up))[0]
    held = dict.fromkeys(truth, 0)
    for _ in range(times):
        found = performance(family(rows.iloc[rng.integers(0, len(rows), 2_000)], name), threshold=.3)
        for m in truth: held[m] += found.intervals[m][0] <= truth[m] <= found.intervals[m][1]
    assert not {m: n / times for m, n in held.items() if n / times < .9}  # .95 less three standard errors
    assert all(n < times for m, n in held.items() if m in LIMITS), held  # nor may they be endless


@pytest.mark.slow
def test_intervals_of_errors_hold_what_they_promise(scored):
    from sklearn import metrics
    wide = residuals(scored["dep_delay"], scored["arr_delay"]).to_pandas()
    e, rng, times = wide["error"], np.random.default_rng(2), 150
    truth = {
        "mae": abs(e).mean(),
        "rmse": np.sqrt((e**2).mean()),
        "bias": e.mean(),
        "r2": metrics.r2_score(scored["arr_delay"], scored["dep_delay"]),
    } | {q: np.quantile(e, q) for q in (0.05, 0.5, 0.95)}
    held = dict.fromkeys(truth, 0)
    for _ in range(times):
        found = regression_metrics(profile(wide.iloc[rng.integers(0, len(wide), 2_000)]))
        for m in truth: held[m] += found.intervals[m][0] <= truth[m] <= found.intervals[m][1]
    assert not {m: n / times for m, n in held.items() if n / times < .9}


def test_segments_that_are_dealt_at_random_are_not_worse(scored):
    rows, rng, alarms = (
        scored[scored["month"] == 3][["departure", "late"]].rename(columns={"departure": "score"}),
        np.random.default_rng(3),
        0,
    )
    for _ in range(10):
        alarms += bool(by_segment(profile(rows.assign(part=rng.integers(0, 8, len(rows))), by=["part", "late"])).worse)
    assert alarms <= 2
    rows = rows.assign(part=rng.integers(0, 8, len(rows)))
    spoilt = rows.assign(score=rows["score"].mask(rows["part"] == 5, rng.permutation(rows["score"])))
    assert list(by_segment(profile(spoilt, by=["part", "late"])).worse) == [5]


def test_money_is_counted_to_the_row(scored):
    rows, matrix = scored[scored["month"] == 5], CostMatrix(tp=2, fp=5, fn=30, tn=.5)
    f, y, s = family(rows, "departure"), rows["late"].to_numpy(), rows["departure"].to_numpy()
    paid = lambda t: np.where(s >= t, np.where(y, 2, 5), np.where(y, 30, .5)).sum()
    for t in (.1, .3, .6): assert cost(f, matrix, t).total == pytest.approx(paid(t), rel=5e-3)
    best = cheapest(f, matrix)
    assert best.total <= min(paid(t) for t in np.linspace(0.01, 0.99, 99)) * 1.002 and best.total < min(
        best.always, best.never
    )
    assert (best.always, best.never) == pytest.approx((paid(-1), paid(2)))


def test_what_cannot_be_measured_is_said(scored):
    rows = scored.iloc[:1000].assign(departure=lambda f: f["departure"].mask(f.index % 10 == 0))
    found = performance(family(rows, "departure"))
    assert found.unscored == 100 and "100 labelled rows have no finite score" in str(found)
    for f in (
        {},
        {None: profile(rows[["departure"]].rename(columns={"departure": "score"}))},
        {True: profile(pd.DataFrame({"score": [0.5]}))},
    ):
        found = performance(f)
        assert found.to_dict()["auc"] is None and "nothing to measure" in str(found)
        json.dumps(found.to_dict(), allow_nan=False)
        found._repr_html_()
    assert _within("auc", .99, .1, 0) == (pytest.approx(.794, abs=1e-3), 1) and set(LIMITS) < set(MEASURES)


# Labels

@pytest.fixture
def june(_flights):
    rows = (
        _flights.loc[
            _flights["month"].isin([6, 7]), ["month", "carrier", "origin", "distance", "dep_delay", "arr_delay"]
        ]
        .dropna()
        .sample(3000, random_state=0)
        .reset_index(drop=True)
    )
    return rows.assign(
        id=[f"f{i}" for i in range(len(rows))],
        number=np.arange(len(rows)),
        period="2013-0" + rows["month"].astype(str),
        late=rows["arr_delay"] >= 15,
    )


@pytest.fixture
def model(workspace, june):
    "Files of a model that needs no training: the delay at departure, as it is or squeezed."
    prep = Prep.fit(profile(june[["carrier", "origin", "distance", "dep_delay"]]))
    def made(name, loss="binary", weight=2.):
        w = numpy_helper.from_array(np.float32([weight * (f == "dep_delay") for f in prep.features]), "w")
        nodes = [
            helper.make_node("MatMul", ["features", "w"], ["z"]),
            helper.make_node("Sigmoid" if loss == "binary" else "Identity", ["z"], ["score"]),
        ]
        ends = [
            helper.make_tensor_value_info(n, TensorProto.FLOAT, shape)
            for n, shape in (("features", ["N", len(prep.features)]), ("score", ["N"]))
        ]
        half = helper.make_model(
            helper.make_graph(nodes, "linear", ends[:1], ends[1:], [w]), opset_imports=[helper.make_opsetid("", OPSET)]
        )
        return write(finish(half, prep, loss, target="late"), workspace/f"{name}.onnx")
    return made


def features(rows): return rows.drop(columns=["late", "arr_delay"])
def window(table="scores", **only): return profile_store.recall(table, by=("period", "label"), **only)


def test_labels_by_the_command(model, workspace, june):
    "Before the scores, after them, twice, corrected; what remains is said."
    path, keys = model("late"), ["number", "carrier"]
    june[[*keys, "late"]][:1000].to_csv("early.csv", index=False)
    early = labels("early.csv", key=keys, label="late")
    assert (early["new"], early["waiting"], early["rows"]) == (1000, 1000, 0)
    score(path, features(june), key=keys, period="period")
    june[[*keys, "late"]][500:2000].to_parquet("more.parquet")
    done = here("labels", "more.parquet", "--label", "late", "--json")
    assert done.code == 0 and (done.doc["new"], done.doc["corrected"], done.doc["unchanged"], done.doc["waiting"]) == (
        1000,
        0,
        500,
        0,
    )
    assert sum(p["unlabelled"] for p in done.doc["periods"].values()) == done.doc["unlabelled"] == 1000
    before = window()
    again = labels("more.parquet", label="late")
    assert (again["new"], again["corrected"], again["unchanged"]) == (0, 0, 1500) and window() == before
    wrong = here("labels", "more.parquet", "--key", "distance", "--label", "late")
    assert wrong.code == 2 and len(wrong.lines) == 2 and "keyed by number, carrier" in wrong.err


def test_another_version_and_no_period_keep_their_labels(model, june):
    """A period scored again by another file has the labels from the start; batches without a period each keep their
    own."""
    first, second = model("one"), model("two", weight=1.5)
    score(first, features(june), key="id", period="period")
    labels(june[["id", "late"]][:2500], key="id", label="late")
    score(second, features(june[june["month"] == 6]), key="id", period="period")
    assert labelled()["labelled"] == 2500 and Table("scores").arrow().num_rows == 3000
    for half in (june[:1500], june[1500:]): score(first, features(half), table="flat", key="id")
    assert labels(june[["id", "late"]][1400:1600], "flat", key="id", label="late")["windows"] == 2
    Table("flat").compact()
    labels(june[["id", "late"]][:1400], "flat", label="late")
    truth = june.set_index("id")["late"][:1600]
    got = outcomes("flat").to_pandas().set_index("id")["label"].dropna()
    assert (got.loc[truth.index] == truth).all() and len(got) == 1600
    assert {k: p.rows for k, p in window("flat").items()} == {
        (None, "0"): (~truth).sum(),
        (None, "1"): truth.sum(),
        (None, None): 1400,
    }


def test_labels_that_come_while_scores_are_written(model, june, monkeypatch):
    from scalai_nb.data import write as module
    whole, path, came = module.write, model("late"), []
    def late_labels(frame, name, *a, **k):
        if name == "scores" and not came: came.append(labels(june[["id", "late"]], key="id", label="late"))
        return whole(frame, name, *a, **k)
    monkeypatch.setattr(module, "write", late_labels)
    score(path, features(june), key="id", period="period")
    assert came[0]["waiting"] == 3000 and labelled()["unlabelled"] == 0


def test_a_delivery_that_was_killed_is_whole_when_it_comes_again(model, june, monkeypatch):
    score(model("late"), features(june), key="id", period="period")
    given = june[["id", "late"]][:1000]
    with monkeypatch.context() as m:
        m.setattr(labels_of, "join", lambda *a: (_ for _ in ()).throw(KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt): labels(given, key="id", label="late")
    assert labelled()["labelled"] == 0 and Table("scores_labels").rows == 1000
    done = labels(given, key="id", label="late")
    assert (done["new"], done["labelled"]) == (0, 1000) and Table("scores_labels").rows == 1000


def test_a_predicted_number_is_measured_when_its_labels_come(model, june):
    path = model("delay", "regression", 40.)
    score(path, features(june), key="id", period="period")
    holes = june[["id", "arr_delay"]].assign(arr_delay=june["arr_delay"].mask(june.index % 3 == 0))
    done = labels(holes, key="id", label="arr_delay")
    assert done["empty"] == 1000 and done["unlabelled"] == 1000
    found = regression_metrics(sum(window().values()))
    rows = outcomes().to_pandas().dropna(subset=["label"])
    assert (found.rows, found.unlabelled) == (2000, 1000) and found.bias == pytest.approx(
        (rows["prediction"].astype(float) - rows["label"]).mean()
    )
    score(
        path, features(june).assign(truth=holes["arr_delay"]), table="known", key="id", period="period", label="truth"
    )
    assert sum(window("known").values()) == sum(
        window().values()
    ), "as if the labels had been there when it was scored"


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind, known, widest", [("month", "departed", 0.07), ("month", "scheduled", 0.09), ("week", "departed", 0.07)]
)
def test_the_band_without_labels_holds_the_truth(kind, known, widest):
    """Nine of ten at least, for two models; what is known of a flight before it leaves says little, and its band is
    twice as wide."""
    from labelfree import MODELS, coverage
    found = [coverage(kind, model, 1, known) for model in MODELS]
    assert np.mean([f["covered"] for f in found]) >= .9 and max(f["half_width"] for f in found) <= widest, found
    assert np.mean([f["error"] for f in found]) < 1.05 * np.mean([f["constant_error"] for f in found]), found
