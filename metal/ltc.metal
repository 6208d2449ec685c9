// LTC, equations (1) to (5): one threadgroup runs ROWS sequences through all their steps and unfolds, forward and backward. Separate
// kernels, parallel over all steps, compute the sums over sensory synapses, their gradient, and the gradients of all synapses' parameters.
// Arrays are time-major. A synapse is a float4: -log2(e) sigma, the same times mu, w erev, w; for gradients from targets to sources the
// last two are multiplied by sigma.

enum Solver { SEMI_IMPLICIT = 0, EXPLICIT = 1, RK4 = 2 };

// The sizes of one variant. SPLIT neighbouring lanes, a power of two, share the synapses of a unit (incoming ones forward, outgoing ones
// backward); units are processed in BLOCKS with one unit per lane group. COUNT: synapses per lane, all blocks together.
// FULL: no synapse is missing, so a lane's synapses need no index: every SPLIT-th group of four. KEEP: the forward scan stores each
// evaluation.
// MEMORY: an LSTM step (memory.metal) runs first, and the LTC step starts from its h.
// RESIDENT: the first HELD synapses of a lane are in registers, the others are read at each evaluation; the LSTM's weights are in registers
// with GATES_RESIDENT.
template <
    int H_, int SOLVER_, bool FULL_, bool KEEP_, bool MEMORY_, int THREADS_, int ROWS_, int SPLIT_, bool RESIDENT_, bool GATES_RESIDENT_,
    int COUNT_, int HELD_>
struct LTC {
  enum {
    H = H_, SOLVER = SOLVER_, FULL = FULL_, KEEP = KEEP_, MEMORY = MEMORY_, THREADS = THREADS_, ROWS = ROWS_, SPLIT = SPLIT_,
    RESIDENT = RESIDENT_, COUNT = COUNT_, HELD = HELD_,
    STAGES = SOLVER_ == RK4 ? 4 : 1,  // evaluations per unfold
    GROUPS = THREADS_ / SPLIT_,
    BLOCKS = (H_ + GROUPS - 1) / GROUPS,
    WIDTH = COUNT_ / BLOCKS,
    NEAR = FULL_ || !RESIDENT_ ? 4 : 2,  // synapses that a lane processes at once; COUNT is a multiple of it
    ROW = (H_ + 4 * SPLIT_ - 1) / (4 * SPLIT_) * 4 * SPLIT_,  // floats per row of units' values in threadgroup memory
    CARRIED = SOLVER_ == RK4 ? 4 : 2,  // values per unit that the backward scan carries, see Carried
    UNROLL = RESIDENT_ ? int(BLOCKS) : 1, KEPT = UNROLL  // blocks whose values are read ahead into registers
  };
  typedef Product<H_, 4 * H_, SPLIT_, 4, THREADS_, GATES_RESIDENT_> Gates;
  typedef Product<4 * H_, H_, SPLIT_, 1, THREADS_, GATES_RESIDENT_> GatesBack;
  enum { GATES_ROW = 4 * GatesBack::ROW4 };
};

// The units at the other ends of a thread's synapses: kept in registers, read from device memory, or (if no synapse is missing) computed.
template <int COUNT>
struct ResidentPartners {
  int values[COUNT];
};
struct StreamedPartners {
  device const int* packed;
  int stride;
};
template <int COUNT>
inline void load_partners(thread ResidentPartners<COUNT>& partners, device const int* packed, int stride) {
#pragma unroll
  for (int i = 0; i < COUNT; i++) partners.values[i] = packed[i * stride];
}
inline void load_partners(thread StreamedPartners& partners, device const int* packed, int stride) {
  partners.packed = packed;
  partners.stride = stride;
}
template <int COUNT>
inline int partner_at(thread const ResidentPartners<COUNT>& partners, int i) {
  return partners.values[i];
}
inline int partner_at(thread const StreamedPartners& partners, int i) {
  return partners.packed[i * partners.stride];
}
template <bool RESIDENT, int COUNT>
struct Partners {
  typedef StreamedPartners type;
};
template <int COUNT>
struct Partners<true, COUNT> {
  typedef ResidentPartners<COUNT> type;
};

// A thread's share of the synapses, and the row that it owns: row `part` of its group's units, if `steps` shows that the sequence exists.
template <typename C>
struct Lists {
  typename Weights<bool(C::RESIDENT), C::HELD>::type synapses;
  typename Partners<C::RESIDENT && !C::FULL, C::HELD>::type partners;
  typename Weights<false, C::COUNT>::type read_synapses;
  StreamedPartners read_partners;
  int part, group, steps;
  int units[C::KEPT];
  float cms[C::KEPT];
};

template <typename C>
inline int unit_of_group(int group, int block, device const int* order) {
  int place = block * C::GROUPS + group;
  if (C::FULL) return place < C::H ? place : -1;
  return order[place];
}

template <typename C>
inline void load_lists(
    thread Lists<C>& lists, device const float* synapses, device const int* partners, device const int* order, device const float* cm,
    device const int* lengths, int B, int row0, int thread_index) {
  lists.part = thread_index % C::SPLIT;
  lists.group = thread_index / C::SPLIT;
  lists.steps = lists.part < C::ROWS && row0 + lists.part < B ? lengths[row0 + lists.part] : -1;
  load_weights(lists.synapses, (device const float4*)synapses + thread_index, int(C::THREADS));
  load_partners(lists.partners, partners + (C::FULL ? 0 : thread_index), int(C::THREADS));
  load_weights(lists.read_synapses, (device const float4*)synapses + thread_index, int(C::THREADS));
  load_partners(lists.read_partners, partners + (C::FULL ? 0 : thread_index), int(C::THREADS));
#pragma unroll
  for (int block = 0; block < C::KEPT; block++) {
    lists.units[block] = unit_of_group<C>(lists.group, block, order);
    lists.cms[block] = lists.units[block] < 0 ? 1.0f : cm[lists.units[block]];
  }
}

