// Math: one function for each type and no template, so that a call that is ambiguous in Metal is ambiguous here.
#pragma once
#include "fast_math.h"

extern "C" {
float expf(float);
float exp2f(float);
float logf(float);
float log2f(float);
float log10f(float);
float sinf(float);
float cosf(float);
float tanf(float);
float sinhf(float);
float coshf(float);
float tanhf(float);
float asinf(float);
float acosf(float);
float atanf(float);
float asinhf(float);
float acoshf(float);
float atanhf(float);
float atan2f(float, float);
float powf(float, float);
float fmodf(float, float);
float ldexpf(float, int);
float frexpf(float, int*);
int ilogbf(float);
}

namespace metal {
#define MSL_ALL_VECTORS(X, NAME)                                                                                              \
  X(NAME, float2, 2) X(NAME, float3, 3) X(NAME, float4, 4) X(NAME, half2, 2) X(NAME, half3, 3) X(NAME, half4, 4)              \
  X(NAME, bfloat2, 2) X(NAME, bfloat3, 3) X(NAME, bfloat4, 4)

#define MSL_UNARY_VECTOR(NAME, V, N)           \
  MSL_FUNC V NAME(V v) {                       \
    V r;                                       \
    for (int i = 0; i < N; i++) r[i] = NAME(v[i]); \
    return r;                                  \
  }
// EXPRESSION in float x.
#define MSL_UNARY(NAME, EXPRESSION)            \
  MSL_FUNC float NAME(float x) {               \
    return EXPRESSION;                         \
  }                                            \
  MSL_FUNC half NAME(half a) {                 \
    float x = (float)a;                        \
    return (half)(EXPRESSION);                 \
  }                                            \
  MSL_FUNC bfloat NAME(bfloat a) {             \
    float x = (float)a;                        \
    return (bfloat)(EXPRESSION);               \
  }                                            \
  MSL_ALL_VECTORS(MSL_UNARY_VECTOR, NAME)

#define MSL_BINARY_VECTOR(NAME, V, N)          \
  MSL_FUNC V NAME(V v, V w) {                  \
    V r;                                       \
    for (int i = 0; i < N; i++) r[i] = NAME(v[i], w[i]); \
    return r;                                  \
  }
// EXPRESSION in float x, y.
#define MSL_BINARY(NAME, EXPRESSION)           \
  MSL_FUNC float NAME(float x, float y) {      \
    return EXPRESSION;                         \
  }                                            \
  MSL_FUNC half NAME(half a, half b) {         \
    float x = (float)a, y = (float)b;          \
    return (half)(EXPRESSION);                 \
  }                                            \
  MSL_FUNC bfloat NAME(bfloat a, bfloat b) {   \
    float x = (float)a, y = (float)b;          \
    return (bfloat)(EXPRESSION);               \
  }                                            \
  MSL_ALL_VECTORS(MSL_BINARY_VECTOR, NAME)

MSL_UNARY(exp, stated(expf(x), 4))
MSL_UNARY(exp2, stated(exp2f(x), 4))
MSL_UNARY(exp10, stated(powf(10.0f, x), 4))
MSL_UNARY(log, stated(logf(x), 4))
MSL_UNARY(log2, stated(log2f(x), 4))
MSL_UNARY(log10, stated(log10f(x), 4))
MSL_UNARY(sin, stated(sinf(x), 4))
MSL_UNARY(cos, stated(cosf(x), 4))
MSL_UNARY(tan, stated(tanf(x), 6))
MSL_UNARY(sinpi, sinf(M_PI_F* x))
MSL_UNARY(cospi, cosf(M_PI_F* x))
MSL_UNARY(tanpi, tanf(M_PI_F* x))
MSL_UNARY(sinh, stated(sinhf(x), 4))
MSL_UNARY(cosh, stated(coshf(x), 4))
MSL_UNARY(tanh, stated(tanhf(x), 5))
MSL_UNARY(asin, stated(asinf(x), 4))
MSL_UNARY(acos, stated(acosf(x), 4))
MSL_UNARY(atan, stated(atanf(x), 5))
MSL_UNARY(asinh, stated(asinhf(x), 4))
MSL_UNARY(acosh, stated(acoshf(x), 4))
MSL_UNARY(atanh, stated(atanhf(x), 5))
MSL_UNARY(sqrt, __builtin_sqrtf(x))
MSL_UNARY(rsqrt, 1.0f / __builtin_sqrtf(x))
MSL_UNARY(fabs, __builtin_fabsf(x))
MSL_UNARY(abs, __builtin_fabsf(x))
MSL_UNARY(floor, __builtin_floorf(x))
MSL_UNARY(ceil, __builtin_ceilf(x))
MSL_UNARY(round, __builtin_roundf(x))
MSL_UNARY(rint, __builtin_rintf(x))
MSL_UNARY(trunc, __builtin_truncf(x))
MSL_UNARY(fract, x - __builtin_floorf(x))
MSL_UNARY(sign, x > 0 ? 1.0f : x < 0 ? -1.0f : x != x ? 0.0f : x)
MSL_UNARY(saturate, x < 0 || x != x ? 0.0f : x > 1 ? 1.0f : x)
MSL_BINARY(pow, stated(powf(x, y), 16))
MSL_BINARY(powr, stated(powf(x, y), 16))
MSL_BINARY(atan2, stated(atan2f(x, y), 6))
MSL_BINARY(fmod, fmodf(x, y))
MSL_BINARY(divide, x / y)
MSL_BINARY(fdim, x > y ? x - y : 0.0f)
MSL_BINARY(copysign, __builtin_copysignf(x, y))
MSL_BINARY(step, y < x ? 0.0f : 1.0f)
// With one NaN Metal returns the other argument.
MSL_BINARY(fmin, x != x ? y : y != y ? x : y < x ? y : x)
MSL_BINARY(fmax, x != x ? y : y != y ? x : x < y ? y : x)
MSL_BINARY(min, x != x ? y : y != y ? x : y < x ? y : x)
MSL_BINARY(max, x != x ? y : y != y ? x : x < y ? y : x)

#define MSL_OF_THREE(T)                                                                                  \
  MSL_FUNC T clamp(T x, T low, T high) { return min(max(x, low), high); }                                \
  MSL_FUNC T mix(T x, T y, T a) { return x + (y - x) * a; }                                              \
  MSL_FUNC T min3(T x, T y, T z) { return min(x, min(y, z)); }                                           \
  MSL_FUNC T max3(T x, T y, T z) { return max(x, max(y, z)); }                                           \
  MSL_FUNC T fmin3(T x, T y, T z) { return min(x, min(y, z)); }                                          \
  MSL_FUNC T fmax3(T x, T y, T z) { return max(x, max(y, z)); }                                          \
  MSL_FUNC T median3(T x, T y, T z) { return max(min(x, y), min(max(x, y), z)); }                        \
  MSL_FUNC T smoothstep(T low, T high, T x) {                                                            \
    T t = saturate((x - low) / (high - low));                                                            \
    return t * t * (t * -2 + 3);                                                                         \
  }
#define MSL_SCALAR_OF_THREE(T)                                                                           \
  MSL_OF_THREE(T)                                                                                        \
  MSL_FUNC T fma(T a, T b, T c) { return (T)__builtin_fmaf((float)a, (float)b, (float)c); }              \
  MSL_FUNC bool isnan(T x) { return __builtin_isnan((float)x); }                                         \
  MSL_FUNC bool isinf(T x) { return __builtin_isinf((float)x); }                                         \
  MSL_FUNC bool isfinite(T x) { return __builtin_isfinite((float)x); }                                   \
  MSL_FUNC bool isnormal(T x) { return isfinite(x) && fabs(x) >= numeric_limits<T>::min(); }             \
  MSL_FUNC bool signbit(T x) { return __builtin_copysignf(1.0f, (float)x) < 0; }                         \
  MSL_FUNC bool isunordered(T x, T y) { return isnan(x) || isnan(y); }                                   \
  MSL_FUNC T ldexp(T x, int k) { return (T)ldexpf((float)x, k); }                                        \
  MSL_FUNC int ilogb(T x) { return ilogbf((float)x); }                                                   \
  MSL_FUNC T frexp(T x, thread int& exponent) {                                                          \
    int e;                                                                                               \
    float r = frexpf((float)x, &e);                                                                      \
    exponent = e;                                                                                        \
    return (T)r;                                                                                         \
  }                                                                                                      \
  MSL_FUNC T modf(T x, thread T& whole) {                                                                \
    whole = trunc(x);                                                                                    \
    return x - whole;                                                                                    \
  }                                                                                                      \
  MSL_FUNC T sincos(T x, thread T& cosine) {                                                             \
    cosine = cos(x);                                                                                     \
    return sin(x);                                                                                       \
  }
MSL_SCALAR_OF_THREE(float)
MSL_SCALAR_OF_THREE(half)
MSL_SCALAR_OF_THREE(bfloat)

#define MSL_VECTOR_OF_THREE(T, N)                                                                        \
  MSL_OF_THREE(vec<T MSL_COMMA N>)                                                                       \
  MSL_FUNC vec<T, N> clamp(vec<T, N> x, T low, T high) { return clamp(x, (vec<T, N>)low, (vec<T, N>)high); } \
  MSL_FUNC vec<T, N> mix(vec<T, N> x, vec<T, N> y, T a) { return x + (y - x) * a; }                      \
  MSL_FUNC vec<T, N> max(vec<T, N> x, T y) { return max(x, (vec<T, N>)y); }                              \
  MSL_FUNC vec<T, N> min(vec<T, N> x, T y) { return min(x, (vec<T, N>)y); }                              \
  MSL_FUNC vec<T, N> fma(vec<T, N> a, vec<T, N> b, vec<T, N> c) {                                        \
    vec<T, N> r;                                                                                         \
    for (int i = 0; i < N; i++) r[i] = fma(a[i], b[i], c[i]);                                            \
    return r;                                                                                            \
  }                                                                                                      \
  MSL_FUNC vec<bool, N> isnan(vec<T, N> x) { return vec<bool, N>(x != x); }                              \
  MSL_FUNC vec<bool, N> isinf(vec<T, N> x) { return vec<bool, N>(fabs(x) == (vec<T, N>)(T)INFINITY); }
#define MSL_COMMA ,
MSL_VECTOR_OF_THREE(float, 2)
MSL_VECTOR_OF_THREE(float, 3)
MSL_VECTOR_OF_THREE(float, 4)
MSL_VECTOR_OF_THREE(half, 2)
MSL_VECTOR_OF_THREE(half, 3)
MSL_VECTOR_OF_THREE(half, 4)
#undef MSL_COMMA

// The two accuracies are one here, the host's, but in the mode "fast math".
#define MSL_ACCURACIES(X)                                                                                     \
  X(acos) X(acosh) X(asin) X(asinh) X(atan) X(atan2) X(atanh) X(ceil) X(clamp) X(copysign) X(cosh)            \
  X(cospi) X(exp10) X(fabs) X(abs) X(fdim) X(floor) X(fma) X(fmax) X(fmin) X(fmod)                            \
  X(fract) X(frexp) X(ldexp) X(log10) X(max) X(min) X(mix) X(modf) X(pow) X(powr) X(rint)                     \
  X(round) X(saturate) X(sign) X(sincos) X(sinh) X(sinpi) X(smoothstep) X(step) X(tan) X(tanpi) X(trunc)
#define MSL_TWO_ACCURACIES(X) X(cos) X(divide) X(exp) X(exp2) X(log) X(log2) X(rsqrt) X(sin) X(sqrt) X(tanh)
#define MSL_USE(NAME) using metal::NAME;
namespace fast {
MSL_ACCURACIES(MSL_USE)
#ifdef MSL_FAST_MATH
MSL_UNARY(exp, stated(expf(flushed(x)), 3 + __builtin_floorf(__builtin_fabsf(2 * x))))
MSL_UNARY(exp2, stated(exp2f(flushed(x)), 3 + __builtin_floorf(__builtin_fabsf(2 * x))))
MSL_BINARY(divide, fast_quotient(x, y))
MSL_UNARY(rsqrt, stated(1.0f / __builtin_sqrtf(flushed(x)), 2))
MSL_UNARY(sqrt, x == 0 ? x : stated(__builtin_sqrtf(flushed(x)), 3))
MSL_UNARY(sin, stated_absolute(sinf(flushed(x)), 0x1p-13f))
MSL_UNARY(cos, stated_absolute(cosf(flushed(x)), 0x1p-13f))
MSL_UNARY(log, x > 0.5f && x < 2 ? stated_absolute(logf(x), 0x1p-21f) : stated(logf(flushed(x)), 3))
MSL_UNARY(log2, x > 0.5f && x < 2 ? stated_absolute(log2f(x), 0x1p-22f) : stated(log2f(flushed(x)), 2))
MSL_UNARY(tanh, divide(exp(2 * x) - 1, exp(2 * x) + 1))
#else
MSL_TWO_ACCURACIES(MSL_USE)
#endif
}
namespace precise {
MSL_ACCURACIES(MSL_USE)
MSL_TWO_ACCURACIES(MSL_USE)
}
#undef MSL_USE
}  // namespace metal
