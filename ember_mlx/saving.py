"""Saving a layer or model to a single file, and loading it; no code from a file is ever run."""

import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from . import __version__, layers
from .errors import bad_argument
from .files import SAVED_FORMAT, SAVED_LAYER
from .layers import SequenceModel
from .layers.arguments import type_name
from .layers.base import RecurrentLayer
from .safetensors import different, read_safetensors, write_safetensors
from .step.cell import Cell
from .step.saved import with_cells
from .validation import check_names

SUFFIX = ".safetensors"
Config = dict[str, Any]

OWN = {name: cls for name in layers.__all__ if isinstance(cls := getattr(layers, name), type) and issubclass(cls, nn.Module)}
CONTAINERS: dict[str, type[nn.Module]] = {"SequenceModel": SequenceModel, "mlx.nn.Sequential": nn.Sequential}
# layers of mlx.nn: their constructor arguments, from their attributes
OF_MLX: dict[type[nn.Module], Callable[[Any], Config]] = {
    nn.Linear: lambda m: {"input_dims": m.weight.shape[1], "output_dims": m.weight.shape[0], "bias": "bias" in m},
    nn.Dropout: lambda m: {"p": 1 - m._p_1},
    nn.LayerNorm: lambda m: {"dims": m.dims, "eps": m.eps, "affine": "weight" in m, "bias": "bias" in m},
    nn.RMSNorm: lambda m: {"dims": m.weight.shape[0], "eps": m.eps},
    nn.GRU: lambda m: {"input_size": m.Wx.shape[1], "hidden_size": m.hidden_size, "bias": "b" in m},
    nn.LSTM: lambda m: {"input_size": m.Wx.shape[1], "hidden_size": m.hidden_size, "bias": "bias" in m},
    nn.GELU: lambda m: {"approx": m._approx},
    **{kind: lambda m: {} for kind in (nn.Identity, nn.ReLU, nn.Tanh, nn.Sigmoid, nn.SiLU, nn.Softplus)},
}
MLX_NAMES = {f"mlx.nn.{cls.__name__}": cls for cls in OF_MLX}


def save(model: nn.Module, path: str | Path) -> None:
    """Save a layer or model: its architecture, its weights, and which of them are frozen.

    Supported are every layer of this package, SequenceModel, mlx.nn's Sequential, Linear, Dropout, LayerNorm, RMSNorm, GRU, LSTM and plain
    activations, and your own modules if they have `get_config` and a class method `from_config`, like the layers of this package.

    Args:
        model: the layer or model.
        path: a name that ends in .safetensors; an existing file is replaced once the new one is complete.

    Raises:
        TypeError: an unsupported module; float64 parameters, which MLX's safetensors files do not support.
        ValueError: a name with another ending.
        OSError: the file could not be written.

    Example:
        >>> import tempfile
        >>> import mlx.core as mx
        >>> from ember_mlx import CfC, NCPMap, SequenceModel, load, save
        >>> model = SequenceModel(CfC(NCPMap(8, 4, 2, 3, seed=1)), outputs=5)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save(model, f"{folder}/model.safetensors")
        ...     same = load(f"{folder}/model.safetensors")
        >>> x = mx.random.normal((2, 7, 3))
        >>> mx.array_equal(model(x), same(x)).item()
        True
    """
    path = _checked_path("save", path)
    if not isinstance(model, nn.Module):
        raise bad_argument("save", "model", "be an mlx.nn.Module", type_name(model), TypeError)
    arrays = dict(tree_flatten(model.parameters()))
    for name, a in arrays.items():
        if a.dtype == mx.float64:  # MLX cannot write float64
            raise bad_argument("save", f"model.{name}", "be float32 or less; model.set_dtype(mx.float32) makes it so", "float64", TypeError)
    told = {"what": SAVED_LAYER, "format": SAVED_FORMAT, "version": __version__, "training": model.training}
    told |= {"model": described(model, "model"), "frozen": _frozen(model)}
    try:
        write_safetensors(path, arrays, told)
    except OSError as error:
        raise OSError(f"[save] {path} could not be written: {error}") from error


