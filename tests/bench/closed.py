"""The loop closed on a stream: a year of flights week by week.

The seasons are as they were, and a seed plants shifts.
Three ways to serve the same stream with the same cheap model: trained once and never again; an oracle that trains
again after every week; and the loop, which sees profiles and labels of the week that ended, decides by the library's
own rules, and passes its gate. Each week is scored by the model that was in service when it began.

    python tests/bench/closed.py 10 11 12
"""

import json
import sys
import time
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

LEARN = 8  # weeks that the first model learns from
FEATURES = [
    "dep_delay",
    "distance",
    "sched_minute",
    "weekday",
    "temp",
    "humid",
    "wind_speed",
    "precip",
    "pressure",
    "visib",
    "carrier",
    "origin",
]
# seeds: what was looked at while the rules were made, and what is told
TUNED, REPORTED = tuple(range(9)), (10, 11, 12)
# [retrain] of a team that can train once a month: weeks are short, and most of them drift
RULES = dict(trigger="drift", cooldown=3)


def year() -> pd.DataFrame:
    """Flights of 2013 that left and arrived, with their weather, by week of departure (52, the last a day longer).

    A fold takes whole quarters of a day: flights of an hour share weather and queues, and a fold of single flights
    would be too easy for a model that learnt the others."""
    from scalai_nb.loop.flights import flights, weather
    w = (
        weather()
        .to_pandas()[["origin", "time_hour", "temp", "humid", "wind_speed", "precip", "pressure", "visib"]]
        .drop_duplicates(["origin", "time_hour"])
    )
    f = (
        flights()
        .to_pandas()
        .dropna(subset=["dep_delay", "arr_delay"])
        .merge(w, on=["origin", "time_hour"], how="left")
    )
    day = pd.to_datetime(dict(year=f.year, month=f.month, day=f.day))
    quarter = (day.dt.dayofyear - 1) * 4 + f.sched_dep_time // 600
    f = f.assign(
        sched_minute=f.sched_dep_time // 100 * 60 + f.sched_dep_time % 100,
        weekday=day.dt.dayofweek,
        day=day.dt.dayofyear,
        week=np.minimum((day.dt.dayofyear - 1) // 7, 51),
        late=f.arr_delay >= 15,
        hour=day.dt.dayofyear * 24 + f.sched_dep_time // 100,
        fold=np.random.default_rng(0).integers(0, 5, 4 * 366)[quarter],
    )
    return f[["week", "day", "hour", "fold", *FEATURES, "arr_delay", "late"]]


# What a seed may plant. Those of TUNING were looked at while the rules were made; those of HELD_OUT were not.
def later(f, rng): return f.assign(dep_delay=f.dep_delay + 20)
def seconds(f, rng): return f.assign(dep_delay=f.dep_delay * 60)
def renamed(f, rng):
    return f.assign(
        carrier=f.carrier.map(dict(zip(sorted(f.carrier.unique()), rng.permutation(sorted(f.carrier.unique())))))
    )
def padded(f, rng): return f.assign(late=f.arr_delay >= np.where(f.distance < f.distance.median(), 45, 0))
def silent(f, rng): return f.assign(dep_delay=f.dep_delay.mask(rng.random(len(f)) < .7))
def turned(f, rng): return f.assign(dep_delay=-f.dep_delay)
def coarse(f, rng): return f.assign(dep_delay=f.dep_delay // 60 * 60)
def strict(f, rng): return f.assign(late=f.arr_delay >= np.where(f.origin == "EWR", -5, 30))


TUNING, HELD_OUT = (later, seconds, renamed, padded), (silent, turned, coarse, strict)


def planted(seed: int) -> list[tuple]:  # (kind, first week, last week)
    """Three shifts that stay until the next one, and a fault of two or three weeks, in an order and at weeks drawn
    from the seed."""
    rng, kinds = np.random.default_rng(seed), list(TUNING if seed in TUNED else HELD_OUT)
    rng.shuffle(kinds)
    starts = [int(rng.integers(a, a + 5)) for a in (12, 22, 32, 42)]
    brief = int(rng.integers(0, 4))
    return [
        (k, s, s + int(rng.integers(1, 3)) if i == brief else (starts + [52])[i + 1] - 1)
        for i, (k, s) in enumerate(zip(kinds, starts))
    ]


class Week:
    "A week's flights, and its features as the model takes them; a name is a number for ever."
    codes: dict = {}

    def __init__(self, frame: pd.DataFrame):
        code = lambda c: frame[c].map({v: Week.codes.setdefault((c, v), len(Week.codes)) for v in frame[c].unique()})
        self.frame, self.x = frame, frame[FEATURES].assign(carrier=code("carrier"), origin=code("origin")).to_numpy(
            float
        )
        self.late, self.day, self.hour = (frame[c].to_numpy() for c in ("late", "day", "hour"))
        self.kept = frame.fold.to_numpy() == 0  # nobody learns from these

    def score(self, model) -> np.ndarray: return model.predict_proba(self.x)[:, 1].astype(np.float32)

    def area(self, model) -> float:
        from scalai_nb.core.stats import auc
        return float(auc(self.late, self.score(model)))


def stream(frame: pd.DataFrame, seed: int) -> list[Week]:
    "The year with the seed's shifts in it."
    weeks = [f for _, f in frame.groupby("week")]
    for kind, first, last in planted(seed):
        for w in range(first, last + 1): weeks[w] = kind(weeks[w], np.random.default_rng([seed, first]))
    return [Week(f) for f in weeks]


def learn(weeks: list[Week]):
    "A small gradient boosting on the folds that train; nothing is drawn at random."
    from sklearn.ensemble import HistGradientBoostingClassifier
    x, late = (np.concatenate([getattr(w, k)[~w.kept] for w in weeks]) for k in ("x", "late"))
    return HistGradientBoostingClassifier(max_iter=40, early_stopping=False, random_state=0).fit(x, late)


@dataclass
class Version:
    "A model, what it learnt from, and what is usual for it."
    number: int
    model: object
    learnt: list[int]
    policy: object = None
    reference: object = None
    families: dict = field(default_factory=dict)
    usual: dict = field(default_factory=dict)


class Loop:
    "The parts of scalai_nb that close the loop, over frames in memory instead of tables and notebooks."
    def __init__(self, weeks: list[Week], rules):
        from scalai_nb.core.settings import GateSection
        from scalai_nb.data.profile import profile
        self.weeks, self.rules, self.gate = weeks, rules, GateSection()
        self.profiles = [profile(w.frame[FEATURES]) for w in weeks]
        self.names, self.log, self.trainings, self.told = [f"2013-w{w:02}" for w in range(len(weeks))], [], 0, []
        self.champion, self.elders, self.shadow, self.age = (
            self.version(learn(weeks[:LEARN]), list(range(LEARN))),
            [],
            None,
            0,
        )

    def version(self, model, learnt: list[int]) -> Version:
        "What `store_reference` keeps of a version, and the policy that its windows show."
        from scalai_nb.monitor.performance import performance
        from scalai_nb.monitor.thresholds import Policy
        v = Version(
            self.trainings + 1,
            model,
            learnt,
            Policy().calibrate([self.profiles[w] for w in learnt]),
            sum((self.profiles[w] for w in learnt[1:]), self.profiles[learnt[0]]),
        )
        for w in learnt: v.families[self.names[w]] = self.scored(model, self.weeks[w], self.weeks[w].kept)
        v.usual = {n: performance(f) for n, f in v.families.items()}
        return v

    @staticmethod
    def scored(model, week: Week, some=slice(None)) -> dict:
        from scalai_nb.data.profile import profile
        return profile(pd.DataFrame({"score": week.score(model)[some], "late": week.late[some]}), by="late")

    def end_of(self, w: int):
        "A week has ended and its labels are there."
        from scalai_nb.loop.retrain_policy import learns, plan
        from scalai_nb.monitor.decision import decide
        from scalai_nb.monitor.drift import compare
        from scalai_nb.monitor.performance import performance
        v, f = self.champion, self.weeks[w]
        decision = decide(
            compare(v.reference, self.profiles[w], v.policy), performance(self.scored(v.model, f)), v.usual, v.policy
        )
        seen, learnt = self.names[:w + 1], [self.names[i] for i in v.learnt]
        decision = plan(decision, seen[-1], self.log, seen, self.rules, learnt, self.gate.min_labels)
        learnt_next = learns(decision, seen[-1], self.log, seen, self.rules, learnt)
        entry = dict(
            period=seen[-1],
            action=decision.action,
            outcome="pending" if decision.action == "retrain" else "kept",
            version=v.number,
            reference=learnt,
            evidence=decision.evidence,
        )
        self.log.append(entry)
        answered = self.trial(w, entry) and not decision.evidence["break"]
        if decision.action == "retrain" and not answered:
            self.retrain(w, entry, [self.names.index(n) for n in learnt_next])
        self.told.append(entry | {"reasons": decision.reasons})

    def trial(self, w: int, entry: dict) -> bool:
        "Beside the versions before, and beside the shadow; whether another version serves now."
        from scalai_nb.loop.gate import gate
        from scalai_nb.loop.probation import ELDERS, fails
        f, self.age = self.weeks[w], self.age + 1
        given = dict(label=f.late, block=f.day)
        if self.age <= self.gate.probation or entry["action"] != "keep":
            found = [
                (v, *fails(f.score(self.champion.model), f.score(v.model), rules=self.gate, **given))
                for v in self.elders[-ELDERS:]
            ]
            if better := [(v, g.mean) for v, worse, g in found if worse]:
                self.serve(max(better, key=lambda x: x[1])[0], entry, "rolled_back")
                return True
        if self.shadow:
            verdict = gate(
                f.score(self.shadow.model),
                champion=f.score(self.champion.model),
                tolerance=self.gate.tolerance,
                **given,
            )
            if verdict.action == "shadow": return False
            shadow, self.shadow = self.shadow, None
            if verdict.passed: self.serve(shadow, entry, "promoted")
            return verdict.passed
        return False

    def serve(self, version: Version, entry: dict, outcome: str):
        self.elders = [v for v in self.elders if v is not version] + [self.champion]
        self.champion, self.shadow, self.age, entry["outcome"] = version, None, 0, outcome

    def retrain(self, w: int, entry: dict, learnt: list[int]):
        "The job, the gate, and what follows."
        from scalai_nb.loop.gate import gate
        model, f = learn([self.weeks[i] for i in learnt]), self.weeks[w]
        self.trainings += 1
        verdict = gate(
            f.score(model)[f.kept],
            f.late[f.kept],
            f.score(self.champion.model)[f.kept],
            tolerance=self.gate.tolerance,
            block=f.hour[f.kept],
        )
        entry["outcome"] = {"promote": "promoted", "shadow": "shadow", "keep": "refused"}[verdict.action]
        if verdict.action == "keep": return
        made = self.version(model, learnt)
        if verdict.passed: self.serve(made, entry, "promoted")
        else: self.shadow = made


def closed(frame: pd.DataFrame, seed: int, rules=None) -> dict:
    "One stream served in the three ways. The oracle knows when each shift began and learns from no week before it."
    from scalai_nb.core.settings import RetrainSection
    began, weeks = time.perf_counter(), stream(frame, seed)
    loop, breaks = Loop(weeks, rules or RetrainSection(**RULES)), sorted(
        {x for _, a, b in planted(seed) for x in (a, b + 1)}
    )
    once = oracle = loop.champion.model
    rows = []
    for w in range(LEARN, len(weeks)):
        rows.append([weeks[w].area(m) for m in (once, loop.champion.model, oracle)])
        if w == len(weeks) - 1: break
        loop.end_of(w)
        oracle = learn(weeks[max([w + 1 - LEARN, *(x for x in breaks if x <= w)]):w + 1])
    never, ours, best = np.mean(rows, 0)
    return dict(
        seed=seed,
        planted=[(k.__name__, a, b) for k, a, b in planted(seed)],
        never=never,
        loop=ours,
        oracle=best,
        regained=(ours - never) / (best - never),
        trainings=loop.trainings,
        oracle_trainings=len(rows) - 1,
        share=loop.trainings / (len(rows) - 1),
        rolled_back=sum(e["outcome"] == "rolled_back" for e in loop.told),
        refused=sum(e["outcome"] == "refused" for e in loop.told),
        weeks=rows,
        told=loop.told,
        seconds=time.perf_counter() - began,
    )


if __name__ == "__main__":
    frame = year()
    for seed in map(int, sys.argv[1:] or REPORTED):
        done = closed(frame, seed)
        print(json.dumps({k: v for k, v in done.items() if k not in ("weeks", "told")}, default=float))
        for w, (row, e) in enumerate(zip(done["weeks"], [*done["told"], {}])):
            print(
                f"{w + LEARN:>3}  "
                + "  ".join(f"{x:.3f}" for x in row)
                + f"  {e.get('action', ''):<8} {e.get('outcome', ''):<12} v{e.get('version', '')}"
                f" {'; '.join(e.get('reasons', [])[:1])[:110]}"
            )
