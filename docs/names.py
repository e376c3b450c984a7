"""Docments as fields of the reference, and links from `names` in prose to what they name."""

import importlib
import inspect
import re
import zlib
from pathlib import Path

import parameters

from docutils import nodes
from fastcore.docments import docments
from myst_parser import mocking
from myst_parser.mdit_to_docutils import base
from sphinx.transforms.post_transforms import SphinxPostTransform
from sphinx.util import logging
from sphinx.util.nodes import make_refnode

log = logging.getLogger(__name__)


def documented(app, what: str, name: str, obj, options, lines: list[str]) -> None:
    "Add the comments of parameters to a docstring, as fields."
    if what not in ("class", "function", "method"): return
    try: found = docments(obj, returns=True)
    except Exception: return  # of a built-in there is no source
    module, short = obj.__module__.partition(".")[2], name.rpartition(".")[2]
    if lines and lines[-1]: lines.append("")
    known = parameters.described(module, short)
    for n in signature_of(obj):
        said = known[n] if n in known else found.get(n) or ""
        if said and said != "see the text": lines.append(f":param {n}: {' '.join(str(said).split())}")
        elif n in known and not said:
            log.warning("%s: the parameter %s is not described (a comment next to it, or docs/parameters.toml)", name, n)
    result = found.get("return") or parameters.returned(module, short)
    if result: lines.append(f":returns: {' '.join(str(result).split())}")
    lines[:] = [escaped(re.sub(r"(?<!`)`([^`\n]+)`(?!`)", r"``\1``", line)) for line in lines]  # Markdown's code


def signature_of(obj) -> dict[str, inspect.Parameter]:
    "Return what a function or a constructor of this package takes."
    try: found = inspect.signature(obj).parameters
    except (TypeError, ValueError): return {}  # of a built-in
    return {n: p for n, p in found.items() if n not in ("self", "cls")}


def escaped(line: str) -> str:
    "Escape what reStructuredText would take for markup, but for code."
    parts = re.split(r"(``.+?``)", line)
    return "".join(p if k % 2 else re.sub(r"[*|]|(?<=\w)_(?!\w)", r"\\\g<0>", p) for k, p in enumerate(parts))


class NameLinks(SphinxPostTransform):
    "`name` in prose leads to its entry where the name is known and one thing only."
    default_priority = 5

    def run(self, **kw) -> None:
        objects = self.env.domaindata["py"]["objects"]
        if not hasattr(self.env, "scalai_names"):
            by: dict[str, set[str]] = {}
            for full in objects:
                parts = full.split(".")
                for short in (parts[-1], ".".join(parts[-2:]), ".".join(parts[1:])):
                    by.setdefault(short, set()).add(full)
            self.env.scalai_names = {short: next(iter(full)) for short, full in by.items() if len(full) == 1}
        for node in list(self.document.findall(nodes.literal)):
            if node.parent is None or isinstance(node.parent, nodes.reference): continue
            name = node.astext().partition("(")[0]
            full = name if name in objects else self.env.scalai_names.get(name.removeprefix("sn."))
            if not full: continue
            at = objects[full]
            node.replace_self(make_refnode(self.app.builder, self.env.docname, at.docname, at.node_id, node.deepcopy(),
                                           full))


class RSTParser(mocking.MockRSTParser):
    """MyST's parser of reStructuredText without its padding.

    MyST pads a block with an empty line for each line above it; in a notebook that is 10,000 lines a cell."""
    def parse(self, text: str, document: nodes.document) -> None: super().parse(text.lstrip("\n"), document)


def adopt(app, doctree: nodes.document) -> None:
    "Let every node belong to its page: those of reStructuredText bring all of Sphinx's environment into each doctree."
    for node in doctree.findall(): node.document = doctree

def with_dashes(app, doctree: nodes.document) -> None:
    "Write a dash between a parameter and what it is: Sphinx leaves it to its smart quotes, which spoil `--by` in prose."
    for node in [n for n in doctree.findall(nodes.Text) if n == " -- "]: node.parent.replace(node, nodes.Text(" – "))


def without_annotated(text: str) -> str:
    "Write `Annotated[str, …]` as `str`: what a validator is called does not help a reader."
    head, found, rest = text.partition("Annotated[")
    if not found: return text
    depth, comma = 1, 0
    for at, sign in enumerate(rest):
        if sign == "," and depth == 1: comma = comma or at
        depth += (sign in "[(") - (sign in "])")
        if not depth: return head + rest[:comma or at] + without_annotated(rest[at + 1:])
    return text


def signature(app, what: str, name: str, obj, options, given: str | None, returns: str | None) -> tuple:
    return given and without_annotated(given), returns


def look_ahead(app, env, docs: list[str]) -> None:
    "Read and import what the processes that Sphinx forks for ten pages each would otherwise read and import anew."
    if not docs: return
    parameters.by_name(), parameters.classes(), parameters.table()
    for module in parameters.modules():
        if "__" not in module: importlib.import_module(f"{parameters.PACKAGE}.{module}")


def setup(app) -> dict:
    base.MockRSTParser = RSTParser
    app.connect("autodoc-process-docstring", documented)
    app.connect("autodoc-process-signature", signature)
    app.connect("doctree-read", adopt)
    app.connect("doctree-read", with_dashes)
    app.connect("env-before-read-docs", look_ahead)
    app.add_post_transform(NameLinks)
    read = b"".join(Path(__file__).with_name(n).read_bytes() for n in ("names.py", "parameters.py", "parameters.toml"))
    return {"parallel_read_safe": True, "parallel_write_safe": True,
            "env_version": zlib.crc32(read)}  # pages that were read under other rules are read again