// The unit of a thread's synapses in a block, or -1.
template <typename C>
inline int unit_in(thread const Lists<C>& lists, int block, device const int* order) {
  return C::RESIDENT ? lists.units[C::RESIDENT ? block : 0] : unit_of_group<C>(lists.group, block, order);
}

template <typename C>
inline float cm_in(thread const Lists<C>& lists, int block, device const float* cm, int u) {
  return C::RESIDENT ? lists.cms[C::RESIDENT ? block : 0] : cm[u];
}

template <int SPLIT>
inline float over_lanes(float value) {
#pragma unroll
  for (int bit = SPLIT / 2; bit > 0; bit /= 2) value += simd_shuffle_xor(value, bit);
  return value;
}

// The value of one row, whose index differs between threads.
template <int ROWS>
inline float of_row(thread const float* values, int row) {
  float result = values[0];
#pragma unroll
  for (int r = 1; r < ROWS; r++) result = row == r ? values[r] : result;
  return result;
}

// sigma(...) of two synapses with one reciprocal, which costs as much as eight multiplications on a GPU. Exponentials are capped at 2^62,
// whose square is finite; sigma is 2e-19 there. NaN is preserved.
inline float exponent(float4 synapse, float v) {
  float a = synapse.x * v - synapse.y;
  return a > 62.0f ? 62.0f : a;
}
inline void open_pair(float a, float b, thread float* open) {
  float p = 1.0f + fast::exp2(a), q = 1.0f + fast::exp2(b);
  float both = fast::divide(1.0f, p * q);
  open[0] = both * q;
  open[1] = both * p;
}

// sigma(...) of N synapses of a lane at their sources' values.
template <int N>
inline void open_synapses(thread const float4* synapses, thread const float* v, thread float* open) {
#pragma unroll
  for (int n = 0; n < N; n += 2) open_pair(exponent(synapses[n], v[n]), exponent(synapses[n + 1], v[n + 1]), open + n);
}

// NEAR synapses of a lane, and the units at their other ends.
template <typename C>
struct Near {
  float4 synapses[C::NEAR];
  int partners[C::NEAR];
};

// The synapses from index i of the lane on, which is index k among the lane's synapses of this unit.
template <typename C>
inline void read_near(thread Near<C>& near, thread const Lists<C>& lists, int i, int k) {
#pragma unroll
  for (int n = 0; n < C::NEAR; n++) {
    bool held = !C::RESIDENT || i + n < C::HELD;
    int place = held ? i + n : 0;
    near.synapses[n] = held ? weight_at(lists.synapses, place) : weight_at(lists.read_synapses, i + n);
    if (C::FULL) {
      near.partners[n] = k * C::SPLIT + 4 * lists.part + n;
    } else {
      near.partners[n] = held ? partner_at(lists.partners, place) : partner_at(lists.read_partners, i + n);
    }
  }
}

// Their contribution to num and den, for each row.
template <typename C>
inline void add_near(thread const Near<C>& near, threadgroup const float* v, thread float* num, thread float* den) {
#pragma unroll
  for (int r = 0; r < C::ROWS; r++) {
    float values[C::NEAR], open[C::NEAR];
    if (C::FULL) {
      float4 four = ((threadgroup const float4*)v)[(r * C::ROW + near.partners[0]) / 4];
      values[0] = four.x;
      values[1] = four.y;
      values[2 % C::NEAR] = four.z;
      values[3 % C::NEAR] = four.w;
    } else {
#pragma unroll
      for (int n = 0; n < C::NEAR; n++) values[n] = v[r * C::ROW + near.partners[n]];
    }
    open_synapses<C::NEAR>(near.synapses, values, open);  // (2)
#pragma unroll
    for (int n = 0; n < C::NEAR; n++) {
      num[r] += near.synapses[n].z * open[n];
      den[r] += near.synapses[n].w * open[n];
    }
  }
}

// Sums over the synapses of a block's unit: num and den (ROWS), the same in all its lanes.
template <typename C>
inline void sum_synapses(
    thread const Lists<C>& lists, int block, device const int* offsets, threadgroup const float* v, thread float* num, thread float* den) {
#pragma unroll
  for (int r = 0; r < C::ROWS; r++) num[r] = den[r] = 0.0f;
  Near<C> near, ahead;
  if (C::RESIDENT) {
#pragma unroll
    for (int k = 0; k < C::WIDTH; k += C::NEAR) {
      read_near<C>(near, lists, block * C::WIDTH + k, k);
      add_near<C>(near, v, num, den);
    }
  } else {
    int first = offsets[block], count = offsets[block + 1] - first;
    read_near<C>(ahead, lists, first, 0);
    for (int k = 0; k < count; k += C::NEAR) {  // the next ones are loaded while these are used
      near = ahead;
      if (k + C::NEAR < count) read_near<C>(ahead, lists, first + k + C::NEAR, k + C::NEAR);
      add_near<C>(near, v, num, den);
    }
  }
#pragma unroll
  for (int r = 0; r < C::ROWS; r++) {
    num[r] = over_lanes<C::SPLIT>(num[r]);
    den[r] = over_lanes<C::SPLIT>(den[r]);
  }
}

