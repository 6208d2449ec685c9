// MLX's complex numbers without the overloads that differ only in the address space of `this`, which are one function here.
#pragma once
#include <metal_stdlib>
using namespace metal;

template <typename T>
struct complex_t {
  typedef T value_type;
  T real;
  T imag;
  constexpr complex_t() : real(0), imag(0) {}
  constexpr complex_t(T r, T i = 0) : real(r), imag(i) {}
};
typedef complex_t<float> complex64_t;
typedef complex_t<half> complex32_t;

template <typename T>
constexpr complex_t<T> operator-(complex_t<T> a) {
  return {-a.real, -a.imag};
}
template <typename T>
constexpr complex_t<T> operator+(complex_t<T> a, complex_t<T> b) {
  return {a.real + b.real, a.imag + b.imag};
}
template <typename T>
constexpr complex_t<T> operator-(complex_t<T> a, complex_t<T> b) {
  return {a.real - b.real, a.imag - b.imag};
}
template <typename T>
constexpr complex_t<T> operator*(complex_t<T> a, complex_t<T> b) {
  return {a.real * b.real - a.imag * b.imag, a.real * b.imag + a.imag * b.real};
}
template <typename T>
constexpr complex_t<T> operator/(complex_t<T> a, complex_t<T> b) {
  T size = b.real * b.real + b.imag * b.imag;
  return {(a.real * b.real + a.imag * b.imag) / size, (a.imag * b.real - a.real * b.imag) / size};
}
template <typename T>
constexpr bool operator==(complex_t<T> a, complex_t<T> b) {
  return a.real == b.real && a.imag == b.imag;
}
#define MSL_COMPLEX_WITH_REAL(OPERATOR)                                     \
  constexpr complex64_t operator OPERATOR(complex64_t a, float b) {         \
    return a OPERATOR complex64_t(b);                                       \
  }                                                                         \
  constexpr complex64_t operator OPERATOR(float a, complex64_t b) {         \
    return complex64_t(a) OPERATOR b;                                       \
  }
MSL_COMPLEX_WITH_REAL(+)
MSL_COMPLEX_WITH_REAL(-)
MSL_COMPLEX_WITH_REAL(*)
MSL_COMPLEX_WITH_REAL(/)
#undef MSL_COMPLEX_WITH_REAL
#define MSL_COMPLEX_ASSIGN(SPACE)                                                                                                 \
  template <typename T>                                                                                                           \
  constexpr SPACE complex_t<T>& operator+=(SPACE complex_t<T>& a, complex_t<T> b) {                                               \
    a.real += b.real;                                                                                                             \
    a.imag += b.imag;                                                                                                             \
    return a;                                                                                                                     \
  }
MSL_EACH_SPACE(MSL_COMPLEX_ASSIGN)
#undef MSL_COMPLEX_ASSIGN
