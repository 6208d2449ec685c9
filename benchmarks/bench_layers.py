"""The benchmark of each contender of each work; conftest.py has the options, the measurement and the report."""

import pytest
from contest import WORKS
from works import OPS, OURS


def test_work(work, contender, outcomes, benchmark):
    outcome = outcomes[contender]
    if outcome.state != WORKS:
        benchmark.skipped = True  # there is nothing to store
        what = f"{outcome.state}: {outcome.why}"
        if contender in (OURS, OPS):
            pytest.fail(what, pytrace=False)
        pytest.xfail(what)
    benchmark.group = work.name
    benchmark.extra_info = {"error": outcome.error, "memory": outcome.memory, "device": outcome.device, "round medians": outcome.medians}
    if benchmark.enabled:  # measured in alternation instead of by the plugin, which only stores and compares the times
        benchmark._mode = "turns"
        stats = benchmark._make_stats(iterations=1)
        for seconds in outcome.times:
            stats.update(seconds)
