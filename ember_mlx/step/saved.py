"""Cells as values that JSON can hold, and back."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

from .. import cells
from ..errors import bad_argument
from ..validation import check_names
from .cell import Cell

PACKAGE = "ember_mlx.cells."
OWN: dict[str, type[Cell]] = {f"{PACKAGE}{name}": getattr(cells, name) for name in cells.__all__}
Config = dict[str, Any]


def cell_to_config(cell: Cell) -> Config:
    """A cell's class and settings.

    Raises:
        ValueError: a setting that its constructor does not keep.
        TypeError: a setting that JSON cannot hold.

    Example:
        >>> from ember_mlx.cells import CTRNN
        >>> from ember_mlx.step.saved import cell_to_config
        >>> cell_to_config(CTRNN(unfolds=2))
        {'class': 'ember_mlx.cells.CTRNN', 'settings': {'unfolds': 2}}
    """
    cls, settings = type(cell), cell.settings
    for name, value in settings.items():
        if not _is_json(value):
            expected = "be a number, a text, True, False, None, or a list or dict of these, since it is saved with the layer"
            raise bad_argument(cls.__name__, name, expected, repr(value), TypeError)
    known = f"{PACKAGE}{cls.__name__}"
    return {"class": known if OWN.get(known) is cls else cls.__name__, "settings": settings}


def cell_from_config(owner: str, config: Any, classes: Iterable[type[Cell]] | None = None) -> Cell:
    """The cell that `cell_to_config` described.

    Args:
        owner: for messages.
        config: the class and settings.
        classes: that may be named, beside those of this package; None: all that are defined.
    """
    if not is_cell_config(config):
        raise bad_argument(owner, "config", "hold a cell's class and settings", repr(config))
    own = [cls for cls in (_subclasses(Cell) if classes is None else classes) if cls not in OWN.values()]
    known = OWN | {cls.__name__: cls for cls in own}
    if config["class"] not in known:
        expected = f"hold {config['class']}, a cell that the file names; known are {', '.join(sorted(known))}"
        if classes is None:
            raise bad_argument(owner, "config", f"name a cell that is defined, one of {', '.join(sorted(known))}", repr(config["class"]))
        raise bad_argument(owner, "classes", expected, [cls.__name__ for cls in classes])
    cls = known[config["class"]]
    alike = sorted({f"{one.__module__}.{one.__qualname__}" for one in own if one.__name__ == config["class"]})
    if len(alike) > 1:
        raise bad_argument(owner, "classes", f"have one {config['class']}", ", ".join(alike))
    check_names(owner, cls.__name__, config["settings"], cls.setting_names())
    return cls(**config["settings"])


def is_cell_config(value: Any) -> bool:
    """Whether a value is what `cell_to_config` makes."""
    return isinstance(value, Mapping) and value.keys() == {"class", "settings"} and isinstance(value["settings"], Mapping)


def with_cells(config: Any, classes: Iterable[type[Cell]]) -> Any:
    """A layer's configuration, or one of layers inside it, with the cells that it describes."""
    if isinstance(config, Mapping):
        return {
            name: cell_from_config("load", value, classes) if name == "cell" and is_cell_config(value) else with_cells(value, classes)
            for name, value in config.items()
        }
    return [with_cells(value, classes) for value in config] if isinstance(config, list) else config


def _subclasses(cls: type[Cell]) -> list[type[Cell]]:
    return [each for sub in cls.__subclasses__() for each in (sub, *_subclasses(sub))]


def _is_json(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(map(_is_json, value))
    if isinstance(value, dict):
        return all(isinstance(name, str) and _is_json(one) for name, one in value.items())
    return value is None or isinstance(value, (bool, int, str)) or (isinstance(value, float) and math.isfinite(value))
