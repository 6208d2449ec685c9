"""Analysis of a compiled kernel: shuffles in one arm of a branch that lanes of a warp may take differently."""

import re
from typing import NamedTuple

INSTRUCTION = re.compile(r"(?:@!?(?P<predicate>%p\d+)\s+)?(?P<name>[a-z][\w.]*)\s*(?P<operands>.*);")
REGISTER = re.compile(r"%[a-z]+\d*(?:\.x)?")
WITHOUT_RESULT = ("st.", "bra", "bar", "ret")


class Instruction(NamedTuple):
    """One line of PTX."""

    predicate: str | None
    name: str
    operands: str

    @property
    def registers(self) -> tuple[list[str], list[str]]:
        """The registers that it writes, and those that it reads."""
        read = [self.predicate] if self.predicate else []
        registers = REGISTER.findall(self.operands)
        if self.name.startswith(WITHOUT_RESULT):
            return [], read + registers
        first = self.operands.split("}" if self.operands.startswith("{") else ",")[0]
        results = len(REGISTER.findall(first))
        return registers[:results], read + registers[results:]


def shuffles_in_arms(ptx: str) -> list[str]:
    """The branches whose condition depends on the thread and that have shuffles before their arms meet again, each once a shuffle."""
    blocks, successors = _blocks(ptx)
    differing = _differing([instruction for block in blocks for instruction in block])
    meets = _on_every_way_out(successors)
    found = []
    for k, block in enumerate(blocks):
        last = block[-1] if block else None
        if last is None or last.name != "bra" or last.predicate not in differing:
            continue
        arms, waiting = set(), list(successors[k])
        while waiting:
            at = waiting.pop()
            if at in arms or at == len(blocks) or at in meets[k] - {k}:
                continue
            arms.add(at)
            waiting += successors[at]
        found += [f"@{last.predicate} bra {last.operands}" for at in arms for one in blocks[at] if one.name.startswith("shfl")]
    return found


def _blocks(ptx: str) -> tuple[list[list[Instruction]], list[list[int]]]:
    """The instructions between labels and branches, and for each such block the ones that can follow; their number stands for the end."""
    blocks: list[list[Instruction]] = [[]]
    labels = {}
    for line in map(str.strip, ptx[ptx.index("\n{") :].splitlines()):
        label = re.match(r"(\$L\w+):", line)
        found = INSTRUCTION.fullmatch(line)
        if label:
            if blocks[-1]:
                blocks.append([])
            labels[label[1]] = len(blocks) - 1
        elif found:
            blocks[-1].append(Instruction(**found.groupdict()))
            if found["name"].startswith(("bra", "ret")):
                blocks.append([])
    successors = []
    for k, block in enumerate(blocks):
        last = block[-1] if block else None
        jumps = []
        if last and last.name.startswith(("bra", "ret")):
            jumps.append(labels.get(last.operands, len(blocks)))
        if not jumps or (last and last.predicate):
            jumps.append(k + 1)
        successors.append(jumps)
    return blocks, successors


def _differing(instructions: list[Instruction]) -> set[str]:
    """Registers whose value may depend on the thread."""
    uses = [one.registers for one in instructions]
    shuffled = [written for one, (written, _) in zip(instructions, uses, strict=True) if one.name.startswith("shfl")]
    differing, before = {"%tid.x", *(register for written in shuffled for register in written)}, 0
    while len(differing) > before:
        before = len(differing)
        for written, read in uses:
            if not differing.isdisjoint(read):
                differing.update(written)
    return differing


def _on_every_way_out(successors: list[list[int]]) -> list[set[int]]:
    """For each block the blocks on every path from it to the end, including itself (post-dominators)."""
    end = len(successors)
    meets = [set(range(end + 1)) for _ in range(end)] + [{end}]
    changed = True
    while changed:
        changed = False
        for k in reversed(range(end)):
            after = set.intersection(*(meets[at] for at in successors[k])) | {k}
            changed |= after != meets[k]
            meets[k] = after
    return meets
