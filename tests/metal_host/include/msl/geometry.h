// Geometric functions, and a vector packed into an integer.
#pragma once

namespace metal {
#define MSL_GEOMETRY(T, N)                                                                               \
  MSL_FUNC T dot(vec<T, N> a, vec<T, N> b) {                                                             \
    T sum = a[0] * b[0];                                                                                 \
    for (int i = 1; i < N; i++) sum += a[i] * b[i];                                                      \
    return sum;                                                                                          \
  }                                                                                                      \
  MSL_FUNC T length_squared(vec<T, N> a) { return dot(a, a); }                                           \
  MSL_FUNC T length(vec<T, N> a) { return sqrt(dot(a, a)); }                                             \
  MSL_FUNC T distance_squared(vec<T, N> a, vec<T, N> b) { return dot(a - b, a - b); }                    \
  MSL_FUNC T distance(vec<T, N> a, vec<T, N> b) { return length(a - b); }                                \
  MSL_FUNC vec<T, N> normalize(vec<T, N> a) { return a * rsqrt(dot(a, a)); }                             \
  MSL_FUNC vec<T, N> reflect(vec<T, N> a, vec<T, N> n) { return a - n * (dot(n, a) * 2); }
MSL_GEOMETRY(float, 2)
MSL_GEOMETRY(float, 3)
MSL_GEOMETRY(float, 4)
MSL_GEOMETRY(half, 2)
MSL_GEOMETRY(half, 3)
MSL_GEOMETRY(half, 4)
#undef MSL_GEOMETRY
MSL_FUNC float3 cross(float3 a, float3 b) { return a.yzx * b.zxy - a.zxy * b.yzx; }
MSL_FUNC half3 cross(half3 a, half3 b) { return a.yzx * b.zxy - a.zxy * b.yzx; }

MSL_FUNC float4 unpack_unorm4x8_to_float(uint v) {
  return float4{(float)(v & 255), (float)(v >> 8 & 255), (float)(v >> 16 & 255), (float)(v >> 24)} / 255.0f;
}
}  // namespace metal
