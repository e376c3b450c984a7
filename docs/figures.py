"""Draw figures from the tables of tests/bench/RESULTS.md."""

import re
from pathlib import Path

from scalai_nb.core.svg import BLUE, GREY, rect, svg, text

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


def write(out: Path, root: Path) -> None:
    "Write the page's part."
    (out/"figures.md").write_text(figures((root/"tests/bench/RESULTS.md").read_text()))
