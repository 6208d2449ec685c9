// The host runner's runtime: runs the threads of a threadgroup as fibers of one host thread, gives them barriers and
// simdgroup exchanges, and, for kernels compiled with -fsanitize=thread, checks every access to memory.
//
// Parts: the launch as Python hands it over; fibers; barriers and exchanges; the access checker; the scheduler; crashes.

#include <dlfcn.h>
#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

typedef unsigned int uint;
#define EXPORTED extern "C" __attribute__((visibility("default")))

// ---- The launch. runner.py mirrors these structures field by field.

struct Site {  // msl_site of the kernel's own code
  const char* file;
  int line;
  int column;
};

struct Context {  // what a kernel's built-in arguments are made from; the generated entry function knows it as msl_context
  uint position_in_grid[3], position_in_group[3], group_position[3], group_size[3], dispatched_group_size[3], groups[3], grid[3];
  uint index, lane, simdgroup, simdgroups;
};

enum FaultKind {
  NO_FAULT,
  BARRIER_AFTER_RETURN,
  DIVERGENT_BARRIER,
  DIVERGENT_SIMD,
  INACTIVE_LANE,
  RACE,
  WRITE_CONFLICT,
  OUT_OF_BOUNDS,
  READ_ONLY_WRITE,
  UNINITIALISED_READ,
  CRASH,
  NEEDS_BYTE_CELLS,  // not a fault: an access smaller than a cell; run again with one cell a byte
};

struct Place {
  uint thread, group, writes, atomic;
  uint64_t code;  // offset of the machine code in the kernel's library, or 0
  const char* file;
  uint line, column;
};

struct Fault {
  int kind;
  int span;  // index of the array, -1 for threadgroup memory
  int64_t offset;
  uint size, count;
  Place here, there;
};

struct Span {  // one array in device or constant memory
  char* base;
  uint64_t size;
  uint writable, initialised, cell_bytes, reserved;
  uint64_t unwritten, first_unwritten;
};

struct Named {  // one threadgroup array, as the kernel names it
  const char* begin;
  const char* name;
  uint64_t size, element_size;
};

struct Launch {
  void (*entry)(void**, const Context*);
  void** buffers;
  uint grid[3], group[3];
  uint schedule, seed, checked, strict_simd;
  char *threadgroup_begin, *threadgroup_end;
  Span* spans;
  uint span_count, threadgroup_cell_bytes;
  uint64_t switches, accesses;
  uint name_count, flush_denormals;
  Named names[64];
  Fault fault;
};

enum Schedule { FORWARD, REVERSE, SHUFFLED };
enum { MAX_THREADS = 1024, MAX_SIMDGROUPS = 32, LANES = 32, SLOT = 16 };

// ---- State of the one launch under way

enum FiberState { READY, AT_EXCHANGE, AT_BARRIER, DONE };

struct Fiber {
  void* stack_pointer;
  FiberState state;
  int flags;  // of the barrier it waits at
  Site site;
  const void* value;  // of the exchange it waits at
  int value_size;
  Context context;
};

static Launch* launch;
static Fiber fibers[MAX_THREADS];
static Fiber* current;
static int fiber_count;
static void* scheduler_stack_pointer;
static bool aborted;
static char* stacks;
static const size_t GUARD = 16384, STACK = 262144 + GUARD;
static char exchanged[MAX_SIMDGROUPS][LANES][SLOT];
static uint exchange_mask[MAX_SIMDGROUPS];
static uint group_number;  // counts the threadgroups that have started
static char* code_base;    // where the kernel's library lies

static Place place_of(const Fiber* fiber) {
  return {fiber->context.index, group_number - 1, 0, 0, 0, fiber->site.file, (uint)fiber->site.line, (uint)fiber->site.column};
}

static Fault* raise_fault(FaultKind kind) {
  static Fault ignored;
  if (aborted) return &ignored;
  aborted = true;
  launch->fault = Fault{kind, 0, 0, 0, 0, {}, {}};
  return &launch->fault;
}

