"""Arguments in an order that older code used."""

import warnings
from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar, cast

from ..errors import bad_argument

Init = TypeVar("Init", bound=Callable[..., None])


def accepts_old_order(*names: str) -> Callable[[Init], Init]:
    """Let a constructor (self, neuron_map, input_size, *, ...) also take these arguments by position after the map, with a warning.

    The old order is recognised by a second argument that is no integer, or by a third one.

    Example:
        >>> import warnings
        >>> from ember_mlx import LQNet
        >>> with warnings.catch_warnings(record=True) as caught:
        ...     warnings.simplefilter("always")
        ...     layer = LQNet(8, 0.5, input_size=3)
        >>> layer.nu_0, caught[0].category.__name__
        (0.5, 'DeprecationWarning')
    """

    def decorate(init: Init) -> Init:
        @wraps(init)
        def with_old_order(self: Any, neuron_map: Any, *values: Any, **named: Any) -> None:
            if len(values) > 1 or (values and isinstance(values[0], float)):
                owner = type(self).__name__
                if len(values) > len(names):
                    raise bad_argument(
                        owner, "positional arguments", "be neuron_map and input_size", f"{len(values) + 1} of them", TypeError
                    )
                given = dict(zip(names, values, strict=False))
                for name in given.keys() & named.keys():
                    raise bad_argument(owner, name, "be given once", "two values", TypeError)
                message = f"[{owner}] pass {', '.join(given)} by name; by position comes input_size after the neuron map."
                warnings.warn(message, DeprecationWarning, stacklevel=2)
                values, named = (), given | named
            init(self, neuron_map, *values, **named)

        return cast(Init, with_old_order)

    return decorate
