"""Checks of options: each returns the value or raises an error in the form of errors.py."""

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import bad_argument

MOST_ELEMENTS = 2**31 - 1  # elements of one array: MLX and the kernels index with int32


def check_integer(owner: str, name: str, value: object, minimum: int | None = 1) -> int:
    """Return `value` as an int, or raise TypeError (not an integer; bools are not accepted) or ValueError (below `minimum`)."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise bad_argument(owner, name, "be an integer", repr(value), TypeError)
    if minimum is not None and value < minimum:
        raise bad_argument(owner, name, f"be at least {minimum}", value)
    return int(value)


def check_number(owner: str, name: str, value: object) -> float:
    """Return `value` as a float, or raise TypeError if it is not a real number (bools are not accepted)."""
    if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating):
        raise bad_argument(owner, name, "be a number", repr(value), TypeError)
    return float(value)


def check_interval(owner: str, name: str, value: object, low: float, high: float, *, open_below: bool = False) -> float:
    """Return `value` as a float, or raise TypeError (not a number) or ValueError (not finite, or outside [low, high) or (low, high))."""
    number = check_number(owner, name, value)
    if not math.isfinite(number) or number >= high or number < low or (open_below and number == low):
        raise bad_argument(owner, name, f"be in {'(' if open_below else '['}{low}, {high})", value)
    return number


def check_probability(owner: str, name: str, value: object) -> float:
    """Return `value` as a float, or raise TypeError (not a number) or ValueError (not in [0, 1])."""
    number = check_number(owner, name, value)
    if not 0 <= number <= 1:
        raise bad_argument(owner, name, "be in [0, 1]", value)
    return number


def check_positive(owner: str, name: str, value: object) -> float:
    """Return `value` as a float, or raise TypeError (not a number) or ValueError (not positive and finite)."""
    return check_interval(owner, name, value, 0, math.inf, open_below=True)


def check_not_negative(owner: str, name: str, value: object) -> float:
    """Return `value` as a float, or raise TypeError (not a number) or ValueError (negative or not finite)."""
    return check_interval(owner, name, value, 0, math.inf)


def check_choice(owner: str, name: str, value: object, choices: Iterable[str]) -> str:
    """Return `value`, or raise ValueError unless it is one of the choices."""
    choices = list(choices)
    if not isinstance(value, str) or value not in choices:
        raise bad_argument(owner, name, f"be one of {', '.join(map(repr, choices))}", repr(value))
    return str(value)


def check_names(owner: str, where: str, given: Iterable[str], known: Iterable[str], needed: Iterable[str] = ()) -> None:
    """Raise ValueError for an unknown name or a missing needed one; `where` is the argument that holds the names."""
    given, known = list(given), list(known)
    for name in given:
        if name not in known:
            raise bad_argument(owner, where, f"hold no other names than {', '.join(known)}", repr(name))
    for name in needed:
        if name not in given:
            raise bad_argument(owner, where, f"hold {name!r}", ", ".join(map(repr, given)) or "nothing")


def check_size(owner: str, name: str, *shape: int) -> None:
    """Raise ValueError if an array of this shape, which follows from argument `name`, has too many elements."""
    if math.prod(shape) > MOST_ELEMENTS:
        got = f"one of shape {shape}"
        raise bad_argument(owner, name, f"need no array of more than {MOST_ELEMENTS} elements", got)


def check_rectangular(owner: str, name: str, values: Any) -> NDArray[Any]:
    """Return nested lists as an array, or raise ValueError if rows differ in length."""
    try:
        return np.asarray(values)
    except ValueError:
        raise bad_argument(owner, name, "have rows of equal length", repr(values)) from None


def check_flag(owner: str, name: str, value: object) -> bool:
    """Return `value`, or raise TypeError unless it is True or False."""
    if not isinstance(value, bool):
        raise bad_argument(owner, name, "be True or False", repr(value), TypeError)
    return value
