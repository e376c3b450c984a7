"""Describe parameters: by their own comment, or by what the table, the module or the class of their type says."""

import ast
import io
import re
import tokenize
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "scalai_nb"
TABLE = Path(__file__).with_suffix(".toml")  # what parameters are in the whole project, in a module, in a function
OPTION = re.compile(r"Annotated\[|[A-Z]+$")  # the type of an option of a command, which says it in its help
FOR_PROGRAMS = re.compile(r"# ?(%%|noqa|type:|fmt:)")  # the first stands above what a cell defines
LEFT_OUT = ("_modidx", "migrations")
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


@dataclass(frozen=True)
class Parameter:
    name: str
    type: str  # its annotation as written
    comment: str

@dataclass(frozen=True)
class Function:
    "A public function, a public method, or a class by its constructor."
    module: str  # within the package, such as data.table
    name: str  # of a class: the class's
    line: int
    text: str  # docstring
    returned: str  # what the comment says of its result
    parameters: list[Parameter] = field(default_factory=list)


@cache
def modules() -> dict[str, ast.Module]:
    "Parse the package."
    found = {}
    for path in sorted((ROOT/PACKAGE).rglob("*.py")):
        name = ".".join(path.relative_to(ROOT/PACKAGE).with_suffix("").parts)
        if not any(part in LEFT_OUT for part in name.split(".")): found[name] = ast.parse(path.read_text())
    return found

@cache
def source(module: str) -> str:
    return (ROOT/PACKAGE).joinpath(*module.split(".")).with_suffix(".py").read_text()

@cache
def comments(module: str) -> dict[int, str]:
    "Return the comments of a module by their line, without those for programs."
    return {t.start[0]: t.string.lstrip("# ") for t in tokenize.generate_tokens(io.StringIO(source(module)).readline)
            if t.type == tokenize.COMMENT and not FOR_PROGRAMS.match(t.string)}

def with_comments(module: str, node: ast.FunctionDef | ast.ClassDef, nodes: list[ast.arg | ast.AnnAssign]) -> list[Parameter]:
    """Read the parameters of a function or the fields of a class: a comment belongs to the last one on its line, or is on
    the line above. Not theirs is what stands above the function, and what is said of the return value: next to its type,
    or at the end of a signature of one line."""
    said, found = comments(module), []
    last = {n.end_lineno: n for n in nodes}
    if returns_at(module, node) in last: last[returns_at(module, node)] = node
    taken = {node.lineno, *(line for line in last if line in said)}
    for n in nodes:
        name = n.arg if isinstance(n, ast.arg) else n.target.id
        own = said.get(n.end_lineno, "") if last[n.end_lineno] is n else ""
        above = said.get(n.lineno - 1, "") if n.lineno > node.lineno and n.lineno - 1 not in taken else ""
        found.append(Parameter(name, ast.unparse(n.annotation) if n.annotation else "", own or above))
    return found

def returns_at(module: str, node: ast.FunctionDef | ast.ClassDef) -> int:  # 0: nowhere
    "Return the line whose comment is about what a function returns."
    if isinstance(node, ast.ClassDef) or node.name == "__init__": return 0
    if node.returns: return node.returns.end_lineno
    first = source(module).splitlines()[node.lineno - 1]
    return node.lineno if first.partition("  #")[0].rstrip().endswith(":") else 0

def arguments(node: ast.FunctionDef) -> list[ast.arg]:
    "List what a function takes by name, without `self`."
    a = node.args
    return [x for x in (*a.posonlyargs, *a.args, *a.kwonlyargs) if x.arg not in ("self", "cls")]

def is_verb(node: ast.AST) -> bool:
    "Whether a function is a command: its options have help, and the page of the command line shows them."
    return any(ast.unparse(d).startswith("verb(") for d in node.decorator_list)

def public(node: ast.AST) -> bool:
    return isinstance(node, (*FUNCTIONS, ast.ClassDef)) and not node.name.startswith("_")

def of_class(module: str, node: ast.ClassDef) -> Iterator[Function]:
    "A class by its constructor or, of a dataclass, by its fields; then its public methods."
    text = ast.get_docstring(node) or ""
    for inner in node.body:
        if isinstance(inner, FUNCTIONS) and inner.name == "__init__":
            yield Function(module, node.name, inner.lineno, text + (ast.get_docstring(inner) or ""), "",
                           with_comments(module, inner, arguments(inner)))
        elif public(inner) and isinstance(inner, FUNCTIONS): yield of_function(module, inner)
    if any("dataclass" in ast.unparse(d) for d in node.decorator_list):
        fields = [n for n in node.body if isinstance(n, ast.AnnAssign) and isinstance(n.target, ast.Name)
                  and not n.target.id.startswith("_") and "ClassVar" not in ast.unparse(n.annotation)]
        yield Function(module, node.name, node.lineno, text, "", with_comments(module, node, fields))

