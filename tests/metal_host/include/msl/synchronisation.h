// Barriers. Each call passes on where it stands in the kernel's text: that tells one barrier from another, and names it.
#pragma once

struct msl_site {
#ifdef MSL_CHECK
  static constexpr msl_site here() { return {}; }
#else
  const char* file;
  int line;
  int column;
  static constexpr msl_site here(const char* file = __builtin_FILE(), int line = __builtin_LINE(), int column = __builtin_COLUMN()) {
    return {file, line, column};
  }
#endif
};
#define MSL_HERE msl_site site = msl_site::here()

#ifndef MSL_CHECK
extern "C" {
void host_barrier(int flags, const msl_site* site);
void host_simd_barrier(int flags, const msl_site* site);
}
#endif

namespace metal {
enum class mem_flags : uint { mem_none = 0, mem_device = 1, mem_threadgroup = 2, mem_texture = 4, mem_threadgroup_imageblock = 8 };
MSL_FUNC constexpr mem_flags operator|(mem_flags a, mem_flags b) { return (mem_flags)((uint)a | (uint)b); }

#ifdef MSL_CHECK
void threadgroup_barrier(mem_flags flags);
void simdgroup_barrier(mem_flags flags);
#else
MSL_FUNC void threadgroup_barrier(mem_flags flags, MSL_HERE) { host_barrier((int)flags, &site); }
MSL_FUNC void simdgroup_barrier(mem_flags flags, MSL_HERE) { host_simd_barrier((int)flags, &site); }
#endif
}  // namespace metal