// ---- Fibers: save the registers a function must keep on the old stack, switch, load them from the new one.

extern "C" void host_switch(void** save, void* load) __asm__("host_switch");

#if defined(__x86_64__)
__asm__(
    ".text\n.p2align 4\n.globl host_switch\nhost_switch:\n"
    "pushq %rbp\npushq %rbx\npushq %r12\npushq %r13\npushq %r14\npushq %r15\n"
    "movq %rsp, (%rdi)\nmovq %rsi, %rsp\n"
    "popq %r15\npopq %r14\npopq %r13\npopq %r12\npopq %rbx\npopq %rbp\nretq\n");
static const int SAVED_WORDS = 8, RETURN_WORD = 6;  // six registers, the return address, and a zero that ends backtraces
#elif defined(__aarch64__)
__asm__(
    ".text\n.p2align 4\n.globl host_switch\nhost_switch:\n"
    "sub sp, sp, #160\n"
    "stp x19, x20, [sp]\nstp x21, x22, [sp, #16]\nstp x23, x24, [sp, #32]\nstp x25, x26, [sp, #48]\n"
    "stp x27, x28, [sp, #64]\nstp x29, x30, [sp, #80]\n"
    "stp d8, d9, [sp, #96]\nstp d10, d11, [sp, #112]\nstp d12, d13, [sp, #128]\nstp d14, d15, [sp, #144]\n"
    "mov x9, sp\nstr x9, [x0]\nmov sp, x1\n"
    "ldp x19, x20, [sp]\nldp x21, x22, [sp, #16]\nldp x23, x24, [sp, #32]\nldp x25, x26, [sp, #48]\n"
    "ldp x27, x28, [sp, #64]\nldp x29, x30, [sp, #80]\n"
    "ldp d8, d9, [sp, #96]\nldp d10, d11, [sp, #112]\nldp d12, d13, [sp, #128]\nldp d14, d15, [sp, #144]\n"
    "add sp, sp, #160\nret\n");
static const int SAVED_WORDS = 20, RETURN_WORD = 11;
#else
#error "fibers are written for x86-64 and aarch64"
#endif

static void settle_pending_write();

static void yield_to_scheduler() {
  launch->switches++;
  host_switch(&current->stack_pointer, scheduler_stack_pointer);
}

[[noreturn]] static void end_fiber() {
  current->state = DONE;
  yield_to_scheduler();
  __builtin_trap();
}

static void fiber_main() {
  launch->entry(launch->buffers, &current->context);
  settle_pending_write();
  end_fiber();
}

static char* stack_of(const Fiber* fiber) { return stacks + (size_t)(fiber - fibers) * STACK; }

static bool make_stacks() {
  if (stacks) return true;
  void* memory = mmap(nullptr, STACK * MAX_THREADS, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANON | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) return false;
  stacks = (char*)memory;
  for (int i = 0; i < MAX_THREADS; i++) mprotect(stacks + STACK * i, GUARD, PROT_NONE);
  return true;
}

static void start_fiber(Fiber* fiber) {
  const size_t spread = (size_t)(fiber->context.index % 20) * 192;  // keeps the fibers' hot lines out of one cache set
  void** top = (void**)((uintptr_t)(stack_of(fiber) + STACK - 64 - spread) & ~(uintptr_t)15);
  void** saved = top - SAVED_WORDS;
  memset(saved, 0, SAVED_WORDS * sizeof(void*));
  saved[RETURN_WORD] = (void*)fiber_main;
  fiber->stack_pointer = saved;
  fiber->state = READY;
}

// ---- Barriers and exchanges, called by the kernel

static void wait_as(FiberState state, const Site* site, int flags, const void* value, int value_size) {
  settle_pending_write();
  current->state = state;
  current->site = *site;
  current->flags = flags;
  current->value = value;
  current->value_size = value_size;
  yield_to_scheduler();
  if (aborted) end_fiber();
}

EXPORTED void host_barrier(int flags, const Site* site) { wait_as(AT_BARRIER, site, flags, nullptr, 0); }
EXPORTED void host_simd_barrier(int flags, const Site* site) { wait_as(AT_EXCHANGE, site, flags, nullptr, 0); }

