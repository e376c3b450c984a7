"The command as scripts and schedulers call it: two lines, the exit code, one JSON document, nothing half-written."

import json
import os
import shutil
import subprocess
from pathlib import Path

import pandas as pd
import pytest
from conftest import SCALAI, here, scalai


def two_lines(done, code):
    assert done.code == code, done.out + done.err
    assert done.out == "" and len(done.lines) == 2 and "Traceback" not in done.err, done.err
    assert done.lines[0].startswith("scalai: ")


@pytest.fixture
def files(workspace):
    pd.DataFrame({"origin": ["EWR", "JFK"]*50, "delay": [1.5, None]*50}).to_parquet("good.parquet")
    Path("corrupt.parquet").write_bytes(b"PAR1" + b"\0"*100)
    pd.DataFrame({"origin": pd.Series([], dtype="str"), "delay": pd.Series([], dtype=float)}).to_parquet(
        "empty.parquet"
    )
    Path("note.xyz").write_text("hello")
    Path("bytes.csv").write_bytes(bytes(range(256))*20)
    Path("latin.csv").write_bytes("name,n\nJosé,1\nZoë,2,3\n".encode("latin-1"))
    Path("policy.yaml").write_text("false_alarms: many\n")
    Path("folder").mkdir()
    jobs(job="n: int = 1", slow="import time; time.sleep(60)")
    return workspace


def jobs(**books: str):
    "Notebooks of one parameters cell each, and a workflow of them all, one beside the other."
    import nbformat
    for name, code in books.items():
        cell = nbformat.v4.new_code_cell(code, metadata={"tags": ["parameters"]})
        nbformat.write(
            nbformat.v4.new_notebook(
                cells=[cell],
                metadata={"kernelspec": {"name": "python3", "display_name": "python3", "language": "python"}},
            ),
            f"{name}.ipynb",
        )
    Path("jobs.toml").write_text(
        "".join(f'[[step]]\nname = "{n}"\nnotebook = "{n}.ipynb"\nneeds = []\n' for n in reversed(books))
    )


BAD = {
    "an unknown file": ("profile", "god.parquet"),
    "a corrupt Parquet file": ("profile", "corrupt.parquet"),
    "an unknown kind of file": ("profile", "note.xyz"),
    "an unknown notebook": ("run", "nothing.ipynb"),
    "an unknown verb": ("profil", "x"),
    "an unknown flag": ("profile", "good.parquet", "--jsn"),
    "an unknown table": ("tables", "flihgts"),
    "a missing column": ("profile", "good.parquet", "--by", "orign"),
    "a missing key column": ("ingest", "good.parquet", "t", "--key", "orign"),
    "an unknown model": ("models", "show", "nobody"),
    "a months out of range": ("demo", "d", "--months", 13),
    "a run that never was": ("runs", "0000"),
    "a source without a name": ("profile", ""),
    "a folder without data": ("profile", "folder"),
    "bytes that are no text": ("profile", "bytes.csv"),
    "lines of text in another encoding": ("ingest", "latin.csv", "t", "--encoding", "utf-8"),
    "a separator of five characters": ("profile", "latin.csv", "--sep", "-----"),
    "a sheet of a file of text": ("ingest", "latin.csv", "t", "--sheet", "one"),
    "a folder in the place of a file": ("profile", "good.parquet", "--save", "folder"),
    "a file in the place of a folder": ("profile", "good.parquet", "--save", "good.parquet/x.profile"),
    "a place where nobody may write": ("profile", "good.parquet", "--save", "/proc/x.profile"),
    "a policy of words": ("drift", "good.parquet", "good.parquet", "--policy", "policy.yaml"),
    "a policy that is no text": ("drift", "good.parquet", "good.parquet", "--policy", "good.parquet"),
    "an option without its value": ("profile", "good.parquet", "--by"),
    "a budget without its value": ("compress", "nobody", "--budget", "latency_ms"),
    "a port that cannot be": ("dash", "--port", 99999),
    "a state that is none": ("runs", "--state", "dead"),
    "less than no runs": ("runs", "--limit", -1),
    "a folder as a job": ("run", "folder"),
    "a job that is nowhere": ("run", "file:///nowhere/job.ipynb"),
    "a workflow elsewhere": ("run", "s3://bucket/jobs.toml"),
    "a job over its own source": ("run", "job.ipynb", "-o", "job.ipynb"),
    "a job without time": ("run", "job.ipynb", "--timeout", 0),
    "a job to go on with": ("run", "job.ipynb", "--from-failed"),
    "one output of many jobs": ("run", "jobs.toml", "-o", "x.ipynb"),
    "a seed below nothing": ("demo", "d", "--months", 2, "--shuffle", -1),
}


