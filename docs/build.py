"""Build the documentation: `make docs`, or

    python docs/build.py [--only PATTERN] [--workers 2] [--out build/docs]

Notebooks are executed (execute.py), turned into pages (pages.py) and built by Sphinx; a failing cell, a warning, a
broken link or a request to another host ends it with 1."""

import argparse
import shutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import figures
import generated
from execute import ROOT, child_seconds, execute_all
from pages import ROOMS, summary_of, title_of, write_pages
from site_check import problems

FOLDERS = {"tutorials": "Tutorials", "howto": "How-to guides", "explanation": "Explanation", "comparison": "Comparisons"}
WHEEL = 8_000_000  # bytes that the documentation may take in a wheel


def sources(out: Path, only: str, workers: int) -> dict[Path, str]:  # notebook → why it failed
    "Write Sphinx's source: pages by hand, pages of notebooks, pages of commands and settings."
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(ROOT/"docs", out, ignore=shutil.ignore_patterns("*.py", "*.toml", "*.ipynb", "*.js", "__pycache__", "_*"))
    generated.write(out, ROOT)
    figures.write(out, ROOT)
    wanted = [p for p in sorted((ROOT/"nbs").rglob("*.ipynb")) if p.parent.name != "nbs"] + sorted((ROOT/"docs").glob("*.ipynb"))
    done, failed = execute_all([p for p in wanted if not only or p.match(only)], workers)
    lists = write_pages(done, ROOT/"nbs", out)
    add_list(out/"tutorials"/"index.md", lists.pop("tutorials", []))
    add_list(out/"reference.md", ["cli", "settings", "json", "exit-codes", "metrics", *(f"reference/{room}/index" for room in ROOMS if room in lists)])
    add_for_machines(out, done)
    return failed

def add_for_machines(out: Path, done: dict) -> None:
    "Write llms.txt (llmstxt.org): what there is to read, one line a page."
    def line(page: str, title: str, says: str = "") -> str: return f"- [{title}]({page}.html)" + f": {says}" * bool(says)
    parts = ["# scalai-nb", "", "> Take a model for tabular data from a notebook to production and keep it accurate there.", ""]
    for name, title in FOLDERS.items():
        parts += [f"## {title}", ""]
        for page in sorted((out/name).glob("*.md")):
            if page.stem != "index": parts.append(line(f"{name}/{page.stem}", page.read_text().partition("\n")[0][2:]))
        parts += [line(f"tutorials/{p.stem}", title_of(nb)) for p, nb in done.items() if p.parent.name == name]
        parts.append("")
    parts += ["## Reference", "", line("cli", "Command line"), line("settings", "Settings"), line("json", "JSON documents"),
              line("exit-codes", "Exit codes"), line("metrics", "Metrics"), line("glossary", "Glossary")]
    parts += [line(f"reference/{p.parent.name}/{p.stem}", title_of(nb), summary_of(nb))
              for p, nb in done.items() if p.parent.name in ROOMS]
    (out/"llms.txt").write_text("\n".join(parts) + "\n")

def bring(new: Path, old: Path) -> None:
    "Make a folder equal to another; files that are the same keep their time, so that Sphinx does not read them again."
    files = {f.relative_to(new) for f in new.rglob("*") if f.is_file()}
    for f in [f for f in old.rglob("*") if f.is_file() and f.relative_to(old) not in files]: f.unlink()
    for name in files:
        if (old/name).is_file() and (old/name).read_bytes() == (new/name).read_bytes(): continue
        (old/name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(new/name, old/name)
    shutil.rmtree(new)

def pack(html: Path, to: Path) -> int:  # bytes
    "Write the copy that goes into a wheel: without Sphinx's sources and without pictures over 100 kB."
    with zipfile.ZipFile(to, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as z:
        for f in sorted(html.rglob("*")):
            name = f.relative_to(html)
            large = f.suffix in (".png", ".gif", ".jpg") and f.stat().st_size > 100_000
            if f.is_file() and not large and name.parts[0] not in ("_sources", ".doctrees"):
                z.write(f, name)
    return to.stat().st_size

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
    failed = sources(args.out/"new", args.only, args.workers)
    bring(args.out/"new", source)
    for path, why in failed.items(): print(f"{path.relative_to(ROOT)}: {why}", file=sys.stderr)
    if failed: return 1
    strict = [] if args.only else ["-W"]
    built = subprocess.run([sys.executable, "-m", "sphinx", "-q", *strict, "--keep-going", "-j", "2", "-c",
                            str(ROOT/"docs"), "-d", str(args.out/"doctrees"), str(source), str(html)])
    shutil.copy(source/"llms.txt", html)
    for f in html.rglob("*.map"): f.unlink()  # for those who change the theme
    found = problems(html)
    packed = pack(html, args.out/"docs.zip")
    if packed > WHEEL: found.append(f"docs.zip has {packed/1e6:.1f} MB, a wheel takes {WHEEL/1e6:.0f}")
    for line in found: print(line, file=sys.stderr)
    size = sum(f.stat().st_size for f in html.rglob("*") if f.is_file())
    print(f"{html/'index.html'}: {len(list(html.rglob('*.html'))):,} pages, {size/1e6:.1f} MB, "
          f"{time.monotonic() - began:.0f} s, {child_seconds() + time.process_time():.0f} s CPU; docs.zip {packed/1e6:.1f} MB")
    return int(bool(built.returncode or found and not args.only))


if __name__ == "__main__": sys.exit(main())
