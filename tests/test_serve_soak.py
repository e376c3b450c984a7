"""Load on a service whose versions are swapped and whose processes are ended, killed and stopped, for ten minutes in
`make soak`."""
import json
import signal
import subprocess
import time
from collections import Counter
from pathlib import Path
from random import Random

import httpx
import psutil
import pytest
from conftest import until
from test_serve import GOOD, LOAD, made, own, serving, workers  # noqa: F401
from test_serve_live import counted, observer, state

from scalai_nb.core.settings import Settings
from scalai_nb.serving.live import inputs_source, scores_source
from scalai_nb.training.registry import Registry

CONNECTIONS, PACE, HANG = 16, 12, 10  # PACE: seconds of a round at least


class Faults:
    "What is done to a service; it remembers which connections a killed worker held."
    def __init__(self, url: str, process: subprocess.Popen, rng: Random | None = None):
        self.url, self.process, self.rng = url, process, rng
        self.held, self.done = Counter(), Counter()  # client's port → kills; fault → how often

    def worker(self) -> psutil.Process: return self.rng.choice(workers(self.process))

    def stopped(self) -> psutil.Process:
        "A worker that stands still; what it holds will be lost."
        worker, port = self.worker(), httpx.URL(self.url).port
        worker.suspend()
        self.held.update({c.raddr.port for c in worker.net_connections("tcp") if c.raddr and c.laddr.port == port})
        return worker

    def worker_ends(self):
        worker = self.worker()
        worker.terminate()
        psutil.wait_procs([worker], 60)

    def worker_killed(self): self.stopped().kill()
    def worker_hangs(self): psutil.wait_procs([self.stopped()])  # the parent kills it

    def worker_pauses(self):
        worker = self.worker()
        worker.suspend()
        time.sleep(1)
        worker.resume()

    def observer_killed(self): observer(self.process).kill()

    def observer_pauses(self):
        found = observer(self.process)
        found.suspend()
        time.sleep(2)
        found.resume()

    def told_to_look(self): self.process.send_signal(signal.SIGHUP)

    def happen(self):
        "One of them; each comes before any comes again."
        rare = min(self.done[f] for f in FAULTS)
        name = self.rng.choice([f for f in FAULTS if self.done[f] == rare])
        self.done[name] += 1
        getattr(self, name)()

    def whole(self) -> bool:
        "Whether both workers answer and the observer is there."
        try: fleet = httpx.get(f"{self.url}/healthz", timeout=30).json()["workers"]
        except (httpx.HTTPError, KeyError): return False
        return fleet["answering"] == len(workers(self.process)) == 2 and observer(self.process) is not None


FAULTS = ("worker_ends", "worker_killed", "worker_hangs", "worker_pauses", "observer_killed", "observer_pauses",
          "told_to_look")


@pytest.mark.slow
def test_swaps_and_kills_lose_only_what_a_killed_worker_held(own, rounds):  # noqa: F811
    (own/"settings.ini").write_text(f"[workspace]\nhome = .scalai\n[serve]\nflush = 1\nhang = {HANG}\n")
    (own/"row.json").write_text(json.dumps({"rows": [GOOD]}))
    registry, swaps = Registry(Settings(root=own)), 0
    with serving(own, "churn", "--workers", "2") as (url, process):
        faults = Faults(url, process)
        command = [*LOAD, f"{url}/models/churn/predict", str(own/"row.json"), str(CONNECTIONS), "86400"]
        load = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        try:
            assert until(faults.whole)
            for faults.rng in rounds.seeds(7, soak=50):
                began = time.monotonic()
                registry.promote("churn", 2 - swaps % 2, "again")
                swaps += 1
                faults.happen()
                assert until(faults.whole, 120)
                if rounds.done == 50: time.sleep(max(0, began + PACE - time.monotonic()))
        finally:
            load.terminate()
            found = json.loads(load.communicate()[0])
    told = account(own, found, faults)
    rounds.note(answered=found["counts"]["200"], swaps=swaps, lost_unexplained=0, **told, **faults.done)


def account(folder: Path, found: dict, faults: Faults) -> dict:
    "Hold what clients, workers and windows counted against each other."
    counts, versions = found["counts"], found["versions"]
    print(found, faults.done, faults.held)
    assert set(counts) <= {"200", "503", "lost"} and set(versions) == {"1", "2"}
    lost = Counter({int(port): n for port, n in found["lost_ports"].items()})
    assert not lost - faults.held, f"lost without a kill: {lost - faults.held}"
    churn, ledger = state(folder).ledger["models"]["churn"], state(folder).ledger
    assert state(folder).ended
    assert 0 <= churn["answered"] - counts["200"] <= lost.total()  # scored, and the answer may be among the lost
    windows = counted(folder, inputs_source("churn"))
    assert windows == sum(counted(folder, scores_source("churn", v)) for v in (1, 2)) == churn["rows"]
    assert windows + churn["lost"] == churn["answered"]
    return {"lost with a killed worker": lost.total(), "in windows": windows, "in gaps": churn["lost"],
            "gaps": len(ledger["gaps"]), "503": counts.get("503", 0)}
