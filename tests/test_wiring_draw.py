"""Drawings of neuron maps: a PNG of reasonable size, nothing clipped, no window."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
from matplotlib.figure import Figure

from ember_mlx.wiring import AutoNCPMap, FullyConnectedMap, NCPMap, NeuronMap, RandomMap

EXAMPLE = Path(__file__).parent.parent / "examples" / "small_world_map.py"
MAPS = {
    "one-neuron": lambda: NeuronMap(1),
    "unbuilt-ncp": lambda: NCPMap(4, 3, 2),
    "ncp": lambda: NCPMap(10, 6, 3, 5),
    "smallest-ncp": lambda: NCPMap(1, 1, 1, 1),
    "many-inputs": lambda: NCPMap(3, 2, 1, 40),
    "fully-connected": lambda: FullyConnectedMap(10, 3, 4),
    "all-outputs": lambda: RandomMap(12, input_dim=2),
    "named-layers": lambda: NeuronMap(3, 1, 2, adjacency_matrix=-np.ones((3, 3)), layers=[[2], [1], [0]], layer_names=["a" * 25, "b", "c"]),
    "hundred-units": lambda: AutoNCPMap(100, 10, 0.7, input_dim=24),
    "hundred-on-a-ring": lambda: RandomMap(100, 10, 16, 0.9),
}


@pytest.fixture(params=MAPS.values(), ids=MAPS.keys())
def neuron_map(request):
    return request.param()


@pytest.fixture
def small_world():
    spec = importlib.util.spec_from_file_location("small_world_map", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    sys.modules["small_world_map"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["small_world_map"]


def test_png_of_sensible_size(neuron_map, tmp_path):
    figure = neuron_map.draw(tmp_path / "map.png")
    assert isinstance(figure, Figure)
    pixels = matplotlib.image.imread(tmp_path / "map.png")
    height, width = pixels.shape[:2]
    assert 200 < height < 2600
    assert 400 < width < 3600
    colours = pixels[..., :3].reshape(-1, 3)
    assert 0.005 < np.mean(colours.min(axis=1) < 0.95) < 0.8  # neither blank nor covered
    for edge in (pixels[:8], pixels[-8:], pixels[:, :8], pixels[:, -8:]):
        assert (edge[..., :3] == 1).all(), "something reaches the edge of the picture"


def test_texts_lie_inside_the_figure_and_apart(neuron_map):
    figure = neuron_map.draw(title="A title that is a good deal longer than the smallest of the maps is wide, and then a bit")
    renderer = figure.canvas.get_renderer()
    headings = [text for text in figure.axes[0].texts if not text.get_text().lstrip("x").isdigit()]
    boxes = [artist.get_window_extent(renderer) for artist in (*figure.texts, *headings, *figure.legends)]
    for box in boxes:
        assert figure.bbox.x0 <= box.x0 < box.x1 <= figure.bbox.x1
        assert figure.bbox.y0 <= box.y0 < box.y1 <= figure.bbox.y1
    for k, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[k + 1 :])


def test_neurons_do_not_touch(neuron_map):
    figure = neuron_map.draw()
    ellipses = [c for c in figure.axes[0].collections if type(c).__name__ == "EllipseCollection"]
    centres = np.concatenate([c.get_offsets() for c in ellipses])
    assert len(centres) == neuron_map.units + (neuron_map.input_dim or 0)
    gaps = np.linalg.norm(centres[:, None] - centres, axis=-1) + 9 * np.eye(len(centres))
    assert gaps.min() > 0.7


def test_every_synapse_is_drawn_and_counted():
    policy = NCPMap(5, 4, 2, 3)
    figure = policy.draw()
    heads = [c for c in figure.axes[0].collections if c.get_zorder() == 2]
    excitatory = (policy.adjacency_matrix == 1).sum() + (policy.sensory_adjacency_matrix == 1).sum()
    inhibitory = (policy.adjacency_matrix == -1).sum() + (policy.sensory_adjacency_matrix == -1).sum()
    assert [len(c.get_paths()) for c in heads] == [excitatory, inhibitory]
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == [
        "sensory neurons (3)",
        "inter neurons (5)",
        "command neurons (4)",
        "motor neurons (2)",
        f"excitatory synapses ({excitatory})",
        f"inhibitory synapses ({inhibitory})",
    ]


@pytest.mark.parametrize(("show_ids", "expected"), [(None, True), (True, True), (False, False)], ids=["auto", "on", "off"])
def test_ids(show_ids, expected):
    texts = {text.get_text() for text in FullyConnectedMap(5, 1, 2).draw(show_ids=show_ids).axes[0].texts}
    assert (texts == {"0", "1", "2", "3", "4", "x0", "x1"}) is expected


def test_title():
    assert RandomMap(5).draw(title="Mine").texts[0].get_text() == "Mine"
    assert RandomMap(5, 2).draw().texts[0].get_text() == "RandomMap   inputs: unknown   units: 5   outputs: 2"


def test_drawing_imports_no_pyplot(tmp_path):
    code = (
        "import sys; from ember_mlx.wiring import NCPMap; "
        f"NCPMap(3, 2, 1, 2).draw({str(tmp_path / 'map.png')!r}); "
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert (tmp_path / "map.png").exists()


def test_without_matplotlib_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError) as caught:
        RandomMap(3).draw()
    assert str(caught.value) == '[NeuronMap] draw needs matplotlib: pip install "ember-mlx[plot]".'


def test_small_world_example(small_world, tmp_path, capsys):
    out = tmp_path / "new" / "small_world.png"
    small_world.main(["--units", "16", "--out", str(out)])
    assert out.stat().st_size > 10_000
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "SmallWorldMap(units=16, inputs=4, outputs=3, synapses=64, sensory_synapses=16)"


@pytest.mark.parametrize("rewiring", [0.0, 0.3, 1.0])
def test_small_world_map(small_world, rewiring):
    ring = small_world.SmallWorldMap(20, 2, 3, neighbours=4, rewiring=rewiring, seed=6)
    matrix = ring.adjacency_matrix
    assert (np.abs(matrix).sum(axis=1) == 4).all()
    assert not np.diag(matrix).any()
    assert (np.abs(matrix.sum(axis=1)) == 4).all()  # one sign a neuron
    distance = np.abs(np.arange(20)[:, None] - np.arange(20))
    near = np.minimum(distance, 20 - distance) <= 2
    assert (rewiring == 0.0) == (not matrix[~near].any())
    assert NeuronMap.from_config.__func__(type(ring), ring.get_config()) == ring


def test_graph_of_a_map_has_its_synapses():
    neuron_map = NCPMap(5, 4, 3, 2, seed=1)
    graph = neuron_map.to_networkx()
    assert graph.number_of_nodes() == neuron_map.units + 2
    assert graph.number_of_edges() == neuron_map.synapse_count + neuron_map.sensory_synapse_count
    for source, target, polarity in graph.edges(data="polarity"):
        matrix, row = (
            (neuron_map.sensory_adjacency_matrix, int(source[1:])) if isinstance(source, str) else (neuron_map.adjacency_matrix, source)
        )
        assert matrix[row, target] == polarity
    assert graph.nodes[0]["layer"] == "motor"
    assert graph.nodes["x1"]["layer"] == "sensory"
