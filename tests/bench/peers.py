"""The peers of the monitor, each in a virtual environment of its own (they need pandas < 3), answering one comparison
a line.

    PEER/bin/python -P tests/bench/peers.py PEER
        reads    {"reference": parquet, "current": parquet, "ask": another function here, or ""} a line,
        answers  {"alarms": [column …], "cpu": seconds} or {"error": …}

Each is asked as its own documentation asks it, by its defaults. Only this file runs there, and nothing of scalai_nb.
"""

import json
import os
import sys
import time
import warnings

PACKAGES = {  # in its environment
    "evidently": ["evidently==0.7.*"],
    "whylogs": ["whylogs[viz]==1.6.*", "setuptools<81"],
    "nannyml": ["nannyml==0.13.*", "statsmodels"],  # which category-encoders no longer brings
    "alibi-detect": ["alibi-detect==0.13.*"],
    "deepchecks": ["deepchecks==0.19.*", "scikit-learn<1.4", "setuptools<81"],
}
LEARNERS = {"lightgbm": ["lightgbm==4.*", "scikit-learn"]}  # asked by models.py


def kinds(frame):  # numeric names, others
    numeric = [c for c in frame.columns if frame[c].dtype.kind in "iufb"]
    return numeric, [c for c in frame.columns if c not in numeric]


def evidently(reference, current):
    "The preset, with its tests: the method is chosen by type and number of rows."
    from evidently import DataDefinition, Dataset, Report
    from evidently.presets import DataDriftPreset
    numeric, other = kinds(reference)
    told = DataDefinition(numerical_columns=numeric, categorical_columns=other)
    report = Report([DataDriftPreset()], include_tests=True)
    found = report.run(
        Dataset.from_pandas(current, data_definition=told), Dataset.from_pandas(reference, data_definition=told)
    ).dict()
    failed = [t for t in found["tests"] if "FAIL" in str(t["status"])]
    return [
        c
        for c in reference.columns
        if any(
            str(t.get("metric_config", {}).get("params", {}).get("column")) == c
            or f"column={c}" in json.dumps(t, default=str)
            or f"{c} " in str(t.get("name"))
            for t in failed
        )
    ]


def whylogs(reference, current):
    "Drift scores of two profiles with its thresholds; what it calls possible is not counted."
    import whylogs as why
    from whylogs.viz.drift.column_drift_algorithms import calculate_drift_scores
    views = [why.log(f).profile().view() for f in (current, reference)]
    found = calculate_drift_scores(target_view=views[0], reference_view=views[1], with_thresholds=True)
    return [c for c, v in found.items() if v and v.get("drift_category") == "DRIFT"]


def nannyml(reference, current):
    "Univariate drift by its default methods and chunks, any chunk of the current rows."
    import nannyml as nml
    calculator = nml.UnivariateDriftCalculator(column_names=list(reference.columns))
    calculator.fit(reference)
    found = calculator.calculate(current).filter(period="analysis").to_df()
    alerts = [c for c in found.columns if c[-1] == "alert"]
    return sorted({c[0] for c in alerts if found[c].any()})


def cbpe(reference, current):
    "NannyML's confidence-based estimate of the AUC, its chunks the windows: (window, value, low, high) of each."
    import nannyml as nml
    import pandas as pd
    told = lambda f: f.assign(
        predicted=(f.score >= 0.5).astype(int), at=pd.Timestamp("2013-01-01") + pd.to_timedelta(f.window, unit="D")
    ).sort_values("at")
    names = dict(
        y_pred_proba="score",
        y_pred="predicted",
        y_true="late",
        timestamp_column_name="at",
        problem_type="classification_binary",
        metrics=["roc_auc"],
        chunk_period="D",
    )
    estimator = nml.CBPE(**names).fit(told(reference))
    found = estimator.estimate(told(current)).filter(period="analysis").to_df()
    days = (pd.to_datetime(found[("chunk", "start_date")]).dt.normalize() - pd.Timestamp("2013-01-01")).dt.days
    of = found["roc_auc"]
    return [
        [int(w), float(v), float(low), float(high)]
        for w, v, low, high in zip(days, of["value"], of["lower_confidence_boundary"], of["upper_confidence_boundary"])
    ]


