"""The time limit of a launch."""

import math
import os
from contextvars import ContextVar

from ..errors import bad_argument

VARIABLE = "EMBER_MLX_LAUNCH_MS"
DEFAULT = "10"  # below one display frame, 16 ms


def launch_ms(text: str) -> float:
    """The limit in milliseconds from the environment variable's text; 0 means no limit.

    Example:
        >>> launch_ms("2.5")
        2.5
    """
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise bad_argument("ember_mlx", VARIABLE, "be a number of milliseconds, 0 for no limit", repr(text))
    return value


_AT_FIRST = launch_ms(os.environ.get(VARIABLE, DEFAULT))
# longest launch on Metal in milliseconds, estimated with the figures in tiles.py
launch_budget: ContextVar[float] = ContextVar("launch_budget", default=_AT_FIRST)
