"""python benchmarks/stepper.py: microseconds of one step of each layer, with its stepper and with a call of the layer."""

import statistics

import mlx.core as mx
import numpy as np
from measure import environment, print_table, timed

from ember_mlx import GRU, LSTM, LTC, RNN, CfC, CTRQNet, LQNet, NCPMap, StrideAware

I, H = 8, 64
NCP = NCPMap(32, 16, 16, I, seed=1)
LAYERS = {
    "RNN": lambda: RNN(I, H),
    "GRU": lambda: GRU(I, H),
    "LSTM": lambda: LSTM(I, H),
    "CfC, backbone of 128": lambda: CfC(H, I),
    "CfC, mixed memory": lambda: CfC(H, I, mixed_memory=True),
    "CfC, NCP 32/16/16": lambda: CfC(NCP),
    "LTC, fully connected": lambda: LTC(H, I),
    "LTC, NCP 32/16/16": lambda: LTC(NCP),
    "LQNet": lambda: LQNet(H, input_size=I),
    "CTRQNet": lambda: CTRQNet(H, input_size=I),
    "StrideAware, GRU at 1, 2, 4": lambda: StrideAware(GRU(I, H), [1, 2, 4]),
}


def row(name: str) -> list[str]:
    """Median times of a step of one sequence, with elapsed time if the layer takes it."""
    layer, x = LAYERS[name]().eval(), np.ones(I, np.float32)
    stepper, options = layer.stepper(), {"time_deltas": 0.5} if layer.timed else {}
    once = timed(lambda: stepper.step(x, 0.5) if layer.timed else stepper.step(x), 1.0)
    _, state = layer(mx.array(x)[None], **options, return_state=True)
    call = timed(lambda: mx.eval(layer(mx.array(x)[None], state, **options, return_state=True)), 0.5)
    return [name, *(f"{1e3 * statistics.median(times):.0f}" for times in (once, call))]


if __name__ == "__main__":
    print(environment())
    title = f"Microseconds of a step, B = 1, {I} inputs, {H} units, float32; medians"
    print_table(title, ["layer", "stepper", "the layer's call"], [row(name) for name in LAYERS])
