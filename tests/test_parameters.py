"Parameters under whatever a caller may think of: no input becomes code, and what arrives is what was given."
import ast
import json
import math
from datetime import date, datetime, timedelta, timezone
from decimal import Decimal, InvalidOperation
from itertools import takewhile
from pathlib import Path

import pytest
from conftest import here
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_jobs import write

from scalai_nb.core.errors import BadRequest
from scalai_nb.jobs.engine import run
from scalai_nb.jobs.parameters import Secret, check, inject, literal, read

EXAMPLES = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
HOSTILE = ['"); __import__("os").system("touch owned") #', "{__import__('os').system('touch owned')}",
           "'''\nimport os\n'''", '"""\n1/0\n"""', "\\", "\\'", "\n1/0", "\r1/0", "\u20281/0", "\x00", "\x1b[2J",
           "%system touch owned", "!touch owned", "env:HOME", "$(touch owned)", "`touch owned`", "{{7*7}}",
           "\N{RIGHT-TO-LEFT OVERRIDE}abc", "é" + "\u0301", "😀", "-0", "1e999", "0x10", "NaN", "None", "[", "{", "[]",
           "[[" * 300]
TEXT = st.text() | st.sampled_from(HOSTILE)
ZONES = st.none() | st.integers(-720, 840).map(lambda m: timezone(timedelta(minutes=m)))
PLAIN = (st.none() | st.booleans() | st.integers() | st.floats() | TEXT | st.dates() | st.datetimes(timezones=ZONES)
         | TEXT.filter(lambda t: "\x00" not in t).map(Path))
VALUES = st.recursive(PLAIN,
                      lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT | st.integers(), inner,
                                                                                  max_size=4),
                      max_leaves=15)
TYPES = ["str", "int", "float", "bool", "None", "list", "dict", "date", "datetime", "Path", "Any", "Secret",
         "Literal['a', 2, None]", "Optional[int]", "Optional[list[int]]", "int | str", "list[str]", "dict[str, float]",
         "Optional[Secret]", "date | None", "list[list[int]]"]
CALLS = ('__import__("datetime").datetime.fromisoformat', '__import__("datetime").date.fromisoformat',
         '__import__("pathlib").Path', "float", '__import__("scalai_nb.jobs.parameters", fromlist=["secret"]).secret')


def cells(text: str) -> dict:
    return {"nbformat": 4, "nbformat_minor": 5, "metadata": {},
            "cells": [{"cell_type": "code", "metadata": {"tags": ["parameters"]}, "source": text}]}


def evaluated(node: ast.expr):
    """What an expression means, of constants, lists, dicts and the five known calls with one text each; anything else
    is code and fails."""
    match node:
        case ast.Constant(value=value): return value
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as value)): return -value
        case ast.List(elts=parts): return [evaluated(p) for p in parts]
        case ast.Dict(keys=keys, values=values): return {evaluated(k): evaluated(v) for k, v in zip(keys, values)}
        case ast.Call(func=func, args=[ast.Constant(value=str() as text)], keywords=[]):
            return dict(zip(
                            CALLS, (datetime.fromisoformat, date.fromisoformat, Path, float, Secret)
                        ))[next(c for c in CALLS if ast.dump(ast.parse(c, mode="eval").body) == ast.dump(func))](text)
    pytest.fail(f"code: {ast.unparse(node)}")


def same(a, b) -> bool:
    if isinstance(a, list): return isinstance(b, list) and len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict): return isinstance(b, dict) and list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, float):
        return isinstance(b, float) and (a == b and math.copysign(1, a) == math.copysign(1, b) or a != a and b != b)
    return type(a) is type(b) and a == b


@EXAMPLES
@given(VALUES)
def test_a_literal_is_the_value_and_nothing_else(value):
    assert same(evaluated(ast.parse(literal(value), mode="eval").body), value)


