"""The image of the HTTP service: built by a real dockerd, run without rights, and no larger than it needs."""
import hashlib
import json
import os
import stat
import subprocess
from pathlib import Path

import httpx
import pytest
from conftest import until
from servers import free_port
from test_serve import made  # noqa: F401 (a fixture)

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def docker():
    from servers.docker import Docker
    with Docker() as server:
        server.build("serve", "serve", "--build-arg", "COMMIT=abc123")
        yield server


def contents(folder: Path) -> dict[str, tuple]:
    "Each file's mode, time and digest; of a folder its mode alone, since the builder of Debian's dockerd dates these."
    found = {}
    for path in sorted(folder.rglob("*")):
        info, name = path.lstat(), path.relative_to(folder).as_posix()
        if stat.S_ISDIR(info.st_mode): found[name] = (info.st_mode,)
        elif stat.S_ISLNK(info.st_mode): found[name] = (os.readlink(path),)
        else: found[name] = (info.st_mode, info.st_mtime_ns, hashlib.sha256(path.read_bytes()).hexdigest())
    return found


def test_the_image_of_the_service_is_small_and_says_what_is_in_it(docker):
    image, base = docker.inspect("serve"), docker.inspect("scalai-base")
    assert image["Size"] - base["Size"] <= 250e6, (image["Size"], base["Size"])
    assert image["Config"]["User"] == "10001:10001"
    assert image["Config"]["Labels"]["org.opencontainers.image.revision"] == "abc123"
    listed = json.loads(docker.call("run", "--rm", "--network", "none", "serve", "cat",
                                    "/opt/scalai/sbom.json").stdout)
    names = {c["name"].lower() for c in listed["components"]}
    assert {"onnxruntime", "uvicorn", "numpy"} <= names
    assert not names & {"torch", "pandas", "numba", "mlflow", "dask", "pip", "setuptools"}
    missing = docker.call("run", "--rm", "--network", "none", "serve", "sh", "-c",
                          "command -v pip gcc cc uv apt-get | grep -v apt-get; python -m pip --version", check=False)
    assert not missing.stdout and b"No module named pip" in missing.stderr


def test_the_same_sources_give_the_same_files(docker):
    docker.build("serve", "again", "--no-cache", "--build-arg", "COMMIT=abc123")
    first, second = contents(docker.layer("serve")), contents(docker.layer("again"))
    assert len(first) > 1000
    assert {n for n in first.keys() | second.keys() if first.get(n) != second.get(n)} == set()


def test_a_container_without_rights_answers_and_ends_in_order(docker, made):  # noqa: F811
    subprocess.run(["chmod", "-R", "a+rX", made.parent], check=True)  # pytest's folders are their owner's alone
    port = free_port()
    run = docker.call("run", "-d", "--network", "host", "--read-only", "--tmpfs", "/tmp", "--cap-drop", "ALL",
                      "--security-opt", "no-new-privileges", "-v", f"{made}:/work:ro", "serve", "scalai", "serve",
                      "churn", "plan", "--port", str(port), "--workers", "1").stdout.decode().strip()
    url = f"http://127.0.0.1:{port}"

    def healthy() -> bool:
        try: return httpx.get(f"{url}/healthz").status_code == 200
        except httpx.TransportError: return False
    assert until(healthy), docker.call("logs", run).stderr
    example = json.loads((made/".scalai"/"serving"/"churn.json").read_text())
    assert example
    refused = httpx.post(f"{url}/models/churn/predict", json={"rows": []})
    assert refused.status_code == 422
    arrow = httpx.post(f"{url}/models/churn/predict", content=b"x",
                       headers={"content-type": "application/vnd.apache.arrow.stream"})
    assert arrow.status_code == 415 and "pyarrow" in arrow.json()["error"]["message"]
    docker.call("stop", "--time", "30", run)
    assert docker.inspect(run)["State"]["ExitCode"] == 0, docker.call("logs", run).stderr


def test_what_is_not_in_the_image_is_named(docker):
    done = docker.call("run", "--rm", "--network", "none", "serve", "scalai", "runs", check=False)
    assert done.returncode == 2 and done.stderr.splitlines()[1].startswith(b"pip install 'scalai-nb[jobs]'")
