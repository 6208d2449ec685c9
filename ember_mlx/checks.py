"""Checks of options: each returns the value, or raises in the one form of errors.py."""

import math
from collections.abc import Iterable
from typing import Any

from .errors import bad_argument


def one_of(owner: str, name: str, value: Any, choices: Iterable[str]) -> str:
    """`value`, if it is one of the choices."""
    choices = list(choices)
    if value not in choices:
        raise bad_argument(owner, name, f"be one of {', '.join(map(repr, choices))}", repr(value))
    return str(value)


def count(owner: str, name: str, value: Any, least: int = 1) -> int:
    """`value`, if it is an integer of at least `least`."""
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise bad_argument(owner, name, "be an integer", repr(value), TypeError)
    if value < least:
        raise bad_argument(owner, name, f"be at least {least}", value)
    return int(value)


def real(owner: str, name: str, value: Any, low: float, high: float = math.inf, *, low_included: bool = True) -> float:
    """`value`, if it is a finite number in [low, high) (or (low, high))."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise bad_argument(owner, name, "be a number", repr(value), TypeError)
    if not math.isfinite(value) or value >= high or value < low or (value == low and not low_included):
        bounds = f"{'[' if low_included else '('}{low}, {high})"
        raise bad_argument(owner, name, f"be a finite number in {bounds}", value)
    return float(value)


def flag(owner: str, name: str, value: Any) -> bool:
    """`value`, if it is a bool."""
    if not isinstance(value, bool):
        raise bad_argument(owner, name, "be True or False", repr(value), TypeError)
    return value
