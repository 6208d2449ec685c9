"""The layout of an LTC scan on a threadgroup: its packed synapses, its LSTM's products, and its threadgroup memory."""

from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np

from ...kernels.tiles import SYNAPSE, Tile, Work
from ...kernels.weight_layout import ProductShape, pack
from ..held import held_by_first
from .spec import SOLVERS, LTCSpec
from .synapses import Indices, Synapses


class Lists(NamedTuple):
    """Synapses in the order in which the threads of a threadgroup read them, by target or by source: all threads' first entries, and so on.

    Args:
        ids: for each entry of each thread the index of the synapse, or S for none.
        partners: the unit at the synapse's other end.
        order: the unit of each lane group in each block, or -1.
        offsets: the start of each block's entries.
        entries: entries per thread, in all blocks.
    """

    ids: mx.array
    partners: mx.array
    order: mx.array
    offsets: mx.array
    entries: int


@held_by_first
def lists_of(synapses: Synapses, by_target: bool, tile: Tile) -> Lists:
    """The lists for a tile; units are sorted by number of synapses, largest first, so that the lanes of a block have similar work."""
    H, S, groups, near = synapses.units, synapses.count, tile.threads // tile.split, near_of(synapses, tile.resident)
    table = synapses.padded(by_target)  # (H, most)
    sizes = (table < S).sum(1)
    blocks = -(-H // groups)
    order = np.full(blocks * groups, -1)
    order[:H] = np.arange(H) if synapses.is_full else np.argsort(-sizes, kind="stable")
    sizes = np.where(order >= 0, sizes[order], 0).reshape(blocks, groups)
    widths = np.maximum(-(-sizes.max(1) // (near * tile.split)), 1) * near
    if tile.resident or synapses.is_full:
        widths[:] = widths.max()
    padded = np.full((blocks * groups, widths.max() * tile.split), S)
    padded[:H, : table.shape[1]] = table[order[:H]]
    entries = [
        _by_lane(padded[k * groups : (k + 1) * groups, : width * tile.split], tile.split, synapses) for k, width in enumerate(widths)
    ]
    index = np.concatenate([a.reshape(-1) for a in entries])
    ends = np.concatenate([synapses.sources if by_target else synapses.targets, [0]])
    offsets = np.concatenate([[0], np.cumsum(widths)])
    return Lists(ids_of(index), ids_of(ends[index]), ids_of(order), ids_of(offsets), int(offsets[-1]))


def near_of(synapses: Synapses, resident: bool) -> int:
    """Synapses that a lane processes at once."""
    return 4 if synapses.is_full or not resident else 2


def _by_lane(table: np.ndarray, split: int, synapses: Synapses) -> np.ndarray:
    """(groups, width * split) -> (width, groups, split): lanes take every `split`-th entry, or if none is missing every `split`-th four."""
    together = 4 if synapses.is_full else 1
    return table.reshape(len(table), -1, split, together).transpose(1, 3, 0, 2).reshape(-1, len(table), split)


def ids_of(a: Indices) -> mx.array:
    """Indices as an array for the kernels and mx.take."""
    return mx.array(np.ascontiguousarray(a, np.int32))


def at_ids(floats: mx.array, ids: mx.array) -> mx.array:
    """The synapses (S, 4) at these indices, (..., 4); zeros for index S."""
    return mx.take(mx.concatenate([floats, mx.zeros((1, 4))]), ids, axis=0)


class Variant(NamedTuple):
    """One kernel variant.

    Args:
        spec: the recurrence.
        tile: the layout.
        register_floats: most registers per thread for the synapses of a resident layout; None: no limit.
    """

    spec: LTCSpec
    tile: Tile
    register_floats: int | None = None

    @property
    def gates(self) -> ProductShape:
        """The LSTM's gates, in the order of the lane groups."""
        return self._product(self.spec.units, 4, by_unit=True)

    @property
    def gates_back(self) -> ProductShape:
        """From the gates' gradients to the state's."""
        return self._product(4 * self.spec.units, 1)

    def _product(self, inputs: int, outputs: int, by_unit: bool = False) -> ProductShape:
        places = -(-self.spec.units // (self.tile.threads // self.tile.split)) * (self.tile.threads // self.tile.split)
        return ProductShape(inputs, outputs * places, self.tile.split, outputs, self.tile.threads, by_unit)

    @property
    def floats(self) -> int:
        """Registers per thread for all synapses, in the direction that needs more."""
        return max(self.lists(backward).entries for backward in (True, False)) * self.synapse_floats

    @property
    def synapse_floats(self) -> int:
        """Registers per synapse."""
        return 4 if self.spec.synapses.is_full else 5

    def held(self, backward: bool) -> int:
        """Synapses per thread that are kept in registers."""
        entries, near = self.lists(backward).entries, near_of(self.spec.synapses, self.tile.resident)
        return entries if self.register_floats is None else min(entries, self.register_floats // (self.synapse_floats * near) * near)

    @property
    def gate_floats(self) -> int:
        """Registers per thread for the LSTM's weights."""
        return max(self.gates.floats, self.gates_back.floats) if self.spec.mixed_memory else 0

    def work(self, backward: bool) -> Work:
        """The work of a threadgroup in a step of one direction."""
        tile, entries, gates = self.tile, self.lists(backward).entries, self.gates_back if backward else self.gates
        read = entries - self.held(backward) if tile.resident else entries
        synapse = SYNAPSE + Work(4) if backward else SYNAPSE  # plus its slope
        evaluation = synapse * (tile.threads * tile.rows * entries)
        evaluation += Work(streamed=4 * self.synapse_floats * tile.threads * read, phases=1)
        work = evaluation * self.spec.evaluations
        if self.spec.mixed_memory:
            weights = tile.threads * gates.floats
            streamed = 0 if tile.resident and tile.gates_resident else 4 * weights
            work += Work(tile.rows * weights, streamed=streamed, phases=2 if backward else 1)
        return work

    @property
    def threadgroup_bytes(self) -> int:
        """Bytes of threadgroup memory."""
        return 16 * max(self.scratch(False), self.scratch(True))

    def scratch(self, backward: bool) -> int:
        """float4s of threadgroup memory; see metal/ltc.metal for its contents."""
        H, rk4, memory = self.spec.units, self.spec.solver == "rk4", self.spec.mixed_memory
        row = 4 * self._product(H, 1).row4
        if backward:
            floats = 4 * row + (4 if rk4 else 2) * H + (4 * self.gates_back.row4 + 4 * H if memory else 0)
        else:
            floats = 2 * row + (2 * H if rk4 else 0) + (H if memory else 0)
        return -(-self.tile.rows * floats // 4)

    def lists(self, backward: bool) -> Lists:
        """The synapses in the order of one direction."""
        return lists_of(self.spec.synapses, not backward, self.tile)

    def template(self, backward: bool, keep: bool = False) -> list[tuple[str, Any]]:
        """The kernel's template arguments."""
        kinds = {"H": self.spec.units, "SOLVER": list(SOLVERS).index(self.spec.solver), "FULL": self.spec.synapses.is_full, "KEEP": keep}
        tile = {"THREADS": self.tile.threads, "ROWS": self.tile.rows, "SPLIT": self.tile.split, "RESIDENT": self.tile.resident}
        kinds |= {"MEMORY": self.spec.mixed_memory and not keep}
        tile |= {"GATES_RESIDENT": self.tile.resident and self.tile.gates_resident}
        tile |= {"COUNT": self.lists(backward).entries, "HELD": self.held(backward), "SCRATCH": self.scratch(backward)}
        return [*kinds.items(), *tile.items()]

    def packed(self, floats: mx.array, backward: bool) -> list[mx.array]:
        """The synapses (S, 4) in the order of one direction, with their lists."""
        lists = self.lists(backward)
        return [at_ids(floats, lists.ids), lists.partners, lists.order, lists.offsets]

    def packed_gates(self, w_h: mx.array, backward: bool) -> mx.array:
        """The LSTM's weights (4 H, H), packed for the lanes of one direction."""
        weight = w_h.T if backward else w_h
        outputs = 1 if backward else 4
        by_unit = weight.reshape(outputs, self.spec.units, -1)
        with_none = mx.concatenate([by_unit, mx.zeros((outputs, 1, by_unit.shape[2]))], axis=1)
        in_order = mx.take(with_none, self.lists(backward).order, axis=1).reshape(-1, by_unit.shape[2])
        return pack(in_order, self.gates_back if backward else self.gates)