EXPORTED uint host_simd_exchange(const void* value, int size, const Site* site, uint* lane, const char** slots) {
  wait_as(AT_EXCHANGE, site, 0, value, size);
  const uint simdgroup = current->context.simdgroup;
  *lane = current->context.lane;
  *slots = &exchanged[simdgroup][0][0];
  return exchange_mask[simdgroup];
}

EXPORTED void host_inactive_lane(uint lane, const Site* site) {
  if (!launch->strict_simd) return;
  current->site = *site;
  Fault* fault = raise_fault(INACTIVE_LANE);
  fault->here = place_of(current);
  fault->count = lane;
  end_fiber();
}

// ---- The access checker. Every cell of memory remembers its last write and two reads. Two accesses are ordered by a barrier
// whose flags name the memory: the epochs below count those barriers.

enum Memory { DEVICE, THREADGROUP };

struct Access {
  uint16_t thread;  // index + 1; 0: none
  uint16_t atomic;
  uint group, epoch, simd_epoch, code;
};

struct Cell {
  Access write;
  Access read[2];  // the second is kept from another simdgroup than the first if there was one
};

struct PendingWrite {  // a second write to one place: was it another value? Known only after the store.
  bool open;
  char* address;
  uint size;
  char before[64];
  Access earlier;
  Fault fault;
};

static uint epoch[2];
static uint simd_epoch[2][MAX_SIMDGROUPS];
static Cell* threadgroup_cells;
static Cell** span_cells;
static PendingWrite pending;

static Place place_of(const Access& access, bool writes) {
  return {(uint)access.thread - 1, access.group - 1, writes, access.atomic, access.code, nullptr, 0, 0};
}

static bool concurrent(const Access& earlier, const Access& now, Memory memory) {
  if (!earlier.thread || (earlier.atomic && now.atomic)) return false;
  if (earlier.group != now.group) return memory == DEVICE;
  if (earlier.thread == now.thread || earlier.epoch != now.epoch) return false;
  const bool same_simdgroup = (earlier.thread - 1) / LANES == (now.thread - 1) / LANES;
  return !(same_simdgroup && earlier.simd_epoch != now.simd_epoch);
}

static void settle_pending_write() {
  if (!pending.open) return;
  pending.open = false;
  if (aborted || memcmp(pending.before, pending.address, pending.size) == 0) return;
  *raise_fault(WRITE_CONFLICT) = pending.fault;
  end_fiber();
}

struct Target {  // where an access goes
  Memory memory;
  int span;
  uint64_t offset;
  Cell* cells;
  uint cell_bytes;
  bool initialised;
};

static Fault* fault_at(FaultKind kind, const Target& target, uint size, const Access& now, bool writes) {
  Fault* fault = raise_fault(kind);
  fault->span = target.span;
  fault->offset = (int64_t)target.offset;
  fault->size = size;
  fault->here = place_of(now, writes);
  return fault;
}

[[noreturn]] static void out_of_bounds(char* address, uint size, const Access& now, bool writes) {
  Target nearest = {THREADGROUP, -1, 0, nullptr, 1, false};
  int64_t best = INT64_MAX;
  auto consider = [&](int index, char* begin, char* end) {
    const int64_t distance = address < begin ? begin - address : address - end + 1;
    if (begin == end || distance >= best) return;
    best = distance;
    nearest.span = index;
    nearest.offset = (uint64_t)(address - begin);
  };
  consider(-1, launch->threadgroup_begin, launch->threadgroup_end);
  for (uint i = 0; i < launch->span_count; i++) consider((int)i, launch->spans[i].base, launch->spans[i].base + launch->spans[i].size);
  fault_at(OUT_OF_BOUNDS, nearest, size, now, writes);
  end_fiber();
}

static bool inside(const char* address, uint size, const char* begin, const char* end) { return address >= begin && address + size <= end; }