@EXAMPLES
@given(st.dictionaries(st.sampled_from(["a", "b", "c"]), VALUES, min_size=1))
def test_an_injected_cell_only_assigns(values):
    cell = inject(cells("a = b = c = None"), values)[0]["cells"][1]
    body = ast.parse(cell["source"]).body
    found = {node.targets[0].id: evaluated(node.value) for node in body}
    assert list(found) == list(values) and all(same(found[k], v) for k, v in values.items())
    json.dumps(cell)  # a notebook can hold it


@EXAMPLES
@given(TEXT | st.sampled_from(["a ", "a=1", "a;b", "a\nb", "ａ", "__builtins__", "a.b", "a[0]", "exit", "print",
                               "lambda", "A"]),
       VALUES)
def test_only_declared_names_are_taken(name, value):
    if name == "a": return
    with pytest.raises(BadRequest, match="Unknown parameter"): check(cells("a = 1"), {name: value})


@EXAMPLES
@given(st.sampled_from(TYPES), VALUES | TEXT)
def test_every_type_takes_a_value_or_says_why_not(annotation, value):
    book = cells(f"x: {annotation}")
    try: taken = check(book, dict(x=value))["x"]
    except BadRequest as e:
        assert "'x'" in e.message or "deep" in e.message or "cannot be passed" in e.message
        return
    assert same(evaluated(ast.parse(literal(taken), mode="eval").body),
                list(taken) if isinstance(taken, tuple) else taken)
    if annotation == "str": assert taken == value


@EXAMPLES
@given(TEXT
       | st.lists(st.sampled_from(["a", "b: int", "c: str[int]", "d: Literal[f()]", "e: list[", "=", " 1", " {[]: 1}",
                                   " date.today()", " date(2013)", "\n", "  ", "# help", "f(", ")", ":", '"""',
                                   "-" * 50, "lambda: 0", " await x"])).map("".join))
def test_reading_a_cell_never_runs_it(text):
    try: found = read(cells(text))
    except BadRequest as e: assert "parameters cell" in e.message
    else: assert all(n.isidentifier() for n in found)


DAY, NOON = date(2013, 6, 1), datetime(2013, 6, 1, 12)
RIGHT = {  # of each type: what may be given, as text and as itself, and what it becomes
    "str": [("00123", "00123"), ("", ""), ("True", "True")],
    "int": [("12", 12), (12, 12), ("-3", -3)],
    "float": [("1e-3", .001), (2, 2.), ("inf", math.inf)],
    "bool": [("true", True), ("0", False), (True, True)],
    "None": [("none", None), (None, None)],
    "list": [("a,b", ["a", "b"]), ("[1, 2]", [1, 2]), ([1], [1]), ("", [])],
    "list[int]": [("7", [7]), ("7,8", [7, 8])],
    "dict": [('{"a": 1}', {"a": 1}), ({"a": 1}, {"a": 1})],
    "date": [("2013-06-01", DAY), (DAY, DAY)],
    "datetime": [("2013-06-01T12:00", NOON), (NOON, NOON)],
    "Literal['append', 2]": [("append", "append"), ("2", 2), (2, 2)],
    "Optional[int]": [("", None), ("None", None), ("3", 3)],
    "Path": [("/data/x.csv", Path("/data/x.csv"))],
    "Secret": [("env:HOME", Secret("env:HOME")), ("file:/etc/hostname", Secret("file:/etc/hostname"))],
    "Optional[Secret]": [("", None), ("env:HOME", Secret("env:HOME"))]}
WRONG = {"str": 123, "int": "six", "float": "much", "bool": "maybe", "None": "something", "list": 5,
         "list[int]": "1,two", "dict": "[1]", "date": "June", "datetime": "noon", "Literal['append', 2]": "delete",
         "Optional[int]": "six", "Path": 5, "Secret": "hunter2", "Optional[Secret]": "hunter2"}


