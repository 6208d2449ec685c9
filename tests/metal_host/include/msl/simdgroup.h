// Simdgroup and quadgroup functions. Each is one exchange: every lane hands in its value, then reads what it needs.
#pragma once

#ifndef MSL_CHECK
extern "C" {
// Waits for the simdgroup; then *slots is where lane l's value lies, MSL_SLOT bytes apart. Returns the mask of the lanes that take part.
uint host_simd_exchange(const void* value, int size, const msl_site* site, uint* lane, const char** slots);
// A read of a lane that takes no part: ends the launch when it is strict.
void host_inactive_lane(uint lane, const msl_site* site);
}
#endif
#define MSL_SLOT 16
#ifdef MSL_CHECKED
#define MSL_LANE_FUNC MSL_UNCHECKED  // reading a lane is no access of the kernel's
#else
#define MSL_LANE_FUNC MSL_FUNC
#endif

namespace metal {
// Metal's simd functions take scalars of at most 32 bits and vectors of them; not bool.
template <class T>
constexpr bool is_simd_type = !is_same_v<T, bool> && sizeof(T) <= MSL_SLOT && sizeof(typename element_of<T>::type) <= 4;

template <class T>
struct exchange {
  uint active = 0, self = 0;
  T own;
#ifdef MSL_CHECK
  exchange(T value, msl_site) : own(value) {}
  T at(uint) const { return own; }
#else
  const char* slots;
  msl_site site;
  MSL_FUNC exchange(T value, msl_site where) : own(value), site(where) {
    active = host_simd_exchange(&own, (int)sizeof(T), &site, &self, &slots);
  }
  MSL_LANE_FUNC T at(uint lane) const {
    if (!has(lane)) {
      host_inactive_lane(lane, &site);
      return own;
    }
    T value;
    __builtin_memcpy(&value, slots + MSL_SLOT * lane, sizeof(T));
    return value;
  }
#endif
  MSL_FUNC bool has(uint lane) const { return lane < 32 && ((active >> lane) & 1); }
  MSL_FUNC uint first() const { return active ? (uint)__builtin_ctz(active) : 0; }
};

struct take_sum {
  template <class T>
  MSL_FUNC static T of(T a, T b) { return a + b; }
};
struct take_product {
  template <class T>
  MSL_FUNC static T of(T a, T b) { return a * b; }
};
struct take_max {
  template <class T>
  MSL_FUNC static T of(T a, T b) { return max(a, b); }
};
struct take_min {
  template <class T>
  MSL_FUNC static T of(T a, T b) { return min(a, b); }
};
struct take_and {
  template <class T>
  MSL_FUNC static T of(T a, T b) { return a & b; }
};
struct take_or {
  template <class T>
  MSL_FUNC static T of(T a, T b) { return a | b; }
};
struct take_xor {
  template <class T>
  MSL_FUNC static T of(T a, T b) { return a ^ b; }
};

// Pairwise, over the active lanes of [first, first + COUNT).
template <class Take, int COUNT, class T>
MSL_FUNC T reduce_lanes(const thread exchange<T>& lanes, uint first) {
  T value[COUNT];
  bool present[COUNT];
  for (uint i = 0; i < COUNT; i++) {
    present[i] = lanes.has(first + i);
    value[i] = present[i] ? lanes.at(first + i) : lanes.own;
  }
  for (uint step = 1; step < COUNT; step *= 2) {
    for (uint i = 0; i + step < COUNT; i += 2 * step) {
      if (present[i] && present[i + step]) value[i] = Take::of(value[i], value[i + step]);
      if (!present[i] && present[i + step]) value[i] = value[i + step];
      present[i] = present[i] || present[i + step];
    }
  }
  return value[0];
}

#define MSL_MUST_BE_SIMD_TYPE(NAME) static_assert(is_simd_type<T>, #NAME " has no overload for this type in Metal")
#define MSL_REDUCTION(NAME, TAKE)                                      \
  template <class T>                                                   \
  MSL_FUNC T simd_##NAME(T value, MSL_HERE) {                          \
    MSL_MUST_BE_SIMD_TYPE(simd_##NAME);                                \
    exchange<T> lanes(value, site);                                    \
    return reduce_lanes<TAKE, 32>(lanes, 0);                           \
  }                                                                    \
  template <class T>                                                   \
  MSL_FUNC T quad_##NAME(T value, MSL_HERE) {                          \
    MSL_MUST_BE_SIMD_TYPE(quad_##NAME);                                \
    exchange<T> lanes(value, site);                                    \
    return reduce_lanes<TAKE, 4>(lanes, lanes.self & ~3u);             \
  }
MSL_REDUCTION(sum, take_sum)
MSL_REDUCTION(product, take_product)
MSL_REDUCTION(max, take_max)
MSL_REDUCTION(min, take_min)
MSL_REDUCTION(and, take_and)
MSL_REDUCTION(or, take_or)
MSL_REDUCTION(xor, take_xor)
#undef MSL_REDUCTION

#define MSL_PREFIX(NAME, NEUTRAL, OPERATOR)                                      \
  template <class T>                                                             \
  MSL_FUNC T simd_prefix_inclusive_##NAME(T value, MSL_HERE) {                   \
    MSL_MUST_BE_SIMD_TYPE(simd_prefix_inclusive_##NAME);                         \
    exchange<T> lanes(value, site);                                              \
    T total = (T)NEUTRAL;                                                        \
    for (uint l = 0; l <= lanes.self; l++)                                       \
      if (lanes.has(l)) total = total OPERATOR lanes.at(l);                      \
    return total;                                                                \
  }                                                                              \
  template <class T>                                                             \
  MSL_FUNC T simd_prefix_exclusive_##NAME(T value, MSL_HERE) {                   \
    MSL_MUST_BE_SIMD_TYPE(simd_prefix_exclusive_##NAME);                         \
    exchange<T> lanes(value, site);                                              \
    T total = (T)NEUTRAL;                                                        \
    for (uint l = 0; l < lanes.self; l++)                                        \
      if (lanes.has(l)) total = total OPERATOR lanes.at(l);                      \
    return total;                                                                \
  }
MSL_PREFIX(sum, 0, +)
MSL_PREFIX(product, 1, *)
#undef MSL_PREFIX

// LANE in lanes.self and n; a lane outside the group of SIZE that starts at `base` keeps its own value where Metal says so.
#define MSL_SHUFFLE(NAME, SIZE, LANE, KEEPS_OWN)                                 \
  template <class T>                                                             \
  MSL_FUNC T NAME(T value, ushort n, MSL_HERE) {                                 \
    MSL_MUST_BE_SIMD_TYPE(NAME);                                                 \
    exchange<T> lanes(value, site);                                              \
    const int base = (int)lanes.self & ~(SIZE - 1), self = (int)lanes.self - base, lane = (LANE); \
    if (KEEPS_OWN && (lane < 0 || lane >= SIZE)) return value;                   \
    return lanes.at(lane < 0 || lane >= SIZE ? 32u : (uint)(base + lane));       \
  }
#define MSL_SHUFFLES(PREFIX, SIZE)                                                         \
  MSL_SHUFFLE(PREFIX##_shuffle, SIZE, (int)n, false)                                       \
  MSL_SHUFFLE(PREFIX##_broadcast, SIZE, (int)n, false)                                     \
  MSL_SHUFFLE(PREFIX##_shuffle_xor, SIZE, self ^ (int)n, false)                            \
  MSL_SHUFFLE(PREFIX##_shuffle_down, SIZE, self + (int)n, true)                            \
  MSL_SHUFFLE(PREFIX##_shuffle_up, SIZE, self - (int)n, true)                              \
  MSL_SHUFFLE(PREFIX##_shuffle_rotate_down, SIZE, (self + (int)n) & (SIZE - 1), false)     \
  MSL_SHUFFLE(PREFIX##_shuffle_rotate_up, SIZE, (self - (int)n) & (SIZE - 1), false)       \
  template <class T>                                                                       \
  MSL_FUNC T PREFIX##_broadcast_first(T value, MSL_HERE) {                                 \
    MSL_MUST_BE_SIMD_TYPE(PREFIX##_broadcast_first);                                       \
    exchange<T> lanes(value, site);                                                        \
    uint lane = lanes.self & ~(SIZE - 1u);                                                 \
    while (!lanes.has(lane) && lane < 31) lane++;                                          \
    return lanes.at(lane);                                                                 \
  }                                                                                        \
  MSL_FUNC bool PREFIX##_is_first(MSL_HERE) {                                              \
    exchange<int> lanes(0, site);                                                          \
    uint lane = lanes.self & ~(SIZE - 1u);                                                 \
    while (!lanes.has(lane) && lane < 31) lane++;                                          \
    return lanes.self == lane;                                                             \
  }                                                                                        \
  template <class T>                                                                       \
  MSL_FUNC T PREFIX##_shuffle_and_fill_down(T value, T fill, ushort n, MSL_HERE) {         \
    MSL_MUST_BE_SIMD_TYPE(PREFIX##_shuffle_and_fill_down);                                 \
    exchange<T> lanes(value, site);                                                        \
    const uint lane = lanes.self + n, end = (lanes.self & ~(SIZE - 1u)) + SIZE;            \
    const T shifted = lane < end ? lanes.at(lane) : value;                                 \
    exchange<T> fills(fill, site);                                                         \
    return lane < end ? shifted : fills.at(lane - SIZE);                                   \
  }                                                                                        \
  template <class T>                                                                       \
  MSL_FUNC T PREFIX##_shuffle_and_fill_up(T value, T fill, ushort n, MSL_HERE) {           \
    MSL_MUST_BE_SIMD_TYPE(PREFIX##_shuffle_and_fill_up);                                   \
    exchange<T> lanes(value, site);                                                        \
    const int lane = (int)lanes.self - (int)n, begin = (int)lanes.self & ~(SIZE - 1);      \
    const T shifted = lane >= begin ? lanes.at((uint)lane) : value;                        \
    exchange<T> fills(fill, site);                                                         \
    return lane >= begin ? shifted : fills.at((uint)(lane + SIZE));                        \
  }
MSL_SHUFFLES(simd, 32)
MSL_SHUFFLES(quad, 4)
#undef MSL_SHUFFLES
#undef MSL_SHUFFLE

// The lanes for which `value` holds, as bits.
MSL_FUNC uint ballot_of(bool value, thread uint& active, msl_site site) {
  exchange<uint> lanes(value, site);
  uint bits = 0;
  for (uint l = 0; l < 32; l++)
    if (lanes.has(l) && lanes.at(l)) bits |= 1u << l;
  active = lanes.active;
  return bits;
}

struct simd_vote {
  typedef ulong vote_t;
  vote_t bits;
  MSL_FUNC explicit constexpr simd_vote(vote_t v = 0) : bits(v) {}
  MSL_FUNC explicit constexpr operator vote_t() const { return bits; }
  MSL_FUNC explicit constexpr operator uint() const { return (uint)bits; }
  MSL_FUNC constexpr bool all() const { return bits == 0xFFFFFFFFul; }
  MSL_FUNC constexpr bool any() const { return bits != 0; }
};
MSL_FUNC simd_vote simd_ballot(bool value, MSL_HERE) {
  uint active;
  return simd_vote(ballot_of(value, active, site));
}
MSL_FUNC simd_vote simd_active_threads_mask(MSL_HERE) {
  uint active;
  return simd_vote(ballot_of(true, active, site));
}
MSL_FUNC bool simd_any(bool value, MSL_HERE) {
  uint active;
  return ballot_of(value, active, site) != 0;
}
MSL_FUNC bool simd_all(bool value, MSL_HERE) {
  uint active;
  return ballot_of(value, active, site) == active;
}
MSL_FUNC bool quad_any(bool value, MSL_HERE) {
  uint active;
  const uint self = exchange<uint>(0u, site).self;
  return ((ballot_of(value, active, site) >> (self & ~3u)) & 15u) != 0;
}
MSL_FUNC bool quad_all(bool value, MSL_HERE) {
  uint active;
  const uint self = exchange<uint>(0u, site).self;
  const uint bits = ballot_of(value, active, site);
  return ((bits ^ active) >> (self & ~3u) & 15u) == 0;
}
}  // namespace metal
