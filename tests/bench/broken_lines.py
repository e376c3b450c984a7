"""What broken lines cost an ingest: `make bench-reading`, or

    python tests/bench/broken_lines.py [--lines 300000 1200000] [--rounds 9] [--dry]

A CSV of eight columns, whole, and the same with one broken line in 1,000: cells too many, cells too few or a line that
is cut; and with a quote too many in a quarter of those. Each is ingested into a new table, by turns, in one process,
and nothing is known of the file beforehand. The figure is the median of the ratios of CPU seconds. The section goes to
tests/bench/RESULTS.md."""

import argparse
import os
import random
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
from bench import keep, stamp  # noqa: E402

TITLE = "## broken lines, of 1,000 one"
NAMES = ["oak", "red bridge", "ford", "mill hill", "north field", "old town"]
HEADER = "id,code,name,amount,share,at,origin,count"


def row(r: random.Random, i: int) -> str:
    at = f"2026-{r.randrange(1, 13):02}-{r.randrange(1, 29):02} {r.randrange(24):02}:{r.randrange(60):02}:00"
    return (f"{i},{r.choice('ABC')}X-{r.randrange(1000, 9999)},{r.choice(NAMES)},{r.randrange(1, 9000)}."
            f"{r.randrange(10, 99)},{r.random():.6f},{at},{r.choice(['JFK', 'LGA', 'EWR'])},{r.randrange(100_000)}")


def cell_more(r, line):
    cells = line.split(",")
    cells.insert(r.randrange(1, len(cells)), "")
    return ",".join(cells)


def cell_less(r, line):
    cells, k = line.split(","), r.randrange(1, 8)
    return ",".join([*cells[:k - 1], cells[k - 1] + cells[k], *cells[k + 1:]])


def cut(r, line): return line[:r.randrange(10, len(line) - 5)]


def quote(r, line):
    cells = line.split(",")
    k = r.randrange(8)
    cells[k] = f'"{cells[k]}'
    return ",".join(cells)


DAMAGE = {"whole": [], "broken lines": [cell_more, cell_less, cut], "and quotes": [cell_more, cell_less, cut, quote]}


def files(folder: Path, count: int) -> dict[str, Path]:  # kind → file
    "Write the same rows three times."
    r, out = random.Random(1), {}
    rows = [row(r, i) for i in range(count)]
    for kind, ways in DAMAGE.items():
        lines = list(rows)
        for i in range(500, count, 1_000) if ways else (): lines[i] = r.choice(ways)(r, lines[i])
        out[kind] = folder/f"{kind.replace(' ', '_')}.csv"
        out[kind].write_text("\n".join([HEADER, *lines]) + "\n")
    return out


def seconds(file: Path, root: Path) -> float:  # of the CPU
    "Ingest a file into a new workspace as a process does that has not seen it."
    from scalai_nb.core.settings import Settings
    from scalai_nb.data import look_memory
    from scalai_nb.data.ingest import ingest
    look_memory._last.clear()
    root.mkdir()
    began = time.process_time()
    ingest(str(file), "rows", settings=Settings(root=root))
    spent = time.process_time() - began
    shutil.rmtree(root)
    return spent


def measured(count: int, rounds: int) -> dict[str, tuple[float, float]]:  # kind → CPU seconds, ratio to whole
    with tempfile.TemporaryDirectory() as folder:
        paths = files(Path(folder), count)
        found = {kind: [] for kind in paths}
        for n in range(rounds + 1):
            for kind in [*paths][::1 if n % 2 else -1]:
                spent = seconds(paths[kind], Path(folder)/"work")
                if n: found[kind].append(spent)
    return {k: (statistics.median(v), statistics.median(a/b for a, b in zip(v, found["whole"])))
            for k, v in found.items()}


def main():
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("--lines", type=int, nargs="+", default=[300_000, 1_200_000])
    p.add_argument("--rounds", type=int, default=9)
    p.add_argument("--dry", action="store_true", help="print the section, leave RESULTS.md as it is")
    a = p.parse_args()
    load = os.getloadavg()[0]
    said = __doc__.split("\n\n")[2].replace("\n", " ")
    text = [TITLE, "", said, "", "| lines | " + " | ".join(f"{k}: CPU s | × whole" for k in DAMAGE) + " |",
            "|---"*(1 + 2*len(DAMAGE)) + "|"]
    for count in a.lines:
        cells = (f"{s:.2f} | {ratio:.2f}" for s, ratio in measured(count, a.rounds).values())
        text.append(f"| {count:,} | " + " | ".join(cells) + " |")
    text += ["", stamp(f"python tests/bench/broken_lines.py --lines {' '.join(map(str, a.lines))}", load), ""]
    print("\n".join(text))
    if not a.dry: keep(TITLE, "\n".join(text))


if __name__ == "__main__": main()
