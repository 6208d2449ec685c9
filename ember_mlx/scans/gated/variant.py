"""The layout of a gated scan on a threadgroup: its products and its threadgroup memory, whose contents metal/gated.metal describes."""

from typing import Any, NamedTuple

from ...kernels.packing import ProductShape, outputs_for
from ...kernels.tiles import Tile, Work
from .spec import GatedSpec

CELLS = ("tanh", "relu", "lstm", "gru")  # numbered as in gated_pointwise.metal


class Layout(NamedTuple):
    """The layout of the forward or the backward scan.

    Args:
        spec: the recurrence.
        H: number of units.
        P: features of a projected h, or 0.
        tile: the tile.
    """

    spec: GatedSpec
    H: int
    P: int
    tile: Tile

    def _shape(self, inputs: int, results: int, outputs: int, by_unit: bool = False) -> ProductShape:
        return ProductShape(inputs, results, self.tile.split, outputs, self.tile.threads, by_unit)

    @property
    def features(self) -> int:
        """Features of h."""
        return self.P or self.H

    @property
    def of_features(self) -> int:
        """Results per lane group if the results are the features of a projected h."""
        return outputs_for(self.features, self.tile.threads // self.tile.split)

    @property
    def of_h(self) -> ProductShape:
        """W_h h: a lane group has the gates of a unit, or four neighbouring units of an RNN."""
        G = self.spec.gates
        return self._shape(self.features, G * self.H, 4 if G == 1 else G, by_unit=G > 1)

    @property
    def project(self) -> ProductShape:
        """W_hr m."""
        return self._shape(self.H, self.features, self.of_features)

    @property
    def back(self) -> ProductShape:
        """From the gradients of W_h h, or of a projected h, to those of the units."""
        return self._shape(self.P or self.spec.gates * self.H, self.H, 1)

    @property
    def project_back(self) -> ProductShape:
        """From the gradients of W_h h to those of a projected h."""
        return self._shape(self.spec.gates * self.H, self.features, self.of_features)


class Forward(Layout):
    """The forward scan."""

    @property
    def weights(self) -> int:
        """Weights of one lane."""
        return self.of_h.floats + (self.project.floats if self.P else 0)

    @property
    def scratch(self) -> int:
        """float4s of threadgroup memory."""
        states = self.of_h.row4 + self.project.row4 if self.P else 2 * self.of_h.row4
        return self.tile.rows * (states + (-(-self.H // 4) if self.spec.has_cell_state else 0))


class Backward(Layout):
    """The backward scan."""

    @property
    def weights(self) -> int:
        """Weights of one lane."""
        return self.back.floats + (self.project_back.floats if self.P else 0)

    @property
    def scratch(self) -> int:
        """float4s of threadgroup memory."""
        gradients = self.back.row4 + self.project_back.row4 if self.P else 2 * self.back.row4
        return self.tile.rows * (gradients + (2 * -(-self.H // 4) if self.spec.gates > 1 else 0))


class Variant(NamedTuple):
    """Sizes of one kernel variant; forward and backward have separate layouts.

    Args:
        spec: the recurrence.
        H: number of units.
        P: features of a projected h, or 0.
        forward: the layout of the forward scan; with 0 rows every step is launched separately.
        backward: the layout of the backward scan.
    """

    spec: GatedSpec
    H: int
    P: int
    forward: Tile
    backward: Tile

    def scan(self, backward: bool) -> Forward | Backward:
        """The layout of one of the scans."""
        return Backward(self.spec, self.H, self.P, self.backward) if backward else Forward(self.spec, self.H, self.P, self.forward)

    def work(self, backward: bool) -> Work:
        """The work of a threadgroup in a step of one of the scans."""
        scan = self.scan(backward)
        multiply_adds = scan.tile.threads * scan.weights
        streamed = 0 if scan.tile.resident else 4 * multiply_adds
        return Work(scan.tile.rows * multiply_adds, streamed=streamed, phases=2 if self.P else 1)

    def template(self, backward: bool) -> list[tuple[str, Any]]:
        """The kernel's template arguments."""
        tile, scratch = self.backward if backward else self.forward, self.scan(backward).scratch
        layout = {"THREADS": tile.threads, "ROWS": tile.rows, "SPLIT": tile.split, "RESIDENT": tile.resident, "SCRATCH": scratch}
        return [*pointwise_template(self.spec, self.H), ("P", self.P), *layout.items()]


def pointwise_template(spec: GatedSpec, H: int) -> list[tuple[str, Any]]:
    """The template arguments that the scans share with the kernels of gated_pointwise.metal."""
    return [("CELL", CELLS.index(spec.cell)), ("H", H)]