def alibi_detect(reference, current):
    """TabularDrift: Kolmogorov–Smirnov and chi-squared, Bonferroni; it takes one array, so names are numbered.
    It knows no missing numbers (a NaN makes a column's p NaN, which never alarms), so rows that lack one are left out.
    """
    import numpy as np
    import pandas as pd
    from alibi_detect.cd import TabularDrift
    numeric, other = kinds(reference)
    reference, current = (f.dropna(subset=numeric) for f in (reference, current))
    columns = list(reference.columns)
    codes = {
        c: {v: i for i, v in enumerate(pd.unique(pd.concat([reference[c], current[c]]).astype(object).fillna("")))}
        for c in other
    }
    array = lambda f: np.column_stack(
        [
            f[c].astype(object).fillna("").map(codes[c]).to_numpy(float) if c in codes else f[c].to_numpy(float)
            for c in columns
        ]
    )
    detector = TabularDrift(
        array(reference), p_val=0.05, categories_per_feature={columns.index(c): None for c in other}
    )
    found = detector.predict(array(current), drift_type="batch", return_p_val=True)["data"]
    return [c for c, p in zip(columns, found["p_val"]) if p < found["threshold"]]


def deepchecks(reference, current):
    "FeatureDrift with its default condition."
    from deepchecks.tabular import Dataset
    from deepchecks.tabular.checks import FeatureDrift
    numeric, other = kinds(reference)
    sets = [Dataset(f, cat_features=other) for f in (reference, current)]
    found = FeatureDrift(n_samples=None).add_condition_drift_score_less_than().run(*sets)
    (condition,) = found.conditions_results
    if condition.is_pass(): return []
    limits = {"numeric": .2, "categorical": .2}
    return [
        c
        for c, v in found.value.items()
        if (v.get("Drift score") or 0) > (limits["numeric"] if c in numeric else limits["categorical"])
    ] or ["?"]


def lightgbm(reference, current):
    """LightGBM by its defaults: learns `target` from the reference's other columns, text as categories, and answers
    for the current rows. Text `objective` names the task: binary, multiclass or regression."""
    import lightgbm as lgb
    import pandas as pd
    kind, seed = reference.pop("objective").iloc[0], int(reference.pop("seed").iloc[0])
    y, aside = reference.pop("target"), current[reference.columns]
    for c in reference.columns:
        if reference[c].dtype.kind in "iufb": continue
        known = pd.CategoricalDtype(sorted(reference[c].dropna().unique()))
        reference[c], aside = reference[c].astype(known), aside.assign(**{c: aside[c].astype(known)})
    learner = (lgb.LGBMRegressor if kind == "regression" else lgb.LGBMClassifier)(
        random_state=seed, n_jobs=os.cpu_count(), verbose=-1
    )
    began, cpu = time.perf_counter(), time.process_time()
    learner.fit(reference, y)
    took = time.perf_counter() - began, time.process_time() - cpu
    told = learner.predict(aside) if kind == "regression" else learner.predict_proba(aside)
    leaves = int(learner.booster_.trees_to_dataframe().shape[0])
    return {
        "said": (told[:, 1] if kind == "binary" else told).tolist(),
        "seconds": took[0],
        "cpu": took[1],
        "nodes": leaves,
    }


def main(name: str):
    warnings.filterwarnings("ignore")
    answers, sys.stdout = os.fdopen(os.dup(1), "w"), sys.stderr  # what a library prints is no answer
    os.dup2(2, 1)
    import logging
    logging.disable(logging.CRITICAL)
    import pandas as pd
    ask = globals()[name.replace("-", "_")]
    for line in sys.stdin:
        given = json.loads(line)
        frames = [pd.read_parquet(given[k]) for k in ("reference", "current")]
        began = time.process_time()
        try: said = {"alarms": globals()[given["ask"]](*frames) if given["ask"] else [str(c) for c in ask(*frames)]}
        except Exception as e:
            said = {"error": f"{type(e).__name__}: {e}"[:200]}  # a crash is an answer that the table tells
        print(json.dumps(said | {"cpu": time.process_time() - began}), file=answers, flush=True)


if __name__ == "__main__": main(sys.argv[1])
