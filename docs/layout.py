"""Small pages: a sidebar with the section alone, and code without marks that have no colour."""

from html import escape

from pygments.formatters import HtmlFormatter
from pygments.token import Name, Punctuation, Text, Whitespace
from sphinx.highlighting import PygmentsBridge

PLAIN = {Name, Punctuation, Text, Whitespace}


class Formatter(HtmlFormatter):
    "Pygments' HTML without elements around what has no colour: half the bytes of a page."
    def _get_css_classes(self, kind) -> str: return "" if kind in PLAIN else super()._get_css_classes(kind)


def parents(app) -> dict[str, str]:  # page → the page that lists it
    "Return the tree of pages, made once a build."
    if not hasattr(app, "scalai_parents"):
        app.scalai_parents = {child: page for page, children in app.env.toctree_includes.items() for child in children}
    return app.scalai_parents


def branch(app, page: str) -> list[str]:
    "Return a page and those above it, without the first of the site."
    up, out = parents(app), []
    while page in up: out, page = [*out, page], up[page]
    return out


def links(app, page: str) -> str:  # HTML
    "List the pages of the section that `page` is in, and below its own branch those of each level."
    open_, under, at = set(branch(app, page)), app.env.toctree_includes, app.builder.get_relative_uri
    def level(names: list[str], depth: int) -> str:
        out = []
        for name in names:
            here = ' class="current"' + ' aria-current="page"'*(name == page) if name in open_ else ""
            link = f'<a{here} href="{escape("#" if name == page else at(page, name))}">{escape(app.env.titles[name].astext())}</a>'
            below = level(under[name], depth + 1) if name in open_ and under.get(name) else ""
            out.append(f'<li class="toctree-l{depth}{" current active"*(name in open_)}">{link}{below}</li>')
        return f'<ul class="nav bd-sidenav">{"".join(out)}</ul>' if depth == 1 else f"<ul>{''.join(out)}</ul>"
    section = under.get(next(iter(branch(app, page)[-1:]), ""), [])
    return level(section, 1) if section and page != "index" else ""


def add(app, page: str, template: str, context: dict, doctree) -> None:
    "Give the template its function; pages without a section get no sidebar."
    found = links(app, page)
    context["section_links"] = lambda: found
    if not found: context["sidebars"] = []


def setup(app) -> dict:
    PygmentsBridge.html_formatter = Formatter
    app.connect("html-page-context", add)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
