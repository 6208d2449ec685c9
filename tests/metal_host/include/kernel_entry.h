// What follows a kernel's text: how the runtime calls it, and where its threadgroup variables lie.
#pragma once

struct msl_context {  // Context in runtime.cpp
  uint position_in_grid[3], position_in_group[3], group_position[3], group_size[3], dispatched_group_size[3], groups[3], grid[3];
  uint index, lane, simdgroup, simdgroups;
};

static inline __attribute__((always_inline)) uint3 msl_three(const uint* v) { return uint3{v[0], v[1], v[2]}; }

#define MSL_ENTRY extern "C" __attribute__((visibility("default"), used, disable_sanitizer_instrumentation))

#ifdef __APPLE__
extern char msl_threadgroup_begin __asm("section$start$__DATA$msl_tg");
extern char msl_threadgroup_end __asm("section$end$__DATA$msl_tg");
// The section exists even where the kernel has no threadgroup variable.
__attribute__((section("__DATA,msl_tg"), used)) static char msl_nothing[0];
#else
extern "C" {
extern char msl_threadgroup_begin __asm("__start_msl_tg") __attribute__((weak, visibility("hidden")));
extern char msl_threadgroup_end __asm("__stop_msl_tg") __attribute__((weak, visibility("hidden")));
}
#endif

MSL_ENTRY void msl_bounds(char** bounds) {
  bounds[0] = &msl_threadgroup_begin;
  bounds[1] = &msl_threadgroup_end;
}
