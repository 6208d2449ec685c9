// LTC, equations (1) to (5): ROWS sequences by one threadgroup, all their steps and unfolds, forward and backward; and what is parallel over
// all steps: the sums over sensory synapses, their gradient, and the gradients of all synapses' parameters.
// Arrays are time-major. A synapse is a float4: sigma, sigma mu, w erev, w.

enum Solver { SEMI_IMPLICIT = 0, EXPLICIT = 1, RK4 = 2 };

// The sizes of one variant. SPLIT neighbouring lanes, a power of two, share the synapses of a unit (those that reach it forward, those that
// leave it backward); units come in BLOCKS of one a group of lanes. COUNT: synapses of a lane where they are RESIDENT, all blocks together.
// FULL: no synapse is missing, so that the n-th of a unit is the one with unit n. KEEP: the forward scan stores each evaluation.
template <int H_, int SOLVER_, bool FULL_, bool KEEP_, int THREADS_, int ROWS_, int SPLIT_, bool RESIDENT_, int COUNT_>
struct LTC {
  enum {
    H = H_, SOLVER = SOLVER_, FULL = FULL_, KEEP = KEEP_, THREADS = THREADS_, ROWS = ROWS_, SPLIT = SPLIT_, RESIDENT = RESIDENT_, COUNT = COUNT_,
    STAGES = SOLVER_ == RK4 ? 4 : 1,  // evaluations of an unfold
    GROUPS = THREADS_ / SPLIT_,
    BLOCKS = (H_ + GROUPS - 1) / GROUPS,
    WIDTH = COUNT_ / BLOCKS,
    ROW = FULL_ ? (H_ + SPLIT_ - 1) / SPLIT_ * SPLIT_ : H_  // floats of a row of units' values in threadgroup memory
  };
};

// The units at the other ends of a thread's synapses: kept in registers, read from device memory, or (where none is missing) known.
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

// A thread's part of all synapses.
template <typename C>
struct Lists {
  typename Weights<C::RESIDENT, C::COUNT>::type synapses;
  typename Partners<C::RESIDENT && !C::FULL, C::COUNT>::type partners;
  int part, group;
};

template <typename C>
inline void load_lists(thread Lists<C>& lists, device const float* synapses, device const int* partners, int thread_index) {
  lists.part = thread_index % C::SPLIT;
  lists.group = thread_index / C::SPLIT;
  load_weights(lists.synapses, (device const float4*)synapses + thread_index, int(C::THREADS));
  load_partners(lists.partners, partners + (C::FULL ? 0 : thread_index), int(C::THREADS));
}

// The unit whose synapses a thread has in a block, or -1.
template <typename C>
inline int unit_in(thread const Lists<C>& lists, int block, device const int* order) {
  int place = block * C::GROUPS + lists.group;
  if (C::FULL) return place < C::H ? place : -1;
  return order[place];
}

template <int SPLIT>
inline float over_lanes(float value) {
#pragma unroll
  for (int bit = SPLIT / 2; bit > 0; bit /= 2) value += simd_shuffle_xor(value, bit);
  return value;
}

// (2): one synapse's part of num and den
inline void add_synapse(float4 synapse, float v, thread float& num, thread float& den) {
  float open = fast_sigmoid(synapse.x * v - synapse.y);  // (2)
  num += synapse.z * open;
  den += synapse.w * open;
}

// The gradient of a synapse's argument, without sigma.
inline float argument_gradient(float4 synapse, float open, float d_num, float d_den) {
  return open * (1.0f - open) * (synapse.z * d_num + synapse.w * d_den);
}

template <typename C>
inline void add_synapse_at(
    thread const Lists<C>& lists, int i, int place, threadgroup const float* v, thread float* num, thread float* den) {
  float4 synapse = weight_at(lists.synapses, i);
  int source = C::FULL ? place : partner_at(lists.partners, i);
#pragma unroll
  for (int r = 0; r < C::ROWS; r++) add_synapse(synapse, v[r * C::ROW + source], num[r], den[r]);
}

