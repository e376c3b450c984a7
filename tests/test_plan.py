"A plan against what then ran, and against what would have come of doing all anew: a workflow that changes at random."
import json
import os
import shutil
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pytest
from deltalake import write_deltalake
from test_jobs import write

from scalai_nb.core.delta_log import store
from scalai_nb.core.errors import BadRequest
from scalai_nb.core.settings import Settings
from scalai_nb.jobs.job_run import LEFT_OUT_REASON
from scalai_nb.jobs.plan import plan
from scalai_nb.jobs.workflow import Workflow

RESULT = "from scalai_nb.jobs.result import result\n"
TABLE = (
    "from deltalake import DeltaTable, write_deltalake\nfrom scalai_nb.core import events\nfrom"
    " scalai_nb.core.settings import Settings\nfrom scalai_nb.core.delta_log import store\nsettings ="
    " Settings.load()\nat = store(settings, 'tables', 't')\n"
)
NOTEBOOKS = {  # parameters; code, in which C is a constant that changes
    "a": (
        "n = 1\nrows = 'rows.csv'",
        "from lib.rates import RATE",
        "value = f'{C}|{n}|{RATE}|{open(rows).read()}'\n"
        + RESULT
        + "result(value=value, parity=n % 2, items=list(range(n % 3 + 1)))",
    ),
    "b": (
        "parity = 0",
        "value = f'{C}|{parity}|' + open('extra.txt').read()",
        "import os\nos.makedirs('out', exist_ok=True)\nopen('out/b.txt', 'w').write(value)\n"
        + RESULT
        + "result(value=value)",
    ),
    "c": (
        "",
        "import os\n%run setup_cells.py",
        "value = f\"{C}|{os.environ.get('REGION')}|{offset}|\" + open('out/b.txt').read()\n"
        + TABLE
        + "import pyarrow as pa\nwrite_deltalake(at, pa.table({'v': [value]}),"
        " mode='overwrite')\nevents.emit('output', table='t', version=DeltaTable(at).version())\n"
        + RESULT
        + "result(value=value)",
    ),
    "d": (
        "",
        "import glob\n" + TABLE,
        "table = DeltaTable(at)\nevents.emit('input', table='t', version=table.version())\nvalue ="
        " f\"{C}|{table.to_pyarrow_table()['v'][0].as_py()}|{settings.data.folds}|\" + ''.join(open(f).read() for f in"
        " sorted(glob.glob('data/*.txt')))\n"
        + RESULT
        + "result(value=value)",
    ),
    "e": ("k = 0", "value = f'{C}|{k}'", RESULT + "result(value=value)"),
    "f": ("x = 0", "value = f'{C}|{x}|' + open('shared.txt').read()", RESULT + "result(value=value)"),
    "g": ("", "value = f'{C}'", RESULT + "result(value=value)"),
    "i": (
        "",
        TABLE,
        "try: table = DeltaTable(at)\nexcept Exception: table = None\nif table: events.emit('input', table='t',"
        " version=table.version())\nvalue = f'{C}'\n"
        + RESULT
        + "result(value=value)",
    ),
}


