"""The documentation site: what is generated, what its checks find, and a site of the tutorials."""

import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT/"docs"))


def test_every_verb_and_every_setting_has_a_line():
    from generated import commands, settings

    from scalai_nb.core.settings import Settings
    text = commands()
    for verb in ("ingest", "train", "serve", "models alias", "schedule add", "quarantine"):
        assert f"`scalai {verb}`" in text
    assert r"`NOTEBOOK\|WORKFLOW" in text and "Rows to show. [default: 10; x>=0] |" in text
    assert {len(re.split(r"(?<!\\)\|", line)) for line in text.splitlines() if line.startswith("|")} == {4}
    text = settings()
    for name, field in Settings.model_fields.items():
        for key in getattr(field.annotation, "model_fields", ()): assert f"| `{key}` |" in text, (name, key)


def test_every_metric_has_a_line_and_every_page_of_codes_too():
    from generated import metrics
    text = metrics()
    for line in ("| `scalai_serve_rows_total` | counter | `model`, `version` | Rows scored. |",
                 "| `scalai_scheduler_queued` | gauge |  |", "| `scalai_score_seconds` | histogram | `model` |"):
        assert line in text
    codes = (ROOT/"docs"/"exit-codes.md").read_text()
    assert all(f"\n| {code} |" in codes for code in (0, 1, 2, 3, 124, 130))


def test_a_parameter_is_described_by_its_comment_its_class_or_the_table():
    import parameters
    known = {(f.module, f.name): f for f in parameters.functions()}
    wilson = {p.name: p.comment for p in known["core.stats", "wilson"].parameters}
    assert wilson["z"].startswith("quantile of the normal")
    assert parameters.shared("data.x", "f", "settings", "Settings | None").startswith("of the workspace")
    assert parameters.shared("data.x", "f", "rules", "Contract | None") == "rules for columns, and for rows as wholes"
    assert parameters.shared("training.request", "FitRequest", "epochs", "int | str")  # as `fit` says
    assert not parameters.shared("data.x", "f", "unheard_of", "int")


def test_a_comment_describes_what_it_stands_next_to(monkeypatch):
    import ast

    import parameters
    text = ("# %% ../nbs/a.ipynb #1a2b\n"
            "def one(x: int, y: int) -> int:  # their sum\n    return x + y\n\n"
            "def two(x, y):  # their sum\n    return x + y\n\n"
            "def three(x,  # a number\n          y, z=1):  # another\n    return x\n\n"
            "class Box:\n    def __init__(self, size):  # of a side, cm\n        pass\n")
    monkeypatch.setattr(parameters, "source", lambda module: text)
    parameters.comments.cache_clear()
    try:
        one, two, three, box = ast.parse(text).body
        said = lambda f: {p.name: p.comment for p in parameters.of_function("m", f).parameters}
        assert said(one) == said(two) == {"x": "", "y": ""}
        assert parameters.of_function("m", one).returned == parameters.of_function("m", two).returned == "their sum"
        assert said(three) == {"x": "a number", "y": "", "z": "another"}
        assert [p.comment for f in parameters.of_class("m", box) for p in f.parameters] == ["of a side, cm"]
    finally: parameters.comments.cache_clear()


def test_no_page_shows_the_mark_of_a_cell_as_a_description():
    import parameters
    said = [p.comment for f in parameters.functions() for p in f.parameters]
    assert len(said) > 2_000 and not any("%%" in s or "ipynb" in s for s in said)
    assert parameters.described("data.clean", "parse_times")["formats"] != "timestamp[us]; null where no format fits"
    assert not [*parameters.undocumented()]


def test_an_export_cell_becomes_signatures_and_folded_source():
    from pages import page
    code = ("#| export\nclass Box:\n    'Hold.'\n    def open(self): 'Open.'\n\ndef _hidden(): pass\n\n"
            "def make(): 'Make.'")
    nb = new_notebook(cells=[
        new_code_cell("#| default_exp data.box"), new_markdown_cell("# Boxes"), new_code_cell(code),
        new_code_cell("#| export\n@patch\ndef close(self: Box): 'Close.'"), new_code_cell("make()"),
    ])
    made = page(nb)
    api = made.cells[1].source
    assert ".. autoclass:: scalai_nb.data.box.Box\n   :members: open, close" in api
    assert ".. autofunction:: scalai_nb.data.box.make" in api and "_hidden" not in api
    assert made.cells[2].metadata["tags"] == ["hide-input"] and made.cells[2].source.startswith("class Box")
    assert made.cells[-1].source == "make()" and not made.cells[-1].metadata.get("tags")
    nbformat.validate(made)


