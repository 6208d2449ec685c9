"""Temporary."""


def _none(*a, **k):
    return "there is no kernel yet"


ltc_fused_forward = ltc_fused_backward = refusal = variant_key = small_problem = _none