// (5), or the other solvers: from an evaluation at v to the v of the next evaluation. `start` and `slopes` belong to the unit, for rk4.
template <int SOLVER>
inline float advance(int stage, float v, float num, float den, float cm, float delta, threadgroup float* start, threadgroup float* slopes) {
  // (5); with delta = 0, v is unchanged exactly, without a rounded division
  if (SOLVER == SEMI_IMPLICIT) return select(fast::divide(cm * v + delta * num, cm + delta * den), v, delta == 0.0f);
  float rate = fast::divide(num - den * v, cm);
  if (SOLVER == EXPLICIT) return v + delta * rate;
  if (stage == 0) {
    *start = v;
    *slopes = rate;
  } else if (stage < 3) {
    *slopes += 2.0f * rate;
  } else {
    return *start + delta / 6.0f * (*slopes + rate);
  }
  return *start + (stage == 2 ? delta : delta / 2.0f) * rate;
}

// The drives added to num and den of a thread's units at one step: read one step ahead if synapses are in registers.
template <int COUNT>
struct Drives {
  float num[COUNT], den[COUNT], delta;
};

template <typename C>
inline void read_drive(
    thread Drives<C::KEPT>& drives, int kept, device const float* num_drive, device const float* den_drive, bool now, int step, int u) {
  drives.num[kept] = now && u >= 0 ? num_drive[step * C::H + u] : 0.0f;
  drives.den[kept] = now && u >= 0 ? den_drive[step * C::H + u] : 0.0f;
}

template <typename C>
inline void read_drives(
    thread Drives<C::KEPT>& drives, thread const Lists<C>& lists, device const float* num_drive, device const float* den_drive,
    device const float* delta, int t, int step) {
  drives.delta = t < lists.steps ? delta[step] : 0.0f;
#pragma unroll
  for (int block = 0; block < C::KEPT && C::RESIDENT; block++) {
    read_drive<C>(drives, block, num_drive, den_drive, t < lists.steps, step, lists.units[block]);
  }
}

// The arrays in which evaluations and their results are stored; for the rate see enter_evaluation.
struct Evaluations {
  device float* points;
  device float* rates;
  device float* dens;
};

// Evaluation e of step t at the values v, for all units; the result is written to `next`, and after the last evaluation to y.
template <typename C>
inline void evaluate(
    thread const Lists<C>& lists, device const int* order, device const int* offsets, thread Drives<C::KEPT>& drives,
    device const float* num_drive, device const float* den_drive, device const float* cm, threadgroup const float* v,
    threadgroup float* next, threadgroup float* start, device float* y, thread const Evaluations& kept, int stage, bool is_last, int t,
    int step) {
  threadgroup float* slopes = start + C::ROWS * C::H;
#pragma unroll(C::UNROLL)
  for (int block = 0; block < C::BLOCKS; block++) {
    int u = unit_in<C>(lists, block, order), i = C::RESIDENT ? block : 0, at = lists.part * C::ROW + u;
    if (!C::RESIDENT) read_drive<C>(drives, i, num_drive, den_drive, t < lists.steps, step, u);
    bool mine = lists.steps >= 0 && u >= 0;
    float here = mine ? v[at] : 0.0f, there = here;
    float nums[C::ROWS], dens[C::ROWS];
    sum_synapses<C>(lists, block, offsets, v, nums, dens);
    if (!mine) continue;
    if (t < lists.steps) {
      float num = of_row<C::ROWS>(nums, lists.part) + drives.num[i];  // (3)
      float den = of_row<C::ROWS>(dens, lists.part) + drives.den[i];  // (4)
      int own = C::SOLVER == RK4 ? lists.part * C::H + u : 0;
      there = advance<C::SOLVER>(stage, here, num, den, cm_in<C>(lists, block, cm, u), drives.delta, start + own, slopes + own);
      if (C::KEEP) {
        kept.points[step * C::H + u] = here;
        float cm_here = cm_in<C>(lists, block, cm, u);
        kept.rates[step * C::H + u] = fast::divide(num - den * here, C::SOLVER == SEMI_IMPLICIT ? cm_here + drives.delta * den : cm_here);
        kept.dens[step * C::H + u] = den;
      }
    }
    next[at] = there;
    if (is_last && !C::KEEP) y[step * C::H + u] = t < lists.steps ? there : 0.0f;
  }
}

