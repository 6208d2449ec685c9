// Accuracies as the specification states them, for the mode "fast math": a result is off by a pseudo-random number of units in its last place,
// always the same for one result, within the bound, and denormals are 0. In this mode the runtime flushes the denormals of plain arithmetic too.
#pragma once

namespace metal {
#ifdef MSL_FAST_MATH
MSL_FUNC float flushed(float x) { return __builtin_fabsf(x) < 1.17549435e-38f ? __builtin_copysignf(0.0f, x) : x; }

// From -1 to 1, of the bits of a number.
MSL_FUNC float scattered(uint bits) {
  bits = (bits ^ (bits >> 16)) * 0x7feb352du;
  bits = (bits ^ (bits >> 15)) * 0x846ca68bu;
  bits ^= bits >> 16;
  return (float)(bits >> 8) * (2.0f / 16777215.0f) - 1.0f;
}

// A value with an error of at most so many units in the last place, with the host's own half of one.
MSL_FUNC float stated(float value, float ulps) {
  if (value != value || __builtin_isinf(value) || flushed(value) == 0) return flushed(value);
  const uint bits = __builtin_bit_cast(uint, value), least = 0x00800000u, most = 0x7f7fffffu;
  const float error = scattered(bits) * (ulps - 0.5f);
  const int moved = (int)(bits & 0x7fffffffu) + (int)(error + __builtin_copysignf(0.499f, error));
  const uint within = moved < (int)least ? least : moved > (int)most ? most : (uint)moved;
  return __builtin_bit_cast(float, (bits & 0x80000000u) | within);
}

// The same with an absolute error.
MSL_FUNC float stated_absolute(float value, float error) {
  return value != value ? value : flushed(value + error * scattered(__builtin_bit_cast(uint, value)));
}

// Of fast::divide: where the divisor is beyond 2^126 its reciprocal is a denormal.
MSL_FUNC float fast_quotient(float x, float y) {
  x = flushed(x), y = flushed(y);
  if (__builtin_fabsf(y) > 8.50705917e37f && !__builtin_isinf(x)) return y != y ? y : __builtin_copysignf(0.0f, x) * __builtin_copysignf(1.0f, y);
  return stated(x / y, 2.5f);
}
#else
MSL_FUNC float stated(float value, float) { return value; }
#endif
}  // namespace metal
