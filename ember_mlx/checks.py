"""Checks of options: each returns the value, or raises in the one form of errors.py."""

import math
from collections.abc import Iterable

import numpy as np

from .errors import bad_argument


def check_integer(owner: str, name: str, value: object, minimum: int | None = 1) -> int:
    """Return `value` as an int, or raise TypeError (no integer; a bool is none) or ValueError (below `minimum`)."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise bad_argument(owner, name, "be an integer", repr(value), TypeError)
    if minimum is not None and value < minimum:
        raise bad_argument(owner, name, f"be at least {minimum}", value)
    return int(value)


def check_number(owner: str, name: str, value: object) -> float:
    """Return `value` as a float, or raise TypeError if it is no real number (a bool is none)."""
    if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating):
        raise bad_argument(owner, name, "be a number", repr(value), TypeError)
    return float(value)


def check_interval(owner: str, name: str, value: object, low: float, high: float, *, open_below: bool = False) -> float:
    """Return `value` as a float, or raise TypeError (no number) or ValueError (not finite, or outside [low, high), or (low, high))."""
    number = check_number(owner, name, value)
    if not math.isfinite(number) or number >= high or number < low or (open_below and number == low):
        raise bad_argument(owner, name, f"be in {'(' if open_below else '['}{low}, {high})", value)
    return number


def check_choice(owner: str, name: str, value: object, choices: Iterable[str]) -> str:
    """Return `value`, or raise ValueError unless it is one of the choices."""
    choices = list(choices)
    if value not in choices:
        raise bad_argument(owner, name, f"be one of {', '.join(map(repr, choices))}", repr(value))
    return str(value)


def check_flag(owner: str, name: str, value: object) -> bool:
    """Return `value`, or raise TypeError unless it is True or False."""
    if not isinstance(value, bool):
        raise bad_argument(owner, name, "be True or False", repr(value), TypeError)
    return value