static bool is_own_memory(const char* address, uint size, bool writes) {
  if (inside(address, size, stack_of(current), stack_of(current) + STACK)) return true;
  if (inside(address, size, &exchanged[0][0][0], &exchanged[0][0][0] + sizeof exchanged)) return true;
  Dl_info info;  // a constant table in the kernel's library
  return !writes && dladdr(address, &info) && info.dli_fbase == code_base;
}

// Finds the array of an access; false if there is nothing to check.
static bool find_target(char* address, uint size, bool writes, const Access& now, Target* target) {
  if (inside(address, size, launch->threadgroup_begin, launch->threadgroup_end)) {
    *target = {THREADGROUP, -1, (uint64_t)(address - launch->threadgroup_begin), threadgroup_cells, launch->threadgroup_cell_bytes, false};
    return true;
  }
  for (uint i = 0; i < launch->span_count; i++) {
    const Span& span = launch->spans[i];
    if (!inside(address, size, span.base, span.base + span.size)) continue;
    *target = {DEVICE, (int)i, (uint64_t)(address - span.base), span_cells[i], span.cell_bytes, span.initialised != 0};
    if (span.writable) return true;
    if (!writes) return false;
    fault_at(READ_ONLY_WRITE, *target, size, now, writes);
    end_fiber();
  }
  if (is_own_memory(address, size, writes)) return false;
  out_of_bounds(address, size, now, writes);
}

static void check_race(const Access& earlier, bool earlier_writes, const Target& target, uint64_t cell, const Access& now, bool writes) {
  if (!concurrent(earlier, now, target.memory)) return;
  Target at = target;
  at.offset = cell * target.cell_bytes;
  Fault* fault = fault_at(RACE, at, target.cell_bytes, now, writes);
  fault->there = place_of(earlier, earlier_writes);
  end_fiber();
}

static bool is_uninitialised(const Cell& cell, const Target& target, const Access& now) {
  if (target.memory == THREADGROUP) return cell.write.group != now.group;
  return !target.initialised && !cell.write.thread;
}

static void note_second_write(const Access& earlier, const Target& target, uint64_t offset, char* address, uint size, const Access& now) {
  if (!pending.open) {
    pending.open = true;
    pending.address = address;
    pending.size = 0;
    pending.fault = {WRITE_CONFLICT, target.span, (int64_t)offset, size, 0, place_of(now, true), place_of(earlier, true)};
  }
  const uint64_t end = (uint64_t)(address - pending.address) + size;  // an access may cover several cells
  if (end > sizeof pending.before) return;
  memcpy(pending.before + pending.size, pending.address + pending.size, end - pending.size);
  pending.size = (uint)end;
}

static void remember_read(Cell& cell, const Access& now, Memory memory) {
  Access& first = cell.read[0];
  const bool first_is_past = !first.thread || (first.group == now.group ? first.epoch != now.epoch : memory == THREADGROUP);
  if (first_is_past) {
    cell.read[0] = now;
    cell.read[1] = Access{};
  } else if (first.thread == now.thread && first.group == now.group) {
    first = now;
  } else {
    const Access& second = cell.read[1];
    const bool elsewhere = (second.thread - 1) / LANES != (first.thread - 1) / LANES;
    if (!(second.thread && elsewhere && concurrent(second, now, memory))) cell.read[1] = now;
  }
}

static void check_cell(const Target& target, uint64_t index, char* address, uint size, bool reads, bool writes, const Access& now) {
  Cell& cell = target.cells[index];
  if (reads && is_uninitialised(cell, target, now)) {
    Target at = target;
    at.offset = index * target.cell_bytes;
    fault_at(UNINITIALISED_READ, at, size, now, writes);
    end_fiber();
  }
  if (reads) check_race(cell.write, true, target, index, now, writes);
  if (writes) {
    if (!reads && concurrent(cell.write, now, target.memory)) {
      if (now.atomic || cell.write.atomic) check_race(cell.write, true, target, index, now, writes);
      const uint64_t offset = index * target.cell_bytes;
      note_second_write(cell.write, target, offset, address + (offset - target.offset), target.cell_bytes, now);
    }
    check_race(cell.read[0], false, target, index, now, writes);
    check_race(cell.read[1], false, target, index, now, writes);
    cell.write = now;
  } else {
    remember_read(cell, now, target.memory);
  }
}