def of_function(module: str, node: ast.FunctionDef) -> Function:
    return Function(module, node.name, node.lineno, ast.get_docstring(node) or "",
                    comments(module).get(returns_at(module, node), ""),
                    with_comments(module, node, arguments(node)))

@cache
def functions() -> tuple[Function, ...]:
    "List what is public, in the order of the modules."
    found = []
    for module, tree in modules().items():
        for node in tree.body:
            if not public(node) or is_verb(node): continue
            found += of_class(module, node) if isinstance(node, ast.ClassDef) else [of_function(module, node)]
    return tuple(found)

@cache
def table() -> dict[str, dict]:
    return tomllib.loads(TABLE.read_text())

@cache
def classes() -> dict[str, str]:  # name → what it is
    "Return the first line of each public class of the package; of a name that two classes have, nothing."
    found: dict[str, list[str]] = {}
    for tree in modules().values():
        for node in tree.body:
            if isinstance(node, ast.ClassDef) and public(node) and (text := ast.get_docstring(node)):
                found.setdefault(node.name, []).append(text.split("\n")[0])
    return {name: lines[0] for name, lines in found.items() if len(lines) == 1}

@cache
def of_module(module: str) -> dict[tuple[str, str], str]:  # (name, type) → comment
    "Return what a module says of its parameters where it says it first."
    found: dict[tuple[str, str], str] = {}
    for f in functions():
        for p in f.parameters if f.module == module else ():
            if p.comment: found.setdefault((p.name, p.type), p.comment)
    return found

@cache
def like(module: str, function: str, name: str) -> str:
    "Describe a field of a class whose fields are the parameters of a function."
    there, _, asked = table()["like"].get(f"{module}.{function}", "").rpartition(".")
    return next((p.comment for f in functions() if (f.module, f.name) == (there, asked)
                 for p in f.parameters if p.name == name), "")

def class_of(kind: str) -> str:
    "Return the one class that an annotation names, without `None`."
    parts = [part.strip(" '\"") for part in kind.split("|")]
    parts = [part.rpartition(".")[2] for part in parts if part != "None"]
    return parts[0] if len(parts) == 1 else ""

def shared(module: str, function: str, name: str, kind: str) -> str:
    "Describe a parameter that has no comment of its own; empty where nothing describes it."
    ours = table().get(module, {})
    options = (like(module, function, name), ours.get(f"{function}.{name}"), ours.get(name), of_module(module).get((name, kind)),
               table()["everywhere"].get(name))
    if found := next(filter(None, options), ""): return found
    what = classes().get(class_of(kind), "")
    return f"{what[0].lower()}{what[1:]}".rstrip(".") if what else ""

@cache
def by_name() -> dict[tuple[str, str], list[Function]]:  # (module, name) → what has it
    found: dict[tuple[str, str], list[Function]] = {}
    for f in functions(): found.setdefault((f.module, f.name), []).append(f)
    return found

@cache
def described(module: str, function: str) -> dict[str, str]:  # parameter → what it is; empty: nothing says it
    "Describe the parameters of what has this name in a module, also of methods of several classes."
    found: dict[str, str] = {}
    for f in by_name().get((module, function), ()):
        for p in f.parameters:
            said = p.comment or shared(module, function, p.name, p.type) or ("see the text" if f"`{p.name}`" in f.text or OPTION.match(p.type) else "")
            found[p.name] = found.get(p.name) or said
    return found

def returned(module: str, function: str) -> str:
    "Return what is said of the result of what has this name in a module."
    return next((f.returned for f in by_name().get((module, function), ()) if f.returned), "")

def undocumented() -> Iterator[str]:
    "Parameters of what is public that no comment, no docstring and no table describes."
    for f in functions():
        for p in f.parameters:
            if p.comment or f"`{p.name}`" in f.text or shared(f.module, f.name, p.name, p.type): continue
            if OPTION.match(p.type): continue
            yield f"{PACKAGE}/{f.module.replace('.', '/')}.py:{f.line} {f.name}({p.name})"


if __name__ == "__main__": print(*undocumented(), sep="\n")
