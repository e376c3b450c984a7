"""Sphinx's configuration. Pages come executed: see build.py."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

project = html_title = "scalai-nb"
author = "the scalai-nb authors"
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx_copybutton", "sphinx_design", "names", "layout"]
exclude_patterns = ["results.md", "changes.md", "figures.md", "power.md"]  # parts of other pages

nb_execution_mode = "off"
nb_merge_streams = True
suppress_warnings = ["mystnb.unknown_mime_type"]  # results of jobs: shown as text, carried as JSON
nb_ipywidgets_js = {}  # by default a page would load them from the network
nb_mime_priority_overrides = [("html", kind, place) for place, kind in enumerate(
    ["text/html", "image/svg+xml", "image/png", "text/markdown", "text/plain"], 1)]
myst_enable_extensions = ["colon_fence", "deflist", "fieldlist"]
myst_heading_anchors = 3
smartquotes = False  # it would make a dash of the -- of an option

autodoc_typehints = "signature"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
add_module_names = False
python_display_short_literal_types = True
python_maximum_signature_line_length = 88

html_theme = "pydata_sphinx_theme"
html_theme_options = {"show_toc_level": 2, "navigation_with_keys": False, "secondary_sidebar_items": ["page-toc"],
                      "navbar_end": ["theme-switcher"], "show_prev_next": True}
html_sidebars = {"**": ["section.html"]}
templates_path = ["_templates"]
html_search_scorer = str(Path(__file__).parent/"scorer.js")
html_show_sourcelink = html_copy_source = False
html_static_path = ["_static"]
html_css_files = ["scalai.css"]
