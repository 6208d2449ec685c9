"""Training: a loop, its data, losses, metrics and checkpoints."""

from .data import Batch, Sequences
from .history import History
from .loop import evaluate, fit, predict
from .streams import StreamBatches, stream_batches

__all__ = ["Batch", "History", "Sequences", "StreamBatches", "evaluate", "fit", "predict", "stream_batches"]
