"""Conversion of layers from and to other packages."""

from .gated import from_mlx, from_torch, to_torch_state_dict
from .ncps import from_ncps
from .to_ncps import to_ncps_state_dict

__all__ = ["from_mlx", "from_ncps", "from_torch", "to_ncps_state_dict", "to_torch_state_dict"]
