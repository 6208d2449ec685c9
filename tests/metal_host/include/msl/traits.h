// Type traits and numeric limits.
#pragma once

namespace metal {
template <class T, T V>
struct integral_constant {
  static constexpr T value = V;
  typedef T value_type;
  constexpr operator T() const { return V; }
};
typedef integral_constant<bool, true> true_type;
typedef integral_constant<bool, false> false_type;

template <class T, class U>
struct is_same : false_type {};
template <class T>
struct is_same<T, T> : true_type {};
template <class T, class U>
constexpr bool is_same_v = is_same<T, U>::value;

template <bool B, class T = void>
struct enable_if {};
template <class T>
struct enable_if<true, T> {
  typedef T type;
};
template <bool B, class T = void>
using enable_if_t = typename enable_if<B, T>::type;

template <bool B, class T, class U>
struct conditional {
  typedef T type;
};
template <class T, class U>
struct conditional<false, T, U> {
  typedef U type;
};
template <bool B, class T, class U>
using conditional_t = typename conditional<B, T, U>::type;

template <class T>
struct remove_cv {
  typedef __remove_cv(T) type;
};
template <class T>
using remove_cv_t = typename remove_cv<T>::type;
template <class T>
struct remove_reference {
  typedef __remove_reference_t(T) type;
};
template <class T>
using remove_reference_t = typename remove_reference<T>::type;
template <class T>
using decay_t = remove_cv_t<remove_reference_t<T>>;

template <class T>
constexpr bool is_floating_point_v = is_same_v<T, float> || is_same_v<T, half> || is_same_v<T, bfloat>;
template <class T>
constexpr bool is_integral_v = __is_integral(T);
template <class T>
constexpr bool is_arithmetic_v = is_floating_point_v<T> || is_integral_v<T>;
template <class T>
constexpr bool is_signed_v = is_floating_point_v<T> || (is_integral_v<T> && __is_signed(T));
template <class T>
constexpr bool is_unsigned_v = is_integral_v<T> && __is_unsigned(T);
template <class From, class To>
constexpr bool is_convertible_v = __is_convertible(From, To);
template <class T>
struct is_floating_point : integral_constant<bool, is_floating_point_v<T>> {};
template <class T>
struct is_integral : integral_constant<bool, is_integral_v<T>> {};
template <class T>
struct is_signed : integral_constant<bool, is_signed_v<T>> {};
template <class T>
struct is_unsigned : integral_constant<bool, is_unsigned_v<T>> {};
template <class From, class To>
struct is_convertible : integral_constant<bool, is_convertible_v<From, To>> {};
template <class... Bs>
struct _disjunction : integral_constant<bool, (Bs::value || ...)> {};
template <class... Bs>
struct _conjunction : integral_constant<bool, (Bs::value && ...)> {};

template <class T>
struct numeric_limits;
#define MSL_INTEGER_LIMITS(T, MIN, MAX)             \
  template <>                                       \
  struct numeric_limits<T> {                        \
    static constexpr T min() { return MIN; }        \
    static constexpr T max() { return MAX; }        \
    static constexpr T lowest() { return MIN; }     \
    static constexpr bool is_integer = true;        \
  };
MSL_INTEGER_LIMITS(bool, false, true)
MSL_INTEGER_LIMITS(char, -128, 127)
MSL_INTEGER_LIMITS(signed char, -128, 127)
MSL_INTEGER_LIMITS(uchar, 0, 255)
MSL_INTEGER_LIMITS(short, -32768, 32767)
MSL_INTEGER_LIMITS(ushort, 0, 65535)
MSL_INTEGER_LIMITS(int, INT_MIN, INT_MAX)
MSL_INTEGER_LIMITS(uint, 0, UINT_MAX)
MSL_INTEGER_LIMITS(long, -LONG_MAX - 1, LONG_MAX)
MSL_INTEGER_LIMITS(ulong, 0, ULONG_MAX)
#undef MSL_INTEGER_LIMITS
#define MSL_FLOAT_LIMITS(T, MIN, MAX, EPSILON)                                   \
  template <>                                                                    \
  struct numeric_limits<T> {                                                     \
    static constexpr T min() { return (T)MIN; }                                  \
    static constexpr T max() { return (T)MAX; }                                  \
    static constexpr T lowest() { return -(T)MAX; }                              \
    static constexpr T infinity() { return (T)__builtin_inff(); }                \
    static constexpr T quiet_NaN() { return (T)__builtin_nanf(""); }             \
    static constexpr T epsilon() { return (T)EPSILON; }                          \
    static constexpr bool is_integer = false;                                    \
  };
MSL_FLOAT_LIMITS(float, 1.17549435e-38f, 3.40282347e38f, 1.1920929e-7f)
MSL_FLOAT_LIMITS(half, 6.103515625e-5f, 65504.f, 9.765625e-4f)
MSL_FLOAT_LIMITS(bfloat, 1.17549435e-38f, 3.38953139e38f, 7.8125e-3f)
#undef MSL_FLOAT_LIMITS
}  // namespace metal