@pytest.mark.parametrize("annotation", RIGHT)
def test_each_type_right_wrong_and_missing(annotation):
    book = cells(f"table: str = 't'\nx: {annotation}  # what it is for")
    for said, meant in RIGHT[annotation]:
        taken = check(book, dict(x=said))["x"]
        assert (type(taken), taken) == (type(meant), meant)
    with pytest.raises(BadRequest) as wrong: check(book, dict(x=WRONG[annotation]))
    assert "'x'" in wrong.value.message and annotation in wrong.value.message or "reference" in wrong.value.message
    assert "hunter2" not in str(wrong.value)
    with pytest.raises(BadRequest, match=r"(?s)Parameter 'x' is required.*It is x: .*what it is for"): check(book, {})
    with pytest.raises(BadRequest, match="(?s)Unknown parameter 'tabel'.*Did you mean 'table'"):
        check(book, dict(x=RIGHT[annotation][0][0], tabel="t"))


NUMBERS = ["20240101", "20240101.5", "1e9", "86400", "0", "-5", "+1", " 5", "1_000", "0x10", "inf", "nan", "1e400",
           "-1e400", "1e-400", "12", "12.0", "12.5", "２０２４０１０１", "9"*30]
DATES = ["2024-01-01", "2024-02-30", "2024-01-01T00:00", "2024-01-01T12:30:15", "2024-01-01 12:30",
         "2024-01-01T00:00+02:00", "2024-01-01T12:00Z", "2024-01-01T12:00:00.1234567", "2024-01-01T12:00:00.123456",
         "20240101T1200", "2024-W01-1", "2024W011", "01/02/2024", "12:30"]
WORDS = ["", "none", "None", "null", "NULL", "true", "no", "on", "a", "b", "2", "a,b", "1,2", "1,none", "[1, 2]",
         "[1e400]", "[null]", "[20240101]", '{"a": 1}', '{"a": null}', "2024-01-01,20240102", "/data/x.csv", "."]
OPTIONAL = ["Optional[int]", "Optional[float]", "Optional[bool]", "Optional[date]", "Optional[datetime]",
            "Optional[Path]", "Optional[list[int]]", "Optional[dict]", "Literal['a', 2, None]",
            "Optional[Literal['a']]"]
WRITTEN = [*OPTIONAL, "str", "int", "float", "bool", "None", "date", "datetime", "Path", "list", "dict", "list[int]",
           "list[float]", "list[date]", "list[datetime]", "list[int | None]", "dict[str, datetime]", "str | None",
           "int | float", "date | datetime", "datetime | date", "int | datetime", "str | datetime"]


def as_json(text: str):
    try: return json.loads(text, parse_float=Decimal)
    except (ValueError, RecursionError): return None


def number(text: str):
    try: return Decimal(text.strip().replace("_", ""))
    except InvalidOperation: return None


def writes(given: object, value: object) -> bool:
    """Whether somebody who wrote this, as text or in JSON, meant that value:

    by Python's own readers of dates and numbers."""
    if isinstance(value, list):
        if isinstance(given, str):
            given = as_json(given) if isinstance(as_json(given), list) else given.split(",") if given.strip() else []
        return len(given) == len(value) and all(map(writes, given, value))
    if isinstance(value, dict):
        given = as_json(given) if isinstance(given, str) else given
        return isinstance(given, dict) and list(given) == list(value) and all(
            writes(given[k], value[k]) for k in value
        )
    if value is None: return given is None or isinstance(given, str) and given.lower() in ("", "none", "null")
    if isinstance(value, bool):
        return given is value or str(given).strip().lower() in (("1", "1.0", "t", "true", "y", "yes", "on") if value
                                                                else ("0", "0.0", "f", "false", "n", "no", "off"))
    if isinstance(value, (int, float)):
        said = number(str(given))
        if said is None or not said.is_finite(): return said is not None and str(float(said)) == str(value)
        return said == value if isinstance(value, int) else (
            math.isfinite(value) and (value != 0) == (said != 0) and math.isclose(value, float(said), rel_tol=1e-15))
    if not isinstance(given, str): return False
    if isinstance(value, (str, Path)):
        return given != "" and Path(given) == value or given.strip() == value or given == value
    if number(given) is not None: return type(value) is date and given == f"{value:%Y%m%d}"
    try: meant = datetime.fromisoformat(given)
    except ValueError: return False
    exact = len("".join(takewhile(str.isdigit, given.partition(".")[2])).rstrip("0")) <= 6
    return (exact and (meant == value and meant.tzinfo == value.tzinfo or meant.isoformat() == value.isoformat())
                if isinstance(value, datetime) else meant == datetime(value.year, value.month, value.day))


