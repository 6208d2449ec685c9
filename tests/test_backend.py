"""The choice of the backend by name, for the process, a thread or a task."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

import ember_mlx
from ember_mlx import backend


@pytest.fixture
def no_choice(monkeypatch):
    monkeypatch.setattr(backend, "_chosen", [])


def test_backend_choice(monkeypatch, no_choice):
    assert ember_mlx.current_backend() == "auto"
    with ember_mlx.use_backend("ops"):
        assert ember_mlx.current_backend() == "ops"
        with ember_mlx.use_backend("numpy"):
            assert ember_mlx.current_backend() == "numpy"
        assert ember_mlx.current_backend() == "ops"
    again = ember_mlx.use_backend("numpy")
    for _ in range(2):
        with again:
            assert ember_mlx.current_backend() == "numpy"
        assert ember_mlx.current_backend() == "auto"
    monkeypatch.setenv("EMBER_MLX_BACKEND", "")
    assert ember_mlx.current_backend() == "auto"
    monkeypatch.setenv("EMBER_MLX_BACKEND", "ops")
    assert ember_mlx.current_backend() == "ops"
    monkeypatch.setenv("EMBER_MLX_BACKEND", "cudnn")
    with pytest.raises(
        ValueError, match=r"\[ember_mlx\] EMBER_MLX_BACKEND must be one of 'auto', 'ops', 'numpy', 'metal', 'cuda', got 'cudnn'\."
    ):
        ember_mlx.current_backend()
    with pytest.raises(ValueError, match=r"\[use_backend\] name must be one of"):
        ember_mlx.use_backend("metal9")
    for name in (None, ["ops"], 3):
        with pytest.raises(ValueError, match=r"\[use_backend\] name must be one of"):
            ember_mlx.use_backend(name)


def test_blocks_of_threads_that_overlap(no_choice):
    inside, other, seen = threading.Event(), threading.Event(), []

    def first():
        with ember_mlx.use_backend("ops"):
            inside.set()
            other.wait(10)
            seen.append(ember_mlx.current_backend())

    def second():
        inside.wait(10)
        with ember_mlx.use_backend("numpy"):
            other.set()
            threads[0].join(10)
            seen.append(ember_mlx.current_backend())

    threads = [threading.Thread(target=run) for run in (first, second)]
    for thread in threads:
        thread.start()
    threads[1].join(10)
    assert seen == ["ops", "numpy"]
    assert ember_mlx.current_backend() == "auto"


def test_blocks_of_tasks_that_overlap(no_choice):
    async def within(name):
        with ember_mlx.use_backend(name):
            await asyncio.sleep(1e-3)
            return ember_mlx.current_backend()

    async def both():
        return await asyncio.gather(within("ops"), within("numpy"))

    assert asyncio.run(both()) == ["ops", "numpy"]
    assert ember_mlx.current_backend() == "auto"


def test_a_plain_choice_holds_for_all_threads_and_within_a_block_until_its_end(no_choice):
    def elsewhere():
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(ember_mlx.current_backend).result()

    ember_mlx.use_backend("ops")
    assert (ember_mlx.current_backend(), elsewhere()) == ("ops", "ops")
    with ember_mlx.use_backend("auto"):
        assert (ember_mlx.current_backend(), elsewhere()) == ("auto", "ops")
        ember_mlx.use_backend("numpy")
        assert ember_mlx.current_backend() == "numpy"
        with ember_mlx.use_backend("ops"):
            assert ember_mlx.current_backend() == "ops"
        assert ember_mlx.current_backend() == "numpy"
    assert ember_mlx.current_backend() == "ops"
    shared = ember_mlx.use_backend("numpy")
    with shared, shared:
        assert ember_mlx.current_backend() == "numpy"
    assert ember_mlx.current_backend() == "ops"
