"""The recurrence of LQNet and CTRQNet in all its forms."""

from ..dispatch import FusedForms, Recurrence
from .fused import layouts, quantum_fused_backward, quantum_fused_forward, refusal, small_problem, variant_key
from .ops import quantum_ops
from .random_cases import VARIANTS, quantum_problem
from .reference import quantum_backward, quantum_forward

FUSED = FusedForms(quantum_fused_forward, quantum_fused_backward, refusal, variant_key, small_problem, layouts=layouts)
QUANTUM = Recurrence("LQNet/CTRQNet", quantum_forward, quantum_backward, quantum_ops, tuple(VARIANTS), quantum_problem, FUSED)
