"""Stores of files that tests start, and what each must do alike: every format read, a workspace's tables kept.

S3 is moto, or SeaweedFS; Google's fake-gcs-server, Azure's Azurite."""

import json
import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import servers
from conftest import scalai, until


def no_secret(folder: Path, secret: str):
    "Nothing that is kept in a workspace holds a password."
    for f in folder.rglob("*"):
        if f.is_file(): assert secret.encode() not in f.read_bytes(), f


STORE = """
import json, sys, tempfile, time
from pathlib import Path
import pyarrow as pa, pyarrow.csv as pacsv, pyarrow.parquet as pq
from scalai_nb.core.storage import filesystem
from scalai_nb.data import source
from scalai_nb.data.ingest import ingest
from scalai_nb.data.profile import profile
from scalai_nb.loop.flights import month_rows
root, delta = sys.argv[1], sys.argv[2] == "delta"
fs, base = filesystem(root)
rows, out = month_rows(1), {}
def put(name, write, compression=None):
    with fs.open(f"{base}/{name}", "wb", compression=compression) as f: write(f)
put("a.csv", lambda f: pacsv.write_csv(rows, f)); put("a.csv.gz", lambda f: pacsv.write_csv(rows, f), "gzip")
put("a.parquet", lambda f: pq.write_table(rows, f, row_group_size=10_000))
def ipc(f):
    with pa.ipc.new_file(f, rows.schema) as w: w.write_table(rows)
put("a.arrow", ipc)
put("a.jsonl", lambda f: f.writelines((json.dumps(r) + chr(10)).encode() for r in rows.to_pylist()))
put("bad.csv", lambda f: f.write(b"a,b\\n1,2\\n3\\n")); put("empty.csv", lambda f: None)
for name in ("a.csv", "a.csv.gz", "a.parquet", "a.arrow", "a.jsonl"):
    again = lambda: ingest(f"{root}/{name}", "t" + str(len(out)),
                           key=["carrier", "flight", "origin", "day", "sched_dep_time"])
    done = again()
    assert again().already
    out[name] = [done.rows_good, done.rows_refused, len(source.read(f"{root}/{name}", rows=10_000))]
out["a.*"] = profile(f"{root}/a.p*").rows
bad = ingest(f"{root}/bad.csv", "bad"); out["bad.csv"] = [bad.rows_good, bad.rows_refused]
if delta:
    import deltalake
    deltalake.write_deltalake(f"{root}/delta", rows)
    out["delta"] = [ingest(f"{root}/delta", "copy").rows_good, len(source.read(f"{root}/delta"))]
for wrong in ("a.csw", "empty.csv", "nothing/*.csv"):
    try: ingest(f"{root}/{wrong}", "none")
    except Exception as e: out[wrong] = [type(e).__name__, str(e)]
print(json.dumps(out))
"""


