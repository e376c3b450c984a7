"Windows that come twice, late, torn, empty or in thousands; alarms kept and sent; the cost of scoring."

import socket
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from test_alerts import Ear

from scalai_nb.core.delta_log import store
from scalai_nb.core.errors import BadRequest, WorkFailed
from scalai_nb.core.settings import Settings
from scalai_nb.data import delta, profile_store
from scalai_nb.data.period import span
from scalai_nb.data.profile import profile
from scalai_nb.data.rollup import DAY, fold
from scalai_nb.data.table import Table
from scalai_nb.data.write import write
from scalai_nb.loop.watch import tell, watch
from scalai_nb.monitor.alarms import Alarms, cases
from scalai_nb.monitor.alpha_spending import Look, look
from scalai_nb.monitor.drift import compare
from scalai_nb.monitor.thresholds import Policy
from scalai_nb.monitor.windows import window, windows

COLUMNS = ["dep_delay", "distance", "carrier"]


@pytest.fixture
def settings(tmp_path): return Settings(root=tmp_path)


@pytest.fixture(scope="module")
def june(_flights):
    rows = _flights[_flights.month == 6]
    return (
        rows[COLUMNS]
        .assign(
            day=rows.time_hour.astype(str).str[:10], hour=rows.time_hour.astype(str).str[:13].str.replace(" ", "T")
        )
        .reset_index(drop=True)
    )


def file_of(settings, source="seen") -> Path:
    "One file of the store that holds this source."
    folder = Path(store(settings, "windows"))
    table = pa.table(delta.open_table(str(folder)).get_add_actions(flatten=True))
    return folder / next(
        p for p, s in zip(table["path"].to_pylist(), table["partition.source"].to_pylist()) if s == source
    )


# ---- windows

def test_deliveries_in_any_order_and_twice_are_one_history(tmp_path, june):
    "At least once and out of order is what queues promise: the sums are the same, by the hour, day and month."
    june = june[:6000]
    parts = [june.iloc[i::4] for i in range(4)]
    seen = []
    for n, order in enumerate(([0, 1, 2, 3], [3, 1, 1, 0, 2, 3, 0])):
        s = Settings(root=tmp_path/str(n))
        for i in order:
            profile_store.record(
                "seen", profile(parts[i][[*COLUMNS, "day"]], by="day"), f"b{i}", by="period", settings=s
            )
        seen.append((windows("seen", settings=s), window("seen", "2013-06", s)))
    assert seen[0] == seen[1] and seen[0][1].rows == sum(d[:7] == "2013-06" for d in june.day)


