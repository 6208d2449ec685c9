// Building and converting vectors. clang's vectors have no constructors, so the runner rewrites `float4(a, b)` and
// `static_cast<float4>(v)` as `metal::make<float4>(...)`.
#pragma once

namespace metal {
template <class V>
struct element_of {
  typedef V type;
};
template <class T, int N>
struct element_of<T __attribute__((ext_vector_type(N)))> {
  typedef T type;
};
template <int N>
struct element_of<bool_vector<N>> {
  typedef bool type;
};

template <int N>
MSL_FUNC bool get_item(bool_vector<N> v, int i) {
  if (i == 0) return v.x;
  if (i == 1) return v.y;
  if constexpr (N > 2) {
    if (i == 2) return v.z;
  }
  if constexpr (N > 3) {
    if (i == 3) return v.w;
  }
  return false;
}
template <class V>
MSL_FUNC auto get_item(V v, int i) {
  return v[i];
}

template <int N>
MSL_FUNC void set_item(thread bool_vector<N>& v, int i, bool value) {
  if (i == 0) v.x = value;
  if (i == 1) v.y = value;
  if constexpr (N > 2) {
    if (i == 2) v.z = value;
  }
  if constexpr (N > 3) {
    if (i == 3) v.w = value;
  }
}
template <class V, class T>
MSL_FUNC void set_item(thread V& v, int i, T value) {
  v[i] = (typename element_of<V>::type)value;
}

template <class V>
MSL_FUNC void put_items(thread V&, int) {}
template <class V, class A, class... Rest>
MSL_FUNC void put_items(thread V& v, int i, A first, Rest... rest) {
  if constexpr (vector_size<A>::value > 0) {
    for (int k = 0; k < vector_size<A>::value; k++) set_item(v, i + k, get_item(first, k));
    put_items(v, i + vector_size<A>::value, rest...);
  } else {
    set_item(v, i, first);
    put_items(v, i + 1, rest...);
  }
}

template <class... As>
constexpr int count_items = ((vector_size<As>::value > 0 ? vector_size<As>::value : 1) + ... + 0);

template <class V, class... As>
MSL_FUNC V make(As... items) {
  if constexpr (vector_size<V>::value == 0) {
    return V(items...);
  } else {
    V v = {};
    if constexpr (sizeof...(As) == 1 && count_items<As...> == 1) {
      for (int i = 0; i < vector_size<V>::value; i++) put_items(v, i, items...);
    } else {
      static_assert(sizeof...(As) == 0 || count_items<As...> == vector_size<V>::value, "a vector needs as many items as it has elements");
      put_items(v, 0, items...);
    }
    return v;
  }
}
template <class V, class T, int N>
MSL_FUNC V make(packed_vector<T, N> p) {
  return make<V>((vec<T, N>)p);
}

// `(float4)v` is rewritten as `caster<float4>()->*v`: that operator binds as a cast does.
template <class V>
struct caster {
  template <class A>
  MSL_FUNC V operator->*(A a) const {
    return make<V>(a);
  }
};

template <class To, class From>
MSL_FUNC To as_type_of(From from) {
  static_assert(sizeof(To) == sizeof(From), "as_type needs two types of one size");
  return __builtin_bit_cast(To, from);
}

template <class T>
MSL_FUNC T select(T a, T b, bool c) {
  return c ? b : a;
}
template <class V, class C>
MSL_FUNC enable_if_t<(vector_size<C>::value > 0), V> select(V a, V b, C c) {
  V r = a;
  for (int i = 0; i < vector_size<C>::value; i++) r[i] = get_item(c, i) != 0 ? b[i] : a[i];
  return r;
}
template <class V>
MSL_FUNC enable_if_t<(vector_size<V>::value > 0), bool> any(V v) {
  bool r = false;
  for (int i = 0; i < vector_size<V>::value; i++) r |= get_item(v, i) != 0;
  return r;
}
template <class V>
MSL_FUNC enable_if_t<(vector_size<V>::value > 0), bool> all(V v) {
  bool r = true;
  for (int i = 0; i < vector_size<V>::value; i++) r &= get_item(v, i) != 0;
  return r;
}
}  // namespace metal

#define as_type ::metal::as_type_of
