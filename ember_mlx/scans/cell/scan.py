"""The recurrence of any cell in all its forms."""

from ...step.definition import Definition
from ..dispatch import FusedForms, Recurrence
from .fused import cell_fused_backward, cell_fused_forward, layouts, refusal, small_problem, variant_key
from .ops import cell_ops
from .random_cases import VARIANTS, cell_problem
from .reference import cell_backward, cell_forward


def depth(definition: Definition, arrays: dict[str, object]) -> int:
    """T times the products that follow one another in a step."""
    steps: int = arrays["x"].shape[1]  # type: ignore[attr-defined]
    return steps * max(1, definition.depth)


FUSED = FusedForms(cell_fused_forward, cell_fused_backward, refusal, variant_key, small_problem, layouts=layouts)


def _recurrence(name: str) -> Recurrence:
    return Recurrence(name, cell_forward, cell_backward, cell_ops, tuple(VARIANTS[name]), cell_problem, FUSED, depth)


RNN, LSTM, GRU, RECURRENT = map(_recurrence, VARIANTS)
