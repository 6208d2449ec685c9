"""A recurrent cell: what its author writes down."""

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ..errors import bad_argument
from ..validation import check_flag, check_integer

RESERVED = ("Wx", "bias")  # the parameters that every layer of a cell has
Initial = float | tuple[float, float] | Callable[[int], Any]


@dataclass(frozen=True)
class Parameter:
    """A parameter of a cell, beside its weights.

    Args:
        initial: a number; a pair (low, high) to draw from uniformly; or a function of H that gives an array (H,).
        shared: whether it is one number for all units, not one for each.
        is_bias: whether it is a bias: uniform in +-1/sqrt(H) at first, and 0 in a layer without bias; `initial` is not used then.

    Example:
        >>> from ember_mlx import Parameter
        >>> Parameter(0.5).initial
        0.5
    """

    initial: Initial = 0.0
    shared: bool = False
    is_bias: bool = False

    def __post_init__(self) -> None:
        check_flag("Parameter", "shared", self.shared)
        check_flag("Parameter", "is_bias", self.is_bias)
        form = "be a number, a pair (low, high), or a function of H"
        if callable(self.initial):
            return
        bounds = self.initial if isinstance(self.initial, tuple) else (self.initial,)
        if len(bounds) not in (1, 2) or any(isinstance(a, bool) or not isinstance(a, (int, float, np.number)) for a in bounds):
            raise bad_argument("Parameter", "initial", form, repr(self.initial), TypeError)
        if not np.isfinite(bounds).all() or bounds[0] > bounds[-1]:
            raise bad_argument("Parameter", "initial", "be finite, a pair with low <= high", repr(self.initial))

    def drawn(self, owner: str, name: str, units: int, uniform: Callable[[float, float, int], Any]) -> NDArray[np.float32]:
        """The initial values (H,), or (1,) where shared; `uniform` (low, high, count) draws.

        Raises:
            ValueError: the function gave an array of another shape, or values that are not finite.
        """
        count = 1 if self.shared else units
        if self.is_bias:
            return np.asarray(uniform(-1 / math.sqrt(units), 1 / math.sqrt(units), count), np.float32)
        if isinstance(self.initial, tuple):
            return np.asarray(uniform(*self.initial, count), np.float32)
        if not callable(self.initial):
            return np.full(count, self.initial, np.float32)
        values = np.asarray(self.initial(units), np.float32)
        if values.shape not in ((units,), *(((),) if self.shared else ())) or (self.shared and values.size != 1):
            raise bad_argument(owner, f"the initial value of {name}", f"have shape {(count,)}", values.shape)
        if not np.isfinite(values).all():
            raise bad_argument(owner, f"the initial value of {name}", "be finite", "NaN or infinity")
        return values.reshape(count)


