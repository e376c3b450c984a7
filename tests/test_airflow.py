"A workflow as a DAG of Airflow 3: what stands in the file, and what a real Airflow makes of it."
import ast
import json
import os
import sqlite3
import subprocess
from pathlib import Path

import pytest
import servers
from conftest import scalai
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from test_jobs import write

from scalai_nb.core.errors import BadRequest
from scalai_nb.core.jsonable import plain
from scalai_nb.core.settings import Settings
from scalai_nb.jobs.airflow import HEAD, dag, opening
from scalai_nb.jobs.airflow_check import differences, parse_dag
from scalai_nb.jobs.airflow_tasks import tasks
from scalai_nb.jobs.workflow import Workflow

RESULT = "from scalai_nb.jobs.result import result\n"

# What may stand in the part of the file that a workflow makes: calls of a few known names, and literals.
NODES = (
    ast.With,
    ast.withitem,
    ast.Call,
    ast.keyword,
    ast.Constant,
    ast.Dict,
    ast.List,
    ast.Tuple,
    ast.Assign,
    ast.Subscript,
    ast.Name,
    ast.Attribute,
    ast.Expr,
    ast.BinOp,
    ast.RShift,
    ast.UnaryOp,
    ast.USub,
    ast.Load,
    ast.Store,
)
NAMES = {"DAG", "Param", "TaskGroup", "Step", "Elements", "Begin", "End", "timedelta", "t"}
ATTRIBUTES = {"partial", "expand", "output"}


def made_part(text: str) -> list[ast.stmt]:
    "The statements that differ between exports: three constants, the dict of tasks, the DAG."
    assert text.startswith(HEAD) and text.count(opening()) == 1
    return ast.parse(text.removeprefix(HEAD).replace(opening(), "\n")).body


def only_literals(text: str):
    *constants, tasks, dag = made_part(text)
    assert [n.targets[0].id for n in constants] == ["SOURCE", "WORKSPACE", "SCALAI"] and all(
        isinstance(n.value, ast.Constant) for n in constants
    )
    assert ast.unparse(tasks) == "t = {}" and isinstance(dag, ast.With)
    for node in ast.walk(dag):
        assert isinstance(node, NODES), ast.dump(node)
        if isinstance(node, ast.Name): assert node.id in NAMES, node.id
        if isinstance(node, ast.Attribute): assert node.attr in ATTRIBUTES, node.attr


EVIL = [
    "'",
    '"',
    "\\",
    "\n",
    '"""',
    "{{ 7*7 }}",
    "{% raw %}",
    "${",
    "__import__('os').system('touch pwned')",
    "'); import os; ('",
    "\u2028",
    "\x00",
    "#",
    "é",
    "𝄞",
    "class",
    "None",
]
texts = st.one_of(
    st.lists(st.sampled_from(EVIL), max_size=3).map("".join),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=12),
)
scalars = st.one_of(
    texts, st.booleans(), st.integers(-(2**63), 2**63 - 1), st.floats(allow_nan=False, allow_infinity=False)
)
values_ = st.recursive(
    scalars,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(texts, inner, max_size=3)),
    max_leaves=6,
)
names = st.from_regex(r"\A[A-Za-z_][A-Za-z0-9_-]{0,8}\Z")