template <typename C>
inline void ltc_forward(
    device const float* synapses,   // (4 COUNT, THREADS) packed by target; also the next three
    device const int* sources,
    device const int* order,        // the unit of each group in each block
    device const int* offsets,      // (BLOCKS + 1): the start of each block's synapses
    device const float* num_drive,  // (T, B, H): gleak vleak + num_s, from (1)
    device const float* den_drive,  // (T, B, H): gleak + den_s + epsilon
    device const float* cm,         // (H)
    device const float* delta,      // (T, B): dt / unfolds
    device const float* v0,         // (B, H); with KEEP (T, B, H), before each step
    device const float* x_gates,    // (T, B, 4 H) and the next two with MEMORY
    device const float* w_gates,    // packed (4 H, H)
    device const float* c0,         // (B, H)
    device const int* lengths,      // (B)
    device const int* dims,         // T, B, unfolds, with KEEP steps of all sequences
    device float* y,                // (T, B, H), one element with KEEP
    device float* points,           // (E, T, B, H) and the next two with KEEP, else one element: v at each evaluation
    device float* rates,            // (num - den v) over cm, for the semi-implicit solver over cm + delta den
    device float* dens,             // den at each evaluation
    device float* c_out,            // (T, B, H) with MEMORY, else one element
    int group_index, int thread_index, threadgroup float4* scratch) {
  enum { H = C::H, VALUES = C::ROWS * C::ROW };
  int T = dims[0], B = dims[1], E = dims[2] * C::STAGES, row0 = group_index * C::ROWS;
  threadgroup float* values = (threadgroup float*)scratch;                // (2, ROWS, ROW): v now and next
  threadgroup float* start = values + 2 * VALUES;                         // (2, ROWS, H) with RK4
  threadgroup float* c = start + (C::SOLVER == RK4 ? 2 : 0) * C::ROWS * H;  // (ROWS, H) with MEMORY
  fill(values, 2 * VALUES, thread_index, C::THREADS, 0.0f);
  threadgroup_barrier(mem_flags::mem_threadgroup);

  Rows<C::ROWS> rows;
  load_rows(rows, lengths, B, row0);
  Lists<C> lists;
  load_lists<C>(lists, synapses, sources, order, cm, lengths, B, row0, thread_index);
  typename C::Gates gates;
  if (C::MEMORY) load_product(gates, w_gates, thread_index);
  int row = row0 + lists.part;  // the row that this thread owns
  for (int block = 0; block < C::BLOCKS && !C::KEEP; block++) {
    int u = unit_of_group<C>(lists.group, block, order);
    if (lists.steps < 0 || u < 0) continue;
    values[lists.part * C::ROW + u] = v0[row * H + u];
    if (C::MEMORY) c[lists.part * H + u] = c0[row * H + u];
  }
  float gate_waits[C::KEPT * C::ROWS];
#pragma unroll
  for (int i = 0; i < C::KEPT * C::ROWS && C::MEMORY && C::RESIDENT; i++) {
    gate_waits[i] = added_to_gate<C>(x_gates, lists.units[i / C::ROWS], gates.owned, 0, i % C::ROWS, rows);
  }
  Drives<C::KEPT> drives, waits;
  read_drives<C>(waits, lists, num_drive, den_drive, delta, 0, row);
  threadgroup_barrier(mem_flags::mem_threadgroup);

  int now = 0;
  for (int t = 0; t < rows.steps; t++) {
    int step = t * B + row;
    drives = waits;
    read_drives<C>(waits, lists, num_drive, den_drive, delta, t + 1, step + B);
    if (C::MEMORY) {
#pragma unroll(C::UNROLL)
      for (int block = 0; block < C::BLOCKS; block++) {
        int u = unit_in<C>(lists, block, order);
        threadgroup float* inner = values + (1 - now) * VALUES + u;
        threadgroup const float4* h = (threadgroup const float4*)(values + now * VALUES);
        memory_step<C>(gates, block, u, h, inner, int(C::ROW), c, x_gates, gate_waits, c_out, t, rows);
      }
      now = 1 - now;
      threadgroup_barrier(mem_flags::mem_threadgroup);
    }
    if (C::KEEP) {
      for (int block = 0; block < C::BLOCKS; block++) {
        int u = unit_of_group<C>(lists.group, block, order);
        if (t < lists.steps && u >= 0) values[now * VALUES + lists.part * C::ROW + u] = v0[step * H + u];
      }
      threadgroup_barrier(mem_flags::mem_threadgroup);
    }
    for (int e = 0; e < E; e++) {
      int first = C::KEEP ? e * dims[3] * H : 0;
      Evaluations kept = {points + first, rates + first, dens + first};
      evaluate<C>(
          lists, order, offsets, drives, num_drive, den_drive, cm, values + now * VALUES, values + (1 - now) * VALUES, start, y, kept,
          e % C::STAGES, e == E - 1, t, step);
      threadgroup_barrier(mem_flags::mem_threadgroup);
      now = 1 - now;
    }
  }
  if (!C::KEEP) clear_rows<C::THREADS>(y, rows.steps, T, int(H), rows, thread_index);
  if (C::MEMORY) clear_rows<C::THREADS>(c_out, rows.steps, T, int(H), rows, thread_index);
  if (group_index == 0 && thread_index == 0) {
    if (C::KEEP) y[0] = 0.0f;
    if (!C::KEEP) points[0] = rates[0] = dens[0] = 0.0f;
    if (!C::MEMORY) c_out[0] = 0.0f;
  }
}

// Backward: the factors of an evaluation's h. h times delta is the gradient of num, and -h times delta times `value` that of den, where
// value is the factor of den: the next v for the semi-implicit solver, else v. h times the rate is the gradient of delta over cm, and -h
// times the rate times delta that of cm. The rate is computed from v: with the next v or their difference, digits cancel if steps are long
// or short.
template <int SOLVER>
inline float enter_evaluation(int stage, float dv, float arriving, float den, float cm, float delta) {
  if (SOLVER == SEMI_IMPLICIT) return fast::divide(dv, cm + delta * den);
  if (SOLVER == EXPLICIT) return fast::divide(dv, cm);
  float weight = stage == 0 || stage == 3 ? 1.0f / 6.0f : 1.0f / 3.0f;
  float reach = stage == 3 ? 0.0f : stage == 2 ? 1.0f : 0.5f;
  return fast::divide(dv * weight + reach * arriving, cm);
}

// One row's values of the units in the backward scan; only the owner reads and writes each value.
template <int H_>
struct Carried {
  enum { H = H_, DV = 0, HELD = 1, ARRIVING = 2, RESULT = 3 };
};

// The owner of a unit finishes evaluation e: `sum` is the gradient through the synapses, h is HELD.
template <typename C>
inline void leave_evaluation(int stage, float sum, float h, float den, float cm, float delta, threadgroup float* carried) {
  typedef Carried<C::H> Row;
  if (C::SOLVER == SEMI_IMPLICIT) {
    carried[Row::DV * C::H] = cm * h + sum;
  } else if (C::SOLVER == EXPLICIT) {
    carried[Row::DV * C::H] += sum - delta * den * h;
  } else {
    float arriving = sum - delta * den * h;
    carried[Row::ARRIVING * C::H] = arriving;
    carried[Row::RESULT * C::H] += arriving;
    if (stage == 0) carried[Row::DV * C::H] = carried[Row::RESULT * C::H];
  }
}

