"""Execute notebooks in kernels that one warm process forks, and keep what they showed by the content of all that it
depends on."""

import ast
import asyncio
import hashlib
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from importlib.metadata import distributions
from pathlib import Path

import grimp
import nbformat
import psutil
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

from scalai_nb.jobs.kernel import ForkProvisioner, Kernel
from scalai_nb.jobs.kernel_pool import KernelPool, imported_modules

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "scalai_nb"
KEPT = Path(os.environ.get("SCALAI_DOCS_CACHE", Path.home()/".cache/scalai-nb/docs"))  # outside the checkout
LOADED = {f"{PACKAGE}.view.live"}  # by an entry point
COMMAND = re.compile(r"""['"!]\s*scalai\b|cli\.main""")
SHIPPED = f"{PACKAGE}.core.resources"  # a notebook that imports it may copy what ships with the package
COLD = re.compile(r"\bsys\.modules\b|\bKernelPool\b|\bSCALAI_WARM\b")  # a notebook about imports and kernels starts alone
QUIET = ["--IPKernelApp.log_level=ERROR"]  # a kernel on this machine warns that its messages are not encrypted
PARSING = threading.Lock()  # CPython 3.11 loses count of its recursion where two threads make syntax trees
NOT_AHEAD = ("scalai_nb.jobs.migrations",)  # Alembic runs these itself
LATER = ("torch._dynamo", "torch.onnx._internal.exporter._compat", "torch.export._trace", "onnxscript", "onnx", "onnxruntime",
         "torch_pruning", "numba", "scipy.stats", "sklearn.datasets", "pandas", "pyarrow.parquet", "deltalake",
         "dask.dataframe", "mlflow.tracking", "IPython.display")  # what training, export and tables import when first used
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
    "Hash what a module does: its code without comments and layout, and without docstrings, but for those of commands."
    path = ROOT.joinpath(*module.split("."))
    text = (path/"__init__.py" if path.is_dir() else path.with_suffix(".py")).read_bytes()
    bare = not module.startswith(f"{PACKAGE}.cli")
    kept = KEPT/f"{hashlib.sha256(b'%d %s' % (bare, text)).hexdigest()}.module"  # a syntax tree takes most of a build's start
    if kept.exists():
        kept.touch()
        return kept.read_bytes()
    tree = ast.parse(text)
    for node in ast.walk(tree) if bare else ():
        body = getattr(node, "body", None)
        if isinstance(body, list) and body and isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant):
            del body[0]
    KEPT.mkdir(parents=True, exist_ok=True)
    kept.write_bytes(found := hashlib.sha256(ast.dump(tree).encode()).digest())
    return found

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

def code_cells(nb: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [c for c in nb.cells if c.cell_type == "code"]

def key(nb: nbformat.NotebookNode) -> str:
    "Hash what the outputs of a notebook depend on."
    found = hashlib.sha256(environment())
    for cell in code_cells(nb): found.update(f"{cell.source}\n".encode())
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
    for p in [*KEPT.glob("*.ipynb"), *KEPT.glob("*.module")]:
        if time.time() - p.stat().st_mtime > KEEP_DAYS*86_400: p.unlink(missing_ok=True)

def with_outputs(nb: nbformat.NotebookNode, kept: Path) -> nbformat.NotebookNode:
    "Give code cells the outputs that are kept; the text between them may have changed since."
    for cell, before in zip(code_cells(nb), code_cells(nbformat.read(kept, as_version=4)), strict=True):
        cell.outputs, cell.execution_count = before.outputs, before.execution_count
    return nb

async def run_cells(nb: nbformat.NotebookNode,
                    there: Path,  # the folder of the kernel
                    pool: KernelPool | None,  # None: a kernel that starts alone
                    timeout: int,  # seconds of a cell
                   ) -> float:  # CPU seconds of the kernel and of what it started
    "Execute the cells of a notebook in place."
    options = dict(timeout=timeout, skip_cells_with_tag=LEFT_OUT, resources={"metadata": {"path": str(there)}})
    if pool is None: return await run_alone(NotebookClient(nb, kernel_name="python3", extra_arguments=QUIET, **options))
    km = Kernel()
    km.provisioner = ForkProvisioner(kernel_id="", kernel_spec=km.kernel_spec, parent=km, pool=pool)
    client = NotebookClient(nb, km=km, **options)
    with open(Path(km.room)/"log", "ab") as log:
        try:
            await client.async_execute(env=kernel_env() | pool.ready["env"], stdout=log, stderr=log)
            return sum(psutil.Process(km.provisioner.pid).cpu_times()[:4])
        finally:
            if client.kc: client.kc.stop_channels()
            try: await km.shutdown_kernel(now=True)
            except Exception as e:  # what the cells said counts more
                print(f"The kernel {km.provisioner.pid} could not be ended: {e!r}", file=sys.stderr)
            shutil.rmtree(km.room, ignore_errors=True)

async def run_alone(client: NotebookClient) -> float:  # CPU seconds
    "Execute a notebook in ipykernel's own kernel, as JupyterLab does."
    before = child_seconds()
    await client.async_execute(env=kernel_env())
    return child_seconds() - before

@cache
def kernel_env() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "MLFLOW_DISABLE_TELEMETRY": "true"}

