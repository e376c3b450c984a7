"""What `make check` counts, each with a ceiling in pyproject.toml that may only fall: `[tool.scalai-nb.ceilings]`.

`python tests/lint.py` prints every count; `python tests/lint.py NAME` every place of one.
"""
import ast
import io
import re
import sys
import tokenize
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import nbformat

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT/"docs"))
from parameters import undocumented

LINES = 30  # of an exported cell
WORDS = 15  # of a module's first line
WIDTH = 119  # of a line
# Participles, prepositions and pronouns that are no names (the list of the project's word table), but for those that
# are the field's own: `by` (pandas, Polars: groupby), `out` (NumPy) and `now`.
NOT_NAMES = frozenset("""
    told said given asked heard seen found made done kept held taken shown known chosen wanted meant standing
    beside ahead above below after before behind between at of to in on over under with without
    how who whose what which whoever nobody somebody again away here there more most every all some such
""".split())
# Words that make a reader stop (the project's word table). `told` is also a column of the table of alarms.
UNPLAIN = re.compile(
    r"\b(kept aside|a press|(?:is|are|was|be|been) pressed|beside|told(?! TEXT|, over| = \?)|tells?|nobody|whoever|"
    r"somebody|stands|hears?|heard)\b",
    re.I,
)


@dataclass(frozen=True)
class Cell:
    place: str  # file:cell
    source: str
    exported: bool
    tree: ast.Module | None  # None: a magic, or an example of what cannot be parsed


def books() -> list[Path]:
    return sorted(f for f in (ROOT/"nbs").rglob("*.ipynb") if ".ipynb_checkpoints" not in f.parts)


@cache
def cells() -> tuple[Cell, ...]:
    found = []
    for path in books():
        for i, cell in enumerate(nbformat.read(path, as_version=4).cells):
            if cell.cell_type != "code": continue
            try:
                tree = ast.parse(
                    "\n".join(line for line in cell.source.split("\n") if not line.lstrip().startswith(("%", "!")))
                )
            except SyntaxError:
                tree = None
            found.append(
                Cell(
                    f"{path.relative_to(ROOT)}:{i}",
                    cell.source,
                    bool(re.search(r"^#\|\s*export\b", cell.source, re.M)),
                    tree,
                )
            )
    return tuple(found)


def functions(tree: ast.AST, inside: bool = False) -> Iterator[tuple[ast.AST, bool]]:
    "Public functions and classes of a module's level, and public methods; and whether each is a method."
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            yield node, inside
            if isinstance(node, ast.ClassDef): yield from functions(node, True)


def definitions() -> Iterator[tuple[Cell, ast.AST, bool]]:
    for cell in cells():
        if cell.exported and cell.tree:
            for node, inside in functions(cell.tree): yield cell, node, inside


def without_docstring() -> Iterator[str]:
    "Public functions and classes without a docstring; properties and methods of one expression explain themselves."
    for cell, node, inside in definitions():
        short = (
            inside
            and not isinstance(node, ast.ClassDef)
            and len(node.body) == 1
            and isinstance(node.body[0], ast.Return | ast.Pass | ast.Raise)
        )
        if not (ast.get_docstring(node) or short): yield f"{cell.place} {node.name}"


def without_comment() -> Iterator[str]:
    "Parameters of what is public that no comment, docstring or table (docs/parameters.toml) describes."
    yield from undocumented()


def participles() -> Iterator[str]:
    "Public functions, classes and parameters whose name is a participle, a preposition or a pronoun."
    for cell, node, _ in definitions():
        if node.name in NOT_NAMES: yield f"{cell.place} {node.name}"
        if isinstance(node, ast.ClassDef): continue
        for arg in [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]:
            if arg.arg in NOT_NAMES: yield f"{cell.place} {node.name}({arg.arg})"


def private_imports() -> Iterator[str]:
    "Private names of the package that another module imports."
    for path in sorted((ROOT/"scalai_nb").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.level or (node.module or "").startswith("scalai_nb")):
                for alias in node.names:
                    if alias.name.startswith("_") and not alias.name.startswith("__"):
                        yield f"{path.relative_to(ROOT)}:{node.lineno} {alias.name}"


def long_cells() -> Iterator[str]:
    "Exported cells of more than 30 lines."
    for cell in cells():
        size = sum(not line.startswith("#|") for line in cell.source.strip().split("\n"))
        if cell.exported and size > LINES: yield f"{cell.place} {size} lines"


