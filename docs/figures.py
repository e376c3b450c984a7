"""Draw figures from the tables of tests/bench/RESULTS.md."""

import math
import re
from pathlib import Path

from scalai_nb.core.svg import BLUE, GREEN, GREY, ORANGE, PURPLE, axis_across, axis_upwards, polyline, rect, scale, svg, text

FIGURES = (  # section, column or row, what is drawn; the unit
    ("profile, 20,000,000 rows", "CPU s", "A profile of 20 million rows", "CPU seconds"),
    ("ingest, 20,000,000 rows", "CPU s", "Check, write and profile 20 million rows", "CPU seconds"),
    ("ingest_refusals, 5,000,000 rows", "CPU s", "The same where 78 of 100 rows are rejected, 5 million rows",
     "CPU seconds"),
    ("late, 60,000 rows", "CPU s", "Training on 60,000 flights: all reach an AUC between 0.915 and 0.920", "CPU seconds"),
    ("serve, one JSON row a request", "CPU µs, 64 connections", "One JSON row a request, 64 connections",
     "CPU microseconds a request"),
    ("cost of a comparison", "CPU s", "Two profiles of a million rows made and compared", "CPU seconds"),
)


def table(results: str,  # text of RESULTS.md
          section: str,  # its heading
         ) -> list[dict[str, str]]:  # the rows of its first table; the key of the first column is ''
    "Read a table. Raises `ValueError` where there is no such section."
    if f"\n## {section}\n" not in results: raise ValueError(f"RESULTS.md has no section {section!r}.")
    body = results.partition(f"\n## {section}\n")[2].partition("\n## ")[0]
    lines = [re.split(r"\s*\|\s*", line.strip().strip("|").strip()) for line in body.splitlines() if line.startswith("|")]
    head = [h or "" for h in re.split(r"\s*\|\s*", next(l for l in body.splitlines() if l.startswith("|"))[1:].strip())]
    return [dict(zip(head, row)) for row in lines[2:]]


def number(cell: str) -> float | None:  # None: it is none
    found = re.match(r"[\d,]*\.?\d+", cell)
    return float(found[0].replace(",", "")) if found else None


def bars(rows: list[tuple[str, float]], title: str, unit: str) -> str:
    "Draw horizontal bars, ours in colour."
    top, left, width = max(v for _, v in rows), 190, 540
    drawn = "".join(
        text(left - 8, 24*i + 17, name, "end")
        + rect(left, 24*i + 5, max((width - left - 70)*v/top, 1), 16, fill=BLUE if name.startswith("scalai") else GREY)
        + text(left + (width - left - 70)*v/top + 6, 24*i + 17, f"{v:,.3g}" if v < 1000 else f"{v:,.0f}")
        for i, (name, v) in enumerate(rows))
    label = f"{title}, {unit}: " + ", ".join(f"{n} {v:g}" for n, v in rows)
    return svg(drawn, width=width, height=24*len(rows) + 8, label=label, fluid=True)


def figures(results: str) -> str:  # Markdown
    "Draw what FIGURES names."
    out = []
    for section, column, title, unit in FIGURES:
        known = [(row[""], number(row.get(column, ""))) for row in table(results, section)]
        rows = [(name, value) for name, value in known if value is not None]
        out += [f"**{title}**, {unit}; less is better. Section *{section}*.", "", "```{raw} html",
                bars(rows, title, unit), "```", ""]
    return "\n".join(out)


SHIFTS = {"mean +.02 sd": .02, "mean +.05 sd": .05, "mean +.1 sd": .1, "mean +.25 sd": .25, "mean +.5 sd": .5}
LINES = {"scalai": (BLUE, "none"), "evidently": (ORANGE, "7 3"), "whylogs": (GREEN, "2 3"), "nannyml": (PURPLE, "9 3 2 3"),
         "alibi-detect": (GREY, "4 3"), "deepchecks": (GREY, "1 4")}

def power(results: str,
          name: str,  # of the table that a drift was planted in
          rows: str,  # of a window, as written there
         ) -> str:  # SVG
    "Draw how often each tool found a shift of the mean, over the size of the shift on a logarithmic axis."
    found = [r for r in table(results, "power against planted drifts")
             if r["table"] == name and r["rows"] == rows and r["case"] in SHIFTS]
    found.sort(key=lambda r: SHIFTS[r["case"]])
    across, up = scale(math.log(.02), math.log(.5), 46., 330.), scale(0., 1., 190., 14.)
    place = lambda v: across(math.log(v))
    drawn = axis_upwards([0, .25, .5, .75, 1], up, 46., 330.) + axis_across([SHIFTS[r["case"]] for r in found], place, 208.)
    drawn += text(188, 226, "shift of the mean, standard deviations", "middle") + text(46, 8, "share of the windows found")
    for i, (tool, (colour, dashes)) in enumerate(LINES.items()):
        points = [(place(SHIFTS[r["case"]]), up(number(r[tool]))) for r in found]
        look = dict(stroke=colour, stroke_width=2.5 if tool == "scalai" else 1.6, stroke_dasharray=dashes)
        drawn += polyline(points, **look) + polyline([(350, 22 + 20*i), (374, 22 + 20*i)], **look) + text(380, 26 + 20*i, tool)
    label = f"{name}, {rows} rows: " + "; ".join(f"{r['case']} {', '.join(f'{t} {r[t]}' for t in LINES)}" for r in found)
    return svg(drawn, width=470, height=232, label=label, fluid=True)


def power_page(results: str) -> str:  # Markdown
    "Draw the measured power for both tables and both sizes of a window."
    out = []
    for name, rows in (("flights", "10,000"), ("flights", "1,000"), ("weather", "10,000"), ("weather", "1,000")):
        out += [f"**{name}, windows of {rows} rows**", "", "```{raw} html", power(results, name, rows), "```", ""]
    return "\n".join(out)


def write(out: Path, root: Path) -> None:
    "Write the page's part."
    results = (root/"tests/bench/RESULTS.md").read_text()
    (out/"figures.md").write_text(figures(results))
    (out/"power.md").write_text(power_page(results))
