"""Which line of the kernel's text a machine address comes from: the line table (DWARF 4) of an ELF library."""

import struct
from pathlib import Path

OWN_PIECES = ("source", "header")


def line_of(library: Path, offset: int) -> tuple[str, int] | None:
    """(piece, line) of the instruction at `offset`, or None where the library has no line table (macOS keeps it elsewhere)."""
    data = section(library.read_bytes(), b".debug_line")
    best = None
    for start, file, line in rows(data):
        if file in OWN_PIECES and line and start <= offset and (best is None or start >= best[0]):
            best = (start, file, line)
    return best[1:] if best else None


def section(elf: bytes, name: bytes) -> bytes:
    """The contents of a section of a 64-bit little-endian ELF file; empty if there is none."""
    if elf[:6] != b"\x7fELF\x02\x01":
        return b""
    (table,) = struct.unpack_from("<Q", elf, 0x28)
    size, count, names = struct.unpack_from("<HHH", elf, 0x3A)
    headers = [struct.unpack_from("<IIQQQQ", elf, table + size * i) for i in range(count)]
    strings = headers[names][4]
    for header in headers:
        begin = strings + header[0]
        if elf[begin : elf.index(b"\0", begin)] == name:
            return elf[header[4] : header[4] + header[5]]
    return b""


class Reader:
    """Reads a line table's numbers one after another."""

    def __init__(self, data: bytes, at: int):
        """Start at a byte."""
        self.data, self.at = data, at

    def number(self, kind: str) -> int:
        """A number of fixed size, named as in `struct`."""
        (value,) = struct.unpack_from("<" + kind, self.data, self.at)
        self.at += struct.calcsize(kind)
        return value

    def leb(self, signed: bool = False) -> int:
        """A number of variable size."""
        value = shift = 0
        while True:
            byte = self.number("B")
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value - (1 << shift) if signed and byte & 0x40 else value

    def text(self) -> str:
        """A string that ends with a zero."""
        end = self.data.index(b"\0", self.at)
        value, self.at = self.data[self.at : end].decode(errors="replace"), end + 1
        return value


def rows(data: bytes):
    """Every row of every unit as (address, file, line)."""
    at = 0
    while at + 4 <= len(data):
        (length,) = struct.unpack_from("<I", data, at)
        yield from unit_rows(data, at + 4, at + 4 + length)
        at += 4 + length


def unit_rows(data: bytes, at: int, end: int):
    """The rows of one unit."""
    reader = Reader(data, at)
    version, header_length = reader.number("H"), reader.number("I")
    if version != 4:
        return
    program = reader.at + header_length
    step, _, _, line_base, line_range, opcode_base = (reader.number(kind) for kind in "BBBbBB")
    lengths = [reader.number("B") for _ in range(opcode_base - 1)]
    while reader.text():
        pass  # directories
    files = [""]
    while name := reader.text():
        files.append(Path(name).name)
        for _ in range(3):
            reader.leb()
    yield from run_program(Reader(data, program), end, files, lengths, (step, line_base, line_range, opcode_base))


def run_program(reader: Reader, end: int, files: list[str], lengths: list[int], numbers: tuple[int, int, int, int]):
    """Run the line program: a small machine with an address, a file and a line."""
    step, line_base, line_range, opcode_base = numbers
    address, file, line = 0, 1, 1
    while reader.at < end:
        opcode = reader.number("B")
        if opcode >= opcode_base:
            address += (opcode - opcode_base) // line_range * step
            line += line_base + (opcode - opcode_base) % line_range
            yield address, files[file], line
        elif opcode == 0:
            size = reader.leb()
            following = reader.at + size
            kind = reader.number("B")
            if kind == 1:  # the sequence ends
                address, file, line = 0, 1, 1
            elif kind == 2:
                address = reader.number("Q")
            reader.at = following
        elif opcode == 1:
            yield address, files[file], line
        elif opcode == 2:
            address += reader.leb() * step
        elif opcode == 3:
            line += reader.leb(signed=True)
        elif opcode == 4:
            file = reader.leb()
        elif opcode == 8:
            address += (255 - opcode_base) // line_range * step
        elif opcode == 9:
            address += reader.number("H")
        else:
            for _ in range(lengths[opcode - 1]):
                reader.leb()