static void check_access(char* address, uint size, bool reads, bool writes, bool atomic, void* code) {
  if (!launch || !current || aborted || !launch->checked) return;
  settle_pending_write();
  launch->accesses++;
  const uint simdgroup = current->context.simdgroup;
  Access now = {(uint16_t)(current->context.index + 1), atomic, group_number, 0, 0, (uint)((char*)code - code_base)};
  Target target;
  if (!find_target(address, size, writes, now, &target)) return;
  now.epoch = epoch[target.memory];
  now.simd_epoch = simd_epoch[target.memory][simdgroup];
  if (target.offset % target.cell_bytes || size % target.cell_bytes) {
    fault_at(NEEDS_BYTE_CELLS, target, size, now, writes);
    end_fiber();
  }
  for (uint64_t i = target.offset / target.cell_bytes; i * target.cell_bytes < target.offset + size; i++)
    check_cell(target, i, address, size, reads, writes, now);
}

EXPORTED void host_atomic(const volatile void* address, int size, int mode, void* caller) {  // 0 load, 1 store, 2 both
  check_access((char*)address, (uint)size, mode != 1, mode != 0, true, caller);
}

EXPORTED void host_name(const void* begin, const char* name, uint64_t size, uint64_t element_size) {
  for (uint i = 0; i < launch->name_count; i++)
    if (launch->names[i].begin == begin) return;
  if (launch->name_count < 64) launch->names[launch->name_count++] = {(const char*)begin, name, size, element_size};
}

// The calls that -fsanitize=thread puts before every access.
#define CHECKED_SIZE(N)                                                                                                       \
  EXPORTED void __tsan_read##N(void* p) { check_access((char*)p, N, true, false, false, __builtin_return_address(0)); }       \
  EXPORTED void __tsan_write##N(void* p) { check_access((char*)p, N, false, true, false, __builtin_return_address(0)); }      \
  EXPORTED void __tsan_unaligned_read##N(void* p) { check_access((char*)p, N, true, false, false, __builtin_return_address(0)); } \
  EXPORTED void __tsan_unaligned_write##N(void* p) { check_access((char*)p, N, false, true, false, __builtin_return_address(0)); }
CHECKED_SIZE(1)
CHECKED_SIZE(2)
CHECKED_SIZE(4)
CHECKED_SIZE(8)
CHECKED_SIZE(16)
EXPORTED void __tsan_read_range(void* p, size_t n) { check_access((char*)p, (uint)n, true, false, false, __builtin_return_address(0)); }
EXPORTED void __tsan_write_range(void* p, size_t n) { check_access((char*)p, (uint)n, false, true, false, __builtin_return_address(0)); }
EXPORTED void* __tsan_memcpy(void* to, const void* from, size_t n) {
  check_access((char*)from, (uint)n, true, false, false, __builtin_return_address(0));
  check_access((char*)to, (uint)n, false, true, false, __builtin_return_address(0));
  return memcpy(to, from, n);
}
EXPORTED void* __tsan_memmove(void* to, const void* from, size_t n) {
  check_access((char*)from, (uint)n, true, false, false, __builtin_return_address(0));
  check_access((char*)to, (uint)n, false, true, false, __builtin_return_address(0));
  return memmove(to, from, n);
}
EXPORTED void* __tsan_memset(void* to, int value, size_t n) {
  check_access((char*)to, (uint)n, false, true, false, __builtin_return_address(0));
  return memset(to, value, n);
}
EXPORTED void __tsan_init() {}
EXPORTED void __tsan_func_entry(void*) {}
EXPORTED void __tsan_func_exit() {}

