"""The gated recurrences in all their forms."""

import mlx.core as mx

from ..dispatch import FusedForms, Recurrence
from .fused import gated_fused_backward, gated_fused_forward, layouts, refusal, small_problem, variant_key
from .ops import gated_ops
from .problems import VARIANTS, gated_problem
from .reference import gated_backward, gated_forward

FUSED = FusedForms(gated_fused_forward, gated_fused_backward, refusal, variant_key, small_problem, layouts=layouts)


def _recurrence(name: str) -> Recurrence:
    variants = tuple(VARIANTS[name.lower()])
    return Recurrence(name, gated_forward, gated_backward, gated_ops, variants, gated_problem, FUSED, depth)


def depth(_: object, arrays: dict[str, mx.array]) -> int:
    """T."""
    return arrays["x"].shape[1]


RNN, LSTM, GRU = map(_recurrence, ("RNN", "LSTM", "GRU"))
