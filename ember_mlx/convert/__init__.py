"""Layers from models of other packages."""

from .ncps import from_ncps

__all__ = ["from_ncps"]
