"""The Sphinx configuration of these pages: `make docs`."""

import re
import shutil
from pathlib import Path
from typing import Any

from ember_mlx import __version__

HERE = Path(__file__).parent
NOTEBOOKS = HERE.parent / "examples" / "notebooks"

project = "ember_mlx"
copyright = "the ember_mlx developers"
release = version = __version__

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.mathjax", "sphinx.ext.viewcode"]
exclude_patterns = ["measured/*"]
html_theme = "furo"
html_title = "ember_mlx"
html_show_sphinx = False
html_static_path = ["_static"]
html_css_files = ["pages.css"]

myst_enable_extensions = ["dollarmath", "colon_fence"]
myst_heading_anchors = 3
nb_execution_mode = "off"

default_role = "code"  # docstrings have names in single backticks
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 100
napoleon_custom_sections = [("Call", "Call"), ("Inputs", "Call"), "Returns", "Yields", "Source"]
napoleon_numpy_docstring = False

# Types of other packages have no page here, and nothing is looked up over the network.
nitpicky = True
nitpick_ignore_regex = [
    (
        r"py:.*",
        r"(mlx|mx|nn|np|numpy|collections|pathlib|typing|torch|ncps|ArrayLike|Any|array|Module|Path|ndarray|networkx|Figure|ember_mlx\.layers\.gated|ember_mlx\.scans\.scratch)\b.*",
    )
]


def plain_text(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Convert a docstring, written for plain-text reading, to valid input for Napoleon and reStructuredText.

    In the sections Call and Inputs each `name: text` is formatted as in Args; |x| and x_ are escaped; and Napoleon must not parse part of a
    property's first line as a type.
    """
    section, literal = "", -1
    for i, line in enumerate(lines):
        indent = len(line) - len(line.lstrip())
        if re.fullmatch(r"\w[\w ]*:", line):
            section = line
        if line.strip() and indent <= literal:
            literal = -1
        if literal >= 0:
            continue
        if line.rstrip().endswith("::"):
            literal = indent
        parts = re.split(r"(`+[^`]*`+)", line)
        parts[::2] = [re.sub(r"(?<=\w)_(?!\w)", r"\_", part.replace("|", r"\|")) for part in parts[::2]]
        parts[1::2] = [
            re.sub(r"^`(?=\w+`)", "`.", part) if before.endswith(":class:") else part
            for before, part in zip(parts[::2], parts[1::2], strict=False)
        ]
        lines[i] = "".join(parts)
        if section in ("Call:", "Inputs:"):
            lines[i] = re.sub(r"^    (\w+): ", r"    * **\1** -- ", re.sub(r"^ {8}", " " * 6, lines[i]))
    if what in ("attribute", "property"):
        lines.insert(0, "")


def copy_notebooks(app: Any, config: Any) -> None:
    """Copy the examples' notebooks to docs/notebooks, which is not in the repository."""
    target = HERE / "notebooks"
    target.mkdir(exist_ok=True)
    names = {path.name for path in NOTEBOOKS.glob("*.ipynb")}
    for old in target.glob("*.ipynb"):
        if old.name not in names:
            old.unlink()
    for name in names:
        if not (target / name).is_file() or (target / name).read_bytes() != (NOTEBOOKS / name).read_bytes():
            shutil.copyfile(NOTEBOOKS / name, target / name)


def strip_code(app: Any, doctree: Any) -> None:
    """Remove the empty line at the end of a doctest in a page."""
    from docutils import nodes

    for block in doctree.findall(nodes.literal_block):
        if block.rawsource == block.astext():
            block.rawsource = block.rawsource.rstrip("\n")
            block.children = [nodes.Text(block.rawsource)]


def setup(app: Any) -> None:
    """Register these functions with Sphinx; Napoleon processes docstrings after ours."""
    app.connect("doctree-read", strip_code)
    app.connect("autodoc-process-docstring", plain_text, priority=100)
    app.connect("config-inited", copy_notebooks)
