"Whether a step is skipped: only if nothing that its result depends on has changed, and always if nothing has."
import json
import os
import shutil
from pathlib import Path

import pytest
from conftest import here
from test_jobs import write

from scalai_nb.core.errors import BadRequest
from scalai_nb.jobs.inputs import Inputs
from scalai_nb.jobs.record import Record
from scalai_nb.jobs.workflow import Workflow

RESULT = "from scalai_nb.jobs.result import result\n"


@pytest.fixture
def work(workspace, monkeypatch) -> Path:
    "One step that depends on everything that a step can depend on."
    monkeypatch.setenv("REGION", "north")
    monkeypatch.setenv("TOKEN", "first")
    (workspace/"pkg").mkdir()
    (workspace/"pkg"/"__init__.py").write_text("")
    (workspace/"pkg"/"rates.py").write_text("from .tables import RATE\n")
    (workspace/"pkg"/"tables.py").write_text("RATE = 2\n")
    (workspace/"setup_cells.py").write_text("offset = 1\n")
    (workspace/"rows.csv").write_text("1\n2\n")
    (workspace/"more.csv").write_text("5\n")
    write(
        workspace / "work.ipynb",
        "from scalai_nb.jobs.parameters import Secret\nrows: str = 'rows.csv'\ntoken: Secret = 'env:TOKEN'",
        "import os\nfrom pkg import rates\n%run setup_cells.py",
        "total = sum(int(x) for x in open(rows)) * rates.RATE + offset + int(open('more.csv').read())",
        RESULT + "open('report.txt', 'w').write(str(total))\nresult(total=total, region=os.environ['REGION'])",
    )
    (workspace/"work.toml").write_text('warm = ["json"]\n[[step]]\nname = "work"\nnotebook = "work.ipynb"\n')
    return workspace


def ran(flow: str = "work.toml", **how) -> list[str]:
    "The steps that were executed."
    job = Workflow.load(flow).run(progress=False, **how)
    assert job.ok, job.error
    return [s.name for s in job.steps if s.state == "succeeded"]


CHANGES = {  # what may change, and how
    "a module that a module imports": lambda at, env: (at/"pkg"/"tables.py").write_text("RATE = 3\n"),
    "a file that %run names": lambda at, env: (at/"setup_cells.py").write_text("offset = 2\n"),
    "a file that a text parameter names": lambda at, env: (at/"rows.csv").write_text("1\n3\n"),
    "a file that nobody declared": lambda at, env: (at/"more.csv").write_text("6\n"),
    "a variable": lambda at, env: env.setenv("REGION", "south"),
    "the value of a secret": lambda at, env: env.setenv("TOKEN", "second"),
    "an installed distribution": lambda at, env: installed(at, env),
}


def installed(at: Path, env):
    folder = at/"elsewhere"/"site-packages"
    (folder/"surprise-1.0.dist-info").mkdir(parents=True)
    (folder/"surprise-1.0.dist-info"/"METADATA").write_text("Metadata-Version: 2.1\nName: surprise\nVersion: 1.0\n")
    env.syspath_prepend(str(folder))


def test_a_step_runs_again_when_what_it_depends_on_changed(work, warm, monkeypatch):
    assert ran() == ["work"]
    for what, change in CHANGES.items():
        assert ran() == [], f"nothing changed before {what}"
        change(work, monkeypatch)
        assert ran() == ["work"], f"{what} changed, and the step was skipped"
    key = work/".scalai"/"key"
    assert key.stat().st_mode & 0o777 == 0o600
    assert "second" not in (work/".scalai"/"scalai.db").read_bytes().decode("latin-1")  # the secret's value


def test_what_a_step_does_not_read_runs_nothing(work, warm, monkeypatch):
    write(
        work / "work.ipynb",
        "n = 1",
        "from scalai_nb.core.settings import Settings\nfolds = Settings.load().data.folds",
        RESULT + "from pkg import rates\nresult(folds=folds)",
    )
    assert ran() == ["work"]
    write(
        work / "work.ipynb",
        "n = 1  # how many",
        "# why\nfrom scalai_nb.core.settings import Settings\n\nfolds = Settings.load( ).data.folds",
        RESULT + "from pkg import rates\nresult(folds=folds)",
    )
    (work/"pkg"/"tables.py").write_text("# of 2013\nRATE = 2\n")
    (work/"settings.ini").write_text("[apps]\nport = 9000\n[gate]\ntolerance = .5\n")
    monkeypatch.setenv("OTHER", "1")
    os.utime(work/"rows.csv")
    assert ran() == []
    (work/"settings.ini").write_text("[data]\nfolds = 7\n")
    assert ran() == ["work"]


