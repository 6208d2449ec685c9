"""The estimated latency of a step, from its dependent instructions."""

import re

import pytest

from .chain import BARRIER, LATENCIES, NVDISASM, Instruction, chain, loops, main
from .nvrtc import unsupported_reason

REASON = unsupported_reason(NVDISASM)

READ = Instruction("LDS.128 R4, [R2]", 1, 0, 0)
ADD = Instruction("FFMA R8, R4, R5, R8", 4, 7, 0)
AFTER_READ = ADD._replace(waits=1)


def test_an_instruction_waits_for_its_barrier_and_the_stall_before_it():
    assert chain([ADD, ADD], {}, 0, 1)[0] == 8
    assert chain([READ, AFTER_READ], {}, 0, 1)[0] == LATENCIES["LDS"] + 4
    assert chain([READ, *[ADD] * 20, AFTER_READ], {}, 0, 21)[0] == 1 + 21 * 4  # the read has come meanwhile
    assert chain([ADD, Instruction("BAR.SYNC 0x0", 1, 7, 0)], {}, 0, 1)[0] == 4 + BARRIER + 1


def test_only_jumps_without_a_condition_are_followed():
    code = [Instruction("@P0 BRA `(.L_1)", 1, 7, 0), ADD, Instruction("BRA `(.L_1)", 1, 7, 0), READ, ADD]
    cycles, counts = chain(code, {".L_1": 4}, 0, 4)
    assert (cycles, counts["FFMA"], counts["LDS"]) == (10, 2, 0)


def test_loops_are_those_with_a_jump_back():
    code = [*[ADD] * 70, Instruction("@!P0 BRA `(.L_0)", 1, 7, 0), Instruction("BRA `(.L_9)", 1, 7, 0), ADD]
    assert loops(code, {".L_0": 3, ".L_9": 72}) == [(3, 70)]


@pytest.mark.skipif(REASON is not None, reason=str(REASON))
def test_a_kernels_chain_is_printed(capsys):
    main(["rnn", "tanh", "64", "256,1,4"])
    forward, backward = capsys.readouterr().out.splitlines()
    cycles = [int(re.match(rf"\w+_{way}: (\d+) cycles, ", line)[1]) for way, line in (("forward", forward), ("backward", backward))]
    assert all(100 < count < 1000 for count in cycles)
    assert re.search(
        r"\b(16|32) FFMA", backward
    )  # 64 inputs of a unit, shared by 4 lanes; of one step, or of two that are one turn of the loop
