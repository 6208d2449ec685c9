"""Consistency of the documentation: arguments of other packages, public names, the table of contents."""

import ast
import importlib
import importlib.util
import inspect
import re
from pathlib import Path

import pytest

import ember_mlx

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(path for path in DOCS.rglob("*.md") if "notebooks" not in path.relative_to(DOCS).parts)
MARK = re.compile(r"<!-- (signature|members): ([\w.]+) -->\n\n((?:\|.*\n)+)")
TABLES = [match.groups() for page in sorted((DOCS / "migration").glob("*.md")) for match in MARK.finditer(page.read_text())]


def rows(table):
    """The cells of a table's header and rows."""
    cells = [[cell.strip() for cell in line.strip("|\n ").split(" | ")] for line in table.splitlines()]
    return cells[0], cells[2:]


def parse_arguments(node):
    arguments = node.args
    names = [a.arg for a in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)]
    return [*names, *(a.arg for a in (arguments.vararg, arguments.kwarg) if a)]


def source_arguments(package, name):
    """The arguments of a class that cannot be imported without another package, from its source."""
    _, module, cls, method = name.split(".")
    folder = Path(importlib.util.find_spec(package).submodule_search_locations[0])
    tree = ast.parse((folder / module / f"{cls.lower()}.py").read_text())
    body = next(node.body for node in tree.body if isinstance(node, ast.ClassDef) and node.name == cls)
    return parse_arguments(next(node for node in body if isinstance(node, ast.FunctionDef) and node.name == method))


def find(name):
    """The class and the attribute that a dotted name ends with; the test is skipped where the package is not installed."""
    *module, cls, attribute = name.split(".")
    pytest.importorskip(module[0], reason=f"{module[0]} is not installed")
    return getattr(importlib.import_module(".".join(module)), cls), attribute


def arguments_of(name):
    if name.startswith("ncps.keras."):
        if importlib.util.find_spec("ncps") is None:
            pytest.skip("ncps is not installed")
        names = source_arguments("ncps", name)
    else:
        cls, method = find(name)
        names = list(inspect.signature(getattr(cls, method)).parameters)
        if names == ["self", "args", "kwargs"]:  # torch.nn's say theirs in the first line of the docstring
            names = ["self", *parse_arguments(ast.parse(f"def {cls.__doc__.strip().splitlines()[0]}: pass").body[0])]
    return names[1:]


def public_members(name):
    cls = getattr(find(f"{name}.")[0], "__dict__", {})
    return sorted(member for member in cls if not member.startswith("_"))


@pytest.mark.parametrize(("kind", "name", "table"), TABLES, ids=[name for _, name, _ in TABLES])
def test_a_table_of_migration_names_every_argument(kind, name, table):
    _, body = rows(table)
    found = [cells[0].strip("`") for cells in body]
    if kind == "members":
        assert sorted(found) == public_members(name)
    else:
        assert found == arguments_of(name)


@pytest.mark.parametrize(("kind", "name", "table"), TABLES, ids=[name for _, name, _ in TABLES])
def test_a_table_of_migration_names_arguments_of_ours(kind, name, table):
    head, body = rows(table)
    cls = ember_mlx.NeuronMap if kind == "members" else getattr(ember_mlx, head[1].removeprefix("ember_mlx."))
    known = {*inspect.signature(cls).parameters, *(vars(cls) if kind == "members" else ()), "x", "initial_state", "time_deltas", "lengths"}
    assert {len(cells) for cells in body} == {3}
    assert [cells[1] for cells in body if cells[1] != "none" and cells[1].strip("`") not in known] == []


def test_the_tables_are_found():
    assert len(TABLES) > 20
    assert len(TABLES) == sum(page.read_text().count("<!-- ") for page in (DOCS / "migration").glob("*.md"))


def test_every_public_name_has_an_entry():
    text = "".join(page.read_text() for page in (DOCS / "api").glob("*.md"))
    entries = set(re.findall(r"^\.\. auto(?:class|function|module):: ([\w.]+)$", text, re.MULTILINE))
    for module in (ember_mlx, ember_mlx.training, ember_mlx.convert, ember_mlx.cells):
        missing = [name for name in module.__all__ if not {name, f"{module.__name__}.{name}"} & entries]
        assert missing == [], module.__name__


def test_every_page_is_in_the_table_of_contents():
    blocks = re.findall(r"```\{toctree\}\n(.*?)```", "".join(page.read_text() for page in PAGES), re.DOTALL)
    listed = {line.strip() for block in blocks for line in block.splitlines()}
    pages = {str(page.relative_to(DOCS).with_suffix("")) for page in PAGES}
    assert pages - listed == {"index", "notebooks"}
    assert {"self", "notebooks**"} <= listed


def test_links_between_pages_lead_somewhere():
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#:]+\.md)(?:#[\w-]+)?\)", page.read_text()):
            assert (page.parent / target).is_file(), f"{page.relative_to(ROOT)}: {target}"


def test_docstrings_become_what_sphinx_reads():
    spec = importlib.util.spec_from_file_location("docs_conf", DOCS / "conf.py")
    conf = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(conf)
    lines = [
        "It keeps |psi|, `|x|` and state_::",
        "",
        "    |a| b_",
        "",
        "See :class:`LTC`.",
        "Call:",
        "    x: (B, T, I),",
        "        or (T, I).",
    ]
    conf.plain_text(None, "class", "x", None, None, lines)
    assert lines[0] == r"It keeps \|psi\|, `|x|` and state\_::"
    assert lines[2:6] == ["    |a| b_", "", "See :class:`.LTC`.", "Call:"]
    assert lines[6:] == ["    * **x** -- (B, T, I),", "      or (T, I)."]