@pytest.mark.parametrize("args", BAD.values(), ids=BAD)
def test_bad_input_is_told_in_two_lines(files, args):
    two_lines(here(*args), 2)
    error = here(*args, "--json")
    assert error.code == 2 and set(error.doc["error"]) == {"kind", "message", "hint"} if "--jsn" not in args else True
    home = files/".scalai"
    assert not (home/"tables"/"t").exists() and not (files/"d").exists() and (files/"folder").is_dir()


def test_an_empty_table_is_a_request_that_cannot_be_met(files):
    done = scalai("ingest", "empty.parquet", "t", cwd=files)
    two_lines(done, 2)
    assert not (files/".scalai/tables/t").exists()


def test_a_corrupt_file_leaves_a_table_as_it_was(files):
    assert scalai("ingest", "good.parquet", "t", cwd=files).code == 0
    before = scalai("tables", "t", "--json", cwd=files).doc
    two_lines(scalai("ingest", "corrupt.parquet", "t", cwd=files), 2)
    assert scalai("tables", "t", "--json", cwd=files).doc == before


def test_a_typing_error_in_settings_names_the_nearest_key(files):
    (files/"settings.ini").write_text("[cluster]\nworker = 2\n")
    done = scalai("tables", cwd=files)
    two_lines(done, 2)
    assert "'workers'" in done.lines[1]


def test_the_environment_wins_and_is_checked(files):
    two_lines(scalai("tables", cwd=files, SCALAI_CLUSTER__WORKERS="many"), 2)
    assert scalai("tables", cwd=files, SCALAI_CLUSTER__WORKERS="3").code == 0


def test_a_wrong_parameter_starts_nothing(workspace):
    assert scalai("init", workspace/"w").code == 0
    for given in ("rows=many", "row=5"):
        two_lines(scalai("run", "workflows/first.ipynb", "-p", given, cwd=workspace/"w"), 2)
    assert scalai("runs", "--json", cwd=workspace/"w").doc == {"runs": []}


def test_a_new_workspace_runs(workspace):
    assert scalai("init", workspace/"w").code == 0
    done = scalai("run", "workflows/first.toml", "-p", "rows=500", "--json", cwd=workspace/"w")
    assert done.code == 0 and done.doc["steps"][0]["results"]["rows"] == 500
    assert scalai("init", workspace/"w").code == 2


def test_a_port_in_use(workspace):
    import socket
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        s.listen()
        two_lines(scalai("dash", "--port", s.getsockname()[1], "--no-browser", cwd=workspace), 2)


def test_profile_and_drift_have_the_stated_shapes(files):
    doc = scalai("profile", "good.parquet", "--json", cwd=files).doc
    assert set(doc) >= {"rows", "digest", "columns"} and doc["rows"] == 100
    assert set(doc["columns"]["delay"]) >= {
        "type",
        "count",
        "nulls",
        "nan",
        "inf",
        "min",
        "max",
        "mean",
        "std",
        "distinct",
        "quantiles",
        "resolution",
        "top",
    }
    assert set(doc["columns"]["delay"]["quantiles"]) == {"0.01", "0.05", "0.25", "0.5", "0.75", "0.95", "0.99"}
    assert doc["columns"]["delay"]["nulls"] == 50 and doc["columns"]["delay"]["distinct"] == 1
    saved = scalai("profile", "good.parquet", "--save", "good.profile", cwd=files)
    assert saved.code == 0 and scalai("profile", "good.profile", "--json", cwd=files).doc["digest"] == doc["digest"]
    report = scalai("drift", "good.parquet", "good.profile", "--json", "--exit-code", cwd=files)
    assert report.code == 0 and report.doc["drifted"] is False
    assert set(report.doc["columns"]["delay"]) >= {"drifted", "p", "effect", "threshold", "ks", "psi", "js", "reason"}
    assert set(report.doc) >= {"drifted", "reference", "current", "joint", "columns"}


def test_drift_sets_the_exit_code_on_request(files):
    pd.DataFrame({"origin": ["LGA"]*3000, "delay": [90.]*3000}).to_parquet("later.parquet")
    pd.DataFrame({"origin": ["EWR"]*3000, "delay": [float(i % 7) for i in range(3000)]}).to_parquet("before.parquet")
    assert scalai("drift", "before.parquet", "later.parquet", "--exit-code", cwd=files).code == 1
    assert scalai("drift", "before.parquet", "later.parquet", cwd=files).code == 0


