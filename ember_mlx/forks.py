"""MLX in forked processes, as multiprocessing starts them on Linux before Python 3.14.

MLX 0.32.4 evaluates on a thread for each stream. A forked process has none of its parent's threads, so whatever it evaluates there waits
for ever. A new stream has a thread of its own; arrays that the parent has evaluated are as good as before.
"""

import os

import mlx.core as mx


def survive_forks() -> None:
    """From now on, give every forked process a stream that works, where MLX runs on the CPU.

    What is to be used on both sides must have been evaluated before the fork, as ``mx.eval(layer.parameters())`` does.
    """
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(before=_before, after_in_child=_in_child)


def _before() -> None:
    if _on_cpu():
        mx.eval(mx.random.state)  # else the child would wait for the key of its first random number


def _in_child() -> None:
    if _on_cpu():
        mx.set_default_stream(mx.new_stream(mx.cpu))


def _on_cpu() -> bool:
    return mx.default_device().type == mx.DeviceType.cpu
