// MLX adds bfloat16 overloads of the math and simd functions here; the host runner's own library has them.
#pragma once
