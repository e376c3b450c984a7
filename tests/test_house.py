"The house itself: floors, mirrors, shared facts, what an installed wheel can do."
import ast
import re
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from pathlib import Path

import pytest
from check import mirrored
from conftest import ROOT

from scalai_nb.core.errors import PARTS

BIN = Path(sys.executable).parent


def lint(cwd): return subprocess.run([str(BIN/"lint-imports"), "--no-cache"], cwd=cwd, capture_output=True, text=True)


def test_notebooks_and_package_mirror_each_other(): assert mirrored() == []


def test_floors_hold_and_a_planted_violation_is_refused(tmp_path):
    "Only loop joins jobs and models: a job import planted in serving must fail the check."
    import shutil
    shutil.copytree(ROOT/"scalai_nb", tmp_path/"scalai_nb", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT/"pyproject.toml", tmp_path)
    clean = lint(tmp_path)
    assert clean.returncode == 0, clean.stdout
    target = tmp_path/"scalai_nb"/"serving"/"score.py"
    target.write_text(target.read_text() + "\nfrom scalai_nb.jobs.engine import run\n")
    planted = lint(tmp_path)
    assert planted.returncode == 1 and "Only loop joins jobs and models" in planted.stdout


def test_an_import_cycle_is_refused_also_a_lazy_one(tmp_path):
    "What a table is read by must not know profiles, not even inside a function."
    import shutil
    shutil.copytree(ROOT/"scalai_nb", tmp_path/"scalai_nb", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT/"pyproject.toml", tmp_path)
    assert "No cycles are allowed in scalai_nb.data" not in lint(tmp_path).stdout
    target = tmp_path/"scalai_nb"/"data"/"table_reader.py"
    target.write_text(target.read_text() + "\ndef later(): from scalai_nb.data.table import Table\n")
    planted = lint(tmp_path)
    assert planted.returncode == 1 and "No cycles are allowed in scalai_nb.data" in planted.stdout


def test_settings_files_agree():
    "pyproject.toml speaks to nbdev, settings.ini to us; what both say is the same."
    project = tomllib.loads((ROOT/"pyproject.toml").read_text())
    from scalai_nb import __version__
    from scalai_nb.core.settings import Settings
    assert project["tool"]["nbdev"]["lib_path"] == "scalai_nb" and project["project"]["dynamic"] == ["version"]
    assert Settings.load(ROOT).home.name == ".scalai" and ".scalai/" in (ROOT/".gitignore").read_text()
    assert __version__ in (ROOT/"CHANGELOG.md").read_text()


