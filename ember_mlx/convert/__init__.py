"""Layers from models of other packages, and back."""

from .gated import from_mlx, from_torch, to_torch_state_dict
from .ncps import from_ncps

__all__ = ["from_mlx", "from_ncps", "from_torch", "to_torch_state_dict"]
