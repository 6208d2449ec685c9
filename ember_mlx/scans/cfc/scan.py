"""The CfC recurrence in all its forms."""

from ..dispatch import Recurrence
from .ops import cfc_ops
from .problems import VARIANTS, cfc_problem
from .reference import cfc_backward, cfc_forward

CFC = Recurrence("CfC", cfc_forward, cfc_backward, cfc_ops, tuple(VARIANTS), cfc_problem)
