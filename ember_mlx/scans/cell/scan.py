"""The recurrence of any cell in all its forms."""

from ...step.definition import Definition
from ..dispatch import FusedForms, Recurrence
from .ops import cell_ops
from .problems import VARIANTS, cell_problem
from .reference import cell_backward, cell_forward


def depth(definition: Definition, arrays: dict[str, object]) -> int:
    """T times the products that follow one another in a step."""
    steps: int = arrays["x"].shape[1]  # type: ignore[attr-defined]
    return steps * max(1, definition.depth)


FUSED = FusedForms(
    forward=lambda kind, spec, arrays: [],
    backward=lambda kind, spec, arrays, outputs, cotangents: {},
    refusal=lambda kind, spec, arrays: "cells have no kernels",
    key=lambda kind, spec, arrays: None,
    small_problem=lambda kind, spec, arrays: None,  # type: ignore[arg-type, return-value]
)
RECURRENT = Recurrence("Recurrent", cell_forward, cell_backward, cell_ops, tuple(VARIANTS), cell_problem, FUSED, depth)
