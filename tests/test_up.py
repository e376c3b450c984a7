"All services of a workspace on one machine: `scalai up`, and when it starts and stops replicas."
import json
import os
import random
import shutil
import signal
import socket
import stat
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil
import pytest
from conftest import SCALAI, nobody_left, scalai, until
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from test_serve import GOOD, LOAD, made  # noqa: F401

from scalai_nb.deploy.scaling import DOWN, TOLERANCE, UP, Scaler, desired_replicas

REPLICAS, ROWS = st.integers(1, 50), st.floats(0, 1e6)
SIMULATED = hypothesis_settings(deadline=None, max_examples=50)
TARGET, BOUNDS = st.floats(.5, 5_000), st.lists(st.integers(1, 50), min_size=2, max_size=2).map(sorted)


@given(REPLICAS, ROWS, TARGET, BOUNDS)
def test_the_formula_keeps_its_bounds_and_its_tolerance(current, metric, target, bounds):
    wanted = desired_replicas(current, metric, target, *bounds)
    assert bounds[0] <= wanted <= bounds[1]
    if abs(metric/target - 1) <= TOLERANCE: assert wanted == min(max(current, bounds[0]), bounds[1])


@given(REPLICAS, ROWS, ROWS, TARGET, BOUNDS)
def test_the_formula_never_wants_fewer_for_a_higher_load(current, one, other, target, bounds):
    few, many = (desired_replicas(current, metric, target, *bounds) for metric in sorted((one, other)))
    assert few <= many


def simulated(loads, target: float, minimum: int, maximum: int, start: int, step: float) -> list[tuple[float, int]]:
    "Replicas over time, of loads that come one a look."
    seconds, replicas, found = 0., start, []
    scaler = Scaler(target, minimum, maximum, clock=lambda: seconds)
    for look, load in enumerate(loads):
        seconds = look*step
        replicas = scaler(replicas, load/replicas)
        found.append((seconds, replicas))
    return found


@SIMULATED
@given(ROWS, TARGET, BOUNDS, REPLICAS, st.sampled_from([.25, .5, 1.]), st.floats(0, .04), st.integers(0, 2**32))
def test_a_constant_load_changes_the_direction_once_at_most_in_two_minutes(load, target, bounds, start, step, noise,
                                                                           seed):
    "Also one that trembles within the tolerance."
    uniform = random.Random(seed).uniform
    loads = [load*(1 + uniform(-noise, noise)) for _ in range(int(120/step))]
    found = simulated(loads, target, *bounds, start, step)
    assert all(bounds[0] <= n <= bounds[1] for _, n in found)
    moves = [b - a for (_, a), (_, b) in zip(found, found[1:], strict=False) if a != b]
    assert sum((a > 0) != (b > 0) for a, b in zip(moves, moves[1:], strict=False)) <= 1, moves


@SIMULATED
@given(st.integers(2, 20), st.sampled_from([.25, .5, 1.]), st.integers(1, 30))
def test_replicas_come_after_two_seconds_and_go_after_sixty(most, step, high):
    "High load for so many seconds, and none after it."
    before, during, after = (int(s/step) for s in (10, high, 80))
    found = simulated([0]*before + [1e9]*during + [0]*after, 100, 1, most, 1, step)
    above = [when for when, n in found if n > 1]
    if high < UP: assert not above
    if high > UP + step:
        assert above[0] == 10 + UP and found[before + during][1] == most
        assert above[-1] + step == 10 + high + DOWN and found[-1][1] == 1


PORTS = "[serve]\nport = 0\n[apps]\nport = 0\n[deploy]\ntracking_port = 0\nmetrics_port = 0\n"


