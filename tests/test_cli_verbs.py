"Words of the command: groups of --help, --version, the object first, names of models, imports of verbs that read."

import json
import shutil
import subprocess
import sys

import pandas as pd
import pytest
import typer
from conftest import here
from test_registry import a_run, onnx_file

import scalai_nb
from scalai_nb.cli.verb import app
from scalai_nb.core.settings import Settings
from scalai_nb.training.registry import Registry


def verbs(command=None, path=()):
    "Every verb with its command, by the words that name it."
    command = command or typer.main.get_command(app)
    inner = getattr(command, "commands", None)
    if inner is None: yield path, command
    else:
        for name, c in inner.items(): yield from verbs(c, (*path, name))


def test_help_lists_the_verbs_in_groups():
    lines = here("--help").out.splitlines()
    groups = [line[:-1] for line in lines if line.endswith(":") and not line.startswith(" ")]
    assert groups == ["Options", "Start", "Data", "Models", "Monitoring", "Jobs", "People", "Operations"]
    listed = {
        block.splitlines()[0]: {line.split()[0] for line in block.splitlines()[1:]}
        for block in "\n".join(lines).split("\n\n")
        if ":\n" in block
    }
    for group, verb in {
        "Start": "init",
        "Data": "ingest",
        "Models": "compress",
        "Monitoring": "drift",
        "Jobs": "run",
        "People": "dash",
        "Operations": "gc",
    }.items():
        assert verb in listed[f"{group}:"], group


def test_every_verb_is_in_a_group_and_takes_the_common_options():
    for name, command in typer.main.get_command(app).commands.items():
        assert isinstance(command.rich_help_panel, str), name
    for path, command in verbs():
        options = {o for p in command.params for o in p.opts}
        assert {"--json", "--settings", "--debug"} <= options, path


def test_the_version():
    done = here("--version")
    assert (done.code, done.out, done.err) == (0, f"scalai {scalai_nb.__version__}\n", "")


def test_the_object_comes_first():
    "What a verb is about is its first argument: rows, a file, a table, a model."
    first = {path: next((p.name for p in c.params if p.param_type_name == "argument"), None) for path, c in verbs()}
    assert (
        first["contract", "check"] == "uri"
        and first["contract", "set"] == "contract"
        and first["contract", "infer"] == "uri"
    )
    assert first["score",] == first["compress",] == first["models", "show"] == first["models", "promote"] == "model"
    assert (
        first["ingest",] == "uri"
        and first["quarantine",] == "name"
        and first["workflow", "check", "airflow"] == "file"
    )


@pytest.fixture
def contract(workspace):
    pd.DataFrame({"origin": ["EWR", "JFK"]*50, "dep_delay": [1.5, 3.]*50}).to_parquet("good.parquet")
    pd.DataFrame({"origin": ["EWR", "XXX"], "dep_delay": [1.5, 2.]}).to_parquet("bad.parquet")
    assert here("contract", "infer", "good.parquet", "--save", "c.yaml").code == 0
    return workspace/"c.yaml"


def test_rows_come_before_the_contract(contract):
    assert here("contract", "check", "good.parquet", "c.yaml").code == 0
    done = here("contract", "check", "bad.parquet", "c.yaml", "--json")
    assert done.code == 1 and done.doc["rows_refused"] == 1
    turned = here("contract", "check", "c.yaml", "bad.parquet")
    assert turned.code == 2 and turned.lines[1] == "Write: scalai contract check bad.parquet c.yaml"


@pytest.mark.parametrize(
    "column, hint",
    [
        ("dep_dely", "Did you mean 'dep_delay'?"),
        ("Origin", "Did you mean 'origin'?"),
        ("zz", "It names: origin, dep_delay."),
    ],
)
def test_a_near_miss_of_a_column_changes_nothing(contract, column, hint):
    before = contract.read_bytes()
    done = here("contract", "set", "c.yaml", column, "max=60")
    assert done.code == 2 and len(done.lines) == 2 and done.out == "" and column in done.lines[0]
    assert done.lines[1].startswith(hint) and "--add" in done.lines[1]
    assert contract.read_bytes() == before


def test_a_new_column_is_added_when_asked_for(contract):
    done = here("contract", "set", "c.yaml", "carrier", "required=true", "--add", "--json")
    assert done.code == 0 and done.doc["changes"][0]["what"] == "carrier"
    assert here("contract", "set", "c.yaml", "carrier", "min_length=2").code == 0


@pytest.fixture(scope="module")
def registered(tmp_path_factory):
    "A registry of three versions; the first serves."
    folder = tmp_path_factory.mktemp("registered")
    (folder/"settings.ini").write_text("[workspace]\nhome = .scalai\n")
    registry = Registry(Settings.load(folder))
    for n in (1, 2, 3): registry.register("late", onnx_file(folder/f"{n}.onnx", n), a_run(f"run{n}", n))
    registry.promote("late", 1, "the first")
    registry.challenge("late", 3)
    return folder


