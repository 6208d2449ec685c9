"""HTML tables of a layer's parameters, for notebooks."""

from html import escape
from typing import Any

import mlx.nn as nn
from mlx.utils import tree_flatten

from .arguments import dtype_name

HEADER = ("parameter", "shape", "dtype", "trainable", "count")
TEXT, NUMBER = ' style="text-align: left"', ' style="text-align: right"'


def parameter_table(module: nn.Module) -> str:
    """A module's parameters as an HTML table: name, shape, dtype, whether trained, and count, with the total below.

    Args:
        module: any mlx.nn.Module.

    Returns:
        The table, with all text escaped.

    Example:
        >>> from ember_mlx import GRU
        >>> table = parameter_table(GRU(3, 8))
        >>> "float32" in table, table.count("<tr>")
        (True, 6)
    """
    trained = {name for name, _ in tree_flatten(module.trainable_parameters())}
    arrays: list[tuple[str, Any]] = tree_flatten(module.parameters())
    rows = [(name, str(a.shape), dtype_name(a.dtype), "yes" if name in trained else "no", f"{a.size:,}") for name, a in arrays]
    total, of_them = sum(a.size for _, a in arrays), sum(a.size for name, a in arrays if name in trained)
    body = "\n".join(_row("td", row) for row in rows)
    foot = _row("th", ("total", "", "", f"{of_them:,}", f"{total:,}"))
    caption = escape(f"{type(module).__name__}({module._extra_repr()})")
    return (
        f'<table>\n<caption style="text-align: left">{caption}</caption>\n<thead>\n{_row("th", HEADER)}\n</thead>\n'
        f"<tbody>\n{body}\n</tbody>\n<tfoot>\n{foot}\n</tfoot>\n</table>"
    )


def _row(tag: str, cells: tuple[str, ...]) -> str:
    styles = (TEXT, TEXT, TEXT, TEXT, NUMBER)
    return "<tr>" + "".join(f"<{tag}{style}>{escape(cell)}</{tag}>" for cell, style in zip(cells, styles, strict=True)) + "</tr>"