static void make_cells() {
  const size_t bytes = (size_t)(launch->threadgroup_end - launch->threadgroup_begin);
  threadgroup_cells = (Cell*)calloc(bytes / launch->threadgroup_cell_bytes + 1, sizeof(Cell));
  span_cells = (Cell**)calloc(launch->span_count + 1, sizeof(Cell*));
  for (uint i = 0; i < launch->span_count; i++) {
    const Span& span = launch->spans[i];
    if (span.writable) span_cells[i] = (Cell*)calloc(span.size / span.cell_bytes + 1, sizeof(Cell));
  }
}

static void count_unwritten(Span& span, const Cell* cells) {
  const uint64_t count = span.size / span.cell_bytes;
  span.unwritten = 0;
  for (uint64_t i = count; i-- > 0;) {
    if (cells[i].write.thread) continue;
    span.unwritten++;
    span.first_unwritten = i;
  }
}

static void free_cells() {
  for (uint i = 0; i < launch->span_count; i++) {
    if (span_cells[i] && !aborted) count_unwritten(launch->spans[i], span_cells[i]);
    free(span_cells[i]);
  }
  free(span_cells);
  free(threadgroup_cells);
}

// ---- The scheduler

static uint random_state;

static uint next_random() {
  random_state ^= random_state << 13;
  random_state ^= random_state >> 17;
  random_state ^= random_state << 5;
  return random_state;
}

static void make_order(int* order, int count) {
  for (int i = 0; i < count; i++) order[i] = launch->schedule == REVERSE ? count - 1 - i : i;
  if (launch->schedule != SHUFFLED) return;
  for (int i = count - 1; i > 0; i--) {
    const int j = (int)(next_random() % (uint)(i + 1));
    const int swapped = order[i];
    order[i] = order[j];
    order[j] = swapped;
  }
}

static void run_lanes(int begin, int end) {
  int order[LANES];
  make_order(order, end - begin);
  for (int i = 0; i < end - begin; i++) {
    Fiber* fiber = &fibers[begin + order[i]];
    if (fiber->state != READY) continue;
    current = fiber;
    host_switch(&scheduler_stack_pointer, fiber->stack_pointer);
    if (aborted) return;
  }
}

static bool same_site(const Fiber& a, const Fiber& b) {
  return a.site.line == b.site.line && a.site.column == b.site.column && strcmp(a.site.file, b.site.file) == 0;
}

static void report_divergent_simd(int first, int other, uint lanes) {
  Fault* fault = raise_fault(DIVERGENT_SIMD);
  fault->here = place_of(&fibers[first]);
  fault->there = place_of(&fibers[other]);
  fault->count = (uint)__builtin_popcount(lanes);
  fault->size = fibers[other].state == AT_BARRIER ? 1 : 0;
}

// Lets the lanes that wait at one exchange go on together; false if none waits.
static bool release_exchange(int begin, int end) {
  int first = -1, other = -1;
  uint mask = 0;
  for (int t = begin; t < end; t++) {
    const Fiber& fiber = fibers[t];
    if (fiber.state == DONE) continue;
    if (fiber.state == AT_EXCHANGE && first < 0) first = t;
    if (fiber.state == AT_EXCHANGE && same_site(fiber, fibers[first]) && fiber.value_size == fibers[first].value_size) {
      mask |= 1u << (t - begin);
    } else {
      other = t;
    }
  }
  if (first < 0) return false;
  if (other >= 0 && launch->strict_simd) {
    report_divergent_simd(first, other, mask);
    return false;
  }
  const int simdgroup = begin / LANES;
  exchange_mask[simdgroup] = mask;
  for (int t = begin; t < end; t++) {
    if (!(mask >> (t - begin) & 1)) continue;
    if (fibers[t].value_size) memcpy(exchanged[simdgroup][t - begin], fibers[t].value, (size_t)fibers[t].value_size);
    fibers[t].state = READY;
  }
  if (fibers[first].flags & 1) simd_epoch[DEVICE][simdgroup]++;
  if (fibers[first].flags & 2) simd_epoch[THREADGROUP][simdgroup]++;
  return true;
}