@pytest.fixture
def models(registered, tmp_path, monkeypatch):
    monkeypatch.delenv("SCALAI_SETTINGS", raising=False)
    shutil.copytree(registered, tmp_path/"w")
    monkeypatch.chdir(tmp_path/"w")
    return lambda: Registry().champion("late").version


@pytest.mark.parametrize("name, version", [("late", 1), ("late@2", 2), ("late@champion", 1), ("late@challenger", 3)])
def test_a_model_is_named_in_one_way_everywhere(models, name, version):
    assert here("models", "show", name, "--json").doc["version"] == version
    pd.DataFrame({"x": [1., 2.]}).to_parquet("rows.parquet")
    assert here("score", name, "rows.parquet", "--json").doc["model_version"] == version
    assert here("models", "compare", name, name).code in (0, 1)


def test_compress_names_the_version_that_is_not_there(models):
    for name, message in (
        ("nobody@champion", "no model 'nobody'"),
        ("late@9", "no version 9"),
        ("late@", "does not name a model"),
    ):
        done = here("compress", name)
        assert done.code == 2 and message in done.lines[0], done.err


@pytest.mark.parametrize(
    "args",
    [
        ("show", "late@"),
        ("show", "@2"),
        ("show", "late@2@3"),
        ("show", "late@0"),
        ("promote", "late@two words"),
        ("rollback", "late@"),
        ("compare", "late", "late@ 2"),
    ],
)
def test_a_name_that_names_no_model_is_refused(models, args):
    done = here("models", *args)
    assert done.code == 2 and len(done.lines) == 2 and "does not name a model" in done.lines[0]
    assert models() == 1


@pytest.mark.parametrize(
    "args, champion",
    [
        (("late", 2), 2),
        (("late@2",), 2),
        (("late", "challenger"), 3),
        (("late@challenger",), 3),
        (("late@champion",), 1),
    ],
)
def test_a_version_is_promoted_in_either_form(models, args, champion):
    done = here("models", "promote", *args, "--json")
    assert done.code == 0 and done.doc["version"] == champion and models() == champion


def test_a_version_becomes_the_challenger(models):
    assert here("models", "promote", "late@2", "--challenger", "--json").doc == {
        "name": "late",
        "version": 2,
        "alias": "challenger",
    }
    assert models() == 1 and here("models", "show", "late@challenger", "--json").doc["version"] == 2


def test_a_promotion_that_names_no_version_or_two_changes_nothing(models):
    for args, message in (
        (("late",), "Which version"),
        (("late@2", 3), "names a version twice"),
        (("late", 9), "no version 9"),
        (("lat@2",), "no model 'lat'"),
    ):
        done = here("models", "promote", *args)
        assert done.code == 2 and len(done.lines) == 2 and message in done.lines[0], done.err
    assert models() == 1


def test_only_what_serves_is_rolled_back(models):
    assert here("models", "promote", "late", 2).code == 0
    wrong = here("models", "rollback", "late@1")
    assert wrong.code == 2 and "late@1 does not serve" in wrong.lines[0] and models() == 2
    assert (
        here("models", "rollback", "late@champion", "--json").doc == {"name": "late", "version": 1} and models() == 1
    )


HEAVY = (
    "torch",
    "pandas",
    "mlflow",
    "dask",
    "numba",
    "pyarrow",
    "scipy",
    "onnxruntime",
    "sqlalchemy",
    "structlog",
    "papermill",
)
READS = {  # what a verb that only reads may import of these
    ("--help",): "",
    ("--version",): "",
    ("models", "show", "late@"): "",
    ("models", "promote", "late"): "",
    ("run", "nothing.ipynb"): "",
    ("kernel", "list"): "",
    ("models", "list"): "",
    ("models", "show", "nobody"): "",
    ("alarms", "list"): "",
    ("runs",): "sqlalchemy",
    ("logs", "last"): "sqlalchemy",
    ("schedule", "list"): "sqlalchemy",
    ("labels", "nothing.csv", "--key", "id"): "pyarrow",
    ("score", "late", "nothing.csv"): "pyarrow",
    ("profile", "nothing.csv"): "pyarrow",
    ("ingest", "nothing.csv", "t"): "pyarrow",
    ("contract", "check", "nothing.csv", "c.yaml"): "pyarrow",
    ("drift", "nothing.csv", "good.parquet"): "pyarrow",
    ("contract", "diff", "c.yaml", "c.yaml"): "pyarrow",
    ("contract", "set", "c.yaml", "dep_delay", "max=60"): "pyarrow",
}


@pytest.mark.parametrize("args", READS, ids=" ".join)
def test_what_a_verb_that_only_reads_imports(contract, args):
    "The first answer takes as long as the imports do; modules are counted, as a busy machine makes times useless."
    code = ("import json, sys; from scalai_nb.cli.main import main\ntry: main()\nfinally: "
            f"print(json.dumps([m for m in {HEAVY} if m in sys.modules]), file=sys.stderr)")
    done = subprocess.run([sys.executable, "-c", code, *args], capture_output=True, text=True)
    assert done.returncode in (0, 2), done.stderr
    assert set(json.loads(done.stderr.splitlines()[-1])) <= set(READS[args].split()), done.stderr