@settings(EXAMPLES, max_examples=300)
@given(st.sampled_from(WRITTEN),
       st.sampled_from([*NUMBERS, *DATES, *WORDS]) | TEXT | st.integers().map(str) | st.floats().map(repr)
       | st.dates().map(str) | st.datetimes(timezones=ZONES).map(str)
       | st.lists(st.sampled_from([*NUMBERS, *DATES, *WORDS]), max_size=3).map(",".join))
def test_what_the_command_line_accepts_is_what_was_written(annotation, text):
    try: taken = check(cells(f"x: {annotation}"), dict(x=text))["x"]
    except BadRequest: return
    assert writes(text, taken), (annotation, text, taken)


def test_every_number_for_every_type_is_what_was_written():
    "All of them, not a sample; and a number is never a moment."
    for annotation in WRITTEN:
        for text in (*NUMBERS, *DATES, *WORDS):
            try: taken = check(cells(f"x: {annotation}"), dict(x=text))["x"]
            except BadRequest as e:
                assert len(str(e).splitlines()) == 2
                continue
            assert writes(text, taken), (annotation, text, taken)


@pytest.mark.parametrize("value", [20240101, 1e9, 0, True, "20240101", "20240101.5", "1e9", " 5", "86400", "２０２４"])
def test_a_number_is_no_moment(value):
    for annotation in ("datetime", "Optional[datetime]", "list[datetime]", "dict[str, datetime]"):
        shaped = [value] if annotation.startswith("list") else {"a": value} if annotation.startswith("dict") else value
        with pytest.raises(BadRequest, match="(?s)'x'.*2024-01-31") as e:
            check(cells(f"x: {annotation}"), dict(x=shaped))
        assert "number" in e.value.hint
    if value == "20240101": assert check(cells("x: date"), dict(x=value))["x"] == date(2024, 1, 1)
    else:
        with pytest.raises(BadRequest): check(cells("x: date"), dict(x=value))


def test_none_for_what_may_be_none():
    for annotation in OPTIONAL:
        for text in ("none", "None", "NULL", "null"):
            assert check(cells(f"x: {annotation}"), dict(x=text))["x"] is None, annotation
    for text in ("none", "", "null"): assert check(cells("x: str | None"), dict(x=text))["x"] == text
    assert check(cells("x: list[int | None]"), dict(x="1,none"))["x"] == [1, None]


def test_null_on_the_command_line(workspace):
    write(workspace/"in.ipynb", "x: str | None = 'a'\nn: int = 1",
          "from scalai_nb.jobs.result import result\nresult(x=x, none=x is None)")
    done = here("run", "in.ipynb", "--null", "x", "--json")
    assert (done.code, done.doc["results"],
            done.doc["parameters"]["x"]) == (0, dict(x=None, none=True), None), done.out
    for args, said in ((["--null", "n"], "'n' must be int"), (["--null", "y"], "Unknown parameter 'y'"),
                       (["--null", "x", "-p", "x=b"], "x is given twice")):
        refused = here("run", "in.ipynb", *args)
        assert (refused.code, len(refused.lines)) == (2, 2) and said in refused.lines[0]
    assert here("run", "in.ipynb", "-p", "x=none", "--json").doc["results"] == dict(x="none", none=False)
    (workspace/"p.json").write_text('{"x": "from the file"}')
    assert here("run", "in.ipynb", "--parameters", "p.json", "--null", "x",
                "--json").doc["results"] == dict(x=None, none=True)


