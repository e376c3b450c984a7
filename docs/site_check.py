"""Look for broken links and for requests to other hosts in a built site."""

import re
from html.parser import HTMLParser
from pathlib import Path
from posixpath import dirname, join, normpath
from urllib.parse import unquote, urlsplit

LOADS = {("script", "src"), ("link", "href"), ("img", "src"), ("iframe", "src"), ("source", "src"), ("video", "src")}
POINTERS = {"canonical", "search", "next", "prev", "author", "index"}  # of a <link>: nothing is loaded


class Page(HTMLParser):
    "What a page links to, what it loads, and the places in it."
    def __init__(self, text: str):
        super().__init__()
        self.links, self.loads, self.places = [], [], set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list) -> None:
        of = dict(attrs)
        self.places |= {of[k] for k in ("id", "name") if of.get(k)}
        for name in ("href", "src"):
            if not (value := of.get(name)): continue
            if (tag, name) in LOADS and of.get("rel") not in POINTERS: self.loads.append(value)
            elif tag == "a": self.links.append(value)


def problems(html: Path) -> list[str]:  # a line each
    "Return what is wrong with a built site."
    files = {p.relative_to(html).as_posix() for p in html.rglob("*") if p.is_file()}
    pages = {n: Page((html/n).read_text()) for n in files if n.endswith(".html") and not n.startswith("_static/")}
    found = []
    for here, page in pages.items():
        found += [f"{here} loads {url} from another host" for url in page.loads if urlsplit(url).netloc]
        for url in {*page.links, *page.loads}:
            parts = urlsplit(url)
            if parts.scheme or parts.netloc or not (parts.path or parts.fragment): continue
            to = normpath(join(dirname(here), unquote(parts.path))) if parts.path else here
            if to not in files: to = normpath(join(to, "index.html"))
            if to not in files: found.append(f"{here} links to {url}, which is not there")
            elif parts.fragment and to in pages and unquote(parts.fragment) not in pages[to].places:
                found.append(f"{here} links to a place {url} that is not there")
    for style in html.rglob("*.css"):
        urls = re.findall(r"url\(['\"]?(https?://[^'\")]+)", style.read_text())
        found += [f"{style.relative_to(html)} loads {url} from another host" for url in urls]
    return sorted(found)