// Sums over the synapses of a block's unit: num and den (ROWS), the same in all its lanes.
template <typename C>
inline void sum_synapses(
    thread const Lists<C>& lists, int block, device const int* offsets, threadgroup const float* v, thread float* num, thread float* den) {
#pragma unroll
  for (int r = 0; r < C::ROWS; r++) num[r] = den[r] = 0.0f;
  if (C::RESIDENT) {
#pragma unroll
    for (int k = 0; k < C::WIDTH; k++) add_synapse_at<C>(lists, block * C::WIDTH + k, k * C::SPLIT + lists.part, v, num, den);
  } else {
    int first = offsets[block], count = offsets[block + 1] - first;
    for (int k = 0; k < count; k++) add_synapse_at<C>(lists, first + k, k * C::SPLIT + lists.part, v, num, den);
  }
#pragma unroll
  for (int r = 0; r < C::ROWS; r++) {
    num[r] = over_lanes<C::SPLIT>(num[r]);
    den[r] = over_lanes<C::SPLIT>(den[r]);
  }
}

// (5), or the other solvers: from an evaluation at v to where the next one is made. `start` and `slopes` are the unit's own, for rk4.
template <int SOLVER>
inline float advance(int stage, float v, float num, float den, float cm, float delta, threadgroup float* start, threadgroup float* slopes) {
  if (SOLVER == SEMI_IMPLICIT) return (cm * v + delta * num) / (cm + delta * den);  // (5)
  float rate = (num - den * v) / cm;
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

template <typename C>
inline void ltc_forward(
    device const float* synapses,   // (4 COUNT, THREADS) packed by target, and the next three likewise
    device const int* sources,
    device const int* order,        // the unit of each group in each block
    device const int* offsets,      // (BLOCKS + 1): where each block's synapses begin
    device const float* num_drive,  // (T, B, H): gleak vleak + num_s, from (1)
    device const float* den_drive,  // (T, B, H): gleak + den_s + epsilon
    device const float* cm,         // (H)
    device const float* delta,      // (T, B): dt / unfolds
    device const float* v0,         // (B, H)
    device const int* lengths,      // (B); with KEEP all T
    device const int* dims,         // T, B, unfolds
    device float* y,                // (T, B, H)
    device float* points,           // (E, T, B, H) and the next two with KEEP, else one element: v at each evaluation
    device float* nums,             // num there
    device float* dens,             // den
    int group_index, int thread_index, threadgroup float4* scratch) {
  enum { ROW = C::ROW, H = C::H };
  int T = dims[0], B = dims[1], unfolds = dims[2], row0 = group_index * C::ROWS;
  threadgroup float* values = (threadgroup float*)scratch;        // (2, ROWS, ROW): v now and next
  threadgroup float* start = values + 2 * C::ROWS * ROW;          // (ROWS, H) with RK4
  threadgroup float* slopes = start + C::ROWS * H;                // (ROWS, H) with RK4
  fill(values, 2 * C::ROWS * ROW, thread_index, C::THREADS, 0.0f);
  threadgroup_barrier(mem_flags::mem_threadgroup);
  int length[C::ROWS];
  int steps = read_lengths<C::ROWS>(lengths, row0, B, length);
  for (int r = 0; r < C::ROWS && row0 + r < B; r++) {
    for (int u = thread_index; u < H; u += C::THREADS) values[r * ROW + u] = v0[(row0 + r) * H + u];
  }
  Lists<C> lists;
  load_lists<C>(lists, synapses, sources, thread_index);
  threadgroup_barrier(mem_flags::mem_threadgroup);

  int now = 0;
  for (int t = 0; t < steps; t++) {
    for (int e = 0; e < unfolds * C::STAGES; e++) {
      threadgroup float* v = values + now * C::ROWS * ROW;
      threadgroup float* next = values + (1 - now) * C::ROWS * ROW;
      for (int block = 0; block < C::BLOCKS; block++) {
        float num[C::ROWS], den[C::ROWS];
        sum_synapses<C>(lists, block, offsets, v, num, den);
        int u = unit_in<C>(lists, block, order);
        if (lists.part != 0 || u < 0) continue;
        for (int r = 0; r < C::ROWS && row0 + r < B; r++) {
          int step = t * B + row0 + r;
          float here = v[r * ROW + u], there = here;
          if (t < length[r]) {
            float whole_num = num[r] + num_drive[step * H + u];  // (3)
            float whole_den = den[r] + den_drive[step * H + u];  // (4)
            int own = C::SOLVER == RK4 ? r * H + u : 0;
            there = advance<C::SOLVER>(e % C::STAGES, here, whole_num, whole_den, cm[u], delta[step], start + own, slopes + own);
            if (C::KEEP) {
              int place = (e * T * B + step) * H + u;
              points[place] = here;
              nums[place] = whole_num;
              dens[place] = whole_den;
            }
          }
          next[r * ROW + u] = there;
          if (e == unfolds * C::STAGES - 1) y[step * H + u] = t < length[r] ? there : 0.0f;
        }
      }
      threadgroup_barrier(mem_flags::mem_threadgroup);
      now = 1 - now;
    }
  }
  clear_rest<C::ROWS, C::THREADS>(y, steps, T, B, int(H), row0, thread_index);
  if (!C::KEEP && group_index == 0 && thread_index == 0) points[0] = nums[0] = dens[0] = 0.0f;
}

// Backward: what an evaluation's h is made of. h times delta is the gradient of num, and -h times delta times `value` that of den, where value
// is what den is multiplied by: the next v for the semi-implicit solver, else v. dv, arriving and result are the unit's own.
template <int SOLVER>
inline float enter_evaluation(int stage, float dv, float arriving, float den, float cm, float delta) {
  if (SOLVER == SEMI_IMPLICIT) return dv / (cm + delta * den);
  if (SOLVER == EXPLICIT) return dv / cm;
  float weight = stage == 0 || stage == 3 ? 1.0f / 6.0f : 1.0f / 3.0f;
  float reach = stage == 3 ? 0.0f : stage == 2 ? 1.0f : 0.5f;
  return (dv * weight + reach * arriving) / cm;
}

// One row's values of the units while it runs backward; each is read and written by its owner alone.
template <int H_>
struct Carried {
  enum { H = H_, DV = 0, HELD = 1, ARRIVING = 2, RESULT = 3 };
};

// The owner of a unit leaves evaluation e: `sum` is what came back through the synapses.
template <typename C>
inline void leave_evaluation(int stage, float sum, float den, float cm, float delta, threadgroup float* carried) {
  typedef Carried<C::H> Row;
  float h = carried[Row::HELD * C::H];
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

template <typename C>
inline void pull_synapse_at(
    thread const Lists<C>& lists, int i, int place, thread const float* v, threadgroup const float* d, thread float* sums) {
  float4 synapse = weight_at(lists.synapses, i);
  int target = C::FULL ? place : partner_at(lists.partners, i);
#pragma unroll
  for (int r = 0; r < C::ROWS; r++) {
    float open = fast_sigmoid(synapse.x * v[r] - synapse.y);
    sums[r] += synapse.x * argument_gradient(synapse, open, d[r * C::ROW + target], d[(C::ROWS + r) * C::ROW + target]);
  }
}

// What comes back to a block's unit through the synapses that leave it: sums (ROWS), the same in all its lanes. `v` holds the units' values
// (ROWS, H), d the gradients of num and den (2, ROWS, ROW).
template <typename C>
inline void pull_synapses(
    thread const Lists<C>& lists, int block, device const int* offsets, device const float* v, int u, int rows, threadgroup const float* d,
    thread float* sums) {
  float here[C::ROWS];
#pragma unroll
  for (int r = 0; r < C::ROWS; r++) {
    here[r] = u >= 0 && r < rows ? v[r * C::H + u] : 0.0f;
    sums[r] = 0.0f;
  }
  if (C::RESIDENT) {
#pragma unroll
    for (int k = 0; k < C::WIDTH; k++) pull_synapse_at<C>(lists, block * C::WIDTH + k, k * C::SPLIT + lists.part, here, d, sums);
  } else {
    int first = offsets[block], count = offsets[block + 1] - first;
    for (int k = 0; k < count; k++) pull_synapse_at<C>(lists, first + k, k * C::SPLIT + lists.part, here, d, sums);
  }
#pragma unroll
  for (int r = 0; r < C::ROWS; r++) sums[r] = over_lanes<C::SPLIT>(sums[r]);
}

// The backward scan: dv alone is sequential. Its synapses are packed by source.
template <typename C>
inline void ltc_backward(
    device const float* synapses,  // packed by source, and the next three likewise
    device const int* targets,
    device const int* order,
    device const int* offsets,
    device const float* points,    // (E, T, B, H): what the forward scan kept
    device const float* dens,      // (E, T, B, H)
    device const float* v,         // (T, B, H): its result
    device const float* cm,        // (H)
    device const float* delta,     // (T, B)
    device const float* dy,        // (T, B, H)
    device const float* carry,     // (B, H): the gradient of the last state from beyond these steps
    device const int* lengths,     // (B)
    device const int* dims,        // T, B, unfolds
    device float* h,               // (E, T, B, H): see enter_evaluation
    device float* dv0,             // (B, H)
    int group_index, int thread_index, threadgroup float4* scratch) {
  enum { ROW = C::ROW, H = C::H, CARRIED = C::SOLVER == RK4 ? 4 : 2 };
  typedef Carried<C::H> Row;
  int T = dims[0], B = dims[1], E = dims[2] * C::STAGES, row0 = group_index * C::ROWS;
  threadgroup float* gradients = (threadgroup float*)scratch;    // (2 buffers, num and den, ROWS, ROW)
  threadgroup float* carried = gradients + 4 * C::ROWS * ROW;    // (ROWS, CARRIED, H)
  fill(gradients, 4 * C::ROWS * ROW, thread_index, C::THREADS, 0.0f);
  int length[C::ROWS];
  int steps = read_lengths<C::ROWS>(lengths, row0, B, length);
  Lists<C> lists;
  load_lists<C>(lists, synapses, targets, thread_index);
  threadgroup_barrier(mem_flags::mem_threadgroup);

  for (int i = -1; i < steps * E; i++) {
    // leave evaluation i, counted from the end, and enter the one before it; i = -1: only enter
    int t = steps - 1 - (i < 0 ? 0 : i / E), e = E - 1 - (i < 0 ? 0 : i % E);
    threadgroup const float* d = gradients + (i & 1) * 2 * C::ROWS * ROW;
    threadgroup float* d_next = gradients + ((i + 1) & 1) * 2 * C::ROWS * ROW;
    bool is_last = i + 1 == steps * E;
    int t_next = steps - 1 - (i + 1) / E, e_next = E - 1 - (i + 1) % E;
    for (int block = 0; block < C::BLOCKS; block++) {
      int u = unit_in<C>(lists, block, order);
      float sums[C::ROWS];
      if (i >= 0) pull_synapses<C>(lists, block, offsets, points + ((e * T + t) * B + row0) * H, u, B - row0, d, sums);
      if (lists.part != 0 || u < 0) continue;
      for (int r = 0; r < C::ROWS && row0 + r < B; r++) {
        threadgroup float* own = carried + r * CARRIED * H + u;
        int step = t * B + row0 + r;
        if (i < 0) {
          own[Row::DV * H] = carry[(row0 + r) * H + u];
        } else if (t < length[r]) {
          leave_evaluation<C>(e % C::STAGES, sums[r], dens[(e * T * B + step) * H + u], cm[u], delta[step], own);
        }
        if (is_last) continue;
        step = t_next * B + row0 + r;
        int place = (e_next * T * B + step) * H + u;
        float held = 0.0f, value = 0.0f, length_of_time = 0.0f;
        if (t_next < length[r]) {
          int stage = e_next % C::STAGES;
          if (e_next == E - 1) own[Row::DV * H] += dy[step * H + u];
          if (C::SOLVER == RK4 && stage == 3) {
            own[Row::ARRIVING * H] = 0.0f;
            own[Row::RESULT * H] = own[Row::DV * H];
          }
          length_of_time = delta[step];
          held = enter_evaluation<C::SOLVER>(
              stage, own[Row::DV * H], C::SOLVER == RK4 ? own[Row::ARRIVING * H] : 0.0f, dens[place], cm[u], length_of_time);
          value = C::SOLVER != SEMI_IMPLICIT ? points[place] : e_next == E - 1 ? v[step * H + u] : points[place + T * B * H];
        }
        own[Row::HELD * H] = held;
        h[place] = held;
        d_next[r * ROW + u] = length_of_time * held;
        d_next[(C::ROWS + r) * ROW + u] = -length_of_time * held * value;
      }
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
  }
  for (int block = 0; block < C::BLOCKS; block++) {
    int u = unit_in<C>(lists, block, order);
    if (lists.part != 0 || u < 0) continue;
    for (int r = 0; r < C::ROWS && row0 + r < B; r++) dv0[(row0 + r) * H + u] = carried[r * CARRIED * H + u];
  }
  for (int e = 0; e < E; e++) clear_rest<C::ROWS, C::THREADS>(h + e * T * B * H, steps, T, B, int(H), row0, thread_index);
}

// What is parallel over all steps, on R rows: v (R, K) at the sources of H targets.

// (1): num and den (R, H), a thread each; synapses (S) by target, each target's from starts[j] on.
template <int K, int H, int THREADS>
inline void ltc_sums(
    device const float* v, device const float* synapses, device const int* sources, device const int* starts, device const int* dims,
    device float* nums, device float* dens, int group_index, int thread_index, threadgroup float4* scratch) {
  int i = group_index * THREADS + thread_index;
  if (i >= dims[0] * H) return;
  int row = i / H, j = i % H;
  float num = 0.0f, den = 0.0f;
  for (int s = starts[j]; s < starts[j + 1]; s++) {
    add_synapse(((device const float4*)synapses)[s], v[row * K + sources[s]], num, den);  // (1)
  }
  nums[i] = num;
  dens[i] = den;
}

// From the gradients of num and den (R, H) to those of the sources' values (R, K), a thread each; synapses (S) by source.
template <int K, int H, int THREADS>
inline void ltc_pull(
    device const float* v, device const float* d_num, device const float* d_den, device const float* synapses, device const int* targets,
    device const int* starts, device const int* dims, device float* dv, int group_index, int thread_index, threadgroup float4* scratch) {
  int n = group_index * THREADS + thread_index;
  if (n >= dims[0] * K) return;
  int row = n / K, i = n % K;
  float sum = 0.0f;
  for (int s = starts[i]; s < starts[i + 1]; s++) {
    float4 synapse = ((device const float4*)synapses)[s];
    int place = row * H + targets[s];
    sum += synapse.x * argument_gradient(synapse, fast_sigmoid(synapse.x * v[n] - synapse.y), d_num[place], d_den[place]);
  }
  dv[n] = sum;
}

// The sums over rows of which the gradients of a synapse's parameters are made, a thread for each synapse and each of CHUNKS parts of the
// rows: sums (CHUNKS, 4, S), of d_num sigma(...), of d_den sigma(...), of the gradient of sigma's argument, and of the same times v.
template <int K, int H, int THREADS>
inline void ltc_gradients(
    device const float* v, device const float* d_num, device const float* d_den, device const float* synapses, device const int* sources,
    device const int* targets, device const int* dims, device float* sums, int group_index, int thread_index, threadgroup float4* scratch) {
  int R = dims[0], S = dims[1], chunks = dims[2], n = group_index * THREADS + thread_index;
  if (n >= S * chunks) return;
  int chunk = n / S, s = n % S, rows = (R + chunks - 1) / chunks;
  int source = sources[s], target = targets[s], last = (chunk + 1) * rows < R ? (chunk + 1) * rows : R;
  float4 synapse = ((device const float4*)synapses)[s];
  float by_num = 0.0f, by_den = 0.0f, by_argument = 0.0f, by_product = 0.0f;
  for (int row = chunk * rows; row < last; row++) {
    float here = v[row * K + source], to_num = d_num[row * H + target], to_den = d_den[row * H + target];
    float open = fast_sigmoid(synapse.x * here - synapse.y);
    float argument = argument_gradient(synapse, open, to_num, to_den);
    by_num += open * to_num;
    by_den += open * to_den;
    by_argument += argument;
    by_product += argument * here;
  }
  device float* own = sums + chunk * 4 * S + s;
  own[0] = by_num;
  own[S] = by_den;
  own[2 * S] = by_argument;
  own[3 * S] = by_product;
}
