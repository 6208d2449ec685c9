"""The LTC recurrence in all its forms."""

from ..dispatch import FusedForms, Recurrence
from .fused import backward_launches, forward_launches, layouts, ltc_fused_backward, ltc_fused_forward, refusal, small_problem, variant_key
from .ops import ltc_ops
from .random_cases import VARIANTS, ltc_problem
from .reference import ltc_backward, ltc_forward

FUSED = FusedForms(
    ltc_fused_forward,
    ltc_fused_backward,
    refusal,
    variant_key,
    small_problem,
    layouts=layouts,
    launches=(forward_launches, backward_launches),
)
LTC = Recurrence(
    "LTC",
    ltc_forward,
    ltc_backward,
    ltc_ops,
    tuple(VARIANTS),
    ltc_problem,
    FUSED,
    lambda spec, arrays: arrays["dt"].shape[0] * spec.evaluations,
)
