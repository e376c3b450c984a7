"""A profile of 1 M, 20 M and 100 M flights rows: what a million rows more take, and the peak of the whole process. The
profile alone is timed, after a first one of 1 M rows has loaded what is compiled."""

import time

from rows import flights

SIZES = {"scalai": 1_000_000, "rows_20M": 20_000_000, "rows_100M": 100_000_000}
CONTENDERS, GROWS, ROWS = tuple(SIZES), False, 100_000_000


def prepare(rows):
    for n in SIZES.values(): flights(n)
    return "flights"


def _grown(who):
    from scalai_nb.data.profile import profile
    profile(flights(SIZES["scalai"]))
    start, cpu = time.perf_counter(), time.process_time()
    made = profile(flights(SIZES[who]))
    return {"seconds": time.perf_counter() - start, "said": [made.rows, time.process_time() - cpu]}


def scalai(_): return _grown("scalai")
def rows_20M(_): return _grown("rows_20M")
def rows_100M(_): return _grown("rows_100M")


def check(answers):
    for who, (rows, _) in answers.items(): assert rows == SIZES[who], (who, rows)


def targets(rows, cost):
    each = {w: c["seconds"] / SIZES[w] * 1e9 for w, c in cost.items()}
    peak = max(c["peak"] for c in cost.values()) / cost["scalai"]["peak"]
    say = lambda good: "reached" if good else "not reached"
    return [
        f"nanoseconds a row: {', '.join(f'{SIZES[w] / 1e6:.0f} M {x:.0f}' for w, x in each.items())}",
        (
            "must: time per row within 10 % from 1 M rows on: longest"
            f" {max(each[w] / each['scalai'] - 1 for w in each):+.0%},"
            f" {say(all(each[w] <= 1.1 * each['scalai'] for w in each))}"
        ),
        f"must: peak memory within 20 %: {peak - 1:+.0%}, {say(peak <= 1.2)}",
    ]