def test_contracts_from_a_shell(files):
    assert scalai("contract", "infer", "good.parquet", "--save", "c.yaml", cwd=files).code == 0
    assert scalai("contract", "check", "good.parquet", "c.yaml", cwd=files).code == 0
    pd.DataFrame({"origin": ["XXX"], "delay": [1e9]}).to_parquet("bad.parquet")
    done = scalai("contract", "check", "bad.parquet", "c.yaml", "--json", cwd=files)
    assert done.code == 1 and done.doc["rows_refused"] == 1


def test_ingest_has_the_stated_shape_and_happens_once(files):
    doc = scalai("ingest", "good.parquet", "t", "--json", cwd=files).doc
    assert set(doc) >= {"table", "version", "rows_in", "rows_good", "rows_refused", "refused", "seconds"}
    again = scalai("ingest", "good.parquet", "t", "--json", cwd=files).doc
    assert (
        again["version"] == doc["version"]
        and scalai("tables", "t", "--json", cwd=files).doc["rows"] == doc["rows_good"]
    )


def test_a_limit_holds_for_a_whole_workflow(files):
    "The step that runs is stopped, those behind it do not begin, and the exit code is that of `timeout`."
    done = scalai("run", "jobs.toml", "--timeout", 4, "--jobs", 1, "--json", cwd=files)
    assert done.code == 124 and done.doc["state"] == "timed_out" and done.seconds < 60
    assert {s["name"]: s["state"] for s in done.doc["steps"]} == {"slow": "timed_out", "job": "timed_out"}
    assert "were over before it began" in done.doc["steps"][1]["error"]["message"]


def test_a_reader_that_leaves_early_changes_nothing(files):
    "`scalai … | head -c 1`: no word on stderr, and the exit code of what was done."
    for args, code in ((("profile", "good.parquet"), 0), (("profile", "nothing.csv", "--json"), 2)):
        read, write = os.pipe()
        os.close(read)
        done = subprocess.run([SCALAI, *args], stdout=write, stderr=subprocess.PIPE, text=True, cwd=files)
        os.close(write)
        assert (done.returncode, done.stderr) == (code, "")


@pytest.mark.parametrize(
    "section, code",
    [("[jobs]\ndatabase = nonsense", 2), ("[jobs]\ndatabase = postgresql+psycopg://u@127.0.0.1:9/x", 3)],
)
def test_a_record_that_cannot_be_opened(files, section, code):
    (files/"settings.ini").write_text(section + "\n")
    two_lines(scalai("runs", cwd=files), code)


def test_a_record_that_is_no_database(files):
    (files/".scalai").mkdir()
    (files/".scalai/scalai.db").write_text("not a database, only text that is long enough to be looked at\n"*20)
    two_lines(scalai("runs", cwd=files), 2)


@pytest.mark.skipif(shutil.which("setpriv") is None, reason="setpriv, of util-linux, is not here")
def test_files_that_may_not_be_read_or_written(files):
    "As a person without rights: root gives up its own to find out."
    for name in ("good.parquet", "job.ipynb", "jobs.toml"): (files/name).chmod(0)
    files.chmod(0o555)
    limited = (
        ["setpriv", "--bounding-set=-dac_override,-dac_read_search", "--inh-caps=-dac_override,-dac_read_search"]
        if os.geteuid() == 0
        else []
    )
    try:
        for args in (
            ("profile", "good.parquet"),
            ("ingest", "latin.csv", "t"),
            ("run", "job.ipynb"),
            ("run", "jobs.toml"),
            ("runs",),
            ("init", "w"),
            ("demo", "d"),
        ):
            done = subprocess.run([*limited, SCALAI, *args], capture_output=True, text=True, cwd=files)
            said = [x for x in done.stderr.splitlines() if not x.startswith("… ")]  # what was under way
            assert done.returncode == 2 and len(said) == 2 and done.stdout == "", (
                args,
                done.stderr,
            )
    finally:
        files.chmod(0o755)


def test_dash_prints_one_document_and_ends_well(workspace):
    "The link stands in it as soon as it works."
    process = subprocess.Popen(
        [SCALAI, "dash", "--port", "0", "--no-browser", "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=workspace,
    )
    line = process.stdout.readline()
    assert "/?token=" in json.loads(line)["url"]
    process.terminate()
    assert process.communicate(timeout=60)[0] == "" and process.returncode == 0
