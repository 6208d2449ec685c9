"""MLX arrays and metadata in safetensors files."""

import json
from pathlib import Path
from typing import Any, cast

import mlx.core as mx

from .files import KEY, read_header, told, write_whole


def write_safetensors(path: Path, arrays: dict[str, mx.array], tell: dict[str, Any]) -> None:
    """Write arrays and metadata atomically.

    Raises:
        OSError: it could not be written; an older file is unchanged.
    """
    write_whole(path, lambda partial: mx.save_safetensors(str(partial), arrays, {KEY: json.dumps(tell)}))


def read_safetensors(path: Path, what: str, formats: int) -> tuple[dict[str, mx.array], Any]:
    """Read arrays and metadata; see `files.told`.

    Raises:
        ValueError: a truncated file, another kind of file, or another format.
    """
    read_header(path)
    arrays, metadata = cast(tuple[dict[str, mx.array], dict[str, str]], mx.load(str(path), return_metadata=True))
    return arrays, told(metadata, what, formats)


def different(parameters: dict[str, mx.array], saved: dict[str, mx.array]) -> tuple[str, str, str] | None:
    """The first name whose arrays differ in shape or dtype, with a description of both; None if all match."""
    for name in (*parameters, *saved):
        found = [f"{a.shape} of {a.dtype}" if (a := tree.get(name)) is not None else "nothing" for tree in (parameters, saved)]
        if found[0] != found[1]:
            return name, found[0], found[1]
    return None
