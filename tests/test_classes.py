"Performance of several classes and of numbers from windows: it adds up, whatever the classes are called, and is JSON."

import json

import numpy as np
import pyarrow as pa
import pytest
from sklearn.metrics import confusion_matrix, f1_score, mean_absolute_error, r2_score, recall_score

from scalai_nb.data.profile import Profile
from scalai_nb.monitor.estimation import estimate
from scalai_nb.monitor.performance import performance
from scalai_nb.monitor.regression_metrics import regression_metrics
from scalai_nb.serving.labels import windows

STRANGE = ["a", "", " a", "a\x1fb", "<b>", "ä🚀", "None", "nan", "1", "1.0", "true", "x"*700]


def scored(seed: int, rows: int = 900, classes: int = 12) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    names = np.array(STRANGE[:classes] + [f"k{i}" for i in range(max(0, classes - len(STRANGE)))], object)
    came = names[rng.choice(classes, rows, p=(w := 1/np.arange(1, classes + 1))/w.sum())]
    sure = rng.uniform(.2, 1, rows)
    called = np.where(rng.random(rows) < sure, came, names[rng.integers(0, classes, rows)])
    return {"score": sure, "prediction": called, "label": came}


def family(rows: dict, some=slice(None), known=None) -> dict:
    "The profiles of a window by label, labels being null outside `known`."
    part = {k: v[some] for k, v in rows.items()}
    n = len(part["score"])
    came = pa.array(part["label"].tolist(), pa.string(), mask=None if known is None else ~known[some])
    made = windows(pa.table({"score": part["score"], "prediction": part["prediction"].tolist(), "label": came,
                             "task": ["multiclass"]*n, "period": ["2013-06"]*n}))
    return {label: p for (_, label), p in made.items()}


@pytest.mark.parametrize("seed", range(4))
def test_any_split_into_windows_gives_what_all_rows_give(seed):
    rows, rng = scored(seed), np.random.default_rng(seed)
    known, part = rng.random(900) < .8, rng.integers(0, 5, 900)
    whole = performance(family(rows, known=known))
    parts = [family(rows, part == k, known) for k in rng.permutation(5)]
    added = performance({l: sum((f[l] for f in parts if l in f), Profile.empty()) for l in (None, False, True)})
    assert added.to_dict() == whole.to_dict()
    kept = lambda names: np.array([s[:500].replace("\x1f", " ") for s in names[known]])
    came, called = kept(rows["label"]), kept(rows["prediction"])
    assert whole.rows == known.sum() and whole.unlabelled == (~known).sum()
    np.testing.assert_allclose(whole.macro_f1, f1_score(came, called, average="macro"))
    names, table = whole.classes.matrix()
    assert table == confusion_matrix(came, called, labels=names).tolist()
    json.dumps(whole.to_dict(), allow_nan=False)
    assert "<b>" not in whole._repr_html_().replace("<b>worse</b>", "")


def test_a_thousand_classes_stay_exact_and_the_matrix_small():
    rows = scored(0, 20_000, 1_000)
    found = performance(family(rows))
    kept = lambda names: [s[:500].replace("\x1f", " ") for s in names]
    came, called = kept(rows["label"]), kept(rows["prediction"])
    np.testing.assert_allclose(found.classes.macro["recall"][0], recall_score(came, called, average="macro",
                                                                             labels=sorted(set(came))))
    names, table = found.classes.matrix()
    assert len(names) == 47 and np.sum(table) == 20_000 and np.min(table) >= 0
    assert found.classes.uncounted > 0 and len(json.dumps(found.to_dict())) < 600_000
    low, high = found.intervals["macro_f1"]
    assert low < found.macro_f1 < high


def test_one_class_and_no_labels_measure_what_they_can():
    rows = scored(1) | {"label": np.array(["a"]*900, object), "prediction": np.array(["a"]*900, object)}
    found = performance(family(rows))
    assert (found.accuracy, found.macro_f1, found.classes.matrix()) == (1, 1, (["a"], [[900]]))
    nothing = performance(family(rows, known=np.zeros(900, bool)))
    assert not nothing.measured and nothing.to_dict()["accuracy"] is None
    assert "nothing to measure" in str(nothing) and "AUC" not in str(nothing)


def test_accuracy_is_estimated_where_confidence_moved():
    weeks = [family(scored(s, 2_000)) for s in range(9)]
    rows = scored(99, 4_000)
    unsure = {k: v[rows["score"] < .6] for k, v in rows.items()}
    truth = (unsure["label"] == unsure["prediction"]).mean()
    found = estimate(family(unsure, known=np.zeros(len(unsure["score"]), bool))[None], weeks, column="confidence")
    assert abs(found.expected - truth) < .04 < abs(found.baseline - truth)
    assert found.measure == "accuracy" and "accuracy about" in str(found)


def test_errors_of_a_number_have_a_distribution_that_adds_up():
    rng = np.random.default_rng(0)
    truth = rng.normal(50, 20, 5_000)
    said = truth*.9 + rng.standard_t(3, 5_000)*5
    made = windows(pa.table({"prediction": said, "label": truth, "task": ["regression"]*5_000,
                             "period": np.where(rng.random(5_000) < .3, "2013-06", "2013-07")}))
    found = regression_metrics(sum(made.values(), Profile.empty()))
    assert sum(b["rows"] for b in found.histogram) == pytest.approx(5_000)
    assert found.mae == pytest.approx(mean_absolute_error(truth, said), rel=.01)
    assert found.r2 == pytest.approx(r2_score(truth, said))
    assert found.histogram[0]["low"] < found.bias < found.histogram[-1]["high"]
    assert "accuracy" not in json.dumps(found.to_dict(), allow_nan=False) + found._repr_html_()
    same = regression_metrics(windows(pa.table({"prediction": [1., 1.], "label": [1., 1.], "task": ["regression"]*2,
                                                "period": ["2013-06"]*2}))["2013-06", None])
    assert same.histogram[0]["rows"] == 2 and not same.measured and same._repr_html_()
