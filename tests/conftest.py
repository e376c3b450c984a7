"What all tests share: a workspace of their own, the real flights, the command, the demo, and one suite on two backends."
import json, os, signal, subprocess, sys, time
from pathlib import Path

import pandas as pd
import psutil
import pyarrow as pa
import pytest

ROOT = Path(__file__).resolve().parents[1]
SCALAI = Path(sys.executable).with_name("scalai")
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts what runs in its background without it, and tests interrupt


def pytest_collection_modifyitems(items):
    "A file's tests run in one process, so that what it prepares is prepared once; so do all those that look at the demo."
    for item in items: item.add_marker(pytest.mark.xdist_group("demo" if "demo" in item.fixturenames else str(item.path)))


def until(what, within: float = 30):  # seconds
    "Wait for something, and give it."
    end = time.monotonic() + within
    while not (found := what()):
        assert time.monotonic() < end, "it never came"
        time.sleep(.02)
    return found


@pytest.fixture
def workspace(tmp_path, monkeypatch) -> Path:
    "An empty workspace, which is also the working directory."
    (tmp_path/"settings.ini").write_text("[workspace]\nhome = .scalai\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SCALAI_SETTINGS", raising=False)
    return tmp_path


@pytest.fixture
def one_thread():
    "Torch on one thread, as a busy machine has no more."
    import torch
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def _flights() -> pd.DataFrame:
    from scalai_nb.loop.flights import flights
    return flights().to_pandas()


@pytest.fixture
def flights(_flights) -> pd.DataFrame:
    "The 336,776 flights of 2013, a copy of one's own."
    return _flights.copy()


class Backend:
    "pandas or cuDF: makes the frames that a data test is about, eager or lazy."
    def __init__(self, name: str): self.name = name
    def __repr__(self): return self.name

    def frame(self, rows):  # pandas frame
        if self.name == "pandas": return rows
        from scalai_nb.core import gpu
        return gpu.cudf().DataFrame.from_arrow(pa.Table.from_pandas(rows, preserve_index=False))

    def lazy(self, rows, npartitions: int):
        import dask.dataframe as dd
        if self.name == "pandas": return dd.from_pandas(rows, npartitions=npartitions)
        from scalai_nb.core import gpu
        return gpu.dask_cudf().from_cudf(self.frame(rows), npartitions=npartitions)

    def in_force(self):
        "Tables and sources give frames of this backend."
        import dask
        return dask.config.set({"dataframe.backend": self.name})


@pytest.fixture(params=["pandas", "cudf"])
def backend(request) -> Backend:
    "Every data test that takes frames runs on both; without a GPU the second says why it did not."
    if request.param == "cudf":
        from scalai_nb.core import gpu
        if not gpu.available(): pytest.skip("no CUDA device with cuDF here: the GPU path is written, never run")
    return Backend(request.param)


class Done:
    "What a command printed and how it ended."
    def __init__(self, code, out, err, seconds): self.code, self.out, self.err, self.seconds = code, out, err, seconds

    @property
    def doc(self): return json.loads(self.out, parse_constant=lambda c: pytest.fail(f"{c} is not strict JSON"))

    @property
    def lines(self): return self.err.splitlines()


def scalai(*args, cwd=None, timeout=600, **env) -> Done:
    "Run the installed command as a person does."
    start = time.monotonic()
    done = subprocess.run([str(SCALAI), *map(str, args)], cwd=cwd, capture_output=True, text=True, timeout=timeout,
                          env={k: v for k, v in os.environ.items() if k != "SCALAI_SETTINGS"} | env)
    return Done(done.returncode, done.stdout, done.stderr, time.monotonic() - start)


def left_over(folder: Path) -> list[str]:
    "Processes that still work in a folder, or name it: nobody may be left after a command."
    found = []
    for p in psutil.process_iter(["pid", "cmdline"]):
        try:
            if p.pid != os.getpid() and (p.cwd().startswith(str(folder)) or str(folder) in " ".join(p.info["cmdline"] or [])): found.append(f"{p.pid} {p.info['cmdline']}")
        except (psutil.NoSuchProcess, psutil.AccessDenied): continue
    return found


def nobody_left(folder: Path, within: float = 10):
    until = time.monotonic() + within
    while (found := left_over(folder)) and time.monotonic() < until: time.sleep(.2)
    assert not found, "\n".join(found)


def leaves(run: dict) -> list[dict]:
    "The notebooks of a workflow's document."
    return [leaf for s in run["steps"] for leaf in leaves(s)] if run.get("steps") else [run]


@pytest.fixture(scope="session")
def demo(tmp_path_factory):
    "One demo of four months, made once for all tests that look at it; they may read it, not change it."
    folder = tmp_path_factory.mktemp("demo")/"flights"
    done = scalai("demo", folder, "--months", 4, "--json")
    assert done.code == 0, done.out[-2000:] + done.err[-4000:]
    done.folder = folder
    return done
