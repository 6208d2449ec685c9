"""Training steps in half precision, with float32 master weights."""

from typing import Any

import mlx.core as mx
from mlx.utils import tree_map

PRECISIONS = ("float32", "bfloat16", "float16")
FIRST_SCALE, LARGEST_SCALE, GROW_AFTER = 2.0**15, 2.0**24, 2000


class Precision:
    """The dtype of a step's computation and, with float16, the loss scale, which keeps small gradients from underflowing.

    When a gradient overflows, the scale is halved and the step skipped; after 2,000 steps without overflow it is doubled.
    Source: Micikevicius et al. (2018), Mixed precision training, arXiv:1710.03740.
    """

    def __init__(self, name: str):
        self.half = name != "float32"
        self.dtype = {"float32": mx.float32, "bfloat16": mx.bfloat16, "float16": mx.float16}[name]
        self.may_overflow = name == "float16"
        self.scale, self.good = FIRST_SCALE if self.may_overflow else 1.0, 0

    def cast(self, tree: Any) -> Any:
        """The floating-point arrays of a tree in the dtype of the step."""
        if not self.half:
            return tree
        return tree_map(lambda a: a.astype(self.dtype) if mx.issubdtype(a.dtype, mx.floating) else a, tree)

    def adapt(self, finite: bool) -> bool:
        """Record whether a step's gradients were finite; returns whether to take the step."""
        if not self.may_overflow:
            return finite
        self.good = self.good + 1 if finite else 0
        if not finite:
            if self.scale <= 1:
                raise FloatingPointError("[fit] the gradients must be finite in float16, got an overflow without any scaling of the loss.")
            self.scale /= 2
        elif self.good % GROW_AFTER == 0:
            self.scale = min(2 * self.scale, LARGEST_SCALE)
        return finite

    def to_config(self) -> dict[str, float]:
        """The state as JSON-serialisable values."""
        return {"scale": self.scale, "good": self.good}

    def restore(self, config: dict[str, Any]) -> None:
        """Restore the state from `to_config`'s result."""
        self.scale, self.good = config["scale"], config["good"]