def imported() -> set[str]:
    "Top-level modules that the package imports, wherever the import stands."
    found = set()
    for path in (ROOT/"scalai_nb").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import): found |= {a.name.split(".")[0] for a in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0: found.add(node.module.split(".")[0])
    return found - set(sys.stdlib_module_names) - {"scalai_nb"}


def test_dependencies_are_those_that_are_imported():
    """What is declared is imported, and what is imported is declared; what is found by name, or comes with another, is
    listed."""
    # needed by torch's exporter; for systems without time zones; uvicorn's
    by_name = {"onnxscript", "tzdata", "httptools"}
    with_another = {
        "traitlets": "ipywidgets",
        "zmq": "ipykernel",
        "jupyter_scheduler": "lab",
        "psycopg": "sql",
        "distributed": "dask",
        "llvmlite": "numba",
        "cudf": "gpu",
        "cupy": "gpu",
        "PIL": "pictures",
        "confluent_kafka": "kafka",
        "fastavro": "kafka",
        "google": "kafka",
        "hdfs_native": "hdfs",
    }
    rename = {"pyyaml": "yaml", "scikit-learn": "sklearn", "ruamel.yaml": "ruamel", "ipython": "IPython"}
    project = tomllib.loads((ROOT/"pyproject.toml").read_text())["project"]
    lines = [project["dependencies"], *(project["optional-dependencies"][part] for part in PARTS)]
    declared = {re.split(r"[\[<>=]", d)[0] for line in lines for d in line} - {"scalai-nb"} - by_name
    declared = {rename.get(d, d.replace("-", "_")) for d in declared}
    assert declared - imported() == set()
    assert imported() - declared - set(with_another) == set()


def test_import_is_light_and_help_is_quick():
    "Heavy libraries stay out until they are needed; a count of modules does not depend on a busy machine."
    code = (
        "import sys, {}; print(' '.join(m for m in"
        " ('torch','mlflow','dask','pandas','onnxruntime','voila','papermill','sqlalchemy') if m in sys.modules))"
    )
    for module in ("scalai_nb", "scalai_nb.cli.main"):
        out = subprocess.run(
            [sys.executable, "-c", code.format(module)], capture_output=True, text=True, check=True
        ).stdout
        assert out.strip() == "", (module, out)


def test_committed_notebooks_hold_no_outputs():
    import nbformat
    for tree in ("nbs", "workflows", "apps", "share"):
        for path in (ROOT/tree).rglob("*.ipynb"):
            if ".ipynb_checkpoints" in path.parts: continue
            for cell in nbformat.read(path, as_version=4).cells:
                assert not cell.get("outputs") and cell.get("execution_count") is None, path


def test_every_notebook_tells_its_name():
    "The first words a reader sees are a title."
    import nbformat
    for tree in ("nbs", "workflows", "apps", "share"):
        for path in (ROOT/tree).rglob("*.ipynb"):
            if ".ipynb_checkpoints" in path.parts: continue
            told = [c.source for c in nbformat.read(path, as_version=4).cells if c.cell_type == "markdown"]
            assert re.match(r"# [^#\s]", told[0]), path
            assert not [t for t in told if re.search(r"^# #", t, re.M)], path


def test_no_script_and_no_style_sheet_stands_in_a_python_string():
    "They are files under static/, which ESLint and a browser test read; an attribute or a rule or two may stay."
    script, rule = re.compile(r"=>|\bfunction\b.*\(|addEventListener|querySelector|document\.\w+\("), re.compile(
        r"\{[^{}]*:[^{}]*\}"
    )
    for path in (ROOT/"scalai_nb").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if not (isinstance(node, ast.Constant) and isinstance(node.value, str)): continue
            where = f"{path.relative_to(ROOT)}:{node.lineno}"
            if "<script" in node.value or ";" in node.value: assert not script.search(node.value), where
            if "<style" in node.value: assert len(rule.findall(node.value)) < 3, where


@pytest.mark.slow
def test_a_wheel_elsewhere_has_everything(tmp_path, monkeypatch):
    """Build a wheel, install it far from the checkout in an environment that has the other packages and nothing of
    this one, and run what a person would."""
    monkeypatch.delenv("PYTHONPATH", raising=False)
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--outdir", str(tmp_path / "dist"), str(ROOT)],
        check=True,
        capture_output=True,
    )
    wheel = next((tmp_path/"dist").glob("*.whl"))
    names = zipfile.ZipFile(wheel).namelist()
    for file in ("workflows/loop.toml", "examples/flights/workflows/flights.toml", "apps/drift.ipynb",
                 "nbs/tutorials/01_first_model.ipynb"):
        assert any(n.endswith(f"shipped/{file}") for n in names), file
    package = ROOT/"scalai_nb"
    for file in (*package.glob("*/static/*"), *package.glob("deploy/templates/*/*")):
        assert file.relative_to(ROOT).as_posix() in names, file
    for place in ("scalai_nb/shipped", "data"):
        assert any(n.endswith(f"{place}/share/jupyter/labextensions/scalai-nb/static/cards.js") for n in names), place
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path/"env")], check=True)
    subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "--python",
            str(tmp_path / "env/bin/python"),
            "install",
            "-q",
            "--no-deps",
            str(wheel),
        ],
        check=True,
    )
    # a path alone: the checkout's own .pth there is not read
    next((tmp_path / "env/lib").glob("python*/site-packages")).joinpath("others.pth").write_text(
        sysconfig.get_path("purelib")
    )
    monkeypatch.setenv("JUPYTER_PATH", str(Path(sys.prefix)/"share/jupyter"))  # templates of theirs
    there = lambda *args, cwd=tmp_path: subprocess.run(
        [str(tmp_path / "env/bin/scalai"), *args], cwd=cwd, capture_output=True, text=True, timeout=600
    )
    found = subprocess.run(
        [str(tmp_path / "env/bin/python"), "-c", "import scalai_nb; print(scalai_nb.__file__)"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert found.startswith(str(tmp_path/"env")), found
    made = there("init", "mine")
    assert made.returncode == 0, made.stderr
    first = there("run", "workflows/first.toml", "--json", cwd=tmp_path/"mine")
    assert first.returncode == 0, first.stderr[-2000:]
    whole = there("demo", "flights", "--months", "2", "--shuffle", "7")
    assert whole.returncode == 0, whole.stdout[-2000:] + whole.stderr[-2000:]
    answered = subprocess.run(
        [str(tmp_path / "env/bin/python"), "-c", DASH],
        cwd=tmp_path / "flights",
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert answered.returncode == 0, answered.stdout + answered.stderr[-2000:]


DASH = """
import re, signal, subprocess, sys, urllib.request, urllib.error
from pathlib import Path
p = subprocess.Popen([str(Path(sys.executable).with_name('scalai')), 'dash', '--port', '0', '--no-browser'],
                     stdout=subprocess.PIPE, text=True)
link = next(m.group(0) for line in p.stdout if (m := re.search(r'http://\\S+token=\\S+', line)))
import http.cookiejar
opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(http.cookiejar.CookieJar()))
page = opener.open(link, timeout=60).read().decode()
assert 'drift' in page, page[:500]
try: urllib.request.urlopen(link.split('?')[0], timeout=60)
except urllib.error.HTTPError as e: assert e.code == 401, e.code
else: raise SystemExit('answered without a token')
p.send_signal(signal.SIGINT)
p.wait(30)
"""
