"""Execute notebooks, and keep what they showed by the content of all that it depends on."""

import hashlib
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from importlib.metadata import distributions
from pathlib import Path

import grimp
import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "scalai_nb"
KEPT = Path(os.environ.get("SCALAI_DOCS_CACHE", Path.home()/".cache/scalai-nb/docs"))  # outside the checkout
LOADED = {f"{PACKAGE}.view.live"}  # by an entry point
COMMAND = re.compile(r"""['"!]\s*scalai\b|cli\.main""")
SHIPPED = f"{PACKAGE}.core.resources"  # a notebook that imports it may copy what ships with the package
QUIET = ["--IPKernelApp.log_level=ERROR"]  # a kernel on this machine warns that its messages are not encrypted
LEFT_OUT = "skip-execution"  # the tag of cells that are shown and not run
KEEP_DAYS = 30  # what no build has asked for in this time is deleted


@cache
def imports() -> grimp.ImportGraph: return grimp.build_graph(PACKAGE)

@cache
def environment() -> bytes:
    "Python and everything that is installed for it."
    installed = sorted({f"{d.metadata['Name']} {d.version}" for d in distributions()})
    return "\n".join([sys.version, *installed]).encode()

@cache
def source(module: str) -> bytes:
    path = ROOT.joinpath(*module.split("."))
    return (path/"__init__.py" if path.is_dir() else path.with_suffix(".py")).read_bytes()

@cache
def front_door() -> dict[str, str]:  # name → module
    "Return where `import scalai_nb as sn` finds its names."
    from scalai_nb import _MODULES
    return _MODULES

@cache
def shipped_files() -> bytes:
    "Hash the notebooks and files that a workspace gets."
    found = hashlib.sha256()
    for folder in ("workflows", "apps", "examples", "share"):
        for f in sorted(p for p in (ROOT/folder).rglob("*") if p.is_file() and "__pycache__" not in p.parts):
            found.update(f.relative_to(ROOT).as_posix().encode() + f.read_bytes())
    return found.digest()

def modules_of(nb: nbformat.NotebookNode) -> set[str]:
    "List the modules that a notebook imports, with all that these import."
    code = "\n".join(c.source for c in nb.cells if c.cell_type == "code")
    named = {m for m in imports().modules if m in code} | LOADED
    if COMMAND.search(code): return set(imports().modules)  # a verb may import any of them
    if f"import {PACKAGE} as" in code: named |= {f"{PACKAGE}.{front_door()[n]}" for n in re.findall(r"\bsn\.(\w+)", code)
                                                if n in front_door()}
    return named.union(*(imports().find_upstream_modules(m) for m in named))

def key(nb: nbformat.NotebookNode) -> str:
    "Hash what the outputs of a notebook depend on."
    found = hashlib.sha256(environment())
    for cell in nb.cells: found.update(f"{cell.cell_type}\n{cell.source}\n".encode())
    modules = modules_of(nb)
    for module in sorted(modules): found.update(source(module))
    if SHIPPED in modules: found.update(shipped_files())
    return found.hexdigest()

def prepared(path: Path) -> nbformat.NotebookNode:
    "Read a notebook; cells that nbdev would not run are not run here either."
    nb = nbformat.read(path, as_version=4)
    for cell in nb.cells:
        if cell.cell_type == "code" and "#| eval: false" in cell.source:
            cell.metadata.tags = [*cell.metadata.get("tags", []), LEFT_OUT]
    return nb

def copy_of_the_project(room: Path) -> Path:
    "Copy what git tracks, so that a notebook may write files next to itself."
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    for name in filter(None, tracked.split("\0")):
        if not (ROOT/name).is_file(): continue
        (room/name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT/name, room/name)
    return room

def child_seconds() -> float:
    "Return the CPU seconds of the processes that were started and have ended."
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime

def forget_old() -> None:
    for p in KEPT.glob("*.ipynb"):
        if time.time() - p.stat().st_mtime > KEEP_DAYS*86_400: p.unlink(missing_ok=True)

def execute(path: Path,  # of a notebook, inside the project
            room: Path,  # a copy of the project
            timeout: int = 600,  # seconds of a cell
           ) -> nbformat.NotebookNode:  # with its outputs
    "Execute a notebook, or return what it showed last time. Raises `CellExecutionError`."
    nb = prepared(path)
    kept = KEPT/f"{key(nb)}.ipynb"
    if kept.exists():
        kept.touch()
        return nbformat.read(kept, as_version=4)
    before = child_seconds()
    there = room/path.relative_to(ROOT).parent
    client = NotebookClient(nb, timeout=timeout, kernel_name="python3", skip_cells_with_tag=LEFT_OUT, extra_arguments=QUIET,
                            resources={"metadata": {"path": str(there)}})
    client.execute(env={**os.environ, "OMP_NUM_THREADS": "1", "MLFLOW_DISABLE_TELEMETRY": "true"})
    print(f"{child_seconds() - before:6.1f} s CPU  {path.relative_to(ROOT)}", flush=True)
    KEPT.mkdir(parents=True, exist_ok=True)
    part = kept.with_suffix(f".{os.getpid()}")
    nbformat.write(nb, part)
    part.replace(kept)
    return nb

def execute_all(paths: list[Path], workers: int = 2) -> tuple[dict[Path, nbformat.NotebookNode], dict[Path, str]]:
    "Execute notebooks: those that ran, and of the others the error."
    def one(path: Path):
        try: return path, execute(path, room), ""
        except Exception as e:
            why = f"{e.ename}: {e.evalue}" if isinstance(e, CellExecutionError) else f"{type(e).__name__}: {e}"
            print(f"failed        {path.relative_to(ROOT)}", flush=True)
            return path, None, why
    imports(), environment(), forget_old()
    with tempfile.TemporaryDirectory() as name, ThreadPoolExecutor(workers) as pool:
        room = copy_of_the_project(Path(name))
        done = list(pool.map(one, paths))
    return {p: nb for p, nb, _ in done if nb is not None}, {p: why for p, nb, why in done if nb is None}