def test_a_torn_file_is_named_and_hurts_nobody_else(settings, june):
    for source in ("seen", "other"):
        profile_store.record(source, {"2013-06": profile(june[COLUMNS])}, "b", by="period", settings=settings)
    file = file_of(settings)
    whole = file.read_bytes()
    file.write_bytes(whole[:len(whole)//2])
    with pytest.raises(WorkFailed, match=file.name): window("seen", settings=settings)
    assert window("other", settings=settings).rows == len(june)
    changed = bytearray(whole)
    changed[len(whole)//3] ^= 0xff  # a bit that a disk lost, in the middle of a page
    file.write_bytes(changed)
    with pytest.raises(WorkFailed, match="damaged"): window("seen", settings=settings)
    file.write_bytes(whole)
    assert window("seen", settings=settings) == window("other", settings=settings)


def test_a_table_outlives_its_torn_windows(settings, june):
    write(june[COLUMNS], "t", period="2013-06", settings=settings)
    file = file_of(settings, "t")
    file.write_bytes(file.read_bytes()[:100])
    assert Table("t", settings).profile() == profile(pa.Table.from_pandas(june[COLUMNS], preserve_index=False))
    with pytest.raises(WorkFailed, match="damaged"): window("t", settings=settings)


def test_windows_of_other_versions(settings, june, monkeypatch):
    "A profile of a later program is refused by name; a store made before sums were kept takes them."
    from scalai_nb.data import profile_format
    monkeypatch.setattr(profile_format, "VERSION", profile_format.VERSION + 1)
    profile_store.record("newer", {"2013-06": profile(june[COLUMNS])}, "b", by="period", settings=settings)
    monkeypatch.undo()
    with pytest.raises(WorkFailed, match="'newer' for 2013-06 .*reads up to"): window("newer", settings=settings)
    profile_store.record("seen", profile(june[[*COLUMNS, "day"]], by="day"), "b", by="period", settings=settings)
    before = window("seen", settings=settings)
    assert "sums" not in delta.open_table(store(settings, "windows")).schema().to_json()
    fold(settings, now=time.time() + 500*DAY)
    profile_store.record("seen", profile(june[[*COLUMNS, "day"]], by="day"), "c", by="period", settings=settings)
    assert window("seen", settings=settings) == before + before and [
        f.rows for f in windows("seen", "month", settings).values()
    ] == [p.rows for p in windows("seen", "month", settings).values()]


def test_windows_of_no_row_and_of_one(settings, june):
    one, none = profile(june[COLUMNS][:1]), profile(june[COLUMNS][:0])
    for m in range(1, 5):
        profile_store.record(
            "seen", {f"2013-0{m}": profile(june[COLUMNS][m::5])}, f"b{m}", by="period", settings=settings
        )
    for period, p in (("2013-05", one), ("2013-06", none)):
        profile_store.record("seen", {period: p}, period, by="period", settings=settings)
    # nothing else: one row says little of the columns
    assert list(watch("seen", "2013-05", settings).opens) == ["rows"]
    assert list(watch("seen", "2013-06", settings).opens) == ["rows"]
    assert window("seen", settings=settings) == sum(windows("seen", settings=settings).values())
    assert Policy.calibrate([one, none, one]).windows == 0 and not compare(one, one).drifted


def test_clocks_that_are_wrong(settings, june):
    "Rows and writers from the future or the past: nothing is lost by them, and no look is led astray."
    for period in ("2013-05", "2013-06", "2031-06", "1970-01"):
        profile_store.record("seen", {period: profile(june[COLUMNS])}, period, by="period", settings=settings)
    assert watch("seen", settings=settings).period == "2013-06"
    with pytest.raises(BadRequest, match="has not begun"): watch("seen", "2031-06", settings)
    keeping = Settings(root=settings.root, monitor=dict(keep=1000))
    for days in (-400, 900):
        fold(keeping, now=time.time() + days*DAY)  # as a writer's clock that is ahead, or behind, makes it look
    assert list(windows("seen", settings=keeping)) == ["1970-01", "2013-05", "2013-06", "2031-06"]


# ---- alarms

def test_the_order_of_looks_changes_nothing(tmp_path):
    rng = np.random.default_rng(0)
    names = ["a", "b", "c"]
    looks = [
        Look(
            "t",
            f"2013-06-{d:02}",
            dict.fromkeys(opens := [n for n in names if rng.random() < 0.15], "moved"),
            dict.fromkeys([*opens, *(n for n in names if rng.random() < 0.3)], "moved"),
        )
        for d in range(1, 31)
    ]
    said = cases(looks, 3)
    assert len(said) > 3
    for seed in range(3):
        alarms = Alarms(Settings(root=tmp_path/str(seed)))
        for i in np.random.default_rng(seed).permutation(len(looks)): alarms.saw(looks[i])
        found = [
            (a.subject, a.opened, a.seen, a.windows, a.resolved) for a in alarms.find(resolved=True) if not a.withdrawn
        ]
        assert sorted(found, key=str) == sorted(
            ((c.subject, c.opened, c.seen, c.windows, c.resolved) for c in said), key=str
        )


def test_many_at_once_keep_one_state(settings):
    from concurrent.futures import ThreadPoolExecutor
    with ThreadPoolExecutor(8) as pool:
        list(
            pool.map(
                lambda i: Alarms(settings).saw(Look("t", f"2013-06-{i % 4 + 1:02}", {"a": "moved"}, {"a": "moved"})),
                range(32),
            )
        )
    only, = Alarms(settings).find()
    assert (only.opened, only.seen, only.windows) == ("2013-06-01", "2013-06-04", 4)


def test_a_receiver_that_fails_is_told_with_the_next_look(tmp_path):
    """One hangs, one answers 500:

    the look is kept, the other receivers hear of it once, those that failed when they are back."""
    good, bad = Ear(), Ear(500, 500, 200)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        s = Settings(
            root=tmp_path,
            alerts=dict(
                webhook=good.url,
                slack=bad.url,
                alertmanager=f"http://127.0.0.1:{silent.getsockname()[1]}",
                attempts=2,
                timeout=0.2,
            ),
        )
        Alarms(s).saw(Look("flights", "2013-06", {"dep_delay": "median 3 → 9"}, {"dep_delay": "median 3 → 9"}))
        assert set(tell(s)) == {"slack", "alertmanager"} and set(tell(s)) == {"alertmanager"}
    back = Settings(root=tmp_path, alerts=dict(webhook=good.url, slack=bad.url))
    assert tell(back) == {} and tell(back) == {}
    assert [h["summary"] for h in good.heard] == ["flights 2013-06: dep_delay: median 3 → 9"] and len(bad.heard) == 3
    for m in (7, 8, 9): Alarms(back).saw(Look("flights", f"2013-0{m}", {}))
    assert tell(back) == {} and tell(back) == {}
    assert [h["resolved"] for h in good.heard] == [False, True] and good.heard[1][
        "summary"
    ] == "flights 2013-09: dep_delay as usual for 3 windows"


# ---- slow: many

@pytest.mark.slow
def test_ten_thousand_windows(settings, _flights):
    "Fourteen months of hours: one is found without the others, sums are exact, and folding leaves 417 days."
    rng = np.random.default_rng(0)
    rows = _flights[["dep_delay", "carrier"]].sample(50_000, random_state=0)
    first = span("2013-01-01T00")[0].timestamp()
    hours = pd.to_datetime(
        first + 3600 * np.sort(rng.permutation(np.r_[np.arange(10_000), rng.integers(0, 10_000, 40_000)])), unit="s"
    ).strftime("%Y-%m-%dT%H")
    rows = rows.assign(hour=hours.to_numpy())
    for day, part in rows.groupby(rows.hour.str[:7]):
        profile_store.record("seen", profile(part, by="hour"), day, by="period", settings=settings)
    assert len(profile_store.periods("seen", settings=settings)) == 10_000
    assert window("seen", "2013-07-04T05", settings) == profile(rows[rows.hour == "2013-07-04T05"])
    months = windows("seen", "month", settings)
    assert sum(months.values()) == profile(rows)
    fold(settings, now=time.time() + 31*DAY)
    assert (
        len(profile_store.periods("seen", settings=settings)) == 417 and windows("seen", "month", settings) == months
    )
    alarms = Alarms(settings)
    with alarms._open() as db:
        db.executemany(
            "INSERT INTO looks VALUES ('seen', ?, '{}', '{}', '', 0)", [(h,) for h in dict.fromkeys(rows.hour)]
        )
    assert [
        a.subject for a in alarms.saw(Look("seen", "2014-02-21T17", {"dep_delay": "moved"}, {"dep_delay": "moved"}))
    ] == ["dep_delay"]


@pytest.mark.slow
def test_two_thousand_columns(settings):
    "Windows of 2,000 columns come back whole; drift is found in the one column that has it, and its alarm says so."
    rng = np.random.default_rng(0)
    names = [f"c{i}" for i in range(2000)]
    for m in range(1, 5):
        x = rng.normal(size=(500, 2000)).astype("float32")
        if m == 4: x[:, 7] += 1
        profile_store.record(
            "wide",
            {f"2013-0{m}": profile(pa.table(list(x.T.copy()), names=names))},
            f"b{m}",
            by="period",
            settings=settings,
        )
    assert list(watch("wide", settings=settings).opens) == ["c7"]
    assert [a.subject for a in Alarms(settings).find()] == ["c7"]


@pytest.mark.slow
def test_a_year_of_looks_keeps_its_rate(_flights):
    """Days dealt at random from the real year, so that nothing drifts. Of six years of 365 looks at four columns, at a
    yearly rate of 5 %, more than two have an alarm with a chance of 0.2 %; at 5 % a look, each year has several."""
    columns, policy, spoilt, odd = ["dep_delay", "distance", "hour", "carrier"], Policy(), [], []
    for seed in range(6):
        rows = _flights[columns].assign(day=np.random.default_rng(seed).integers(0, 395, len(_flights)))
        days = [p.drop("day") for _, p in sorted(profile(rows, by="day").items())]
        usual = sum(days[:30])
        looks = [look("flights", str(i), usual, day, policy, 365) for i, day in enumerate(days[30:])]
        odd.append(sum(bool(l.opens) for l in looks))
        spoilt.append(sum(bool(l.holds) for l in looks))
    assert sum(map(bool, odd)) <= 2 and all(spoilt), (odd, spoilt)
