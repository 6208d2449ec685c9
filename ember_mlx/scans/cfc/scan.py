"""The CfC recurrence in all its forms."""

from ..dispatch import FusedForms, Recurrence
from .fused import backward_launches, cfc_fused_backward, cfc_fused_forward, forward_launches, layouts, refusal, small_problem, variant_of
from .ops import cfc_ops
from .random_cases import VARIANTS, cfc_problem
from .reference import cfc_backward, cfc_forward

FUSED = FusedForms(
    cfc_fused_forward,
    cfc_fused_backward,
    refusal,
    variant_of,
    small_problem,
    half=True,
    layouts=layouts,
    launches=(forward_launches, backward_launches),
)
CFC = Recurrence("CfC", cfc_forward, cfc_backward, cfc_ops, tuple(VARIANTS), cfc_problem, FUSED)