def execute(path: Path,  # of a notebook, inside the project
            room: Path,  # a copy of the project
            pool: KernelPool | None = None,  # of warm kernels
            timeout: int = 600,  # seconds of a cell
           ) -> tuple[nbformat.NotebookNode, float]:  # with its outputs; CPU seconds, 0 if they were kept
    "Execute a notebook, or return what it showed last time. Raises `CellExecutionError`."
    nb = prepared(path)
    with PARSING: kept = KEPT/f"{key(nb)}.ipynb"
    if kept.exists():
        kept.touch()
        return with_outputs(nb, kept), 0.
    there = room/path.relative_to(ROOT).parent
    if COLD.search("\n".join(c.source for c in code_cells(nb))): pool = None
    try: seconds = asyncio.run(run_cells(nb, there, pool, timeout))
    except Exception as e:
        if pool is None: raise
        print(f"again, alone  {path.relative_to(ROOT)}: {reason(e)[:200]}", flush=True)
        nb = prepared(path)
        seconds = asyncio.run(run_cells(nb, there, None, timeout))
    print(f"{seconds:6.1f} s CPU  {path.relative_to(ROOT)}", flush=True)
    KEPT.mkdir(parents=True, exist_ok=True)
    part = kept.with_suffix(f".{os.getpid()}")
    nbformat.write(nb, part)
    part.replace(kept)
    return nb, seconds

def reason(e: Exception) -> str:
    return f"{e.ename}: {e.evalue}" if isinstance(e, CellExecutionError) else f"{type(e).__name__}: {e}"

def modules_ahead(paths: list[Path]) -> tuple[str, ...]:
    "List what the warm process imports: the package, and what the notebooks import."
    found = {m: None for p in paths for m in imported_modules(nbformat.read(p, as_version=4), p.parent)}
    ours = (m for m in sorted(imports().modules) if not m.startswith(NOT_AHEAD))
    return tuple(dict.fromkeys([*(m for m in found if not m.startswith(PACKAGE)), *LATER, *ours]))

def is_kept(path: Path) -> bool: return (KEPT/f"{key(prepared(path))}.ipynb").exists()

def warm_up(pool: KernelPool, timeout: float = 600) -> None:  # seconds
    "Let the process import. What libraries set in its environment then, its kernels have to have too."
    pool.connect(kernel_env(), borrow=False)
    with pool.condition: pool.condition.wait_for(lambda: pool.ready or pool.gone, timeout)
    if not pool.ready or pool.ready["unfit"]: raise RuntimeError(f"no warm process: {pool.ready or 'it ended'}")

def execute_all(paths: list[Path],  # notebooks
                workers: int = 2,  # at a time
               ) -> tuple[dict[Path, nbformat.NotebookNode], dict[Path, str]]:  # those that ran; of the others the error
    "Execute notebooks, and print the ten that took longest."
    def one(path: Path):
        try: return path, *execute(path, room, pool), ""
        except Exception as e:
            print(f"failed        {path.relative_to(ROOT)}", flush=True)
            return path, None, 0., reason(e)
    imports(), environment(), forget_old()
    os.environ.update(kernel_env())  # of the warm process
    with (tempfile.TemporaryDirectory() as name, KernelPool(modules_ahead(paths)) as pool,
          ThreadPoolExecutor(workers) as threads):
        room = copy_of_the_project(Path(name))
        if not all(is_kept(path) for path in paths): warm_up(pool)
        done = list(threads.map(one, paths))
    slowest = sorted((d for d in done if d[2]), key=lambda d: -d[2])[:10]
    if slowest: print("The slowest:", *(f"{s:6.1f} s CPU  {p.relative_to(ROOT)}" for p, _, s, _ in slowest), sep="\n  ")
    return {p: nb for p, nb, _, _ in done if nb is not None}, {p: why for p, nb, _, why in done if nb is None}