static void run_simdgroups() {
  const int count = (fiber_count + LANES - 1) / LANES;
  int order[MAX_SIMDGROUPS];
  make_order(order, count);
  for (int i = 0; i < count; i++) {
    const int begin = order[i] * LANES, end = begin + LANES < fiber_count ? begin + LANES : fiber_count;
    do {
      run_lanes(begin, end);
      if (aborted) return;
    } while (release_exchange(begin, end));
    if (aborted) return;
  }
}

// All fibers wait at a barrier or have returned. False when the threadgroup is done, or at fault.
static bool release_barrier() {
  int waiting = -1, returned = -1, elsewhere = -1, waiting_count = 0;
  for (int t = 0; t < fiber_count; t++) {
    if (fibers[t].state == DONE) {
      if (returned < 0) returned = t;
      continue;
    }
    waiting_count++;
    if (waiting < 0) waiting = t;
    if (elsewhere < 0 && !same_site(fibers[t], fibers[waiting])) elsewhere = t;
  }
  if (waiting < 0) return false;
  if (returned >= 0 || elsewhere >= 0) {
    Fault* fault = raise_fault(returned >= 0 ? BARRIER_AFTER_RETURN : DIVERGENT_BARRIER);
    fault->here = place_of(&fibers[waiting]);
    fault->there = place_of(&fibers[returned >= 0 ? returned : elsewhere]);
    fault->count = (uint)waiting_count;
    fault->size = (uint)fiber_count;
    return false;
  }
  if (fibers[waiting].flags & 1) epoch[DEVICE]++;
  if (fibers[waiting].flags & 2) epoch[THREADGROUP]++;
  for (int t = 0; t < fiber_count; t++) fibers[t].state = READY;
  return true;
}

static void set_context(Context* c, int index, const uint group[3], const uint size[3]) {
  const uint position[3] = {index % size[0], index / size[0] % size[1], index / (size[0] * size[1])};
  for (int k = 0; k < 3; k++) {
    c->position_in_group[k] = position[k];
    c->position_in_grid[k] = group[k] * launch->group[k] + position[k];
    c->group_position[k] = group[k];
    c->group_size[k] = size[k];
    c->dispatched_group_size[k] = launch->group[k];
    c->groups[k] = (launch->grid[k] + launch->group[k] - 1) / launch->group[k];
    c->grid[k] = launch->grid[k];
  }
  c->index = (uint)index;
  c->lane = (uint)index % LANES;
  c->simdgroup = (uint)index / LANES;
  c->simdgroups = (uint)(fiber_count + LANES - 1) / LANES;
}

static void run_group(const uint group[3]) {
  uint size[3];  // a threadgroup at the grid's edge is smaller
  for (int k = 0; k < 3; k++) {
    const uint left = launch->grid[k] - group[k] * launch->group[k];
    size[k] = left < launch->group[k] ? left : launch->group[k];
  }
  fiber_count = (int)(size[0] * size[1] * size[2]);
  group_number++;
  epoch[DEVICE] = epoch[THREADGROUP] = 1;
  memset(simd_epoch, 0, sizeof simd_epoch);
  memset(launch->threadgroup_begin, 0xFF, (size_t)(launch->threadgroup_end - launch->threadgroup_begin));
  for (int t = 0; t < fiber_count; t++) {
    set_context(&fibers[t].context, t, group, size);
    start_fiber(&fibers[t]);
  }
  do {
    run_simdgroups();
  } while (!aborted && release_barrier());
}

static void run_groups() {
  uint groups[3];
  for (int k = 0; k < 3; k++) groups[k] = (launch->grid[k] + launch->group[k] - 1) / launch->group[k];
  const int total = (int)(groups[0] * groups[1] * groups[2]);
  int* order = (int*)malloc(sizeof(int) * (size_t)total);
  make_order(order, total);
  for (int i = 0; i < total && !aborted; i++) {
    const uint n = (uint)order[i];
    const uint group[3] = {n % groups[0], n / groups[0] % groups[1], n / (groups[0] * groups[1])};
    run_group(group);
  }
  free(order);
}