def test_reads_are_declared_and_products_are_there(work, warm, capfd):
    (work/"data").mkdir()
    (work/"data"/"1.csv").write_text("1")
    write(
        work / "work.ipynb",
        "n = 1",
        "import os\nos.makedirs('out', exist_ok=True)\nfrom pathlib import Path\nn +="
        " len(list(Path('data').glob('*.csv'))) + int(Path('more.csv').read_text())",
        "if n: open('out/report.html', 'w').write(str(n))",
    )
    step = '[[step]]\nname = "work"\nnotebook = "work.ipynb"\n'
    (work/"work.toml").write_text('warm = ["json"]\n' + step + 'inputs = ["data/*.csv"]\nproducts = ["out/*.html"]\n')
    job = Workflow.load("work.toml").run(progress=True)
    warned = ("work reads what it does not declare. Add to step 'work' of work.toml:"
              ' inputs = ["data/*.csv", "more.csv"]')
    assert job.ok and warned in capfd.readouterr().err.replace("\n", " ")
    details = here("runs", job.steps[0].id)
    assert "undeclared more.csv" in details.out and "out/*.html" in details.out
    for change in (
        lambda: (work / "data" / "2.csv").write_text("2"),
        (work / "out" / "report.html").unlink,
        lambda: (work / "out" / "report.html").write_text("mine"),
    ):
        change()
        assert ran() == ["work"] and ran() == []
    write(work/"work.ipynb", "n = 1", "n = 0")
    shutil.rmtree(work/"out")
    job = Workflow.load("work.toml").run(progress=False)
    assert (job.steps[0].state, job.steps[0].error["kind"]) == (
        "failed",
        "MissingProduct",
    ) and "made no out/*.html" in job.steps[0].error["message"]
    for line, text in (
        ('inputs = ["s3://b/k"]', "is a URL"),
        ('products = ["env:A"]', "is no product"),
        ('inputs = ["table:"]', "names nothing"),
        ('inputs = ["${x}"]', "neither a parameter nor a step"),
    ):
        (work/"bad.toml").write_text(step + line + "\n")
        with pytest.raises(BadRequest, match=text): Workflow.load("bad.toml")


def test_an_equal_result_runs_nothing_else_and_a_file_in_between_does(work, warm):
    write(work/"first.ipynb", "n = 1", "open('between.txt', 'w').write(str(n))", RESULT + "result(odd=n % 2)")
    write(work/"second.ipynb", "odd = 0", "text = open('between.txt').read()", RESULT + "result(text=text)")
    write(work/"third.ipynb", "text = ''", RESULT + "result(text=text)")
    (work / "chain.toml").write_text(
        'warm = ["json"]\n[parameters]\nn = 1\n[[step]]\nname = "first"\nnotebook = "first.ipynb"\nparameters = { n ='
        ' "${n}" }\n[[step]]\nname = "second"\nnotebook = "second.ipynb"\nparameters = { odd = "${first.odd}"'
        ' }\n[[step]]\nname = "third"\nnotebook = "third.ipynb"\nparameters = { text = "${second.text}" }\n'
    )
    assert ran("chain.toml") == ["first", "second", "third"]
    write(work/"first.ipynb", "n = 1", "open('between.txt', 'w').write(f'{n}')", RESULT + "result(odd=n % 2)")
    assert ran("chain.toml") == ["first"]
    assert ran("chain.toml", parameters=dict(n=3)) == ["first", "second", "third"]  # the same result, and another file
    assert ran("chain.toml", from_step="second") == ["second", "third"]


def test_a_table_that_the_step_itself_overwrote_for_another_value_is_made_again(work, warm):
    write(
        work / "put.ipynb",
        "n = 1",
        "import pyarrow as pa\nfrom deltalake import DeltaTable, write_deltalake\nfrom scalai_nb.core import"
        " events\nfrom scalai_nb.core.delta_log import store\nat = store(None, 'tables', 't')",
        "write_deltalake(at, pa.table({'n': [n]}), mode=mode)\nevents.emit('output', table='t',"
        " version=DeltaTable(at).version())",
    )
    for mode, again in (("overwrite", ["put"]), ("append", [])):
        shutil.rmtree(work/".scalai") if (work/".scalai").exists() else None
        text = json.loads((work/"put.ipynb").read_text())
        text["cells"][0]["source"] = f"n = 1\nmode = '{mode}'"
        (work/"put.ipynb").write_text(json.dumps(text))
        (work / "put.toml").write_text(
            '[parameters]\nn = 1\n[[step]]\nname = "put"\nnotebook = "put.ipynb"\nparameters = { n = "${n}" }\n'
        )
        assert [ran("put.toml", parameters=dict(n=n)) for n in (1, 2)] == [["put"]]*2
        assert ran("put.toml", parameters=dict(n=1)) == again, mode


