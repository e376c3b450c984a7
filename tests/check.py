"""`make check`: notebooks clean, package exported, floors hold, Python and JavaScript linted, README current.

Mends what it can and fails when it had to.

Run it again after it mended something: the second time finds nothing.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import lint
import nbformat

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent
TREES = ("nbs", "scalai_nb", "workflows", "apps", "share")
ESLINT = "eslint@9.39.5"  # npm keeps it in its cache: seconds the first time, two afterwards


def state() -> dict[Path, str]:
    files = [ROOT/"README.md", *(f for t in TREES for f in (ROOT/t).rglob("*") if f.suffix in (".ipynb", ".py"))]
    return {f: hashlib.sha256(f.read_bytes()).hexdigest() for f in files if f.exists()}


def call(*command, **kw): return subprocess.run([str(BIN/command[0]), *command[1:]], cwd=ROOT, check=True, **kw)


def clear_outputs():
    "Notebooks are committed without outputs and counts; nbdev-clean keeps outputs, so they go first."
    for path in sorted(f for t in TREES for f in (ROOT/t).rglob("*.ipynb") if ".ipynb_checkpoints" not in f.parts):
        book, dirty = nbformat.read(path, as_version=4), False
        for cell in book.cells:
            if cell.get("outputs") or cell.get("execution_count") is not None:
                cell.outputs, cell.execution_count, dirty = [], None, True
        if dirty: nbformat.write(book, path)


def clean():
    clear_outputs()
    for folder in ("nbs", "workflows", "apps", "share"): call("nbdev-clean", "--fname", folder)


def readme():
    "README.md is nbs/index.ipynb, executed, through nbconvert: what it shows is what it printed."
    from nbclient import NotebookClient
    from nbconvert import MarkdownExporter
    book = nbformat.read(ROOT/"nbs"/"index.ipynb", as_version=4)
    book.metadata["language_info"] = {"name": "python"}
    NotebookClient(
        book, timeout=120, kernel_name="python3", coalesce_streams=True, resources={"metadata": {"path": str(ROOT)}}
    ).execute()
    text, _ = MarkdownExporter().from_notebook_node(book)
    (ROOT/"README.md").write_text(text.strip().replace("](images/", "](nbs/images/") + "\n")


def mirrored() -> list[str]:
    """Each notebook has its module and each module its notebook, but for tutorials and overviews; `_modidx.py` is
    nbdev's index, jobs/migrations Alembic's."""
    name = lambda f: f.stem.split("_", 1)[1] if f.stem[:2].isdigit() else f.stem
    nbs = {
        (f.parent.relative_to(ROOT / "nbs") / name(f)).as_posix()
        for f in (ROOT / "nbs").rglob("*.ipynb")
        if f.name != "index.ipynb" and f.parent.name != "tutorials" and name(f) != "overview"
    }
    py = {f.relative_to(ROOT/"scalai_nb").with_suffix("").as_posix() for f in (ROOT/"scalai_nb").rglob("*.py")
          if f.stem not in ("__init__", "_modidx") and "migrations" not in f.parts}
    return [f"nbs/{n} has no module" for n in sorted(nbs - py)] + [
        f"scalai_nb/{p}.py has no notebook" for p in sorted(py - nbs)
    ]


def linted() -> tuple[list[str], str]:  # what is wrong; why nothing was looked at, where ESLint cannot be had
    "The JavaScript, by the rules of eslint.config.js. SCALAI_LINT=required (CI): not to have ESLint is an error too."
    command = [
        shutil.which("npx") or "npx",
        "--yes",
        "--prefer-offline",
        ESLINT,
        "--format",
        "json",
        "scalai_nb",
        "share",
        "eslint.config.js",
    ]
    try:
        found = json.loads((done := subprocess.run(command, cwd=ROOT, capture_output=True, text=True)).stdout)
    except FileNotFoundError:
        missing = "there is no npx here (Debian: apt-get install nodejs npm)"
    except ValueError:
        missing = f"npx {ESLINT} did not run: {' '.join(done.stderr.split())[:300]}"
    else:
        return [
            f"{os.path.relpath(f['filePath'], ROOT)}:{m.get('line', 1)}: {m['message']} ({m['ruleId']})"
            for f in found
            for m in f["messages"]
        ], ""
    return ([missing], "") if os.environ.get("SCALAI_LINT") == "required" else ([], missing)


def linted_python() -> list[str]:
    "What ruff finds in notebooks and tests, and the counts of tests/lint.py that are not what pyproject.toml says."
    found = subprocess.run([str(BIN/"ruff"), "check", "--quiet"], cwd=ROOT, capture_output=True, text=True)
    return [*(found.stdout + found.stderr).splitlines()*bool(found.returncode), *lint.broken()]


def main() -> int:
    before = state()
    clean()
    call("nbdev-export")
    readme()
    after = state()
    moved = sorted(str(f.relative_to(ROOT)) for f in {*before, *after} if before.get(f) != after.get(f))
    wrong = mirrored()
    if moved: print("Mended, look and commit:\n  " + "\n  ".join(moved))
    if wrong: print("Not in step:\n  " + "\n  ".join(wrong))
    floors = subprocess.run([str(BIN/"lint-imports"), "--no-cache"], cwd=ROOT, capture_output=True, text=True)
    if floors.returncode: print(floors.stdout + floors.stderr)
    scripts, skipped = linted()
    if scripts: print("JavaScript:\n  " + "\n  ".join(scripts))
    if skipped: print(f"JavaScript is not linted: {skipped}")
    python = linted_python()
    if python: print("Python:\n  " + "\n  ".join(python))
    failed = bool(moved or wrong or scripts or python or floors.returncode)
    if not failed:
        print(
            f"check: notebooks clean, package in step, floors hold, {'' if skipped else 'JavaScript linted, '}README"
            " current"
        )
    return int(failed)


if __name__ == "__main__": sys.exit(main())