@contextmanager
def running(folder: Path, *words: str, command: tuple = (SCALAI,)):
    "`scalai up` in a workspace, once all are healthy or wait: its document and its process. Nothing is left of it."
    with open(folder.parent/"log", "w+") as log:
        process = subprocess.Popen([*command, "up", *words, "--json"], cwd=folder, stdout=subprocess.PIPE, stderr=log,
                                   text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
        try:
            line = process.stdout.readline()
            assert line, Path(log.name).read_text()
            yield json.loads(line), process
        finally:
            process.send_signal(signal.SIGTERM) if process.poll() is None else None
            try: process.wait(120)
            except subprocess.TimeoutExpired: process.kill()
    nobody_left(folder)


def status(folder: Path) -> dict: return scalai("up", "--status", "--json", cwd=folder).doc


@pytest.fixture
def small(tmp_path) -> Path:
    "A workspace in a folder of its own, whose services take any free ports."
    (tmp_path/"workspace").mkdir()
    (tmp_path/"workspace"/"settings.ini").write_text(PORTS)
    return tmp_path/"workspace"


def test_a_service_comes_back_a_second_up_is_refused_and_all_end(small):
    with running(small, "scheduler") as (document, process):
        assert document["healthy"] and [s["role"] for s in document["services"]] == ["scheduler"]
        one = document["services"][0]
        assert "scalai_" in httpx.get(f"{one['url']}/metrics").text
        second = scalai("up", cwd=small)
        assert second.code == 2 and "runs for this workspace already" in second.err
        assert len(second.err.splitlines()) == 2, second.err
        os.kill(one["pid"], signal.SIGKILL)
        again = lambda: [s for s in status(small)["services"] if s["restarts"] and s["state"] == "healthy"]
        back, = until(again)
        assert back["pid"] != one["pid"] and status(small)["running"]
        assert stat.S_IMODE((small/".scalai"/"up.json").stat().st_mode) == 0o600
    assert process.returncode == 0
    assert scalai("up", "--status", cwd=small).code == 1


def test_nothing_is_left_when_up_is_killed(small):
    with running(small, "scheduler") as (document, process):
        process.kill()
        process.wait()
        nobody_left(small)
        with running(small, "scheduler") as (again, _): assert again["healthy"]


def test_a_port_in_use_is_two_lines_that_name_the_service(small):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = scalai("up", "dash", cwd=small, SCALAI_APPS__PORT=str(port))
    assert done.code == 2 and len(done.err.splitlines()) == 2, done.err
    assert f"dash cannot start: port {port} on 127.0.0.1 is in use." in done.err and "[apps] port" in done.err


def test_a_service_that_cannot_begin_waits_and_says_so_once(small):
    "A model that has no champion yet."
    files = {"tables/customers.toml": "", "models/churn.toml": 'table = "customers"\ntarget = "churn"\n'}
    for path, text in files.items():
        (small/path).parent.mkdir()
        (small/path).write_text(text)
    with running(small, "serve", "--scale", "serve=1") as (document, _):
        one = document["services"][0]
        assert not document["healthy"] and one["state"] == "waiting" and "churn" in one["reason"], document
        assert until(lambda: status(small)["services"][0]["restarts"])
    log = (small.parent/"log").read_text()
    assert log.count(one["reason"].splitlines()[0]) == 1, log


@pytest.mark.slow
def test_all_services_of_a_workspace_answer_and_end(made, tmp_path):  # noqa: F811
    "Also after the dashboards and a worker's parent are killed."
    folder = shutil.copytree(made, tmp_path/"workspace")
    (folder/"settings.ini").write_text(PORTS)
    with running(folder) as (document, process):
        assert document["healthy"], document
        known = {s["role"]: s for s in document["services"]}
        assert list(known) == ["tracking", "scheduler", "serve", "dash"]
        ask = lambda: httpx.post(f"{known['serve']['url']}/models/churn/predict", json={"rows": [GOOD]}, timeout=60)
        assert ask().status_code == 200
        assert httpx.get(known["dash"]["url"], follow_redirects=True, timeout=60).status_code == 200
        assert httpx.get(f"{known['tracking']['url']}/version", timeout=60).status_code == 200
        os.kill(known["dash"]["pid"], signal.SIGKILL)
        os.kill(known["serve"]["replicas"][0]["pid"], signal.SIGKILL)
        parts = lambda: [p for s in status(folder)["services"] for p in (s, *s.get("replicas", ()))]
        assert until(lambda: sum(p["restarts"] == 1 and p["state"] == "healthy" for p in parts()) == 2, 120)
        assert ask().status_code == 200
        started = psutil.Process(process.pid).children(recursive=True)
        assert len(started) > 8
    assert process.returncode == 0 and not any(p.is_running() for p in started)


QUICK = ("from functools import partial; from scalai_nb.deploy import up; up.Scaler = partial(up.Scaler, down=3.);"
         " from scalai_nb.cli.main import main; main()")


@pytest.mark.slow
def test_replicas_follow_the_load_and_no_request_fails(made, tmp_path):  # noqa: F811
    "One, three while the load is high, one after it; a client asks all the time. Down after three seconds here."
    folder = shutil.copytree(made, tmp_path/"workspace")
    (folder/"settings.ini").write_text(PORTS + "rows_in_flight = 2\nserve_max = 3\n")
    (tmp_path/"row.json").write_text(json.dumps({"rows": [GOOD]}))
    with running(folder, "serve", command=(sys.executable, "-c", QUICK)) as (document, _):
        url = document["services"][0]["url"]
        def load(connections: int):
            return subprocess.Popen([*LOAD, f"{url}/models/churn/predict", str(tmp_path/"row.json"), str(connections),
                                     "86400"], stdout=subprocess.PIPE, text=True)
        replicas = lambda: httpx.get(f"{url}/healthz", timeout=60).json()["replicas"]
        clients = [load(1), load(12)]
        try:
            assert until(lambda: sum(r["up"] and r["answered"] > 20 for r in replicas()) == 3, 120)
            clients[1].terminate()
            assert until(lambda: len(replicas()) == 1, 120)
            assert until(lambda: len(status(folder)["services"][0]["replicas"]) == 1)
        finally:
            for client in clients: client.terminate()
            found = [json.loads(client.communicate()[0])["counts"] for client in clients]
    assert [set(counts) for counts in found] == [{"200"}]*2, found
    log = (tmp_path/"log").read_text()
    assert "→ 3 replicas" in log and "→ 1 replicas" in log, log
