"""Debian's dockerd for a test, and what images are made from without a registry.

A base comes from mmdebstrap; uv is an image of one file."""
import fcntl
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from servers import cached

ROOT = Path(__file__).resolve().parents[2]
CERTIFICATES = "etc/ssl/certs/ca-certificates.crt"  # of this machine, which a build needs where a proxy has its own
DOCKER = "/usr/bin/docker"  # Debian's: it has BuildKit inside


def base() -> Path:
    "A root file system with Debian and its Python, made once and kept in the user's cache: a tar file."
    made = cached("base-bookworm-python3")/"base.tar"
    made.parent.mkdir(parents=True, exist_ok=True)
    with open(made.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if made.exists(): return made
        assert shutil.which("mmdebstrap"), "mmdebstrap is not installed: apt-get install mmdebstrap"
        half = made.with_name("half.tar")
        subprocess.run(["mmdebstrap", "--variant=minbase", "--mode=root", "--quiet",
                        "--include=python3,ca-certificates",
                        *(f"--dpkgopt=path-exclude=/usr/share/{part}/*" for part in ("doc", "man", "locale")),
                        f"--customize-hook=copy-in /{CERTIFICATES} /etc/ssl/certs", "bookworm", str(half)], check=True)
        half.rename(made)
    return made


class Docker:
    "A dockerd of its own, with no network of its own: containers have the host's, or none."
    def __init__(self):
        assert shutil.which("dockerd"), "dockerd is not installed: apt-get install docker.io"
        self.folder = Path(tempfile.mkdtemp(prefix="scalai-docker-"))
        self.env = os.environ | {"DOCKER_HOST": f"unix://{self.folder}/socket", "DOCKER_BUILDKIT": "1"}
        with open(self.folder/"log", "w") as log:
            self.process = subprocess.Popen(
                ["dockerd", "--data-root", str(self.folder/"data"), "--exec-root", str(self.folder/"exec"), "--host",
                 self.env["DOCKER_HOST"], "--pidfile", str(self.folder/"pid"), "--storage-driver", "overlay2",
                 "--iptables=false", "--bridge=none"], stdout=log, stderr=subprocess.STDOUT)

    def __enter__(self):
        from conftest import until
        assert until(lambda: self.call("version", check=False).returncode == 0), (self.folder/"log").read_text()
        self.call("import", str(base()), "scalai-base")
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as tar: tar.add(Path(sys.executable).with_name("uv"), "uv")
        self.call("import", "-", "scalai-uv", input=buffer.getvalue())
        return self

    def __exit__(self, *_):
        for container in self.call("ps", "-aq").stdout.split(): self.call("rm", "-f", container.decode(), check=False)
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(60)
        shutil.rmtree(self.folder, ignore_errors=True)

    def call(self, *words: str, check: bool = True, **how) -> subprocess.CompletedProcess:
        done = subprocess.run([DOCKER, *words], env=self.env, capture_output=True, **how)
        assert not check or done.returncode == 0, (words, done.stdout[-2000:], done.stderr[-3000:])
        return done

    def build(self, target: str, tag: str, *options: str):
        "Build a target of the project's Dockerfile, on this machine's network."
        self.call("build", "--network", "host", "--build-arg", "BASE=scalai-base", "--build-arg", "UV=scalai-uv",
                  "--target", target, "-t", tag, *options, str(ROOT))

    def layer(self, tag: str) -> Path:
        "The files that the newest layer of an image brought."
        return Path(self.inspect(tag)["GraphDriver"]["Data"]["UpperDir"])

    def inspect(self, tag: str) -> dict: return json.loads(self.call("inspect", tag).stdout)[0]
