// Integer functions.
#pragma once

namespace metal {
#define MSL_INTEGER(T)                                                                                   \
  MSL_FUNC T min(T a, T b) { return b < a ? b : a; }                                                     \
  MSL_FUNC T max(T a, T b) { return a < b ? b : a; }                                                     \
  MSL_FUNC T min3(T a, T b, T c) { return min(a, min(b, c)); }                                           \
  MSL_FUNC T max3(T a, T b, T c) { return max(a, max(b, c)); }                                           \
  MSL_FUNC T clamp(T x, T low, T high) { return min(max(x, low), high); }                                \
  MSL_FUNC T abs(T a) { return a < 0 ? (T)-a : a; }                                                      \
  MSL_FUNC T absdiff(T a, T b) { return (T)(a < b ? b - a : a - b); }                                    \
  MSL_FUNC T hadd(T a, T b) { return (T)((a >> 1) + (b >> 1) + (a & b & 1)); }                           \
  MSL_FUNC T rhadd(T a, T b) { return (T)((a >> 1) + (b >> 1) + ((a | b) & 1)); }                        \
  MSL_FUNC T addsat(T a, T b) {                                                                          \
    T r;                                                                                                 \
    if (!__builtin_add_overflow(a, b, &r)) return r;                                                     \
    return b < 0 ? numeric_limits<T>::min() : numeric_limits<T>::max();                                  \
  }                                                                                                      \
  MSL_FUNC T subsat(T a, T b) {                                                                          \
    T r;                                                                                                 \
    if (!__builtin_sub_overflow(a, b, &r)) return r;                                                     \
    return a < b ? numeric_limits<T>::min() : numeric_limits<T>::max();                                  \
  }                                                                                                      \
  MSL_FUNC T popcount(T a) {                                                                             \
    int n = 0;                                                                                           \
    for (int i = 0; i < (int)sizeof(T) * 8; i++) n += (int)(((ulong)a >> i) & 1);                        \
    return (T)n;                                                                                         \
  }                                                                                                      \
  MSL_FUNC T clz(T a) {                                                                                  \
    int n = 0;                                                                                           \
    for (int i = (int)sizeof(T) * 8 - 1; i >= 0 && !(((ulong)a >> i) & 1); i--) n++;                     \
    return (T)n;                                                                                         \
  }                                                                                                      \
  MSL_FUNC T ctz(T a) {                                                                                  \
    int n = 0;                                                                                           \
    for (; n < (int)sizeof(T) * 8 && !(((ulong)a >> n) & 1);) n++;                                       \
    return (T)n;                                                                                         \
  }                                                                                                      \
  MSL_FUNC T reverse_bits(T a) {                                                                         \
    ulong r = 0;                                                                                         \
    for (int i = 0; i < (int)sizeof(T) * 8; i++) r = (r << 1) | (((ulong)a >> i) & 1);                   \
    return (T)r;                                                                                         \
  }                                                                                                      \
  MSL_FUNC T rotate(T a, T b) {                                                                          \
    const int width = (int)sizeof(T) * 8, n = (int)b & (width - 1);                                      \
    const ulong mask = width == 64 ? ~0UL : (1UL << (width & 63)) - 1, u = (ulong)a & mask;              \
    return n == 0 ? a : (T)((u << n) | (u >> (width - n)));                                              \
  }                                                                                                      \
  MSL_FUNC T extract_bits(T a, uint offset, uint bits) {                                                 \
    if (bits == 0) return 0;                                                                             \
    const uint width = sizeof(T) * 8;                                                                    \
    const T up = (T)((ulong)a << (width - bits - offset));                                               \
    return (T)(up >> (width - bits));                                                                    \
  }                                                                                                      \
  MSL_FUNC T insert_bits(T base, T insert, uint offset, uint bits) {                                     \
    const ulong mask = (bits >= 64 ? ~0UL : (1UL << bits) - 1) << offset;                                \
    return (T)(((ulong)base & ~mask) | (((ulong)insert << offset) & mask));                              \
  }
MSL_INTEGER(int)
MSL_INTEGER(uint)
MSL_INTEGER(short)
MSL_INTEGER(ushort)
MSL_INTEGER(char)
MSL_INTEGER(signed char)
MSL_INTEGER(uchar)
MSL_INTEGER(long)
MSL_INTEGER(ulong)
#undef MSL_INTEGER

MSL_FUNC int mulhi(int a, int b) { return (int)(((long)a * b) >> 32); }
MSL_FUNC uint mulhi(uint a, uint b) { return (uint)(((ulong)a * b) >> 32); }
MSL_FUNC int mul24(int a, int b) { return a * b; }
MSL_FUNC uint mul24(uint a, uint b) { return a * b; }
MSL_FUNC int mad24(int a, int b, int c) { return a * b + c; }
MSL_FUNC uint mad24(uint a, uint b, uint c) { return a * b + c; }

#define MSL_INTEGER_VECTOR(V)                                                                            \
  MSL_FUNC V min(V a, V b) {                                                                             \
    for (int i = 0; i < vector_size<V>::value; i++) a[i] = min(a[i], b[i]);                              \
    return a;                                                                                            \
  }                                                                                                      \
  MSL_FUNC V max(V a, V b) {                                                                             \
    for (int i = 0; i < vector_size<V>::value; i++) a[i] = max(a[i], b[i]);                              \
    return a;                                                                                            \
  }                                                                                                      \
  MSL_FUNC V clamp(V x, V low, V high) { return min(max(x, low), high); }                                \
  MSL_FUNC V abs(V a) {                                                                                  \
    for (int i = 0; i < vector_size<V>::value; i++) a[i] = abs(a[i]);                                    \
    return a;                                                                                            \
  }                                                                                                      \
  MSL_FUNC V popcount(V a) {                                                                             \
    for (int i = 0; i < vector_size<V>::value; i++) a[i] = popcount(a[i]);                               \
    return a;                                                                                            \
  }
#define MSL_INTEGER_VECTORS(T) MSL_INTEGER_VECTOR(T##2) MSL_INTEGER_VECTOR(T##3) MSL_INTEGER_VECTOR(T##4)
MSL_INTEGER_VECTORS(int)
MSL_INTEGER_VECTORS(uint)
MSL_INTEGER_VECTORS(short)
MSL_INTEGER_VECTORS(ushort)
MSL_INTEGER_VECTORS(char)
MSL_INTEGER_VECTORS(uchar)
#undef MSL_INTEGER_VECTORS
#undef MSL_INTEGER_VECTOR
}  // namespace metal