def test_what_cannot_be_written_is_refused():
    deep = cyclic = []
    for _ in range(150): deep = [deep]
    cyclic.append(cyclic)
    class Sly(str):
        def __repr__(self): return "1/0"
        def __str__(self): return "2/0"
    for value in (deep, cyclic, {1, 2}, b"x", object(), 1j):
        with pytest.raises(BadRequest): check(cells("x = None"), dict(x=value))
    with pytest.raises(BadRequest, match="not Unicode"): check(cells("x = None"), dict(x=["\udcff"]))
    assert literal(Sly("a")) == "'a'" and ast.literal_eval(literal(10**5000)) == 10**5000
    import numpy as np
    assert (literal(np.float64(1.5)), literal([True, np.float64("nan")])) == ("1.5", '[True, float("nan")]')


def test_hostile_values_arrive_and_do_nothing(workspace):
    "Through a whole run: what the kernel holds is what was given, and nothing was touched."
    book = write(workspace/"in.ipynb", "values: list = []\nnames: dict = {}\nfree = None",
                 "from scalai_nb.jobs.result import result\nresult(values=values, names=list(names), free=free)")
    job = run(book, dict(values=HOSTILE, names={h: 1 for h in HOSTILE}, free=HOSTILE[0]))
    assert (job.state, job.results) == ("succeeded", dict(values=HOSTILE, names=HOSTILE, free=HOSTILE[0]))
    for text in HOSTILE[:3]: assert here("run", "in.ipynb", "-p", f"free={text}", "-p", f"{text}=1").code == 2
    assert not list(workspace.rglob("owned"))


def test_a_secret_may_be_the_default_and_never_reaches_a_file(workspace, monkeypatch):
    monkeypatch.setenv("TOKEN", "hunter2-hunter2")
    book = write(workspace/"in.ipynb",
                 "from scalai_nb.jobs.parameters import Secret\ntoken: Secret = 'env:TOKEN'  # of the service",
                 "import os\nos.system('echo $TOKEN')\nprint(token)\n"
                 "from scalai_nb.jobs.result import result\nresult(n=len(token))")
    job = run(book)
    assert (job.state, job.results, job.parameters) == ("succeeded", dict(n=15), dict(token="env:TOKEN"))
    assert not any(b"hunter2" in f.read_bytes() for f in (workspace/".scalai").rglob("*") if f.is_file())
    monkeypatch.delenv("TOKEN")
    with pytest.raises(BadRequest, match="env:TOKEN is not there"): run(book)
    from scalai_nb.core.settings import Settings
    from scalai_nb.jobs.record import Record
    assert len(Record(Settings.load()).runs()) == 1  # the second began nothing


def test_help_shows_the_form(workspace):
    write(workspace/"nightly.ipynb", "from datetime import date\ntable: str  # where the rows go\n"
                                     "months = 12  # of 2013\nsince: date = date(2013, 1, 1)\n"
                                     "uri = 'postgresql://ann:hunter2@host/db'")
    (workspace/"flow.toml").write_text('[parameters]\nperiod = "2013-06"\n[[step]]\nname = "a"\n'
                                       'notebook = "nightly.ipynb"\nparameters = { table = "t" }\n')
    shown = here("run", "nightly.ipynb", "--help")
    lines = [line.split(maxsplit=3) for line in shown.out.splitlines()]
    assert shown.code == 0 and ["table", "str", "required",
                                "where the rows go"] in lines and ["months", "int", "12", "of 2013"] in lines
    assert ["since", "date", "2013-01-01"] in lines and "hunter2" not in shown.out and "--timeout" in shown.out
    assert "period  str  '2013-06'" in here("run", "flow.toml", "--help").out
    for wrong in ("nightli.ipynb", "."):
        refused = here("run", wrong, "--help")
        assert (refused.code, refused.out, len(refused.lines)) == (2, "", 2)
    assert "takes" not in here("run", "--help").out
