"""Processes that ingest in steps: each stops before and after every call that reads or writes a store, until the test
lets it go on or kills it.

`Nursery` starts one process that has everything imported, and forks a writer from it for each ingest: a fork takes
milliseconds, an import seconds."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
import traceback
from pathlib import Path

STEPS = {
    "delta": ["open_table", "add_file", "try_commit", "forget"],
    "profile_store": ["record"],
    "batch": ["_remove", "_tidy"],
    "table_commit": ["unique"],
    "storage": ["_sync"],
}


class Writer:
    "One forked process."
    def __init__(self, nursery, pid: int, answers: int, go: int, result: Path):
        self.nursery, self.pid, self.steps, self.result = nursery, pid, 0, result
        self.answers, self.go, self.over = (
            os.fdopen(answers, "rb", buffering=0),
            os.fdopen(go, "wb", buffering=0),
            False,
        )
        self.at = None  # the step it waits at
        self.listen()

    def listen(self):
        "Wait until it stands at its next step, or has ended."
        line = b""
        while not line.endswith(b"\n"):
            more = self.answers.read(1)
            if not more:
                self.over, self.at = True, None
                self.answers.close(); self.go.close()
                return
            line += more
        self.at, self.steps = line.decode().strip(), self.steps + 1

    def step(self):
        self.go.write(b"g")
        self.listen()

    def run(self):
        "To the end, without stopping."
        if self.over: return self
        self.go.write(b"f")
        self.listen()
        return self

    def run_to(self, step: int):
        while not self.over and self.steps < step: self.step()
        return self

    def signal(self, number: int): os.kill(self.pid, number)

    def kill(self):
        if not self.over:
            self.signal(signal.SIGKILL)
            self.listen()
        return self

    @property
    def done(self) -> dict | None:  # what it returned; None: it was killed
        return json.loads(self.result.read_text()) if self.result.exists() else None


class Nursery:
    def __init__(self, folder: Path, path: str | None = None, **env):
        "`path`: another place of the package, to try the same on other code."
        self.folder, self.n = Path(folder), 0
        self.folder.mkdir(parents=True, exist_ok=True)
        paths = [
            *([path] if path else []),
            str(Path(__file__).parent),
            *os.environ.get("PYTHONPATH", "").split(os.pathsep),
        ]
        env = (
            os.environ
            | env
            | {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "OMP_NUM_THREADS": "1", "OMP_THREAD_LIMIT": "1"}
        )
        self.process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=env,
            cwd=self.folder,
        )
        assert self.process.stdout.readline() == "ready\n"

    def start(self, call: str, root: Path, **how) -> Writer:
        "Fork a writer that calls `ingest`, `gc`, … in a workspace; it stands at its first step."
        self.n += 1
        pipes = [self.folder/f"{self.n}.{x}" for x in ("answers", "go")]
        for p in pipes: os.mkfifo(p)
        result = self.folder/f"{self.n}.json"
        print(
            json.dumps(dict(call=call, root=str(root), result=str(result), pipes=list(map(str, pipes)), **how)),
            file=self.process.stdin,
            flush=True,
        )
        pid = int(self.process.stdout.readline())
        opened = [os.open(pipes[0], os.O_RDONLY), os.open(pipes[1], os.O_WRONLY)]
        for p in pipes: p.unlink()
        return Writer(self, pid, *opened, result)

    def __call__(self, call: str, root: Path, **how) -> dict:
        "The same, to its end."
        done = self.start(call, root, **how).run().done
        assert done is not None and "error" not in done, done
        return done

    def __enter__(self): return self

    def __exit__(self, *_):
        self.process.stdin.close()
        self.process.wait(60)
        shutil.rmtree(self.folder, ignore_errors=True)


def stepping(answers, go):
    "Let every step wait for a byte: `g` to go on to the next, `f` to go on for ever."
    lock, free = threading.RLock(), []
    def stop(name):
        with lock:
            if free: return
            answers.write(f"{name}\n".encode())
            if go.read(1) != b"g": free.append(True)
    def wrapped(fn, name):
        def call(*args, **kwargs):
            stop(f"before {name}")
            out = fn(*args, **kwargs)
            stop(f"after {name}")
            return out
        return call
    import importlib
    for module, names in STEPS.items():
        module = importlib.import_module(f"scalai_nb.{'core' if module == 'storage' else 'data'}.{module}")
        for name in names:
            if hasattr(module, name): setattr(module, name, wrapped(getattr(module, name), name))


def calls(call: str, settings, how: dict):
    from scalai_nb.data.contract import Contract
    from scalai_nb.data.ingest import ingest
    from scalai_nb.data.retention import gc
    from scalai_nb.data.table import Table
    if call == "ingest":
        return ingest(
            how["uri"], "t", Contract.from_dict(how["contract"]), settings=settings, **how.get("how", {})
        ).to_dict()
    if call == "overwrite":
        import pyarrow as pa

        from scalai_nb.data.write import write
        return write(
            pa.table({"id": how["ids"], "x": [1.0] * len(how["ids"])}),
            "t",
            Contract.from_dict(how["contract"]),
            mode="overwrite",
            settings=settings,
        ).to_dict()
    if call == "gc": return {"files": sum(f.files for f in gc(settings, days=0))}
    if call == "release":
        pen = Table("t", settings).quarantine
        rows = pen.arrow()
        import pyarrow as pa
        return pen.release(rows.set_column(rows.column_names.index("x"), "x", pa.array(["1"]*len(rows)))).to_dict()
    if call == "state": return state(settings)
    raise ValueError(call)


def state(settings) -> dict:
    "What a reader sees of table `t`: keys in order, rejected keys, and whether the profiles are those of the rows."
    from scalai_nb.data import delta, profile_store
    from scalai_nb.data.profile import Profile, profile
    from scalai_nb.data.table import Table
    t = Table("t", settings)
    rows, known = t.arrow(), profile_store.recall("t", by=("period", "fold"), settings=settings)
    pen, log = t.quarantine.arrow(), delta.open_table(t.quarantine.path)
    return {
        "good": sorted(rows["id"].to_pylist()),
        "bad": sorted(map(int, pen["id"].to_pylist())),
        "reasons": t.quarantine.reasons(),
        "version": t.version,
        "whole": sum(known.values(), Profile.empty()).digest == profile(rows).digest,
        "raw": 0 if log is None else delta.rows_of(log).count_rows(),
    }


def child(request: dict):
    with open(request["pipes"][0], "wb", buffering=0) as answers, open(request["pipes"][1], "rb", buffering=0) as go:
        from scalai_nb.core.errors import ScalaiError
        from scalai_nb.core.settings import Settings
        stepping(answers, go)
        settings = Settings(root=request["root"], data=request.get("data", {}))
        if ago := request.get("ago"):  # a writer that began so many seconds ago
            from scalai_nb.data import write
            write.time = lambda: time.time() - ago
        try: out = calls(request["call"], settings, request)
        except ScalaiError as e: out = {"error": e.message, "code": e.code}
        except BaseException: out = {"error": traceback.format_exc(), "code": None}
        half = Path(request["result"] + ".half")
        half.write_text(json.dumps(out))
        os.rename(half, request["result"])


def main():
    import deltalake.transaction  # noqa: F401 (whose functions are wrapped)
    import pyarrow as pa

    import scalai_nb.data.ingest
    import scalai_nb.data.profile
    import scalai_nb.data.replay
    import scalai_nb.data.retention  # noqa: F401
    from scalai_nb.data.contract import Contract
    from scalai_nb.data.rules import Rule
    # what is compiled now need not be in every fork
    rows = Contract({"x": Rule("float64")}, key=("id",)).check(pa.table({"id": [1, 2], "x": ["1", "oops"]}))
    scalai_nb.data.profile.profile(rows.good)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the writers
    print("ready", flush=True)
    for line in sys.stdin:
        if pid := os.fork():
            print(pid, flush=True)
            continue
        random.seed()
        try: child(json.loads(line))
        finally: os._exit(0)


if __name__ == "__main__": main()
