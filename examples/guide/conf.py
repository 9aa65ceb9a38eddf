"""How Sphinx makes HTML of the guide and of the docstrings: make docs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import tao
from tao.connection.options.help import options_table

project = "tao"
version = release = tao.__version__
copyright = "the authors of tao"  # noqa: A001
extensions = ["sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
root_doc = "index"
html_title = f"tao {version}"
html_theme = "furo"
# The colours of the monitor's page.
html_theme_options = {
    "light_css_variables": {
        "color-brand-primary": "#1f63c4",
        "color-brand-content": "#1f63c4",
        "color-brand-visited": "#1f63c4",
    },
    "dark_css_variables": {
        "color-brand-primary": "#6ba6ff",
        "color-brand-content": "#6ba6ff",
        "color-brand-visited": "#6ba6ff",
    },
}
html_static_path = ["static"]
html_css_files = ["guide.css"]
html_show_sphinx = html_show_copyright = html_show_sourcelink = False

# Docstrings have names in single backticks: they become links, and one that is unknown is an error.
default_role = "py:obj"
nitpicky = True
# Not so what only type hints name, and what is explained where it is named.
nitpick_ignore_regex = [
    ("py:class|py:exc", ".*"),
    ("py:obj", "Transport|tao.runtime.histogram.Latency"),
]
# One name may mean several things (``connect``), and the choice among them is harmless.
suppress_warnings = ["ref.python"]
# Else long names are cut off in the narrow column at the left.
toc_object_entries_show_parents = "hide"
napoleon_use_rtype = False
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_preserve_defaults = True
autodoc_default_options = {"members": True}

# Where a name may be meant to be that does not say.
_MODULES = ("tao", "tao.connection.options.definitions", "tao.testing")
# The docstrings of attributes while napoleon looks at them.
_kept: dict[str, list[str]] = {}


def setup(app: Any) -> None:
    """Called by Sphinx."""
    app.connect("source-read", _show_options)
    app.connect("missing-reference", _find)
    app.connect("html-page-context", _inline_diagrams)
    # Napoleon's priority is 500.
    app.connect("autodoc-process-docstring", _keep, 499)
    app.connect("autodoc-process-docstring", _put_back, 501)


def _show_options(app: Any, page: str, source: list[str]) -> None:
    """Put the tables of all options where a page says so."""
    source[0] = source[0].replace(".. all-options::\n", options_table())


def _find(app: Any, env: Any, node: Any, content: Any) -> Any:
    """Find a name of tao's wherever it is used."""
    if node.get("refdomain") != "py":
        return None
    python = env.get_domain("py")
    for module in _MODULES:
        target = f"{module}.{node['reftarget']}"
        found = python.resolve_xref(env, node["refdoc"], app.builder, "obj", target, node, content)
        if found is not None:
            return found
    return None


def _inline_diagrams(app: Any, page: str, template: str, context: Any, doctree: Any) -> None:
    """Put drawings into the page itself, where they take the colours of its light or dark theme."""

    def drawing(image: re.Match[str]) -> str:
        path = Path(app.srcdir, "diagrams", image[1])
        return path.read_text(encoding="utf-8") if path.exists() else image[0]

    if "body" in context:
        pattern = r'<img [^>]*src="[^"]*_images/([^"/]+\.svg)"[^>]*/>'
        context["body"] = re.sub(pattern, drawing, context["body"])


def _keep(app: Any, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    """Keep what napoleon would spoil: it takes words before a colon for the type."""
    if what in ("attribute", "data", "property"):
        _kept[name] = list(lines)


def _put_back(app: Any, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    if name in _kept:
        lines[:] = _kept.pop(name)