def load(path: str | Path, classes: Sequence[type[nn.Module] | type[Cell]] = ()) -> nn.Module:
    """Load a layer or model written by `save`.

    Args:
        path: the file.
        classes: modules and cells of your own that may be in it.

    Returns:
        The module, with its training or evaluation mode and frozen weights as saved.

    Raises:
        FileNotFoundError: there is no such file.
        TypeError: a class that is neither a module nor a cell.
        ValueError: a file that is truncated, not a saved layer, of another format, or with an unknown class.
    """
    path = _checked_path("load", path)
    if not path.exists():
        raise FileNotFoundError(f"[load] path must be a saved layer, got {path}, which does not exist.")
    for cls in classes:
        if not (isinstance(cls, type) and issubclass(cls, (nn.Module, Cell))):
            raise bad_argument("load", "classes", "hold subclasses of mlx.nn.Module or of Cell", type_name(cls), TypeError)
    try:
        arrays, told = read_safetensors(path, SAVED_LAYER, SAVED_FORMAT)
    except (OSError, RuntimeError, ValueError) as error:
        raise bad_argument("load", "path", f"be a {SAVED_LAYER}", f"{path}: {error}") from error
    modules = {cls.__name__: cls for cls in classes if issubclass(cls, nn.Module)}
    model = _made(with_cells(told["model"], [cls for cls in classes if issubclass(cls, Cell)]), modules)
    found = different({name: a.astype(arrays[name].dtype) if name in arrays else a for name, a in tree_flatten(model.parameters())}, arrays)
    if found is not None:
        raise bad_argument("load", "path", f"hold {found[0]} of the layer that it names, {found[1]}", f"{path}: {found[2]}")
    model.load_weights(list(arrays.items()))
    parts = dict(model.named_modules())
    for name, keys in told["frozen"].items():
        nn.Module.unfreeze(parts[name], recurse=False)
        nn.Module.freeze(parts[name], recurse=False, keys=keys)
    return model.train(told["training"])


def _checked_path(owner: str, path: Any) -> Path:
    if not isinstance(path, (str, Path)):
        raise bad_argument(owner, "path", "be a str or a Path", type_name(path), TypeError)
    path = Path(path)
    if path.suffix != SUFFIX:
        raise bad_argument(owner, "path", f"end in {SUFFIX}", path)
    return path


def described(module: Any, where: str) -> Config:
    """A module's class and constructor arguments as JSON-serialisable values."""
    name = type(module).__name__
    if type(module) in CONTAINERS.values():
        name = next(known for known, cls in CONTAINERS.items() if cls is type(module))
        return {"class": name, "layers": [described(layer, f"{where}.layers[{k}]") for k, layer in enumerate(module.layers)]}
    if type(module) in OF_MLX:
        return {"class": f"mlx.nn.{name}", "config": OF_MLX[type(module)](module)}
    if isinstance(module, nn.Module) and hasattr(module, "get_config"):
        return {"class": name, "config": module.get_config()}
    expected = f"be a layer of ember_mlx, one of {', '.join([*CONTAINERS, *MLX_NAMES])}, or have get_config and from_config"
    raise bad_argument("save", where, expected, type_name(module), TypeError)


def has_class_of_its_own(module: Any) -> bool:
    """Whether a module, or one inside it, is of a class unknown to this package."""
    if type(module) in CONTAINERS.values():
        return any(map(has_class_of_its_own, module.layers))
    inside = [module.forward_layer] if isinstance(module, layers.Bidirectional) else getattr(module, "layers", [])
    own = type(module) in OWN.values()
    return (not own and type(module) not in OF_MLX) or any(isinstance(one, nn.Module) and has_class_of_its_own(one) for one in inside)


def _made(described: Config, classes: dict[str, type[nn.Module]]) -> nn.Module:
    """Make a module from its description, with new weights."""
    name = described["class"]
    if name in CONTAINERS:
        return CONTAINERS[name](*(_made(layer, classes) for layer in described["layers"]))
    if name in MLX_NAMES:
        cls = MLX_NAMES[name]
        check_names("load", name, described["config"], inspect.signature(cls.__init__).parameters, ())
        return cls(**described["config"])
    known = OWN | classes
    if name not in known:
        raise bad_argument("load", "classes", f"hold {name}, which the file contains; known are {', '.join(sorted(known))}", list(classes))
    made: nn.Module = known[name].from_config(described["config"])  # type: ignore[attr-defined]
    return made


def _frozen(model: nn.Module) -> dict[str, list[str]]:
    """The frozen parameters of each module that has any, by the module's name."""
    return {
        name: sorted(module._no_grad) for name, module in model.named_modules() if module._no_grad or isinstance(module, RecurrentLayer)
    }