def silent_notebooks() -> Iterator[str]:
    """Notebooks of the library in which no cell ends with an expression, so that a reader sees no object, table or
    figure."""
    shown = set()
    for cell in cells():
        last = cell.tree.body[-1] if cell.tree and cell.tree.body else None
        value = last.value if isinstance(last, ast.Expr) else None
        called = getattr(getattr(value, "func", None), "id", "")
        if (
            value
            and not cell.exported
            and not isinstance(value, ast.Constant | ast.Await)
            and not called.startswith(("test_", "expect_", "assert_"))
        ):
            shown.add(cell.place.rpartition(":")[0])
    for path in books():
        if str(path.relative_to(ROOT)) not in shown: yield str(path.relative_to(ROOT))


def long_first_lines() -> Iterator[str]:
    "Modules whose docstring's first line has more than 15 words, or that have none."
    for path in sorted((ROOT/"scalai_nb").rglob("*.py")):
        if path.stem in ("__init__", "_modidx") or "migrations" in path.parts: continue
        first = (ast.get_docstring(ast.parse(path.read_text())) or "").split("\n")[0]
        if not 0 < len(first.split()) <= WORDS: yield f"{path.relative_to(ROOT)} {len(first.split())} words"


def long_lines() -> Iterator[str]:
    "Lines of notebooks' code and of tests that do not end before column 120."
    for cell in cells():
        for line in cell.source.split("\n"):
            if len(line) > WIDTH: yield f"{cell.place} {line[:100]}"
    for path in sorted((ROOT/"tests").rglob("*.py")):
        for number, line in enumerate(path.read_text().split("\n"), 1):
            if len(line) > WIDTH: yield f"{path.relative_to(ROOT)}:{number}"


def prose() -> Iterator[tuple[str, str]]:  # place, a line
    "Lines that people read: Markdown, comments, docstrings, and texts of more than one word."
    shipped = [f for t in ("workflows", "apps", "share", "examples") for f in (ROOT/t).rglob("*.ipynb")]
    for path in books() + sorted(shipped):
        for i, cell in enumerate(nbformat.read(path, as_version=4).cells):
            texts = python_prose(cell.source) if cell.cell_type == "code" else [cell.source]
            for text in texts:
                for line in text.split("\n"): yield f"{path.relative_to(ROOT)}:{i}", line
    pages = [ROOT/"README.md", ROOT/"CHANGELOG.md", *sorted((ROOT/"docs").rglob("*.md"))]
    for path in pages:
        for n, line in enumerate(path.read_text().split("\n"), 1): yield f"{path.relative_to(ROOT)}:{n}", line


def python_prose(source: str) -> Iterator[str]:
    "Comments and texts of Python code, without what is filled into them."
    code = "\n".join("" if line.lstrip().startswith(("%", "!")) else line for line in source.split("\n"))
    try:
        yield from (t.string for t in tokenize.generate_tokens(io.StringIO(code + "\n").readline)
                    if t.type == tokenize.COMMENT)
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value.strip():
                yield node.value
    except (SyntaxError, tokenize.TokenError): return


def unplain_words() -> Iterator[str]:
    "Words that a plain sentence does not need; the list is that of the project's word table."
    for place, line in prose():
        for found in UNPLAIN.finditer(line): yield f"{place} {found[0]}: {line.strip()[:100]}"


def long_modules() -> Iterator[str]:
    "Modules of more than 500 lines."
    for path in sorted((ROOT/"scalai_nb").rglob("*.py")):
        size = len(path.read_text().splitlines())
        if size > 500 and path.stem != "_modidx": yield f"{path.relative_to(ROOT)} {size} lines"


COUNTS = {
    f.__name__: f
    for f in (
        without_docstring,
        without_comment,
        participles,
        private_imports,
        long_cells,
        silent_notebooks,
        long_first_lines,
        long_lines,
        long_modules,
        unplain_words,
    )
}


def ceilings() -> dict[str, int]:
    return tomllib.loads((ROOT/"pyproject.toml").read_text())["tool"]["scalai-nb"]["ceilings"]


def broken() -> list[str]:
    "What is wrong: a count above its ceiling, or below, so that the ceiling must follow."
    wrong = []
    for name, ceiling in ceilings().items():
        count = len(list(COUNTS[name]()))
        if count > ceiling:
            wrong.append(f"{name}: {count}, allowed are {ceiling}. See them: python tests/lint.py {name}")
        if count < ceiling:
            wrong.append(f"{name}: {count}, fewer than the ceiling of {ceiling}. Lower it in pyproject.toml.")
    return wrong


if __name__ == "__main__":
    for name in sys.argv[1:]: print("\n".join(COUNTS[name]()))
    if not sys.argv[1:]:
        for name, count in COUNTS.items(): print(f"{len(list(count())):6} {name}: {count.__doc__}")
