// Definitions of Metal's keywords and functions for CUDA, so that both compile the same source.
#define device
#define thread
#define threadgroup
#define inline __device__ __forceinline__

enum class mem_flags { mem_none, mem_device, mem_threadgroup };

inline void threadgroup_barrier(mem_flags) { __syncthreads(); }
inline float simd_shuffle_xor(float value, int mask) { return __shfl_xor_sync(0xffffffffu, value, mask); }
// A single instruction: the compiler may turn `?:` into a branch and duplicate a following shuffle in both arms, where half of the lanes
// wait.
inline float select(float otherwise, float chosen, bool condition) {
  float result;
  asm("{.reg .pred p; setp.ne.s32 p, %3, 0; selp.f32 %0, %1, %2, p;}" : "=f"(result) : "f"(chosen), "f"(otherwise), "r"(int(condition)));
  return result;
}
// Without denormals, which would cost more instructions than the operation itself: an exp below 1e-38 becomes 0.
namespace fast {
inline float exp2(float a) {
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(a));
  return result;
}
inline float exp(float a) { return exp2(1.44269504f * a); }
inline float divide(float a, float b) {
  float result;
  asm("div.approx.ftz.f32 %0, %1, %2;" : "=f"(result) : "f"(a), "f"(b));
  return result;
}
}  // namespace fast

template <typename To>
inline To as_type(unsigned int bits) {
  return *reinterpret_cast<To*>(&bits);
}
