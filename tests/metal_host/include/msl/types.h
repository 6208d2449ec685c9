// Scalars and vectors.
#pragma once

typedef signed char int8_t;
typedef unsigned char uint8_t;
typedef short int16_t;
typedef unsigned short uint16_t;
typedef int int32_t;
typedef unsigned int uint32_t;
typedef long int64_t;  // as in Metal; the host's own headers may say long long
typedef unsigned long uint64_t;
typedef unsigned long size_t;
typedef long ptrdiff_t;
typedef unsigned long uintptr_t;
#ifndef MSL_CHECK
typedef _Float16 half;
#endif
typedef __bf16 bfloat;
typedef unsigned char uchar;
typedef unsigned short ushort;
typedef unsigned int uint;
typedef unsigned long ulong;

namespace metal {
namespace metal = ::metal;  // so that rewritten text may say metal::metal::

// How many elements: 0 for a scalar.
template <class V>
struct vector_size {
  static constexpr int value = 0;
};
template <class T, int N>
struct vector_size<T __attribute__((ext_vector_type(N)))> {
  static constexpr int value = N;
};

// Vectors of bool. Comparing clang's vectors gives vectors of integers, which convert to these.
template <int N>
struct bool_vector;
template <bool, class T>
struct only_if {};
template <class T>
struct only_if<true, T> {
  typedef T type;
};
#define MSL_BOOL_VECTOR(N, FIELDS, COPY)                                                                    \
  template <>                                                                                               \
  struct bool_vector<N> {                                                                                   \
    bool FIELDS;                                                                                            \
    bool_vector() = default;                                                                                \
    template <class V, class = typename only_if<vector_size<V>::value == N, V>::type>                       \
    MSL_FUNC bool_vector(V v) {                                                                             \
      COPY                                                                                                  \
    }                                                                                                       \
  };                                                                                                        \
  template <>                                                                                               \
  struct vector_size<bool_vector<N>> {                                                                      \
    static constexpr int value = N;                                                                         \
  };
#define MSL_LIST(...) __VA_ARGS__
MSL_BOOL_VECTOR(2, MSL_LIST(x, y), x = v.x != 0; y = v.y != 0;)
MSL_BOOL_VECTOR(3, MSL_LIST(x, y, z), x = v.x != 0; y = v.y != 0; z = v.z != 0;)
MSL_BOOL_VECTOR(4, MSL_LIST(x, y, z, w), x = v.x != 0; y = v.y != 0; z = v.z != 0; w = v.w != 0;)
#undef MSL_BOOL_VECTOR
#undef MSL_LIST

template <class T, int N>
struct vector_of {
  typedef T type __attribute__((ext_vector_type(N)));
};
template <class T>
struct vector_of<T, 1> {
  typedef T type;
};
template <int N>
struct vector_of<bool, N> {
  typedef bool_vector<N> type;
};
template <class T, int N>
using vec = typename vector_of<T, N>::type;

#define MSL_VECTORS(T)     \
  typedef vec<T, 2> T##2;  \
  typedef vec<T, 3> T##3;  \
  typedef vec<T, 4> T##4;
MSL_VECTORS(float)
MSL_VECTORS(half)
MSL_VECTORS(bfloat)
MSL_VECTORS(int)
MSL_VECTORS(uint)
MSL_VECTORS(short)
MSL_VECTORS(ushort)
MSL_VECTORS(char)
MSL_VECTORS(uchar)
MSL_VECTORS(long)
MSL_VECTORS(ulong)
MSL_VECTORS(bool)
#undef MSL_VECTORS

// Packed vectors: aligned as their elements, N elements long.
template <class T, int N>
struct packed_vector {
  T items[N];
#define MSL_PACKED(SPACE)                                          \
  MSL_FUNC operator vec<T, N>() const SPACE {                      \
    vec<T, N> v;                                                   \
    for (int i = 0; i < N; i++) v[i] = items[i];                   \
    return v;                                                      \
  }                                                                \
  MSL_FUNC void operator=(vec<T, N> v) SPACE {                     \
    for (int i = 0; i < N; i++) items[i] = v[i];                   \
  }                                                                \
  MSL_FUNC SPACE T& operator[](int i) SPACE { return items[i]; }
  MSL_EACH_SPACE(MSL_PACKED)
#undef MSL_PACKED
  packed_vector() = default;
  MSL_FUNC packed_vector(vec<T, N> v) {
    for (int i = 0; i < N; i++) items[i] = v[i];
  }
};
#define MSL_PACKED_VECTORS(T)                    \
  typedef packed_vector<T, 2> packed_##T##2;     \
  typedef packed_vector<T, 3> packed_##T##3;     \
  typedef packed_vector<T, 4> packed_##T##4;
MSL_PACKED_VECTORS(float)
MSL_PACKED_VECTORS(half)
MSL_PACKED_VECTORS(int)
MSL_PACKED_VECTORS(uint)
MSL_PACKED_VECTORS(short)
MSL_PACKED_VECTORS(ushort)
MSL_PACKED_VECTORS(char)
MSL_PACKED_VECTORS(uchar)
#undef MSL_PACKED_VECTORS

template <class T, size_t N>
struct array {
  T items[N];
  MSL_FUNC thread T& operator[](size_t i) thread { return items[i]; }
  MSL_FUNC const thread T& operator[](size_t i) const thread { return items[i]; }
  constexpr size_t size() const { return N; }
};
}  // namespace metal

#define INFINITY __builtin_inff()
#define NAN __builtin_nanf("")
#define HUGE_VALF __builtin_inff()
#define MAXFLOAT 3.40282347e38f
#define FLT_MAX 3.40282347e38f
#define FLT_MIN 1.17549435e-38f
#define FLT_EPSILON 1.1920929e-7f
#define HALF_MAX ((half)65504.0f)
#define HALF_MIN ((half)6.103515625e-5f)
#define HALF_EPSILON ((half)9.765625e-4f)
#define MAXHALF HALF_MAX
#define INT_MAX 2147483647
#define INT_MIN (-2147483647 - 1)
#define UINT_MAX 4294967295u
#define SHRT_MAX 32767
#define USHRT_MAX 65535
#define CHAR_MAX 127
#define UCHAR_MAX 255
#define LONG_MAX 9223372036854775807L
#define ULONG_MAX 18446744073709551615UL
#define M_PI_F 3.14159265358979323846f
#define M_PI_2_F 1.57079632679489661923f
#define M_PI_4_F 0.78539816339744830962f
#define M_1_PI_F 0.31830988618379067154f
#define M_2_PI_F 0.63661977236758134308f
#define M_2_SQRTPI_F 1.12837916709551257390f
#define M_E_F 2.71828182845904523536f
#define M_LN2_F 0.69314718055994530942f
#define M_LN10_F 2.30258509299404568402f
#define M_LOG2E_F 1.44269504088896340736f
#define M_LOG10E_F 0.43429448190325182765f
#define M_SQRT2_F 1.41421356237309504880f
#define M_SQRT1_2_F 0.70710678118654752440f
#define M_PI_H ((half)3.14159265f)