// The gradient of v (ROWS) through a lane's next synapses, from the gradients d of num and den (ROWS, ROW, 2).
template <typename C>
inline void pull_near(thread const Near<C>& near, thread const float* v, threadgroup const float* d, thread float* sums) {
#pragma unroll
  for (int r = 0; r < C::ROWS; r++) {
    float values[C::NEAR], open[C::NEAR];
#pragma unroll
    for (int n = 0; n < C::NEAR; n++) values[n] = v[r];
    open_synapses<C::NEAR>(near.synapses, values, open);
#pragma unroll
    for (int n = 0; n < C::NEAR; n++) {
      float2 to;
      if (C::FULL) {  // the gradients of two neighbours at once
        float4 both = ((threadgroup const float4*)d)[(r * C::ROW + near.partners[0]) / 2 + n / 2];
        to.x = n % 2 ? both.z : both.x;
        to.y = n % 2 ? both.w : both.y;
      } else {
        to = ((threadgroup const float2*)d)[r * C::ROW + near.partners[n]];
      }
      sums[r] += (open[n] - open[n] * open[n]) * (near.synapses[n].z * to.x + near.synapses[n].w * to.y);
    }
  }
}

// The gradient of a block's unit through its outgoing synapses: sums (ROWS), the same in all its lanes.
template <typename C>
inline void pull_synapses(
    thread const Lists<C>& lists, int block, device const int* offsets, thread const float* v, threadgroup const float* d, thread float* sums) {
#pragma unroll
  for (int r = 0; r < C::ROWS; r++) sums[r] = 0.0f;
  Near<C> near, ahead;
  if (C::RESIDENT) {
#pragma unroll
    for (int k = 0; k < C::WIDTH; k += C::NEAR) {
      read_near<C>(near, lists, block * C::WIDTH + k, k);
      pull_near<C>(near, v, d, sums);
    }
  } else {
    int first = offsets[block], count = offsets[block + 1] - first;
    read_near<C>(ahead, lists, first, 0);
    for (int k = 0; k < count; k += C::NEAR) {
      near = ahead;
      if (k + C::NEAR < count) read_near<C>(ahead, lists, first + k + C::NEAR, k + C::NEAR);
      pull_near<C>(near, v, d, sums);
    }
  }
#pragma unroll
  for (int r = 0; r < C::ROWS; r++) sums[r] = over_lanes<C::SPLIT>(sums[r]);
}

// The values of one evaluation that the backward scan reads from device memory: v of all rows; den of the row that the thread owns; and for
// the last evaluation of a step its result and the incoming gradient. They are read one evaluation ahead if synapses are in registers.
template <typename C>
struct Evaluation {
  float v[C::KEPT * C::ROWS], den[C::KEPT], result[C::KEPT], dy[C::KEPT], delta;
  int t, e;
};

// The arrays that hold them.
struct Kept {
  device const float* points;
  device const float* dens;
  device const float* v;
  device const float* dy;
  device const float* delta;
  int T, B, E;
};

// Evaluation e of step t; t may be -1, before the first.
template <typename C>
inline void set_evaluation(thread Evaluation<C>& at, thread const Kept& kept, thread const Lists<C>& lists, int t, int e, int row0) {
  at.t = t;
  at.e = e;
  at.delta = t >= 0 && t < lists.steps ? kept.delta[t * kept.B + row0 + lists.part] : 0.0f;
}

template <typename C>
inline void read_evaluation(
    thread Evaluation<C>& at, int i, thread const Kept& kept, thread const Lists<C>& lists, int u, thread const Rows<C::ROWS>& rows) {
  int first = (at.e * kept.T * kept.B + at.t * kept.B + rows.row0) * C::H + u;
#pragma unroll
  for (int r = 0; r < C::ROWS; r++) at.v[i * C::ROWS + r] = u >= 0 && valid(rows, at.t, r) ? kept.points[first + r * C::H] : 0.0f;
  bool now = u >= 0 && at.t >= 0 && at.t < lists.steps, is_last = now && at.e == kept.E - 1;
  int own = (at.t * kept.B + rows.row0 + lists.part) * C::H + u;
  at.den[i] = now ? kept.dens[first + lists.part * C::H] : 0.0f;
  at.result[i] = is_last && C::SOLVER == SEMI_IMPLICIT ? kept.v[own] : 0.0f;
  at.dy[i] = is_last ? kept.dy[own] : 0.0f;
}

template <typename C>
inline void read_ahead(
    thread Evaluation<C>& at, thread const Kept& kept, thread const Lists<C>& lists, thread const Rows<C::ROWS>& rows) {
#pragma unroll
  for (int block = 0; block < C::KEPT && C::RESIDENT; block++) read_evaluation<C>(at, block, kept, lists, lists.units[block], rows);
}

