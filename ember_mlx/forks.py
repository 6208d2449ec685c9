"""Support for MLX in forked processes, as started by multiprocessing on Linux before Python 3.14.

MLX 0.32.4 evaluates each stream on its own thread. A forked process does not inherit its parent's threads, so evaluation on an old stream
hangs forever. A new stream has a new thread; arrays that the parent has evaluated remain usable.
"""

import os

import mlx.core as mx


def survive_forks() -> None:
    """From now on, give every forked process a new stream if MLX runs on the CPU.

    Arrays used in both processes must be evaluated before the fork, for example by ``mx.eval(layer.parameters())``.
    """
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(before=_before, after_in_child=_in_child)


def _before() -> None:
    if _on_cpu():
        mx.eval(mx.random.state)  # otherwise the child's first random number would hang on its key


def _in_child() -> None:
    if _on_cpu():
        mx.set_default_stream(mx.new_stream(mx.cpu))


def _on_cpu() -> bool:
    return mx.default_device().type == mx.DeviceType.cpu