def test_links_out_of_the_notebooks_stay_in_the_site():
    from pages import inside
    assert inside("[a](02_x.ipynb), [measured](../../tests/bench/RESULTS.md), [b](../../share/x)") == (
        "[a](02_x.ipynb), [measured](../../benchmarks.md), b")


def test_markup_in_a_docstring_is_text():
    from names import escaped
    assert escaped("*a |b - c| ``d|*e`` f_ g_h") == r"\*a \|b - c\| ``d|*e`` f\_ g_h"


def test_a_signature_shows_types_without_their_validators():
    from names import without_annotated
    assert without_annotated("(sep: Annotated[str, After(f)] = '', d: list[Annotated[int, Gt(0)]] = [], x: int)") == (
        "(sep: str = '', d: list[int] = [], x: int)")


def test_code_has_no_elements_around_what_has_no_colour():
    from layout import Formatter
    from pygments import highlight
    from pygments.lexers import PythonLexer
    assert highlight("def f(x): return x", PythonLexer(), Formatter(nowrap=True)).strip() == (
        '<span class="k">def</span> <span class="nf">f</span>(x): <span class="k">return</span> x')


def test_a_sidebar_lists_the_section_and_the_branch_of_a_page():
    from types import SimpleNamespace as Space

    from docutils.nodes import title
    from layout import links
    under = {"index": ["guides/index", "ref", "alone"], "guides/index": ["guides/a", "guides/b"],
             "ref": ["ref/x/index", "ref/y/index"], "ref/x/index": ["ref/x/1"], "ref/y/index": ["ref/y/2"]}
    names = {name for pair in under.items() for name in (pair[0], *pair[1])}
    relative = lambda here, to: f"{here}>{to}"
    env = Space(toctree_includes=under, titles={n: title(n, n) for n in names})
    app = Space(env=env, builder=Space(get_relative_uri=relative))
    found = links(app, "ref/x/1")
    assert [n for n in names if f">{n}<" in found] and ">ref/x/1<" in found and ">ref/y/index<" in found
    assert "guides" not in found and ">ref/y/2<" not in found and found.count('aria-current="page"') == 1
    assert not links(app, "index") and not links(app, "alone")


def test_what_is_wrong_with_a_site_is_found(tmp_path):
    from site_check import problems
    (tmp_path/"a.html").write_text('<a href="b.html#there">b</a><a href="c.html">c</a><p id="here"></p>'
                                   '<script src="https://example.org/x.js"></script><a href="https://a.org"></a>')
    (tmp_path/"b.html").write_text('<a href="a.html#here">a</a>')
    assert problems(tmp_path) == ["a.html links to a place b.html#there that is not there",
                                  "a.html links to c.html, which is not there",
                                  "a.html loads https://example.org/x.js from another host"]


def test_outputs_are_kept_until_something_they_depend_on_changes(tmp_path, monkeypatch):
    import execute
    nb = new_notebook(cells=[new_code_cell("from scalai_nb.core.stats import wilson")])
    before = execute.key(nb)
    assert execute.key(nb) == before
    other = new_notebook(cells=[new_code_cell("from scalai_nb.core.stats import wilson\n1")])
    assert execute.key(other) != before
    kept = execute.source
    text = new_notebook(cells=[new_markdown_cell("# Stats"), *nb.cells])
    assert execute.key(text) == before  # text between the cells shows itself
    monkeypatch.setattr(execute, "source", lambda m: kept(m) + (b"#" if m == "scalai_nb.core.stats" else b""))
    assert execute.key(nb) != before
    monkeypatch.setattr(execute, "source", lambda m: kept(m) + (b"#" if m == "scalai_nb.data.table" else b""))
    assert execute.key(nb) == before


