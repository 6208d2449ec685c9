// What MLX puts before every custom kernel: its utilities, from the installed MLX.
#pragma once
#include "mlx/backend/metal/kernels/utils.h"
#pragma GCC poison double