def check_store(root: str, workspace: Path, env: dict, delta=False):
    done = subprocess.run(
        [sys.executable, "-c", STORE, root, "delta" if delta else "no"],
        capture_output=True,
        text=True,
        cwd=workspace,
        env=os.environ | env,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    said = json.loads(done.stdout.splitlines()[-1])
    for name in ("a.csv", "a.csv.gz", "a.parquet", "a.arrow", "a.jsonl"):
        assert said[name] == [27_004, 0, 27_004], (name, said)
    assert (
        said["a.*"] == 27_004 and said["bad.csv"] == [1, 1] and (not delta or said["delta"] == [27_004, 27_004])
    ), said
    assert (
        said["a.csw"] == ["BadRequest", f"There is no file {root}/a.csw.\nDid you mean 'a.csv'?"]
        and said["empty.csv"][1].startswith(f"{root}/empty.csv is empty")
        and "There is no file" in said["nothing/*.csv"][1]
    ), said


def says(code: int, words: str, uri: str, workspace: Path, **env):
    done = scalai("ingest", uri, "t", cwd=workspace, **env)
    assert done.code == code and len(done.lines) == 2 and words in done.err, done.err


def bucket(client) -> bool:  # whether it could be made
    try: return bool(client.create_bucket(Bucket="air"))
    except client.exceptions.ClientError: return False  # SeaweedFS listens before its parts know each other


@contextmanager
def store(kind: str):
    "A store with an empty bucket `air`: its root, what the environment must say, and the secret in it."
    if kind in ("s3", "seaweed"):
        import boto3
        with {"s3": servers.s3, "seaweed": servers.seaweed}[kind]() as server:
            env = {
                "AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.port}",
                "AWS_ACCESS_KEY_ID": "ann",
                "AWS_SECRET_ACCESS_KEY": "s3cret",
                "AWS_DEFAULT_REGION": "us-east-1",
                "AWS_ALLOW_HTTP": "true",
            }
            client = boto3.client(
                "s3",
                endpoint_url=env["AWS_ENDPOINT_URL"],
                aws_access_key_id="ann",
                aws_secret_access_key="s3cret",
                region_name="us-east-1",
            )
            until(lambda: bucket(client))
            yield "s3://air", env, "s3cret"
    elif kind == "gs":
        import httpx
        with servers.gcs() as server:
            env = {
                "STORAGE_EMULATOR_HOST": (url := f"http://127.0.0.1:{server.port}"),
                "FSSPEC_GS_TOKEN": "anon",
                "FSSPEC_GCS_TOKEN": "anon",
                "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
            }
            assert httpx.post(f"{url}/storage/v1/b?project=p", json={"name": "air"}).status_code == 200
            yield "gs://air", env, "anon-is-no-secret"
    else:
        from azure.storage.blob import BlobServiceClient
        with servers.azurite() as server:
            # Azurite's, published
            key, url = (
                "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==",
                f"http://127.0.0.1:{server.port}",
            )
            env = {
                "AZURE_STORAGE_CONNECTION_STRING": (
                    f"DefaultEndpointsProtocol=http;AccountName=devstoreaccount1;AccountKey={key};"
                    f"BlobEndpoint={url}/devstoreaccount1;"
                ),  # for fsspec; the others for delta-rs
                "AZURE_STORAGE_ACCOUNT_NAME": "devstoreaccount1",
                "AZURE_STORAGE_ACCOUNT_KEY": key,
                "AZURE_STORAGE_USE_EMULATOR": "true",
                "AZURITE_BLOB_STORAGE_URL": url,
            }
            BlobServiceClient.from_connection_string(env["AZURE_STORAGE_CONNECTION_STRING"]).create_container("air")
            yield "abfs://air", env, key


KEPT = """
import pyarrow as pa, pyarrow.parquet as pq
from concurrent.futures import ThreadPoolExecutor
from scalai_nb.core.errors import BadRequest
from scalai_nb.data.contract import Contract
from scalai_nb.data.rules import Rule
from scalai_nb.data.ingest import ingest
from scalai_nb.data.profile import profile
from scalai_nb.data.retention import gc
from scalai_nb.data.table import Table
from scalai_nb.data.write import write
from scalai_nb.loop.flights import month_rows
how = dict(contract=Contract({"dep_delay": Rule("int64", max=300)}), period="month", fold=["flight"],
           key=["carrier", "flight", "origin", "month", "day", "sched_dep_time"])
pq.write_table(month_rows(1), "january.parquet")
done, t = ingest("january.parquet", "flights", **how), Table("flights")
assert (done.rows_good, done.rows_refused) == (26_979, 25)
assert ingest("january.parquet", "flights", **how).already and t.version == 0
with ThreadPoolExecutor(2) as pool:  # at once: the store decides who is first
    two = list(pool.map(lambda m: write(month_rows(m), "flights", batch=f"m{m}", **how), (2, 3)))
assert sorted(w.version for w in two) == [1, 2] and t.rows == done.rows_good + sum(w.rows_good for w in two)
assert len(t.frame()) == t.rows == t.profile().rows and len(t.profiles()) == 3
assert t.profile(version=0) == profile(t.arrow(version=0))
bad = t.quarantine.arrow()
repaired = bad.set_column(bad.column_names.index("dep_delay"), "dep_delay", pa.array(["300"]*len(bad)))
back = t.quarantine.release(repaired)
assert (back.rows_good, back.rows_refused, t.quarantine.rows) == (115, 0, 0)
assert t.diff(0)[0].startswith("26,979 → 80,789 rows")
before = t.profile()
assert t.compact() > 0 and sum(f.files for f in gc(days=0)) > 0 and gc(days=0)[0].files == 0
assert t.profile() == before == profile(t.arrow()) and t.sample(3).shape == (3, 20)
try: t.arrow(version=0)
except BadRequest as e: assert "taken away by a vacuum" in str(e)
else: raise AssertionError("the files are gone")
print("kept")
"""


def check_workspace(root: str, workspace: Path, env: dict, secret: str):
    "[data] storage is a URL: ingest, two writers at once, quarantine and release, versions, compaction, retention."
    (workspace/"settings.ini").write_text(f"[workspace]\nhome = .scalai\n[data]\nstorage = {root}/mine\n")
    done = subprocess.run(
        [sys.executable, "-c", KEPT],
        capture_output=True,
        text=True,
        cwd=workspace,
        env=os.environ | env,
        timeout=240,
    )
    assert done.returncode == 0 and done.stdout.endswith("kept\n"), done.stderr[-3000:]
    shown = scalai("tables", cwd=workspace, **env)
    assert "80,789 rows" in shown.out and not (workspace/".scalai/tables").exists()
    no_secret(workspace, secret)