def toml(value) -> str:
    "A value as TOML writes it; its texts are JSON's, but for what JSON leaves raw."
    if isinstance(value, dict): return "{" + ", ".join(f"{toml(str(k))} = {toml(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list): return "[" + ", ".join(map(toml, value)) + "]"
    if isinstance(value, str): return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return json.dumps(value) if not isinstance(value, float) else repr(value)


@hypothesis_settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(
    name=texts,
    steps=st.lists(names, min_size=1, max_size=4, unique=True),
    params=st.dictionaries(texts, values_, max_size=3),
    given_=st.tuples(values_, values_),
    each=st.lists(values_, max_size=3),
    item=texts,
    when=texts,
)
def test_no_word_of_a_workflow_becomes_code(workspace, name, steps, params, given_, each, item, when):
    write(workspace/"any.ipynb", "x = None\ny = None")
    (workspace / "inner.toml").write_text(
        f"[parameters]\nx = {toml(given_[0])}\n[[step]]\nname = {toml(steps[0])}\nnotebook = \"any.ipynb\"\nwhen ="
        f" {toml(when)}\n",
        encoding="utf-8",
    )
    body = [f"name = {toml(name)}", f"parameters = {toml(params)}"]
    for i, step in enumerate(steps):
        many = {"each": each} if i == 2 and len(each) != 2 else {"grid": {"y": each}} if i == 2 else {}
        told = {"x": given_[0]} | ({} if i % 2 or "grid" in many else {"y": given_[1]})
        body += [
            "[[step]]",
            f"name = {toml(step)}",
            ["notebook = \"any.ipynb\"", "workflow = \"inner.toml\""][i % 2],
            f"parameters = {toml(told)}",
        ]
        if many: body += [*(f"{k} = {toml(v)}" for k, v in many.items()), f"as = {toml(item)}", f"when = {toml(when)}"]
    (workspace/"w.toml").write_text("\n".join(body), encoding="utf-8")
    try: flow = Workflow.load(workspace/"w.toml")
    except BadRequest: return  # a `${…}` that names nothing, say: never a DAG
    settings = Settings.load()
    text = dag(flow, settings)
    only_literals(text)
    assert differences(flow, text, settings) == []
    said, found = parse_dag(text)
    assert {k: v["default"] for k, v in said.items()} == plain(params)
    assert next(t for t in found if t.kind == "Step").options["parameters"] == plain({"x": given_[0], "y": given_[1]})


def contracted(flow: Workflow, found: list, prefix: str = "") -> dict[str, set]:
    """The graph of a workflow's own steps, out of the DAG's:

    what begins and ends a group, and finds elements, stands for its step."""
    groups = {t.id.rpartition(".")[0] for t in found}
    step = lambda id: next(s.name for s in flow.steps if id == prefix + s.name or id.startswith(prefix + s.name + "."))
    edges = {s.name: set() for s in flow.steps}
    for task in found:
        if not task.id.startswith(prefix) or task.id.removeprefix(prefix) in ("0_begin", "9_end"): continue
        for before in (*task.after, *([task.over] if task.over else [])):
            if (
                before.startswith(prefix)
                and before.removeprefix(prefix) not in ("0_begin", "9_end")
                and step(before) != step(task.id)
            ):
                edges[step(task.id)].add(step(before))
    assert groups
    return edges


@pytest.mark.parametrize("name", ["loop", "flights", "model", "window"])
def test_the_shipped_workflows_are_the_same_graph(name, tmp_path):
    from scalai_nb.loop.demo import workspace
    settings = workspace(tmp_path)
    flow = Workflow.load(tmp_path/"workflows"/f"{name}.toml")
    text = dag(flow, settings)
    only_literals(text)
    _, found = parse_dag(text)
    assert contracted(flow, found) == {s: set(needs) for s, needs in flow.needs.items()}
    for inner, nested in flow.nested.items():
        if any(t.id == f"{inner}.0_begin" for t in found):
            assert contracted(nested, found, f"{inner}.") == {s: set(needs) for s, needs in nested.needs.items()}
    assert differences(flow, text, settings) == []


def test_the_command_writes_checks_and_refuses(workspace):
    write(workspace/"a.ipynb", "n = 1")
    (workspace / "w.toml").write_text(
        '[parameters]\nn = 1\n[[step]]\nname = "a"\nnotebook = "a.ipynb"\nparameters = { n = "${n}" }\n'
    )
    made = scalai("workflow", "export", "airflow", "w.toml", "-o", "w.py", cwd=workspace)
    assert made.code == 0, made.err
    assert scalai("workflow", "export", "airflow", "w.toml", cwd=workspace).out == (workspace/"w.py").read_text()
    assert scalai("workflow", "check", "airflow", "w.toml", "w.py", "--json", cwd=workspace).doc == {
        "same": True,
        "differences": [],
    }
    (workspace/"w.py").write_text((workspace/"w.py").read_text().replace("'${n}'", "'${m}'"))
    changed = scalai("workflow", "check", "airflow", "w.toml", "w.py", cwd=workspace)
    assert (changed.code, changed.out) == (
        1,
        "task a: parameters is {'n': '${m}'} in the file and {'n': '${n}'} in the workflow\n",
    )
    (workspace/"mine.py").write_text("import os\n")
    refused = scalai("workflow", "export", "airflow", "w.toml", "-o", "mine.py", cwd=workspace)
    assert (refused.code, len(refused.lines), (workspace/"mine.py").read_text()) == (2, 2, "import os\n")


def test_what_airflow_cannot_say_names_the_step(workspace, monkeypatch):
    "A word that a later version of workflows knows and the export does not is refused, never dropped."
    from pydantic import Field, create_model

    from scalai_nb.jobs import workflow_file
    write(workspace/"a.ipynb", "n = 1")
    (workspace/"w.toml").write_text('[[step]]\nname = "a"\nnotebook = "a.ipynb"\nmood = "good"\n')
    later = create_model("Later", __base__=workflow_file.Step, mood=(str, Field("")))
    words = create_model("LaterWords", __base__=workflow_file.WorkflowFile, step=(list[later], Field(min_length=1)))
    monkeypatch.setattr(workflow_file, "WorkflowFile", words)
    with pytest.raises(BadRequest) as e: dag(Workflow.load(workspace/"w.toml"), Settings.load())
    assert "Step 'a' of" in e.value.message and "`mood`" in e.value.message and e.value.hint


HOSTILE = "{{ 7*7 }} it's \"quoted\" ${ \\ __import__('os')"


@pytest.fixture
def flights(workspace) -> Path:
    "All that an export can say: parameters with types, a group, elements, a sweep, conditions, another try."
    write(
        workspace / "ingest.ipynb",
        "months: int\nnote: str = ''",
        RESULT + "result(rows=27_000*months, live=list(range(2, months + 1)), note=note)",
    )
    write(workspace/"count.ipynb", "of: list[int]", RESULT + "result(n=len(of))")
    write(
        workspace / "score.ipynb",
        "month: int\nboom: bool = False",
        "assert not boom or month > 2, f'month {month} is broken'\n" + RESULT + "result(auc=round(.7 - month/100, 2))",
    )
    write(
        workspace / "flaky.ipynb",
        "mark: str",
        "from pathlib import Path\nseen = Path(mark).exists()\nPath(mark).touch()\nassert seen, 'not yet'\n"
        + RESULT
        + "result(tries=2)",
    )
    write(
        workspace / "last.ipynb",
        "auc: list[float]\nn: int\nday: str\ntext: str\nswept: list",
        RESULT + "result(auc=auc, n=n, day=day, text=text, swept=swept)",
    )
    (workspace/"model.toml").write_text("""
[parameters]
months = []
[[step]]
name = "fit"
notebook = "count.ipynb"
parameters = { of = "${months}" }
[[step]]
name = "promote"
notebook = "count.ipynb"
when = "${fit.n} > 100"
parameters = { of = [] }
""")
    (workspace / "flights.toml").write_text(f"""
name = "flights"
[parameters]
months = 4
since = 2013-01-01
note = {json.dumps(HOSTILE)}
boom = false
[[step]]
name = "ingest"
notebook = "ingest.ipynb"
parameters = {{ months = "${{months}}", note = "${{note}}" }}
timeout = 60
[[step]]
name = "model"
workflow = "model.toml"
parameters = {{ months = "${{ingest.live}}" }}
[[step]]
name = "month"
notebook = "score.ipynb"
each = "${{ingest.live}}"
as = "m"
needs = []
parameters = {{ month = "${{m}}", boom = "${{boom}}" }}
[[step]]
name = "sweep"
notebook = "score.ipynb"
grid = {{ month = [3, 5] }}
needs = []
when = "${{item.month}} > 3"
[[step]]
name = "flaky"
notebook = "flaky.ipynb"
needs = []
retries = {{ times = 1, wait = 0.5 }}
parameters = {{ mark = "flaky.mark" }}
[[step]]
name = "late"
notebook = "count.ipynb"
when = "${{model.n}} > 100"
parameters = {{ of = [1] }}
needs = []
[[step]]
name = "later"
notebook = "count.ipynb"
parameters = {{ of = [1] }}
[[step]]
name = "last"
notebook = "last.ipynb"
needs = ["flaky"]

[step.parameters]
auc = "${{month.auc}}"
n = "${{model.n}}"
day = "on ${{since}}"
text = "${{ingest.note}}"
swept = "${{sweep.auc}}"
""")
    return workspace


class Airflow:
    "An Airflow with a home of its own."
    def __init__(self, home: Path):
        self.home, self.bin = home, servers.airflow()
        (home/"dags").mkdir(parents=True)
        own = {
            "HOME": str(home),
            "CORE__DAGS_FOLDER": str(home / "dags"),
            "CORE__LOAD_EXAMPLES": "False",
            "DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{home/'airflow.db'}",
            "LOGGING__LOGGING_LEVEL": "WARNING",
        }
        self.env = (
            {k: v for k, v in os.environ.items() if not k.startswith(("AIRFLOW", "SCALAI", "VIRTUAL_ENV"))}
            | {"AIRFLOW_HOME": str(home)}
            | {f"AIRFLOW__{k}": v for k, v in own.items() if "__" in k}
        )

    def __call__(self, *args, code=0) -> str:
        done = subprocess.run(
            [str(self.bin / "airflow"), *args],
            env=self.env,
            cwd=self.home,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == code, done.stdout[-3000:] + done.stderr[-6000:]
        return done.stdout

    def python(self, code: str):
        return json.loads(
            subprocess.run(
                [str(self.bin / "python"), "-c", code],
                env=self.env,
                cwd=self.home,
                capture_output=True,
                text=True,
                timeout=300,
                check=True,
            ).stdout.splitlines()[-1]
        )

    def ask(self, query: str) -> list[tuple]:
        with sqlite3.connect(self.home/"airflow.db") as db: return db.execute(query).fetchall()

    def states(self) -> dict[str, str]:
        "Of the newest run."
        newest = "(select run_id from dag_run order by id desc limit 1)"
        return {
            id + (f"[{i}]" if i >= 0 else ""): state
            for id, i, state in self.ask(
                f"select task_id, map_index, state from task_instance where run_id = {newest} order by task_id,"
                " map_index"
            )
        }


@pytest.mark.slow
def test_a_real_airflow_runs_it(flights, tmp_path_factory):
    "Its own reading of the graph, a run that goes well, and one in which a month fails."
    airflow = Airflow(tmp_path_factory.mktemp("airflow"))
    made = scalai("workflow", "export", "airflow", "flights.toml", "-o", airflow.home/"dags"/"flights.py", cwd=flights)
    assert made.code == 0, made.err
    read = airflow.python(
        "import json, runpy; t ="
        f" runpy.run_path({str(airflow.home/'dags'/'flights.py')!r})['t']\nprint(json.dumps({{k:"
        " sorted(v.upstream_task_ids) for k, v in t.items()}))"
    )
    found, _ = tasks(Workflow.load(flights/"flights.toml"), flights)
    assert read == {t.id: sorted({*t.after, *([t.over] if t.over else [])}) for t in found}
    airflow("db", "migrate")
    airflow("dags", "test", "flights")
    well = airflow.states()
    assert well == {
        "ingest": "success",
        "model.0_begin": "success",
        "model.fit": "success",
        "model.promote": "skipped",
        "model.9_end": "success",
        "month.elements": "success",
        "month.run[0]": "success",
        "month.run[1]": "success",
        "month.run[2]": "success",
        "sweep.elements": "success",
        "sweep.run[0]": "skipped",
        "sweep.run[1]": "success",
        "flaky": "success",
        "late": "skipped",
        "later": "skipped",
        "last": "success",
    }
    handed_on = {
        id: json.loads(value)
        for id, value in airflow.ask("select task_id, value from xcom where key = 'return_value' and map_index < 0")
    }
    # what looked like a template, or like code, is text
    assert handed_on["last"] == dict(auc=[.68, .67, .66], n=3, day="on 2013-01-01", text=HOSTILE, swept=[None, .65])
    names = [r["name"] for r in scalai("runs", "--json", cwd=flights).doc["runs"]]
    # each task is a run of the record
    assert names.count("flaky") == 2 and names.count("score") == 4 and "last" in names
    (flights/"flaky.mark").touch()
    airflow("dags", "test", "flights", "-c", json.dumps({"boom": True, "months": 3}), code=1)
    ill = airflow.states()
    assert {k: v for k, v in ill.items() if k.startswith("month")} == {
        "month.elements": "success",
        "month.run[0]": "failed",
        "month.run[1]": "skipped",
    }
    assert ill["last"] == "upstream_failed" and ill["model.9_end"] == "success"