// ---- Crashes: a signal during the launch ends the launch, not the process.

static sigjmp_buf crash_return;
static const int CRASH_SIGNALS[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP};

static uint64_t crash_code(void* context) {
  ucontext_t* u = (ucontext_t*)context;
#if defined(__linux__) && defined(__x86_64__)
  return (uint64_t)u->uc_mcontext.gregs[16];  // REG_RIP
#elif defined(__linux__) && defined(__aarch64__)
  return u->uc_mcontext.pc;
#else
  (void)u;
  return 0;
#endif
}

static void on_crash(int signal_number, siginfo_t*, void* context) {
  aborted = false;
  Fault* fault = raise_fault(CRASH);
  fault->count = (uint)signal_number;
  if (current) fault->here = place_of(current);
  const uint64_t code = crash_code(context);
  Dl_info info;
  if (code && dladdr((void*)code, &info) && info.dli_fbase == code_base) fault->here.code = code + 1 - (uint64_t)code_base;
  siglongjmp(crash_return, 1);
}

struct CrashGuard {
  struct sigaction old_actions[5];
  stack_t old_stack;

  CrashGuard() {
    static char signal_stack[65536];
    stack_t stack = {};
    stack.ss_sp = signal_stack;
    stack.ss_size = sizeof signal_stack;
    sigaltstack(&stack, &old_stack);
    struct sigaction action = {};
    action.sa_sigaction = on_crash;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK;
    for (int i = 0; i < 5; i++) sigaction(CRASH_SIGNALS[i], &action, &old_actions[i]);
  }
  void restore() {
    for (int i = 0; i < 5; i++) sigaction(CRASH_SIGNALS[i], &old_actions[i], nullptr);
    sigaltstack(&old_stack, nullptr);
  }
};

// ---- The processor's mode in which denormals are 0, for fast math

#if defined(__x86_64__)
static uint64_t float_mode() {
  uint mode;
  __asm__ volatile("stmxcsr %0" : "=m"(mode));
  return mode;
}
static void set_float_mode(uint64_t mode) {
  const uint word = (uint)mode;
  __asm__ volatile("ldmxcsr %0" : : "m"(word));
}
static const uint64_t FLUSH = 0x8040;  // results and arguments
#elif defined(__aarch64__)
static uint64_t float_mode() {
  uint64_t mode;
  __asm__ volatile("mrs %0, fpcr" : "=r"(mode));
  return mode;
}
static void set_float_mode(uint64_t mode) { __asm__ volatile("msr fpcr, %0" : : "r"(mode)); }
static const uint64_t FLUSH = 1u << 24;
#endif

// Runs one launch; the caller sees to it that there is one at a time.
EXPORTED int host_launch(Launch* request) {
  launch = request;
  aborted = false;
  current = nullptr;
  group_number = 0;
  pending.open = false;
  random_state = launch->seed * 2654435761u + 12345u;
  Dl_info info;
  code_base = dladdr((void*)launch->entry, &info) ? (char*)info.dli_fbase : nullptr;
  if (!make_stacks()) return -1;
  if (launch->checked) make_cells();
  static CrashGuard* guard;
  CrashGuard crash_guard;
  guard = &crash_guard;
  static uint64_t mode_before;
  mode_before = float_mode();
  if (launch->flush_denormals) set_float_mode(mode_before | FLUSH);
  if (sigsetjmp(crash_return, 1) == 0) run_groups();
  set_float_mode(mode_before);
  guard->restore();
  if (launch->checked) free_cells();
  current = nullptr;
  return launch->fault.kind;
}

// ---- What the compiler expects to find for bfloat16 (round to nearest, ties to even)

EXPORTED __bf16 __truncsfbf2(float f) {
  uint bits;
  memcpy(&bits, &f, 4);
  const bool nan = (bits & 0x7fffffffu) > 0x7f800000u;
  const unsigned short rounded = (unsigned short)(nan ? (bits >> 16) | 64 : (bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
  __bf16 result;
  memcpy(&result, &rounded, 2);
  return result;
}