// The owner of unit u starts evaluation `at`; v_after: v at the next evaluation of the same step.
template <typename C>
inline void enter(
    thread const Evaluation<C>& at, int i, float v_after, thread const Kept& kept, thread const Lists<C>& lists, int u, int row0,
    float cm, threadgroup float* carried, threadgroup float* d, device float* h) {
  typedef Carried<C::H> Row;
  threadgroup float* own = carried + lists.part * C::CARRIED * C::H + u;
  bool is_last = at.e == kept.E - 1;
  float held = 0.0f, value = 0.0f;
  if (at.t < lists.steps) {
    int stage = at.e % C::STAGES;
    if (is_last) own[Row::DV * C::H] += at.dy[i];
    if (C::SOLVER == RK4 && stage == 3) {
      own[Row::ARRIVING * C::H] = 0.0f;
      own[Row::RESULT * C::H] = own[Row::DV * C::H];
    }
    float arriving = C::SOLVER == RK4 ? own[Row::ARRIVING * C::H] : 0.0f;
    held = enter_evaluation<C::SOLVER>(stage, own[Row::DV * C::H], arriving, at.den[i], cm, at.delta);
    value = C::SOLVER != SEMI_IMPLICIT ? of_row<C::ROWS>(at.v + i * C::ROWS, lists.part) : is_last ? at.result[i] : v_after;
  }
  own[Row::HELD * C::H] = held;
  h[((at.e * kept.T + at.t) * kept.B + row0 + lists.part) * C::H + u] = held;
  threadgroup float* to = d + 2 * (lists.part * C::ROW + u);
  to[0] = at.delta * held;
  to[1] = -at.delta * held * value;
}

// The gradients of a unit's LSTM at step t, from those of its h, which the owners of the rows carry.
template <typename C>
inline void memory_back(
    thread const MemorySlopes<C::ROWS>& slopes, threadgroup const float* carried, int u, int part, threadgroup float* dc,
    threadgroup float* d_gates, device float* d_gates_out, int t, thread const Rows<C::ROWS>& rows) {
  float dh[C::ROWS];
#pragma unroll
  for (int r = 0; r < C::ROWS; r++) {
    dh[r] = u >= 0 && rows.row0 + r < rows.B ? carried[(r * C::CARRIED + Carried<C::H>::DV) * C::H + u] : 0.0f;
  }
  memory_step_back<C>(slopes, dh, u, part, dc, d_gates, d_gates_out, t, rows);
}

