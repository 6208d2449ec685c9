// Keywords of the language: address spaces, function qualifiers.
#pragma once

#define __METAL__ 1
#define __METAL_VERSION__ 310
#define __HAVE_BFLOAT__ 1
#define METAL_FUNC inline __attribute__((always_inline))
// Functions of the library: their code counts as code of the line that calls them.
#define MSL_FUNC inline __attribute__((always_inline, nodebug))
#define kernel

#ifdef MSL_CHECK

#pragma OPENCL EXTENSION cl_khr_fp16 : enable
#define device __global
#define constant __constant
#define threadgroup __local
#define thread __private
#define MSL_EACH_SPACE(X) X(device) X(threadgroup) X(thread)
// OpenCL's keywords and types are ordinary names in Metal.
#define local msl_name_local
#define global msl_name_global
#define private msl_name_private
#define generic msl_name_generic
#define pipe msl_name_pipe
#define atomic_int msl_name_atomic_int
#define atomic_uint msl_name_atomic_uint
#define atomic_float msl_name_atomic_float
#define memory_order msl_name_memory_order
#define event_t msl_name_event_t
#define sampler_t msl_name_sampler_t

#else

#define device
#define constant const
#define threadgroup
#define thread
#define MSL_EACH_SPACE(X) X()
// A threadgroup variable is one object for all fibers, in a section of its own, so that its bounds are known.
#ifdef __APPLE__
#define MSL_THREADGROUP_VARIABLE static __attribute__((section("__DATA,msl_tg"), used))
#else
#define MSL_THREADGROUP_VARIABLE static __attribute__((section("msl_tg"), used))
#endif
// Tells the access checker the name of a threadgroup array.
#ifdef MSL_CHECKED
extern "C" void host_name(const void* begin, const char* name, unsigned long size, unsigned long element_size);
#define MSL_NAME(ARRAY) host_name(&ARRAY, #ARRAY, sizeof(ARRAY), sizeof(__remove_all_extents(decltype(ARRAY))));
#else
#define MSL_NAME(ARRAY)
#endif

#endif

// Code of the runner, not of the kernel: the access checker does not look at it.
#define MSL_UNCHECKED __attribute__((noinline, no_sanitize("thread"), disable_sanitizer_instrumentation))
