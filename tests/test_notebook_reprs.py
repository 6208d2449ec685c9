"""The notebook display of layers and maps: a table of parameters, a drawing of the wiring."""

import builtins
from html.parser import HTMLParser

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten

from ember_mlx import (
    GRU,
    LSTM,
    LTC,
    RNN,
    AutoNCPMap,
    Bidirectional,
    CfC,
    CTRQNet,
    EnhancedNeuronMap,
    FullyConnectedMap,
    LQNet,
    NCPMap,
    NeuronMap,
    RandomMap,
    Recurrent,
    SequenceModel,
    StrideAware,
    StrideAwareCfC,
    StrideAwareLTC,
    cells,
)

MODULES = {
    "rnn": lambda: RNN(3, 4),
    "lstm": lambda: LSTM(3, 4, num_layers=2, bidirectional=True),
    "gru": lambda: GRU(3, 4),
    "recurrent": lambda: Recurrent(cells.CTRNN, 3, 4),
    "cfc": lambda: CfC(4, 3),
    "cfc-ncp": lambda: CfC(AutoNCPMap(8, 2), 3, mixed_memory=True),
    "ltc": lambda: LTC(AutoNCPMap(8, 2), 3),
    "lqnet": lambda: LQNet(4, input_size=3),
    "ctrqnet": lambda: CTRQNet(4, input_size=3),
    "strides": lambda: StrideAware(GRU(3, 4), [1, 2]),
    "strides-cfc": lambda: StrideAwareCfC(4, [1, 2], input_size=3),
    "strides-ltc": lambda: StrideAwareLTC(4, [1, 2], input_size=3),
    "bidirectional": lambda: Bidirectional(CfC(4, 3)),
    "sequence-model": lambda: SequenceModel(nn.Linear(3, 5), nn.ReLU(), GRU(5, 4), outputs=2),
}
MAPS = {
    "ncp": lambda: NCPMap(4, 3, 2, 3),
    "not-built": lambda: AutoNCPMap(12, 3, seed=1),
    "full": lambda: FullyConnectedMap(5, 1, 2),
    "random": lambda: RandomMap(9, input_dim=2, sparsity_level=0.5),
    "spatial": lambda: EnhancedNeuronMap(8, input_dim=2, sparsity_level=0.5, network_structure=(2, 2, 2)),
    "own": lambda: NeuronMap(2, input_dim=1, adjacency_matrix=[[0, 1], [-1, 0]]),
}


class Table(HTMLParser):
    """The cells of a table by rows; raises an error if tags do not close in order."""

    def __init__(self, text):
        super().__init__()
        self.rows, self.caption, self.open = [], "", []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] in ("td", "th"):
            self.rows[-1][-1] += data
        elif self.open and self.open[-1] == "caption":
            self.caption += data


@pytest.mark.parametrize("name", MODULES)
def test_table_of_parameters(name):
    module = MODULES[name]()
    table = Table(module._repr_html_())
    header, *rows, total = table.rows
    assert header == ["parameter", "shape", "dtype", "trainable", "count"]
    arrays = dict(tree_flatten(module.parameters()))
    assert [row[0] for row in rows] == list(arrays)
    for row in rows:
        a = arrays[row[0]]
        assert row[1:3] == [str(a.shape), str(a.dtype).removeprefix("mlx.core.")]
        assert row[4] == f"{a.size:,}"
    assert total[0] == "total"
    assert total[4] == f"{sum(a.size for a in arrays.values()):,}"
    assert table.caption.startswith(type(module).__name__)


def test_frozen_parameters_are_named():
    layer = CfC(4, 3)
    layer.freeze(keys="nothing")
    assert {row[3] for row in Table(layer._repr_html_()).rows[1:-1]} == {"yes"}
    layer.freeze()
    rows = Table(layer._repr_html_()).rows
    assert {row[3] for row in rows[1:-1]} == {"no"}
    assert rows[-1][3] == "0"


def test_a_map_s_identity_is_not_trained():
    layer = LTC(AutoNCPMap(8, 2, seed=1), 3)
    trained = {row[0]: row[3] for row in Table(layer._repr_html_()).rows}
    assert trained["map_id"] == "no"
    assert trained["w"] == "yes"


def test_texts_are_escaped():
    class Odd(GRU):
        def _extra_repr(self):
            return "<script>&"

    layer = Odd(3, 4)
    layer["<b>"] = mx.zeros(2)
    text = layer._repr_html_()
    assert "<script>" not in text
    assert "<b>" not in text
    table = Table(text)
    assert table.caption == "Odd(<script>&)"
    assert "<b>" in [row[0] for row in table.rows]


def test_half_precision_is_shown():
    model = SequenceModel(GRU(3, 4))
    model.set_dtype(mx.bfloat16)
    assert {row[2] for row in Table(model._repr_html_()).rows[1:-1]} == {"bfloat16"}


@pytest.mark.parametrize("name", MAPS)
def test_picture_of_a_map(name):
    from io import BytesIO

    import matplotlib.image

    picture = MAPS[name]()._repr_png_()
    pixels = matplotlib.image.imread(BytesIO(picture))
    assert 100 < pixels.shape[0] < 2000
    assert 200 < pixels.shape[1] < 2500
    assert np.ptp(pixels[..., :3]) > 0.5  # not blank
    assert len(picture) < 200_000


@pytest.mark.parametrize("setting", ["figure.constrained_layout.use", "figure.autolayout"])
def test_picture_whatever_layout_the_notebook_asks_for(setting):
    import matplotlib

    with matplotlib.rc_context({setting: True}):
        assert MAPS["ncp"]()._repr_png_() == MAPS["ncp"]()._repr_png_()
        assert MAPS["spatial"]()._repr_png_() is not None


def test_text_where_matplotlib_is_missing(monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    assert MAPS["ncp"]()._repr_png_() is None
    assert MAPS["spatial"]()._repr_png_() is None


def test_text_where_synapses_are_a_crowd():
    assert FullyConnectedMap(200)._repr_png_() is None