def test_comments_and_docstrings_are_not_what_a_module_does(tmp_path, monkeypatch):
    import execute
    monkeypatch.setattr(execute, "ROOT", tmp_path)
    monkeypatch.setattr(execute, "KEPT", tmp_path/"kept")
    (tmp_path/"scalai_nb").mkdir()
    read = execute.source.__wrapped__
    def said(text):
        (tmp_path/"scalai_nb"/"box.py").write_text(text)
        return read("scalai_nb.box")
    assert said("def f(x):\n    'Return x.'\n    return x") == said("'Boxes.'\ndef f(x,  # any\n     ): return x")
    assert said("def f(x): return x") != said("def f(x): return -x")


def test_a_notebook_depends_on_the_names_that_it_takes_from_the_front_door():
    import execute
    of = lambda code: execute.modules_of(new_notebook(cells=[new_code_cell(code)]))
    small, large = of("import scalai_nb as sn\nsn.Contract"), of("import scalai_nb as sn\nsn.Contract, sn.fit")
    assert "scalai_nb.data.contract" in small and "scalai_nb.training.fit" not in small
    assert small < large < of("!scalai runs") == set(execute.imports().modules)


def test_figures_come_from_the_tables_of_the_results():
    from figures import figures, number, table
    results = ("# R\n\n## cost, 9 rows\n\nWords.\n\n| | CPU s | note |\n|---|---:|---|\n"
               "| scalai | 0.43 | a |\n| other | 1,036 | |\n")
    found = [(row[""], number(row["CPU s"])) for row in table(results, "cost, 9 rows")]
    assert found == [("scalai", .43), ("other", 1036)]
    with pytest.raises(ValueError, match="no section"): table(results, "cost, 8 rows")
    drawn = figures((ROOT/"tests/bench/RESULTS.md").read_text())
    assert drawn.count("<svg") == drawn.count("less is better") and "scalai serve" in drawn


def test_machines_get_a_list_of_the_pages(tmp_path):
    from build import add_for_machines
    (tmp_path/"howto").mkdir()
    (tmp_path/"howto"/"serve.md").write_text("# Serve a model\n")
    nb = new_notebook(cells=[new_markdown_cell("# Boxes\n> Hold things.")])
    add_for_machines(tmp_path, {ROOT/"nbs"/"data"/"01_box.ipynb": nb})
    text = (tmp_path/"llms.txt").read_text()
    assert "## How-to guides\n\n- [Serve a model](howto/serve.html)" in text
    assert "- [Boxes](reference/data/01_box.html): Hold things." in text


def test_pages_that_are_the_same_keep_their_time_and_the_copy_for_a_wheel_is_small(tmp_path):
    from build import bring, pack
    new, old = tmp_path/"new", tmp_path/"old"
    for folder in (new, old): (folder/"a").mkdir(parents=True)
    for name in ("a/same.md", "gone.md"): (old/name).write_text("1")
    before = (old/"a"/"same.md").stat().st_mtime_ns
    for name in ("a/same.md", "a/fresh.md"): (new/name).write_text("1")
    bring(new, old)
    assert sorted(f.name for f in old.rglob("*.md")) == ["fresh.md", "same.md"] and not new.exists()
    assert (old/"a"/"same.md").stat().st_mtime_ns == before
    (old/"large.png").write_bytes(bytes(100_001))
    assert pack(old, tmp_path/"docs.zip") < 1_000


@pytest.mark.slow
def test_a_site_of_the_tutorials(tmp_path, monkeypatch):
    monkeypatch.setenv("SCALAI_DOCS_CACHE", str(tmp_path/"kept"))
    build = [sys.executable, str(ROOT/"docs"/"build.py"), "--only", "tutorials/*.ipynb", "--out", str(tmp_path/"site")]
    done = subprocess.run(build, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    html = tmp_path/"site"/"html"
    first = (html/"tutorials"/"01_first_model.html").read_text()
    assert "mean_radius" in first and "val_auc" in first and "Traceback" not in first
    assert "from another host" not in done.stderr
    assert "scalai lab --open first_model" in re.sub("<[^>]*>", "", first)
    assert "01_first_model" in (html/"llms.txt").read_text()
    assert (html/"objects.inv").exists() and (html/"howto"/"serve.html").exists()
