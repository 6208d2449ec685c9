"""safetensors files, written whole or not at all."""

import json
import os
import struct
from pathlib import Path
from typing import Any, cast

import mlx.core as mx

KEY = "ember_mlx"  # in a file's metadata: JSON


def write_safetensors(path: Path, arrays: dict[str, mx.array], told: dict[str, Any]) -> None:
    """Write arrays, and what is told of them, under another name first; then the file takes the place of an older one.

    Raises:
        OSError: it could not be written; an older one is as it was.
    """
    partial = path.parent / f".{path.stem}.partial.safetensors"
    try:
        mx.save_safetensors(str(partial), arrays, {KEY: json.dumps(told)})
        check_complete(partial)
        sync(partial)
        os.replace(partial, path)
    except (OSError, RuntimeError, ValueError) as error:
        partial.unlink(missing_ok=True)
        raise OSError(str(error)) from error
    sync(path.parent)


def read_safetensors(path: Path, what: str, formats: int) -> tuple[dict[str, mx.array], Any]:
    """Arrays and what is told of them.

    Args:
        path: the file.
        what: it should be, in words.
        formats: the format that is known.

    Raises:
        ValueError: no such file, one that is cut off, or of another format.
    """
    check_complete(path)
    arrays, metadata = cast(tuple[dict[str, mx.array], dict[str, str]], mx.load(str(path), return_metadata=True))
    if KEY not in metadata:
        raise ValueError(f"it is no {what} of ember_mlx")
    told = json.loads(metadata[KEY])
    if told.get("format") != formats:
        raise ValueError(f"its format is {told.get('format')}, this version reads {formats}")
    if told.get("what") != what:
        raise ValueError(f"it is no {what} of ember_mlx, but a {told.get('what')}")
    return arrays, told


def check_complete(path: Path) -> None:
    """Raise a ValueError unless the file has all bytes that its header speaks of; MLX writes without looking whether the disk is full."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else size
        header = json.loads(file.read(length)) if 8 + length <= size else None
    if header is None:
        raise ValueError("it is cut off, or no safetensors file")
    end = max((entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"), default=0)
    if 8 + length + end != size:
        raise ValueError(f"it is cut off: {size} bytes of {8 + length + end}")


def sync(path: Path) -> None:
    """Have a file's bytes, or a folder's names, on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def different(parameters: dict[str, mx.array], saved: dict[str, mx.array]) -> tuple[str, str, str] | None:
    """The first name whose arrays differ in shape or dtype, and what each of them is; None where all are alike."""
    for name in (*parameters, *saved):
        found = [f"{a.shape} of {a.dtype}" if (a := tree.get(name)) is not None else "nothing" for tree in (parameters, saved)]
        if found[0] != found[1]:
            return name, found[0], found[1]
    return None
