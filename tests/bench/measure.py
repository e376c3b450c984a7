"""One command in a process of its own: seconds, CPU seconds and the most memory its whole tree held at one time."""
import os
import subprocess
import threading
import time
from dataclasses import dataclass

import psutil

EVERY = .01  # seconds between two looks at the tree


@dataclass
class Cost:
    wall: float  # seconds, from the start of the process to its end
    cpu: float  # seconds of user and system time, children included
    peak: float  # MB resident, summed over the processes of the tree
    out: str  # what it printed
    code: int


def _resident(root: psutil.Process) -> int:
    "Bytes resident now in the whole tree."
    total = 0
    for p in [root, *_children(root)]:
        try: total += p.memory_info().rss
        except psutil.Error: continue  # it ended between two looks
    return total


def _children(p):
    try: return p.children(recursive=True)
    except psutil.Error: return []


def cost(command: list[str], timeout: float = 900, **env) -> Cost:
    """Run a command and say what it cost.

    A single process's peak is the kernel's own figure (`ru_maxrss`, nothing missed); of a tree, the larger of that and
    of the sums seen every 10 ms."""
    start, most, done = time.perf_counter(), [0], threading.Event()
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | env)
    def look():
        root = psutil.Process(child.pid)
        while not done.wait(EVERY):
            try: most[0] = max(most[0], _resident(root))
            except psutil.Error: return
    watcher, killer = threading.Thread(target=look, daemon=True), threading.Timer(timeout, child.kill)
    watcher.start(); killer.start()
    errors = []
    reader = threading.Thread(target=lambda: errors.append(child.stderr.read()), daemon=True)
    reader.start()
    out = child.stdout.read()
    _, status, used = os.wait4(child.pid, 0)
    wall = time.perf_counter() - start
    child.returncode = os.waitstatus_to_exitcode(status)
    done.set(); killer.cancel(); watcher.join(); reader.join()
    if child.returncode: raise RuntimeError(f"{' '.join(command)} ended with {child.returncode}:\n{errors[0][-2000:]}")
    return Cost(wall, used.ru_utime + used.ru_stime, max(most[0], used.ru_maxrss * 1024) / 1e6, out, child.returncode)
