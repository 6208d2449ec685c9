"""The measurements of a training run."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import bad_argument

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class History(dict[str, list[float]]):
    """The measurements of each epoch: name -> one number per epoch.

    "loss" is the mean over the epoch's training batches; "validation_loss" and "validation_<metric>" are computed on the validation data
    after the epoch; "seconds" is the time since the start.

    Attributes:
        stopped: why training ended: "epochs" (all done), "patience", "callback" or "interrupted".
        best_epoch: the epoch, counted from 1, whose weights early stopping restored; else None.
    """

    stopped: str = "epochs"
    best_epoch: int | None = None

    def plot(self, path: str | Path | None = None) -> "Figure":
        """Draw the losses and each metric over the epochs; needs matplotlib.

        Args:
            path: file to save the figure to, a PNG unless the suffix says otherwise; None: not saved.

        Returns:
            The matplotlib figure.

        Raises:
            ImportError: matplotlib is missing.
            ValueError: no completed epoch.
        """
        try:
            from matplotlib.backends.backend_agg import FigureCanvasAgg
            from matplotlib.figure import Figure
        except ImportError as error:
            raise ImportError("[History] plot needs matplotlib; install it with: pip install matplotlib") from error

        groups = {name.removeprefix("validation_"): None for name in self if name != "seconds"}
        if not groups:
            raise bad_argument("History", "plot", "be called after at least one epoch", "none")
        figure = Figure((5 * len(groups), 3.6), dpi=120, layout="constrained")
        FigureCanvasAgg(figure)
        for axes, group in zip(figure.subplots(1, len(groups), squeeze=False)[0], groups, strict=True):
            for name, label in ((group, "training"), (f"validation_{group}", "validation")):
                if name in self:
                    axes.plot(range(1, len(self[name]) + 1), self[name], label=label, marker="o", markersize=3)
            axes.set(xlabel="epoch", ylabel=group.replace("_", " "))
            axes.grid(alpha=0.3)
            axes.legend(frameon=False)
            axes.spines[["top", "right"]].set_visible(False)
        if path is not None:
            figure.savefig(path)
        return figure

    def last(self) -> dict[str, float]:
        """The numbers of the last epoch."""
        return {name: values[-1] for name, values in self.items() if values}

    def add(self, **numbers: float) -> None:
        """Append an epoch's numbers."""
        for name, number in numbers.items():
            self.setdefault(name, []).append(number)

    def to_config(self) -> dict[str, Any]:
        """The history as JSON-serialisable values."""
        return {"numbers": dict(self), "best_epoch": self.best_epoch, "stopped": self.stopped}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "History":
        """The history from `to_config`'s result."""
        history = cls({name: list(values) for name, values in config["numbers"].items()})
        history.best_epoch, history.stopped = config["best_epoch"], config["stopped"]
        return history
