"""Turn executed notebooks into pages: an export cell becomes signatures and folded source."""

import ast
import json
import re
import shutil
from pathlib import Path

import nbformat

ROOMS = {"core": "Core", "jobs": "Jobs", "data": "Data", "training": "Training", "compression": "Compression",
         "monitor": "Monitoring", "serving": "Serving", "loop": "The loop", "view": "Views", "dash": "Dashboards",
         "deploy": "Deployment", "cli": "Code of the commands"}
OUTSIDE = re.compile(r"\[([^\]]+)\]\((\.\./\.\./[^)]+)\)")  # a link out of nbs/
NEIGHBOUR = re.compile(r"""\s(?:href|src)=(["'])(?!https?:|#|data:)[^"']*\1""")  # in an output: a page of the running product
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
DIRECTIVE = re.compile(r"^#\|.*\n?", re.M)


def public(name: str) -> bool: return not name.startswith("_")

def patched(node: ast.AST) -> str:
    "Return the class that a function is a method of by fastcore's `patch`; empty: of none."
    if not isinstance(node, FUNCTIONS): return ""
    if not any("patch" in ast.unparse(d) for d in node.decorator_list): return ""
    return getattr(node.args.args[0].annotation, "id", "") if node.args.args else ""

def is_verb(node: ast.AST) -> bool:
    "Whether a function is a command: the page of the command line describes these."
    return any(ast.unparse(d).startswith("verb(") for d in node.decorator_list)

def exported(nb: nbformat.NotebookNode) -> list[ast.Module]:
    "Parse the export cells."
    return [ast.parse(DIRECTIVE.sub("", c.source)) for c in nb.cells if is_export(c)]

def is_export(cell: nbformat.NotebookNode) -> bool:
    return cell.cell_type == "code" and bool(re.match(r"#\|\s*export", cell.source))

def methods(trees: list[ast.Module]) -> dict[str, list[str]]:  # class → public methods patched into it
    "List the methods that cells of one notebook add to classes."
    found: dict[str, list[str]] = {}
    for node in (n for tree in trees for n in tree.body):
        if (cls := patched(node)) and public(node.name): found.setdefault(cls, []).append(node.name)
    return found

def directive(kind: str, name: str, members: list[str] = ()) -> str:
    options = f"\n   :members: {', '.join(members)}" if members else ""
    return f".. auto{kind}:: {name}{options}\n"

def entries(tree: ast.Module, module: str, added: dict[str, list[str]]) -> list[str]:  # autodoc's directives
    "Describe what one export cell defines; methods stand under their class where that is in the same notebook."
    out = []
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and public(node.name):
            own = [n.name for n in node.body if isinstance(n, FUNCTIONS) and public(n.name)]
            out.append(directive("class", f"{module}.{node.name}", [*own, *added.get(node.name, [])]))
        elif isinstance(node, FUNCTIONS) and public(node.name) and not patched(node) and not is_verb(node):
            out.append(directive("function", f"{module}.{node.name}"))
    return out

def module_of(nb: nbformat.NotebookNode) -> str:
    for cell in nb.cells:
        if m := re.search(r"^#\|\s*default_exp\s+(\S+)", cell.source, re.M): return f"scalai_nb.{m[1]}"
    return ""

def title_of(nb: nbformat.NotebookNode) -> str:
    heads = (re.search(r"^#+ (.+)$", c.source, re.M) for c in nb.cells if c.cell_type == "markdown")
    return next((m[1] for m in heads if m), "")

def inside(text: str) -> str:
    "Let links out of nbs/ lead to a page of the site, or keep their words alone."
    return OUTSIDE.sub(lambda m: f"[{m[1]}](../../benchmarks.md)" if "RESULTS.md" in m[2] else m[1], text)

def page(nb: nbformat.NotebookNode) -> nbformat.NotebookNode:
    "Make the page of an executed notebook."
    module, trees, cells = module_of(nb), exported(nb), []
    added = methods(trees)
    for cell in nb.cells:
        if re.search(r"^#\|\s*(default_exp|hide)", cell.source, re.M) and cell.cell_type == "code": continue
        if is_export(cell):
            tree = ast.parse(DIRECTIVE.sub("", cell.source))
            api = entries(tree, module, added)
            if api: cells.append(nbformat.v4.new_markdown_cell("```{eval-rst}\n" + "\n".join(api) + "```"))
            cell.metadata = {"tags": ["hide-input"]}
        else: cell.metadata = {}
        for output in cell.get("outputs", ()):
            if html := output.get("data", {}).get("text/html"): output["data"]["text/html"] = NEIGHBOUR.sub("", html)
        cell.source = DIRECTIVE.sub("", cell.source) if cell.cell_type == "code" else inside(cell.source)
        cells.append(cell)
    made = nbformat.v4.new_notebook(cells=cells)
    made.metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    return made

def launch(path: Path) -> nbformat.NotebookNode:
    "Say how to run a tutorial."
    name = path.stem.partition("_")[2]
    return nbformat.v4.new_markdown_cell(
        f":::{{admonition}} Run it yourself\n:class: tip\n```sh\nscalai lab --open {name}\n```\n:::")

def summary_of(nb: nbformat.NotebookNode) -> str:
    "Return the sentence below the title."
    quotes = (re.search(r"^> (.+)$", c.source, re.M) for c in nb.cells if c.cell_type == "markdown")
    return next((m[1] for m in quotes if m), "")

def write_pages(done: dict[Path, nbformat.NotebookNode],  # notebook → executed
                source: Path,  # nbs/
                out: Path,  # Sphinx's source
               ) -> dict[str, list[str]]:  # room → names of its pages, in order of reading
    "Write the pages of the reference and the list of each room."
    rooms: dict[str, list[str]] = {}
    for path, nb in sorted(done.items()):
        made = page(nb)
        if not path.is_relative_to(source):  # a page of docs/
            (out/path.name).write_text(json.dumps(made))
            continue
        to = (out if path.parent.name == "tutorials" else out/"reference")/path.relative_to(source)
        to.parent.mkdir(parents=True, exist_ok=True)
        if path.parent.name == "tutorials": made.cells.insert(1, launch(path))
        to.write_text(json.dumps(made))
        pictures = path.parent/"images"
        if pictures.is_dir(): shutil.copytree(pictures, to.parent/"images", dirs_exist_ok=True)
        rooms.setdefault(to.parent.name, []).append(to.stem)
    for room in rooms.keys() & ROOMS.keys():
        toc = "\n".join(rooms[room])
        (out/"reference"/room/"index.md").write_text(
            f"# {ROOMS[room]}\n\n```{{toctree}}\n:maxdepth: 1\n\n{toc}\n```\n")
    return rooms