def test_going_on_after_a_failure_reuses_nothing_whose_code_changed(work, warm):
    write(work/"first.ipynb", "n = 1", RESULT + "from pkg.tables import RATE\nresult(n=RATE)")
    write(work/"second.ipynb", "n = 1", "assert n != 2")
    (work / "chain.toml").write_text(
        'warm = ["json"]\n[[step]]\nname = "first"\nnotebook = "first.ipynb"\n[[step]]\nname = "second"\nnotebook ='
        ' "second.ipynb"\nparameters = { n = "${first.n}" }\n'
    )
    assert not Workflow.load("chain.toml").run(progress=False).ok
    (work/"pkg"/"tables.py").write_text("RATE = 5\n")
    job = Workflow.load("chain.toml").run(from_failed=True, progress=False)
    assert ([s.state for s in job.steps], job.steps[1].parameters) == (["succeeded", "succeeded"], dict(n=5))


def test_backfill_and_from_on_the_command_line(work, warm):
    write(
        work / "score.ipynb",
        "period = ''",
        "import os\nassert period != '2012-12' or os.path.exists('mended'), 'no rows'",
        RESULT + "result(rows=int(period[-2:]))",
    )
    (work / "month.toml").write_text(
        'warm = ["json"]\n[parameters]\nperiod = ""\n[[step]]\nname = "score"\nnotebook = "score.ipynb"\nparameters ='
        ' { period = "${period}" }\n'
    )
    command = "backfill", "month.toml", "-p", "period=2012-11..2013-01", "--jobs", "2", "--json"
    assert [(s["name"], s["action"]) for s in here(*command, "--dry-run").doc["plan"]] == [
        (f"month[period={p}]", "run") for p in ("2012-11", "2012-12", "2013-01")
    ]
    first = here(*command)
    assert (first.code, first.doc["kind"], [(s["name"], s["state"]) for s in first.doc["steps"]]) == (
        1,
        "workflow",
        [
            ("month[period=2012-11]", "succeeded"),
            ("month[period=2012-12]", "failed"),
            ("month[period=2013-01]", "succeeded"),
        ],
    )
    assert [r.id for r in Record().runs() if r.name.startswith("backfill")] == [first.doc["id"]] and all(
        s["parent"] == first.doc["id"] for s in first.doc["steps"]
    )
    (work/"mended").touch()
    second = here(*command)
    assert (second.code, [s["state"] for s in second.doc["steps"]], second.doc["results"]["rows"]) == (
        0,
        ["skipped", "succeeded", "skipped"],
        [11, 12, 1],
    )
    assert (
        here("run", "month.toml", "-p", "period=2013-01", "--from", "score", "--json")
        .doc["steps"][0]["reason"]
        .startswith("again from score")
    )
    for words, said in (
        (("run", "month.toml", "--from", "scores"), ["month.toml has no step 'scores'.", "Did you mean 'score'?"]),
        (
            ("backfill", "month.toml", "-p", "periods=2013-01"),
            ["Unknown parameter 'periods'", "Did you mean 'period'?"],
        ),
        (
            ("backfill", "month.toml", "-p", "period=2013-02..2013-01"),
            ["ends before it begins", "Write 2013-01..2013-02"],
        ),
        (("backfill", "month.toml"), ["needs the values", "-p period="]),
        (
            ("run", "month.toml", "--from", "score", "--only", "score"),
            ["--only and --from do not go together", "Choose one"],
        ),
        (("backfill", "score.ipynb", "-p", "period=1"), ["is a notebook", ".toml"]),
    ):
        done = here(*words)
        assert (
            done.code == 2 and len(done.lines) == 2 and all(w in line for w, line in zip(said, done.lines))
        ), done.err


def test_a_run_that_was_killed_before_it_was_accounted_for_stands_for_nothing(work, warm, monkeypatch):
    write(work/"work.ipynb", "rows = 'rows.csv'", RESULT + "result(n=1)")
    after, seen = Inputs.observe_after, []
    def looked(inputs, run):
        seen.append(Record().get(run.id))  # as it would be, were the runner killed here
        return after(inputs, run)
    monkeypatch.setattr(Inputs, "observe_after", looked)
    assert ran() == ["work"] and ran() == []
    assert (seen[0].state, seen[0].key[0]) == ("succeeded", "?")
    Record().update(seen[0])
    assert ran() == ["work"] and ran() == []