class World:
    "A workspace, and what its workflow would find if all of it ran anew."
    def __init__(self, at: Path):
        self.at, self.n, self.grid, self.optional, self.names = at, 1, [1, 2], {"g", "i"}, {"f": "f", "e": "e"}
        self.constants, self.plain, self.failing = {k: 0 for k in NOTEBOOKS}, {k: "" for k in NOTEBOOKS}, set()
        self.files = {"rows.csv": "r", "extra.txt": "x", "shared.txt": "s", "data/1.txt": "1", "data/2.txt": "2"}
        self.rate, self.offset, self.region, self.folds, self.port, self.remarks = 2, 1, "north", 5, 8866, ["", ""]

    def write(self):
        for name, text in self.files.items():
            (self.at/name).parent.mkdir(exist_ok=True)
            if not (self.at/name).exists() or (self.at/name).read_text() != text: (self.at/name).write_text(text)
        for gone in set(str(p.relative_to(self.at)) for p in (self.at/"data").glob("*.txt")) - set(self.files):
            (self.at/gone).unlink()
        (self.at/"lib").mkdir(exist_ok=True)
        (self.at/"lib"/"rates.py").write_text(f"{self.remarks[0]}from .table import RATE\n")
        (self.at/"lib"/"table.py").write_text(f"RATE = {self.rate}\n")
        (self.at/"setup_cells.py").write_text(f"{self.remarks[1]}offset = {self.offset}\n")
        (self.at/"settings.ini").write_text(f"[data]\nfolds = {self.folds}\n[apps]\nport = {self.port}\n")
        for k, (parameters, *cells) in NOTEBOOKS.items():
            write(
                self.at / f"{k}.ipynb",
                parameters or "pass",
                f"{self.plain[k]}C = {self.constants[k]}" + ("\nassert False, 'broken'" if k in self.failing else ""),
                *cells,
            )
        os.environ["REGION"] = self.region
        f, e = self.names["f"], self.names["e"]
        step = lambda name, notebook, needs, more="": (
            f'[[step]]\nname = "{name}"\nnotebook = "{notebook}.ipynb"\nneeds = {json.dumps(needs)}\n{more}'
        )
        (self.at / "inner.toml").write_text(
            '[parameters]\nk = 0\n'
            + step("first", "e", [], 'parameters = { k = "${k}" }\n')
            + step("second", "g", ["first"])
        )
        (self.at / "work.toml").write_text(
            'name = "work"\nwarm = ["deltalake", "pyarrow"]\n[parameters]\nn = 1\n'
            + step("a", "a", [], 'parameters = { n = "${n}" }\n')
            + step("b", "b", ["a"], 'parameters = { parity = "${a.parity}" }\nproducts = ["out/b.txt"]\n')
            + step("c", "c", ["b"], 'inputs = ["env:REGION"]\n')
            + step("d", "d", ["c"], 'inputs = ["data/*.txt"]\n')
            + step(e, "e", ["a"], 'each = "${a.items}"\nas = "item"\nparameters = { k = "${item}" }\n')
            + step(f, "f", [], f"grid = {{ x = {self.grid} }}\n")
            + ("".join([step("g", "g", ["a"], 'when = "${a.parity} == 1"\n')]) if "g" in self.optional else "")
            + (step("i", "i", []) if "i" in self.optional else "")
            + '[[step]]\nname = "h"\nworkflow = "inner.toml"\nneeds = ["b"]\nparameters = { k = "${a.parity}" }\n'
        )
        return Workflow.load(self.at/"work.toml")

    def expected(self) -> dict[str, str]:
        c, x = self.constants, self.files
        found = {"a": f"{c['a']}|{self.n}|{self.rate}|{x['rows.csv']}", "b": f"{c['b']}|{self.n % 2}|{x['extra.txt']}"}
        found["c"] = f"{c['c']}|{self.region}|{self.offset}|{found['b']}"
        found["d"] = f"{c['d']}|{found['c']}|{self.folds}|" + "".join(x[k] for k in sorted(x) if k.startswith("data/"))
        found |= {f"{self.names['e']}[{k}]": f"{c['e']}|{k}" for k in range(self.n % 3 + 1)}
        found |= {f"{self.names['f']}[x={v}]": f"{c['f']}|{v}|{x['shared.txt']}" for v in self.grid}
        found |= {"h › first": f"{c['e']}|{self.n % 2}", "h › second": f"{c['g']}"}
        return found | ({"g": f"{c['g']}"} if "g" in self.optional and self.n % 2 else {})


def steps_of(world: World) -> list[str]:
    return ["a", "b", "c", "d", world.names["e"], world.names["f"], "h", *sorted(world.optional)]


def mutate(world: World, rng) -> str:
    "One change."
    k, file = rng.choice(list(NOTEBOOKS)), rng.choice(list(world.files))
    def edit(): world.constants[k] += 1
    def same_result(): world.plain[k] = f"unused = {rng.random()}\n"
    def remark(): world.plain[k] = f"# {rng.random()}\n\n"
    def parameter(): world.n = rng.randrange(6)
    def module(): world.rate += 1
    def module_remark(): world.remarks[rng.randrange(2)] = f"# {rng.random()}\n"
    def run_file(): world.offset += 1
    def touch(): os.utime(world.at/file) if (world.at/file).exists() else None
    def content(): world.files[file] = str(rng.random())
    def another_file(): world.files[f"data/{rng.randrange(9)}.txt"] = "new"
    def fewer_files():
        if len([f for f in world.files if f.startswith("data/")]) > 1:
            world.files.pop(max(f for f in world.files if f.startswith("data/")))
    def variable(): world.region = rng.choice(["north", "south", "west"])
    def setting(): world.folds = rng.randrange(2, 9)
    def other_setting(): world.port += 1
    def product_gone(): (world.at/"out"/"b.txt").unlink(missing_ok=True)
    def product_changed(): (world.at/"out"/"b.txt").write_text("other") if (world.at/"out").exists() else None
    def table():
        write_deltalake(store(Settings.load(world.at), "tables", "t"), pa.table({"v": ["others"]}), mode="overwrite")
    def table_gone(): shutil.rmtree(store(Settings.load(world.at), "tables", "t"), ignore_errors=True)
    def fails(): world.failing.add(k)
    def mended(): world.failing.clear()
    def more(): world.optional ^= {rng.choice(["g", "i"])}
    def renamed(): world.names[rng.choice("ef")] += "x"
    def grid(): world.grid = rng.sample(range(5), rng.randrange(1, 4))
    def nothing(): pass
    change = rng.choice(
        [
            edit,
            edit,
            same_result,
            same_result,
            remark,
            parameter,
            parameter,
            module,
            module_remark,
            run_file,
            touch,
            content,
            content,
            another_file,
            fewer_files,
            variable,
            setting,
            other_setting,
            product_gone,
            product_changed,
            table,
            table_gone,
            fails,
            mended,
            mended,
            more,
            renamed,
            grid,
            nothing,
        ]
    )
    change()
    return (
        f"{change.__name__}"
        f" {k if change in (edit, same_result, remark, fails) else file if change in (touch, content) else ''}"
    )


