"""The kernel text of the package's own cells in metal/steps."""

import pytest

from ember_mlx.scans.cell.kernel_plan import plan_of

from .metal_host import lint_file
from .steps import FOLDER, OWN, file_of, kernels_of, text_of


@pytest.mark.parametrize("cell", OWN, ids=repr)
def test_the_text_in_the_repository_is_what_is_generated_now(cell):
    assert file_of(cell).read_text() == text_of(cell), "run `make steps`"


@pytest.mark.parametrize("cell", OWN, ids=repr)
def test_a_file_has_all_kernels_of_a_cell_once_and_keeps_the_rules(cell):
    parts = [kernel.name.split("_")[-1] for kernel in kernels_of(cell.definition)]
    assert parts[:2] == ["forward", "backward"]
    assert {"next", "previous"} < set(parts)
    assert ("back" in parts) == (plan_of(cell.definition).depth_back > 1)
    text = file_of(cell).read_text()
    assert all(text.count(f"inline void {kernel.name}(") == 1 for kernel in kernels_of(cell.definition))
    assert lint_file(file_of(cell)) == []
    assert max(map(len, text.splitlines())) <= 160


def test_there_is_a_file_for_each_cell_and_no_other():
    assert sorted(FOLDER.iterdir()) == sorted(map(file_of, OWN)), "is its name in cells.__all__? then run `make steps`"
