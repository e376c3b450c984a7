"""`prep.transform` of a pandas frame of flights beside a fitted ColumnTransformer doing the same: medians for holes,
flags, standard scores, one-hot of the commonest values; float32 out. The transform alone is timed, best of three in
the process."""

import time

from rows import flights as prepare  # noqa: F401 (what makes the rows)

CONTENDERS = ("scalai", "sklearn")
NUMBERS = [
    "month",
    "day",
    "dep_time",
    "sched_dep_time",
    "dep_delay",
    "arr_time",
    "sched_arr_time",
    "arr_delay",
    "flight",
    "air_time",
    "distance",
]
TEXTS = ["carrier", "origin", "dest"]


def _frame(file):
    import pandas as pd
    return pd.read_parquet(file, columns=NUMBERS + TEXTS)


def _best(fn, x):
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        out = fn(x)
        seconds.append(time.perf_counter() - start)
    return {"seconds": min(seconds), "said": [list(out.shape), float(out.sum(dtype="f8")), str(out.dtype)]}


def scalai(file):
    from scalai_nb.data.prep import Prep
    from scalai_nb.data.profile import profile
    x = _frame(file)
    return _best(Prep.fit(profile(x), {n: "standard" for n in NUMBERS} | {n: "onehot" for n in TEXTS}).transform, x)


def sklearn(file):
    import numpy as np
    from sklearn.compose import ColumnTransformer
    from sklearn.impute import SimpleImputer
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder, StandardScaler
    x = _frame(file)
    least = min(10, len(x) / 1000)
    made = ColumnTransformer(
        [
            ("n", make_pipeline(SimpleImputer(strategy="median", add_indicator=True), StandardScaler()), NUMBERS),
            (
                "t",
                OneHotEncoder(
                    handle_unknown="ignore",
                    max_categories=129,
                    min_frequency=int(least),
                    sparse_output=False,
                    dtype=np.float32,
                ),
                TEXTS,
            ),
        ]
    ).fit(x)
    return _best(lambda x: made.transform(x).astype(np.float32), x)


def check(answers):
    if "sklearn" in answers:
        assert (
            answers["scalai"][0][0] == answers["sklearn"][0][0]
            and abs(answers["scalai"][0][1] - answers["sklearn"][0][1]) <= 3
        ), answers


def targets(rows, cost):
    if "sklearn" not in cost: return []
    got = cost["sklearn"]["seconds"] / cost["scalai"]["seconds"]
    return [f"must: 3 × scikit-learn: {got:.2f} ×, {'reached' if got >= 3 else 'not reached'}"]