// The backward scan: only dv is sequential, with MEMORY also dc. Its synapses are packed by source.
template <typename C>
inline void ltc_backward(
    device const float* synapses,  // packed by source; also the next three
    device const int* targets,
    device const int* order,
    device const int* offsets,
    device const float* points,    // (E, T, B, H): stored by the forward scan
    device const float* dens,      // (E, T, B, H)
    device const float* v,         // (T, B, H): its result
    device const float* cm,        // (H)
    device const float* delta,     // (T, B)
    device const float* dy,        // (T, B, H)
    device const float* carry,     // (B, H): the gradient of the last state from later steps
    device const float* dy_c,      // (T, B, H) and the next three with MEMORY
    device const float* carry_c,   // (B, H)
    device const float* slopes,    // (T, B, 6, H), see memory_gate_slopes
    device const float* w_gates,   // packed (units in the order of the groups, 4 H)
    device const int* lengths,     // (B)
    device const int* dims,        // T, B, unfolds
    device float* h,               // (E, T, B, H): see enter_evaluation
    device float* dv0,             // (B, H)
    device float* d_gates_out,     // (T, B, 4, H) and the next with MEMORY, else one element each
    device float* dc0,             // (B, H)
    int group_index, int thread_index, threadgroup float4* scratch) {
  enum { H = C::H, VALUES = 2 * C::ROWS * C::ROW, DV = Carried<C::H>::DV };
  int row0 = group_index * C::ROWS, T = dims[0];
  Kept kept = {points, dens, v, dy, delta, T, dims[1], dims[2] * C::STAGES};
  threadgroup float* gradients = (threadgroup float*)scratch;                        // (2 buffers, ROWS, ROW, 2): of num and den
  threadgroup float* d_gates = gradients + 2 * VALUES;                               // (ROWS, GATES_ROW) with MEMORY
  threadgroup float* carried = d_gates + (C::MEMORY ? C::ROWS * C::GATES_ROW : 0);   // (ROWS, CARRIED, H)
  threadgroup float* dc = carried + C::ROWS * C::CARRIED * H;                        // (ROWS, 4, H) with MEMORY
  fill(gradients, 2 * VALUES + (C::MEMORY ? C::ROWS * C::GATES_ROW : 0), thread_index, C::THREADS, 0.0f);
  Rows<C::ROWS> rows;
  load_rows(rows, lengths, kept.B, row0);
  Lists<C> lists;
  load_lists<C>(lists, synapses, targets, order, cm, lengths, kept.B, row0, thread_index);
  typename C::GatesBack gates;
  if (C::MEMORY) load_product(gates, w_gates, thread_index);
  for (int r = 0; r < C::ROWS && row0 + r < kept.B; r++) {
    for (int u = thread_index; u < H; u += C::THREADS) carried[(r * C::CARRIED + DV) * H + u] = carry[(row0 + r) * H + u];
    for (int i = thread_index; i < 4 * H && C::MEMORY; i += C::THREADS) dc[r * 4 * H + i] = carry_c[(row0 + r) * H + i % H];
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);

  Evaluation<C> at, ahead;
  set_evaluation<C>(at, kept, lists, rows.steps - 1, kept.E - 1, row0);
  read_ahead<C>(at, kept, lists, rows);
#pragma unroll(C::UNROLL)
  for (int block = 0; block < C::BLOCKS; block++) {
    int u = unit_in<C>(lists, block, order), i = C::RESIDENT ? block : 0;
    if (rows.steps == 0 || lists.steps < 0 || u < 0) continue;
    if (!C::RESIDENT) read_evaluation<C>(at, i, kept, lists, u, rows);
    enter<C>(at, i, 0.0f, kept, lists, u, row0, cm_in<C>(lists, block, cm, u), carried, gradients, h);
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);

  MemorySlopes<C::ROWS> slopes_ahead[C::KEPT];
  for (int n = 0; n < rows.steps * kept.E; n++) {
    // finish evaluation n, counted from the end, and start the one before it
    threadgroup const float* d = gradients + (n & 1) * VALUES;
    threadgroup float* d_next = gradients + ((n + 1) & 1) * VALUES;
    set_evaluation<C>(ahead, kept, lists, at.e > 0 ? at.t : at.t - 1, at.e > 0 ? at.e - 1 : kept.E - 1, row0);
    read_ahead<C>(ahead, kept, lists, rows);
    bool through_memory = C::MEMORY && at.e == 0;
#pragma unroll
    for (int block = 0; block < C::KEPT && C::RESIDENT && through_memory; block++) {
      read_memory_slopes<C>(slopes_ahead[block], slopes, dy_c, lists.units[block], lists.part, at.t, rows);
    }
#pragma unroll(C::UNROLL)
    for (int block = 0; block < C::BLOCKS; block++) {
      int u = unit_in<C>(lists, block, order), i = C::RESIDENT ? block : 0;
      if (!C::RESIDENT) {
        read_evaluation<C>(at, i, kept, lists, u, rows);
        read_evaluation<C>(ahead, i, kept, lists, u, rows);
      }
      bool mine = lists.steps >= 0 && u >= 0;
      threadgroup float* own = carried + lists.part * C::CARRIED * H + u;
      float held = mine ? own[Carried<C::H>::HELD * H] : 0.0f, sums[C::ROWS];
      pull_synapses<C>(lists, block, offsets, at.v + i * C::ROWS, d, sums);
      if (!mine) continue;
      if (at.t < lists.steps) {
        float sum = of_row<C::ROWS>(sums, lists.part), cm_here = cm_in<C>(lists, block, cm, u);
        leave_evaluation<C>(at.e % C::STAGES, sum, held, at.den[i], cm_here, at.delta, own);
      }
      if (through_memory || ahead.t < 0) continue;
      enter<C>(ahead, i, of_row<C::ROWS>(at.v + i * C::ROWS, lists.part), kept, lists, u, row0, cm_in<C>(lists, block, cm, u), carried, d_next, h);
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    if (through_memory) {
#pragma unroll(C::UNROLL)
      for (int block = 0; block < C::BLOCKS; block++) {
        int u = unit_in<C>(lists, block, order), i = C::RESIDENT ? block : 0;
        if (!C::RESIDENT) read_memory_slopes<C>(slopes_ahead[i], slopes, dy_c, u, lists.part, at.t, rows);
        memory_back<C>(slopes_ahead[i], carried, u, lists.part, dc, d_gates, d_gates_out, at.t, rows);
      }
      threadgroup_barrier(mem_flags::mem_threadgroup);
#pragma unroll(C::UNROLL)
      // with synapses in registers all products come before the parts that only some lanes run
      for (int first = 0; first < C::BLOCKS; first += C::KEPT) {
        float sums[C::KEPT * C::ROWS];
#pragma unroll
        for (int i = 0; i < C::KEPT; i++) {
          run_product<C::ROWS>(gates, (threadgroup const float4*)d_gates, first + i, sums + i * C::ROWS);
        }
#pragma unroll
        for (int i = 0; i < C::KEPT; i++) {
          int u = unit_in<C>(lists, first + i, order);
          if (!C::RESIDENT) read_evaluation<C>(ahead, i, kept, lists, u, rows);
          if (lists.steps < 0 || u < 0) continue;
          if (at.t < lists.steps) carried[(lists.part * C::CARRIED + DV) * H + u] = of_row<C::ROWS>(sums + i * C::ROWS, lists.part);
          if (ahead.t >= 0) enter<C>(ahead, i, 0.0f, kept, lists, u, row0, cm_in<C>(lists, first + i, cm, u), carried, d_next, h);
        }
      }
      threadgroup_barrier(mem_flags::mem_threadgroup);
    }
    at = ahead;
  }
  for (int r = 0; r < C::ROWS && row0 + r < kept.B; r++) {
    for (int u = thread_index; u < H; u += C::THREADS) dv0[(row0 + r) * H + u] = carried[(r * C::CARRIED + DV) * H + u];
    for (int u = thread_index; u < H && C::MEMORY; u += C::THREADS) dc0[(row0 + r) * H + u] = dc[r * 4 * H + u];
  }
  for (int e = 0; e < kept.E; e++) clear_rows<C::THREADS>(h + e * T * kept.B * H, rows.steps, T, int(H), rows, thread_index);
  if (C::MEMORY) {
    clear_rows<C::THREADS>(d_gates_out, rows.steps, T, 4 * H, rows, thread_index);
  } else if (group_index == 0 && thread_index == 0) {
    d_gates_out[0] = 0.0f;
    dc0[0] = 0.0f;
  }
}

// The kernels that are parallel over all steps, on R rows: v (R, K) at the sources of H targets.

// (1) and the leak: num and den (R, H), one thread for four rows of a target; synapse k of target j is entry (k, j) of the table
// (width, H).
template <int K, int H, int THREADS>
inline void ltc_sums(
    device const float* v, device const float* synapses, device const int* sources, device const float* leak, device const int* dims,
    device float* nums, device float* dens, int group_index, int thread_index, threadgroup float4* scratch) {
  int R = dims[0], width = dims[1], i = group_index * THREADS + thread_index, row0 = i / H * 4, j = i % H;
  if (row0 >= R) return;
  float num[4] = {0.0f, 0.0f, 0.0f, 0.0f}, den[4] = {0.0f, 0.0f, 0.0f, 0.0f};
  int rows[4];
#pragma unroll
  for (int r = 0; r < 4; r++) rows[r] = (row0 + r < R ? row0 + r : row0) * K;
  for (int k = 0; k < width; k++) {
    float4 synapse = ((device const float4*)synapses)[k * H + j];
    int source = sources[k * H + j];
    float exponents[4], open[4];
#pragma unroll
    for (int r = 0; r < 4; r++) exponents[r] = exponent(synapse, v[rows[r] + source]);
    open_pair(exponents[0], exponents[1], open);  // (1)
    open_pair(exponents[2], exponents[3], open + 2);
#pragma unroll
    for (int r = 0; r < 4; r++) {
      num[r] += synapse.z * open[r];
      den[r] += synapse.w * open[r];
    }
  }
#pragma unroll
  for (int r = 0; r < 4; r++) {
    if (row0 + r >= R) continue;
    nums[(row0 + r) * H + j] = num[r] + leak[j];
    dens[(row0 + r) * H + j] = den[r] + leak[H + j];
  }
}

// From the gradients of num and den (R, H) to those of the sources' values (R, K), one thread each; synapse k of source i is entry (k, i)
// of the table (width, K); width is even.
template <int K, int H, int THREADS>
inline void ltc_pull(
    device const float* v, device const float* d_num, device const float* d_den, device const float* synapses, device const int* targets,
    device const int* dims, device float* dv, int group_index, int thread_index, threadgroup float4* scratch) {
  int n = group_index * THREADS + thread_index, width = dims[1];
  if (n >= dims[0] * K) return;
  int row = n / K, i = n % K;
  float sum = 0.0f, here = v[n];
  for (int k = 0; k < width; k += 2) {
    float4 pair[2] = {((device const float4*)synapses)[k * K + i], ((device const float4*)synapses)[(k + 1) * K + i]};
    float values[2] = {here, here}, open[2];
    open_synapses<2>(pair, values, open);
#pragma unroll
    for (int s = 0; s < 2; s++) {
      int place = row * H + targets[(k + s) * K + i];
      sum += (open[s] - open[s] * open[s]) * (pair[s].z * d_num[place] + pair[s].w * d_den[place]);
    }
  }
  dv[n] = sum;
}

// After the backward scan: from each evaluation's h to the gradients of num and den (E, R, H), and the sums over the evaluations of each
// step, (3, R, H), of h times the rate, d_num and d_den. One thread for each value of a step; zero past a sequence's length.
template <int H, bool SEMI, int THREADS>
inline void ltc_evaluations(
    device const float* h, device const float* points, device const float* rates, device const float* v, device const float* delta,
    device const int* dims, device float* d_num, device float* d_den, device float* sums, int group_index, int thread_index,
    threadgroup float4* scratch) {
  int E = dims[0], count = dims[1] * H, i = group_index * THREADS + thread_index;
  if (i >= count) return;
  float passed = delta[i / H], by_rate = 0.0f, by_num = 0.0f, by_den = 0.0f;
  float here = points[i];
  for (int e = 0; e < E; e++) {
    float after = e + 1 < E ? points[(e + 1) * count + i] : v[i], held = h[e * count + i];
    float to_num = passed * held, to_den = -to_num * (SEMI ? after : here);
    d_num[e * count + i] = to_num;
    d_den[e * count + i] = to_den;
    by_rate += held * rates[e * count + i];
    by_num += to_num;
    by_den += to_den;
    here = after;
  }
  sums[i] = by_rate;
  sums[count + i] = by_num;
  sums[2 * count + i] = by_den;
}

// The sums over rows that give the gradients of a synapse's parameters: of d_num sigma(...), d_den sigma(...), the gradient of sigma's
// argument, and the latter times v.
struct SynapseSums {
  float by_num, by_den, by_argument, by_product;
};

inline void add_row(thread SynapseSums& sums, float4 synapse, float v, float open, float d_num, float d_den) {
  float argument = (open - open * open) * (synapse.z * d_num + synapse.w * d_den);
  sums.by_num += open * d_num;
  sums.by_den += open * d_den;
  sums.by_argument += argument;
  sums.by_product += argument * v;
}

// One thread for each synapse and each of CHUNKS chunks of rows, dims[3] rows each except the last: sums (CHUNKS, 4, S).
template <int K, int H, int THREADS>
inline void ltc_gradients(
    device const float* v, device const float* d_num, device const float* d_den, device const float* synapses, device const int* sources,
    device const int* targets, device const int* dims, device float* sums, int group_index, int thread_index, threadgroup float4* scratch) {
  int R = dims[0], S = dims[1], chunks = dims[2], n = group_index * THREADS + thread_index;
  if (n >= S * chunks) return;
  int chunk = n / S, s = n % S, rows = dims[3], row = chunk * rows, last = row + rows < R ? row + rows : R;
  float4 synapse = ((device const float4*)synapses)[s];
  device const float* from = v + row * K + sources[s];
  device const float* to_num = d_num + row * H + targets[s];
  device const float* to_den = d_den + row * H + targets[s];
  SynapseSums all = {0.0f, 0.0f, 0.0f, 0.0f};
  float open[2];
#pragma unroll 2
  for (; row + 1 < last; row += 2) {
    open_pair(exponent(synapse, from[0]), exponent(synapse, from[K]), open);
    add_row(all, synapse, from[0], open[0], to_num[0], to_den[0]);
    add_row(all, synapse, from[K], open[1], to_num[H], to_den[H]);
    from += 2 * K;
    to_num += 2 * H;
    to_den += 2 * H;
  }
  if (row < last) {
    open_pair(exponent(synapse, from[0]), 0.0f, open);
    add_row(all, synapse, from[0], open[0], to_num[0], to_den[0]);
  }
  device float* own = sums + chunk * 4 * S + s;
  own[0] = all.by_num;
  own[S] = all.by_den;
  own[2 * S] = all.by_argument;
  own[3 * S] = all.by_product;
}