def leaves(steps, around=""):
    "Names and what stands for them, inner workflows resolved."
    for s in steps:
        if s.steps: yield from leaves(s.steps, f"{around}{s.name} › ")
        else: yield around + s.name, s


def compare(planned, job) -> list[str]:
    "What a plan said and did not come true."
    said, did, wrong = dict(leaves(planned.steps)), dict(leaves(job.steps)), []
    failed = any(r.state == "failed" for r in did.values())
    ran = lambda r: r.state in ("succeeded", "failed")
    inside = lambda name: [n for n in did if n.partition("[")[0] == name or n.startswith((f"{name}[", f"{name} › "))]
    for name, s in said.items():
        mine = [did[n] for n in ({name} & did.keys() or inside(name))]
        if (
            s.action == "run"
            and not any(map(ran, mine))
            and not (failed and (not mine or all(r.reason.startswith(LEFT_OUT_REASON) for r in mine)))
        ):
            wrong.append(f"{name} runs ({s.reason}), and did not: {[(r.state, r.reason) for r in mine]}")
        if s.action == "skip" and (not mine or any(map(ran, mine))):
            wrong.append(f"{name} is skipped ({s.reason}), and was not: {[(r.state, r.reason) for r in mine]}")
        if s.action == "skip" and any(
            r.reason.startswith(LEFT_OUT_REASON) != s.reason.startswith(LEFT_OUT_REASON) for r in mine
        ):
            wrong.append(f"{name}: {s.reason}, but {mine[0].reason}")
    for name in did:
        if not any(name == n or name.partition("[")[0] == n or name.startswith((f"{n}[", f"{n} › ")) for n in said):
            wrong.append(f"{name} was not planned")
    return wrong


@pytest.mark.slow
def test_a_plan_says_what_then_runs_and_nothing_is_skipped_wrongly(workspace, warm, monkeypatch, rounds):
    monkeypatch.setenv("REGION", "north")
    world, counts = World(workspace), Counter()
    world.write().run(dict(n=world.n), progress=False)
    for rng in rounds.seeds(6, soak=200):
        changes = [mutate(world, rng) for _ in range(rng.randrange(1, 4))]
        flow, how = world.write(), {}
        if (choice := rng.random()) < .15:how = dict(from_failed=True)
        elif choice < .25:how = dict(from_step=rng.choice(steps_of(world)))
        elif choice < .32: how = dict(only=rng.choice(steps_of(world)))
        given = {} if how.get("from_failed") else dict(n=world.n)
        try: planned, refused = plan(flow, given, jobs=3, **how), None
        except BadRequest as e: planned, refused = None, str(e)
        if refused:
            with pytest.raises(BadRequest) as also: flow.run(given, jobs=3, progress=False, **how)
            assert str(also.value) == refused
            counts["refused"] += 1
            continue
        job = flow.run(given, jobs=3, progress=False, **how)
        said = f"{changes} {how}\n{planned}\n" + "\n".join(
            f"{n} {r.state} {r.reason} {r.error or ''}" for n, r in leaves(job.steps)
        )
        assert not (wrong := compare(planned, job)), "\n".join(wrong) + "\n" + said
        counts.update(f"said_{s.action}" for _, s in leaves(planned.steps))
        counts.update(
            dict(
                ran=sum(r.state != "skipped" for _, r in leaves(job.steps)),
                may_run_and_did=sum(
                    did[n].state != "skipped"
                    for did in [dict(leaves(job.steps))]
                    for n, s in leaves(planned.steps)
                    if s.action == "perhaps" and n in did
                ),
            )
        )
        world.n = job.parameters["n"]
        if job.ok and not how:
            found = {
                n: r.results.get("value")
                for n, r in leaves(job.steps)
                if not r.reason.startswith(LEFT_OUT_REASON) and n != "i"
            }
            assert found == world.expected(), said
            counts["compared_with_all_anew"] += 1
    rounds.note(differences=0, **counts)
