// Atomics. All fibers share one thread of the host, so plain operations do; the access checker is told apart.
#pragma once

#ifndef MSL_CHECK
extern "C" void host_atomic(const volatile void* address, int size, int mode, void* caller);
// MODE: 0 load, 1 store, 2 both
#define MSL_NOTE_ATOMIC(MODE) host_atomic((const volatile void*)p, (int)sizeof(T), MODE, __builtin_return_address(0));
#else
#define MSL_NOTE_ATOMIC(MODE)
#endif

namespace metal {
enum memory_order { memory_order_relaxed, memory_order_acquire, memory_order_release, memory_order_acq_rel, memory_order_seq_cst };
enum thread_scope { thread_scope_thread, thread_scope_simdgroup, thread_scope_threadgroup, thread_scope_device };
MSL_FUNC void atomic_thread_fence(mem_flags, memory_order, thread_scope = thread_scope_device) {}

template <class T>
struct atomic_cell {
  static_assert(is_same_v<T, int> || is_same_v<T, uint> || is_same_v<T, float> || is_same_v<T, bool> || is_same_v<T, ulong>,
                "Metal's atomic<T> takes int, uint, float and bool, and ulong for min and max only");
  T v;
};
template <class T>
using atomic = atomic_cell<T>;
typedef atomic<int> atomic_int;
typedef atomic<uint> atomic_uint;
typedef atomic<float> atomic_float;
typedef atomic<bool> atomic_bool;
typedef atomic<ulong> atomic_ulong;

// The value of an atomic call converts to T and does not decide T.
template <class T>
struct same_type {
  typedef T type;
};
#define MSL_VALUE typename same_type<T>::type

#define MSL_ATOMIC_FETCH(SPACE, NAME, ALLOWED, EXPRESSION)                                            \
  template <class T>                                                                                  \
  MSL_UNCHECKED T atomic_fetch_##NAME##_explicit(volatile SPACE atomic<T>* p, MSL_VALUE v, memory_order) { \
    static_assert(ALLOWED, "Metal has no atomic_fetch_" #NAME "_explicit for this type");             \
    MSL_NOTE_ATOMIC(2)                                                                                \
    T old = p->v;                                                                                     \
    p->v = EXPRESSION;                                                                                \
    return old;                                                                                       \
  }
#define MSL_IS_32_BIT_INTEGER (is_same_v<T, int> || is_same_v<T, uint>)
#define MSL_ATOMICS(SPACE)                                                                            \
  template <class T>                                                                                  \
  MSL_UNCHECKED void atomic_store_explicit(volatile SPACE atomic<T>* p, MSL_VALUE v, memory_order) {  \
    MSL_NOTE_ATOMIC(1)                                                                                \
    p->v = v;                                                                                         \
  }                                                                                                   \
  template <class T>                                                                                  \
  MSL_UNCHECKED T atomic_load_explicit(const volatile SPACE atomic<T>* p, memory_order) {             \
    MSL_NOTE_ATOMIC(0)                                                                                \
    return p->v;                                                                                      \
  }                                                                                                   \
  template <class T>                                                                                  \
  MSL_UNCHECKED T atomic_exchange_explicit(volatile SPACE atomic<T>* p, MSL_VALUE v, memory_order) {  \
    MSL_NOTE_ATOMIC(2)                                                                                \
    T old = p->v;                                                                                     \
    p->v = v;                                                                                         \
    return old;                                                                                       \
  }                                                                                                   \
  template <class T>                                                                                  \
  MSL_UNCHECKED bool atomic_compare_exchange_weak_explicit(                                           \
      volatile SPACE atomic<T>* p, thread T* expected, MSL_VALUE v, memory_order, memory_order) {     \
    MSL_NOTE_ATOMIC(2)                                                                                \
    T old = p->v;                                                                                     \
    if (old == *expected) {                                                                           \
      p->v = v;                                                                                       \
      return true;                                                                                    \
    }                                                                                                 \
    *expected = old;                                                                                  \
    return false;                                                                                     \
  }                                                                                                   \
  template <class T>                                                                                  \
  MSL_UNCHECKED void atomic_max_explicit(volatile SPACE atomic<T>* p, MSL_VALUE v, memory_order) {    \
    MSL_NOTE_ATOMIC(2)                                                                                \
    if (p->v < v) p->v = v;                                                                           \
  }                                                                                                   \
  template <class T>                                                                                  \
  MSL_UNCHECKED void atomic_min_explicit(volatile SPACE atomic<T>* p, MSL_VALUE v, memory_order) {    \
    MSL_NOTE_ATOMIC(2)                                                                                \
    if (v < p->v) p->v = v;                                                                           \
  }                                                                                                   \
  MSL_ATOMIC_FETCH(SPACE, add, MSL_IS_32_BIT_INTEGER || (is_same_v<T, float>), old + v)               \
  MSL_ATOMIC_FETCH(SPACE, sub, MSL_IS_32_BIT_INTEGER || (is_same_v<T, float>), old - v)               \
  MSL_ATOMIC_FETCH(SPACE, max, MSL_IS_32_BIT_INTEGER, old < v ? v : old)                              \
  MSL_ATOMIC_FETCH(SPACE, min, MSL_IS_32_BIT_INTEGER, v < old ? v : old)                              \
  MSL_ATOMIC_FETCH(SPACE, and, MSL_IS_32_BIT_INTEGER, old & v)                                        \
  MSL_ATOMIC_FETCH(SPACE, or, MSL_IS_32_BIT_INTEGER, old | v)                                         \
  MSL_ATOMIC_FETCH(SPACE, xor, MSL_IS_32_BIT_INTEGER, old ^ v)
#ifdef MSL_CHECK
MSL_ATOMICS(device)
MSL_ATOMICS(threadgroup)
#else
MSL_ATOMICS()
#endif
#undef MSL_ATOMICS
#undef MSL_ATOMIC_FETCH
#undef MSL_VALUE
}  // namespace metal
