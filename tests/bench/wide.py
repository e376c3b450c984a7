"""Drift pages over many wide windows: what the snapshot and the live page take, in CPU seconds and memory.

    python tests/bench/wide.py [--windows 300] [--columns 200] [--rows 2000] [--dry]
"""
import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
from bench import keep, stamp

PAGE = """import json, resource, time
began = time.process_time()
from scalai_nb.view.watch import Page, Watch
loaded = time.process_time()
page = Page(Watch(ignore=("key",)))
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
print(json.dumps({"cpu": time.process_time() - loaded, "imports": loaded - began, "peak": peak}))
"""


def frame(window: int, columns: int, rows: int) -> pa.Table:
    """Rows of one window:

    three quarters numbers of several shapes, one quarter text; from the middle on, every tenth column moves."""
    rng, late = np.random.default_rng(window), window % 50 >= 40
    def column(i):
        shift = .6 if late and i % 10 == 0 else 0.
        if i % 4 == 3: return rng.choice([f"v{k}" for k in range(3 + i)], rows)
        values = (
            rng.normal(shift, 1, rows),
            rng.exponential(1 + shift, rows),
            np.round(rng.normal(50 + 20 * shift, 20, rows)),
        )[i % 3]
        return np.where(rng.random(rows) < .01, np.nan, values)
    return pa.table({f"c{i:03d}": column(i) for i in range(columns)})


def workspace(root: Path, windows: int = 300, columns: int = 200, rows: int = 2_000):  # Settings
    "A workspace whose only content is windows of features."
    from scalai_nb.core.settings import Settings
    from scalai_nb.data.profile import profile
    from scalai_nb.data.profile_store import record
    (root / "settings.ini").write_text("[workspace]\nhome = .scalai\n")
    settings = Settings.load(root)
    for n in range(windows):
        period = str(np.datetime64("2000-01") + n)
        record("features", {period: profile(frame(n, columns, rows))}, f"b{n}", by="period", settings=settings)
    return settings


def page(root: Path) -> dict:  # CPU seconds after and of the imports, peak bytes
    "The drift page in a process of its own."
    environ = {k: v for k, v in os.environ.items() if k != "SCALAI_SETTINGS"} | {"OMP_NUM_THREADS": "1"}
    return json.loads(
        subprocess.run(
            [sys.executable, "-c", PAGE], cwd=root, env=environ, capture_output=True, text=True, check=True
        ).stdout
    )


def report(cold: dict, warm: dict, a, command: str, load: float) -> str:
    "The section."
    lines = ["| | CPU s | of which imports | peak MB | must | met |", "|---|---:|---:|---:|---|---|"]
    for name, got, seconds in (
        ("first page: every comparison is made", cold, 20),
        ("next page: they are known", warm, 3),
    ):
        total, peak = got["cpu"] + got["imports"], got["peak"] / 1e6
        limit = total if seconds == 20 else got["cpu"]  # a live page's kernel has imported before
        met = "yes" if limit <= seconds and peak <= 1000 else "**no**"
        lines.append(f"| {name} | {total:.1f} | {got['imports']:.1f} | {peak:.0f} | ≤ {seconds} s, 1 GB | {met} |")
    told = (
        f"{a.windows} windows of {a.columns} columns, {a.rows:,} rows each; the page opens with the newest 36 windows"
        " against twelve."
    )
    return "\n".join(["## drift page, many wide windows", "", told, "", *lines, "", stamp(command, load), ""])


def main():
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    for name, n in (("windows", 300), ("columns", 200), ("rows", 2_000)):
        p.add_argument(f"--{name}", type=int, default=n)
    p.add_argument("--at", type=Path, help="a workspace that an earlier run has made; made there where there is none")
    p.add_argument("--dry", action="store_true", help="print the section, leave RESULTS.md as it is")
    a, load = p.parse_args(), os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        root = a.at or Path(folder)
        if not (root/"settings.ini").exists(): workspace(root, a.windows, a.columns, a.rows)
        for file in root.glob(".scalai/compared/*.json"): file.unlink()
        cold, warm = page(root), page(root)
    text = report(
        cold, warm, a, f"python tests/bench/wide.py --windows {a.windows} --columns {a.columns} --rows {a.rows}", load
    )
    print(text)
    if not a.dry: keep(text.splitlines()[0], text)


if __name__ == "__main__": main()
