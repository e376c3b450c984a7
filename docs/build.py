"""Build the documentation: `make docs`, or

    python docs/build.py [--only PATTERN] [--workers 2] [--out build/docs]

Notebooks are executed (execute.py), turned into pages (pages.py) and built by Sphinx; a failing cell, a warning, a
broken link or a request to another host ends it with 1."""

import argparse
import shutil
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import generated
from execute import ROOT, execute_all
from pages import ROOMS, write_pages
from site_check import problems

def sources(out: Path, only: str, workers: int) -> dict[Path, str]:  # notebook → why it failed
    "Write Sphinx's source: pages by hand, pages of notebooks, pages of commands and settings."
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(ROOT/"docs", out, ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    generated.write(out, ROOT)
    wanted = [p for p in sorted((ROOT/"nbs").rglob("*.ipynb")) if p.parent.name != "nbs"]
    done, failed = execute_all([p for p in wanted if not only or p.match(only)], workers)
    lists = write_pages(done, ROOT/"nbs", out)
    add_list(out/"tutorials"/"index.md", lists.pop("tutorials", []))
    add_list(out/"reference.md", ["cli", "settings", *(f"reference/{room}/index" for room in ROOMS if room in lists)])
    return failed

def add_list(page: Path, names: list[str]) -> None:
    "Add a list of pages to a page."
    page.write_text(page.read_text() + "\n".join(["", "```{toctree}", ":maxdepth: 1", "", *names, "```", ""]))


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--only", default="",
                   help="notebooks that match, such as 'data/*.ipynb'; links to the others are then broken")
    p.add_argument("--workers", type=int, default=2, help="notebooks executed at a time")
    p.add_argument("--out", type=Path, default=ROOT/"build"/"docs")
    args = p.parse_args()
    began, source, html = time.monotonic(), args.out/"source", args.out/"html"
    failed = sources(source, args.only, args.workers)
    for path, why in failed.items(): print(f"{path.relative_to(ROOT)}: {why}", file=sys.stderr)
    if failed: return 1
    strict = [] if args.only else ["-W"]
    built = subprocess.run([sys.executable, "-m", "sphinx", "-q", *strict, "--keep-going", "-j", "2", "-c",
                            str(ROOT/"docs"), "-d", str(args.out/"doctrees"), str(source), str(html)])
    found = problems(html)
    for line in found: print(line, file=sys.stderr)
    size = sum(f.stat().st_size for f in html.rglob("*") if f.is_file())
    print(f"{html/'index.html'}: {len(list(html.rglob('*.html'))):,} pages, {size/1e6:.1f} MB, "
          f"{time.monotonic() - began:.0f} s")
    return int(bool(built.returncode or found and not args.only))


if __name__ == "__main__": sys.exit(main())
