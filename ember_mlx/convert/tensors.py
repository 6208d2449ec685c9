"""Reading values from the PyTorch modules of the package ncps, and writing them to layers."""

from typing import Any

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from ..errors import bad_argument
from .weights import DTYPES, array_of

Array = NDArray[Any]

OWNER = "from_ncps"
HEADS = {"pure": ("ff1",), "default": ("ff1", "ff2", "time_a", "time_b"), "no_gate": ("ff1", "ff2", "time_a", "time_b")}
"""Mode -> ncps's names of the heads f, g, t_a, t_b."""


def polarity(matrix: Any) -> NDArray[np.int8]:
    """-1 where the wiring's matrix has an inhibitory synapse, else +1."""
    return np.where(np.asarray(matrix) < 0, -1, 1).astype(np.int8)


def copy_lstm(target: dict[str, mx.array], lstm: Any, order: Array, dtype: mx.Dtype) -> None:
    """Replace the parameters of a mixed memory: gates a, i, f, o in both packages; `order` is the index there of each unit here."""
    w_x, bias, w_h = array_of(lstm.input_map.weight), array_of(lstm.input_map.bias), array_of(lstm.recurrent_map.weight)
    H, inputs = len(order), w_x.shape[1]
    put(target, "Wx", w_x.reshape(4, H, inputs)[:, order].reshape(4 * H, inputs), dtype, "module.lstm")
    put(target, "Wh", w_h.reshape(4, H, H)[:, order][:, :, order].reshape(4 * H, H), dtype, "module.lstm")
    put(target, "bias", bias.reshape(4, H)[:, order].reshape(4 * H), dtype, "module.lstm")


def put_linear(target: dict[str, mx.array], parts: list[Any], dtype: mx.Dtype, place: str) -> None:
    """Replace the target's weights and biases by those of torch's dense layers, stacked by rows."""
    put(target, "weight", np.concatenate([array_of(part.weight) for part in parts]), dtype, place)
    put(target, "bias", np.concatenate([array_of(part.bias) for part in parts]), dtype, place)


def put(target: Any, name: str, value: Array, dtype: mx.Dtype, place: str) -> None:
    """Replace one parameter by a value of the same shape."""
    if target[name].shape != value.shape:
        raise bad_argument(OWNER, f"{place} {name}", f"have shape {target[name].shape}", value.shape)
    target[name] = mx.array(value, dtype)


def dtype_of(tensor: Any) -> mx.Dtype:
    """The MLX dtype of a torch tensor."""
    name = str(tensor.dtype)
    if name not in DTYPES:
        raise bad_argument(OWNER, "module", "have parameters in float16, bfloat16, float32 or float64", name, TypeError)
    return DTYPES[name]
