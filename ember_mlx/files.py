"""safetensors files: atomic writes, and reading with NumPy alone."""

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

KEY = "ember_mlx"  # key of JSON text in a file's metadata
SAVED_LAYER, SAVED_FORMAT = "saved layer", 1
METADATA = "__metadata__"
DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "U64": "<u8", "U32": "<u4", "U8": "|u1", "BOOL": "|b1"}


def write_whole(path: Path, write: Callable[[Path], None]) -> None:
    """Write a safetensors file under a temporary name, then rename it, replacing an older file.

    Raises:
        OSError: it could not be written; an older file is unchanged.
    """
    partial = path.parent / f".{path.stem}.partial.safetensors"
    try:
        write(partial)
        read_header(partial)
        sync(partial)
        os.replace(partial, path)
    except (OSError, RuntimeError, ValueError) as error:
        partial.unlink(missing_ok=True)
        raise OSError(str(error)) from error
    sync(path.parent)


def read_header(path: Path) -> tuple[dict[str, Any], int]:
    """A file's header, and the offset of its data.

    Raises:
        ValueError: it is shorter than its header says; MLX does not report a full disk when it writes.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else size
        header: dict[str, Any] = json.loads(file.read(length)) if 8 + length <= size else {"": None}
    try:
        end = max((entry["data_offsets"][1] for name, entry in header.items() if name != METADATA), default=0)
    except (AttributeError, LookupError, TypeError):
        raise ValueError("it is truncated, or not a safetensors file") from None
    if 8 + length + end != size:
        raise ValueError(f"it is truncated: {size} bytes of {8 + length + end}")
    return header, 8 + length


def told(metadata: dict[str, str], what: str, formats: int) -> Any:
    """Read this package's JSON from a file's metadata.

    Args:
        metadata: the file's metadata.
        what: the expected kind of file, in words.
        formats: the supported format.

    Raises:
        ValueError: another kind of file, or another format.
    """
    if KEY not in metadata:
        raise ValueError(f"it is not a {what} of ember_mlx")
    result = json.loads(metadata[KEY])
    if result.get("format") != formats:
        raise ValueError(f"its format is {result.get('format')}, this version reads {formats}")
    if result.get("what") != what:
        raise ValueError(f"it is not a {what} of ember_mlx, but a {result.get('what')}")
    return result


def read_arrays(path: Path) -> tuple[dict[str, NDArray[Any]], dict[str, str]]:
    """A file's arrays, bfloat16 as float32, and its metadata.

    Raises:
        ValueError: it is truncated, not a safetensors file, or has a dtype that NumPy does not have.
    """
    header, start = read_header(path)
    metadata = header.pop(METADATA, None) or {}
    data = path.read_bytes()[start:]
    return {name: _array(name, entry, data) for name, entry in header.items()}, metadata


def _array(name: str, entry: dict[str, Any], data: bytes) -> NDArray[Any]:
    first, last = entry["data_offsets"]
    if entry["dtype"] == "BF16":  # the upper half of a float32
        return (np.frombuffer(data[first:last], "<u2").astype("<u4") << 16).view("<f4").reshape(entry["shape"])
    if entry["dtype"] not in DTYPES:
        raise ValueError(f"its {name} is of {entry['dtype']}, not of {', '.join(['BF16', *DTYPES])}")
    return np.frombuffer(data[first:last], DTYPES[entry["dtype"]]).reshape(entry["shape"])


def sync(path: Path) -> None:
    """Flush a file's data, or a folder's entries, to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