class Cell:
    """The base of recurrent cells: subclass it, name what a step uses, and write the step.

    ``step`` gets by name, in any order: ``x``, the results of the products W x + b; the states; and, where it names them, ``dt``, the
    elapsed time, the parameters, and the products with hidden values. Values are (B, H), or as good as that: dt is (B, 1), a parameter
    (H,). It may call itself on them only the functions of ``ember_mlx.step``, arithmetic, comparisons and ``**`` by small integers, and
    it returns the next states in their order. The first state is the layer's output.

    Attributes:
        states: names of the states.
        x_products: how many products with the inputs: ``x`` is a tuple of so many values, or the value itself where it is one.
        h_products: name -> how many results: a weight (count * H, H); ``W(v)`` in a step gives a tuple of so many values, or the value
            itself where it is one. v is any value (B, H) of the step, and one weight may be used several times.
        parameters: name -> Parameter, or its initial value.

    A cell's own settings are the arguments of its constructor, kept under the same names: numbers, texts and what else JSON knows, since
    they are saved with the layer. They stay as they are once the step has been read.

    Raises:
        ValueError, TypeError: on definition, for what a step cannot be.

    Example:
        >>> from ember_mlx import Cell
        >>> from ember_mlx.step import sigmoid, tanh
        >>> class MinimalGatedUnit(Cell):
        ...     states = ("h",)
        ...     x_products = 2
        ...     h_products = {"W_f": 1, "W_h": 1}
        ...     def step(self, x, h, W_f, W_h):
        ...         f = sigmoid(x[0] + W_f(h))
        ...         return h + f * (tanh(x[1] + W_h(f * h)) - h)
        >>> MinimalGatedUnit().definition.depth
        2

    Source of the example: Zhou et al., Minimal gated unit for recurrent neural networks, 2016, https://arxiv.org/abs/1603.09420.
    """

    states: ClassVar[tuple[str, ...]] = ("h",)
    x_products: ClassVar[int] = 1
    h_products: ClassVar[Mapping[str, int]] = {}
    parameters: ClassVar[Mapping[str, Parameter | Initial]] = {}
    sizes: ClassVar[Mapping[str, str]] = {}  # of states and of products' results that are not H: of a projected LSTM

    def step(self, *values: Any, **named: Any) -> Any:
        """One step: the next states from what it names."""
        raise NotImplementedError

    def __setattr__(self, name: str, value: Any) -> None:
        if "_definition" in self.__dict__:
            raise bad_argument(type(self).__name__, name, "not change, since the step was read with it; make a new cell", repr(value))
        super().__setattr__(name, value)

    def __getstate__(self) -> dict[str, Any]:
        """Without what can be made anew."""
        return {name: value for name, value in self.__dict__.items() if name != "_definition"}

    @property
    def definition(self) -> Any:
        """The step as a graph (ember_mlx.step.definition.Definition); made once for each cell."""
        from .definition import define

        made = self.__dict__.get("_definition")
        if made is None:
            made = self.__dict__["_definition"] = define(self)
        return made

    @classmethod
    def setting_names(cls) -> list[str]:
        """The names of the constructor's arguments."""
        return [] if cls.__init__ is object.__init__ else list(inspect.signature(cls.__init__).parameters)[1:]

    @property
    def settings(self) -> dict[str, Any]:
        """The constructor's arguments and their values."""
        for name in self.setting_names():
            if not hasattr(self, name):
                raise bad_argument(type(self).__name__, name, "be kept by the constructor as an attribute of that name", "none")
        return {name: getattr(self, name) for name in self.setting_names()}

    @property
    def all_parameters(self) -> dict[str, Parameter]:
        """The parameters, each as a Parameter."""
        return {name: p if isinstance(p, Parameter) else Parameter(p) for name, p in self.parameters.items()}

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in self.settings.items())})"


def check_counts(owner: str, cell: Cell) -> None:
    """Raise an error for a cell whose attributes are not what they must be."""
    if not isinstance(cell.states, (tuple, list)) or not cell.states or not all(isinstance(name, str) for name in cell.states):
        raise bad_argument(owner, "states", "be a tuple of names, at least one", repr(cell.states), TypeError)
    if type(cell).step is Cell.step:
        raise bad_argument(owner, "step", "be defined", "none")
    if "step" in cell.__dict__ or not hasattr(inspect.unwrap(type(cell).step), "__code__"):
        got = cell.__dict__.get("step", type(cell).step)
        raise bad_argument(owner, "step", "be a function; a setting has another name", repr(got), TypeError)
    check_integer(owner, "x_products", cell.x_products)
    for name in ("h_products", "parameters"):
        if not isinstance(getattr(cell, name), Mapping):
            raise bad_argument(owner, name, "be a dict", repr(getattr(cell, name)), TypeError)
    for name, count in cell.h_products.items():
        check_integer(owner, f"h_products[{name!r}]", count)
    names = ["x", "dt", "self", *cell.states, *cell.h_products, *cell.parameters]
    for name in names[3:]:
        if not isinstance(name, str) or not name.isidentifier():
            raise bad_argument(owner, "names of states, products and parameters", "be Python names", repr(name))
        if names.count(name) > 1:
            raise bad_argument(owner, "names of states, products and parameters", "differ from each other, and from x and dt", repr(name))
    for name in (*cell.h_products, *cell.parameters):
        if name in RESERVED or name.startswith("_"):
            expected = f"not begin with an underscore, nor be {' or '.join(RESERVED)}, as the layer's own"
            raise bad_argument(owner, "names of products and parameters", expected, repr(name))
