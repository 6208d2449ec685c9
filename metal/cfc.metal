// CfC, equations (1) to (3): one threadgroup runs ROWS sequences through all their steps, forward and backward.
// Arrays are time-major. The products with the inputs x are computed before the forward scan; the gates' slopes, from the stored states
// (cfc_pointwise.metal), before the backward scan; the weights' gradients after it.
//
// On a layered map a step is a chain of STAGES without backbone; each takes the new state of the stage below it. One threadgroup runs all
// of them as a pipeline: at tick s stage k works on step s - k. Its inputs, its own previous state and the state that the stage below
// computed in the previous tick are then available, and one phase computes every stage. An LSTM before the stages (MEMORY) needs the last
// stage's state first, so the stages of a step then run one after another.

// The sizes of one variant; SPLIT is 4, 8, 16 or 32. DEPTH backbone layers of Z units (Z = H if DEPTH is 0), HEADS linear heads per unit.
// MEMORY: an LSTM step runs first, and the CfC step starts from its h.
// SLOTS: number of slots for units, in the order in which lane groups process them, stage by stage, with gaps; H for a single stage.
// RESIDENT: weights are kept in registers; the LSTM's only with GATES_RESIDENT.
// WINDOW: number of units whose values a stage reads (its own and its neighbour's) if DEPTH is 0. FIRST: units of the first stage.
template <
    int H_, int Z_, int DEPTH_, int MODE_, int ACTIVATION_, bool MEMORY_, int STAGES_, int SLOTS_, int WINDOW_, int FIRST_, int THREADS_,
    int ROWS_, int SPLIT_, bool RESIDENT_, bool GATES_RESIDENT_, typename WEIGHT>
struct CfC {
  enum {
    H = H_, Z = Z_, DEPTH = DEPTH_, MODE = MODE_, ACTIVATION = ACTIVATION_, MEMORY = MEMORY_, STAGES = STAGES_, SLOTS = SLOTS_,
    FIRST = FIRST_, THREADS = THREADS_, ROWS = ROWS_, RESIDENT = RESIDENT_,
    HEADS = MODE_ == PURE ? 1 : 4,
    PIPELINED = STAGES_ > 1 && !MEMORY_,
    STATE_BUFFERS = DEPTH_ > 0 || MEMORY_ ? 1 : 2,  // double-buffered if a single product makes the step
    LAYER_BUFFERS = DEPTH_ > 1 ? 2 : DEPTH_,
    SPLIT = SPLIT_,
    GROUPS = THREADS_ / SPLIT_,
    OUTPUTS = Z_ <= int(GROUPS) ? 1 : Z_ <= 2 * int(GROUPS) ? 2 : 4,  // results per lane group in a layer, so that no group is idle
    BLOCKS = (SLOTS_ + GROUPS - 1) / GROUPS,  // blocks of units that the lane groups process
    UNROLL = RESIDENT_ ? int(BLOCKS) : 1,
    TOGETHER = UNROLL,  // blocks processed at the same time
    HEADS_TOGETHER = MEMORY_ && STAGES_ > 1 ? 1 : int(UNROLL)  // in that case the stages of a step run one after another
  };
  typedef WEIGHT Weight;
  typedef Product<H_, Z_, SPLIT_, OUTPUTS, THREADS_, RESIDENT_, WEIGHT> First;
  typedef Product<Z_, Z_, SPLIT_, OUTPUTS, THREADS_, false, WEIGHT> Middle;
  typedef Product<(DEPTH_ > 0 ? Z_ : WINDOW_), HEADS * SLOTS_, SPLIT_, HEADS, THREADS_, RESIDENT_, WEIGHT> Heads;
  typedef Product<H_, 4 * SLOTS_, SPLIT_, 4, THREADS_, GATES_RESIDENT_, WEIGHT> Gates;
  typedef Product<4 * H_, SLOTS_, SPLIT_, 1, THREADS_, GATES_RESIDENT_, WEIGHT> GatesBack;
  // backward: from the heads' gradients to z's, then to h's
  typedef Product<HEADS * H_, Z_, SPLIT_, OUTPUTS, THREADS_, RESIDENT_, WEIGHT> HeadsBack;
  typedef Product<Z_, Z_, SPLIT_, OUTPUTS, THREADS_, false, WEIGHT> MiddleBack;
  typedef Product<(DEPTH_ > 0 ? Z_ : HEADS * WINDOW_), SLOTS_, SPLIT_, 1, THREADS_, RESIDENT_, WEIGHT> FirstBack;
  enum {
    // floats per row of: the states, the input of a stage or of the first layer, a layer; backward: the heads' and the gates' gradients
    H_ROW = 4 * First::ROW4, WINDOW_ROW = DEPTH_ > 0 ? 4 * First::ROW4 : 4 * Heads::ROW4, Z_ROW = 4 * Heads::ROW4,
    Q_ROW = DEPTH_ > 0 ? 4 * HeadsBack::ROW4 : 4 * FirstBack::ROW4, Z_ROW_BACK = 4 * FirstBack::ROW4, GATES_ROW = 4 * GatesBack::ROW4,
    // values read ahead into registers, for each block and row
    UNIT_VALUES = RESIDENT_ ? BLOCKS * ROWS_ : 1, SLOTS_KEPT = RESIDENT_ ? int(BLOCKS) : 1,
    Z_VALUES = RESIDENT_ ? First::BLOCKS * ROWS_ : 1, Z_VALUES_BACK = RESIDENT_ ? HeadsBack::BLOCKS * ROWS_ : 1
  };
};

// A slot of a lane group: its unit (-1: none), the unit's stage, and the position of its values in the window of its own stage and of the
// stage that also reads them (-1: none).
struct Slot {
  int unit, stage, own, other;
};

template <int COUNT>
struct Slots {
  Slot kept[COUNT];
  device const int* table;
};

template <typename C>
inline Slot read_slot(device const int* table, int group, int block) {
  Slot slot;
  int index = block * C::GROUPS + group;
  if (C::STAGES == 1) {
    slot.unit = slot.own = index < C::H ? index : -1;
    slot.stage = 0;
    slot.other = -1;
  } else {
    slot.unit = table[4 * index];
    slot.stage = table[4 * index + 1];
    slot.own = table[4 * index + 2];
    slot.other = table[4 * index + 3];
  }
  return slot;
}

template <typename C>
inline void load_slots(thread Slots<C::SLOTS_KEPT>& slots, device const int* table, int group) {
  slots.table = table;
#pragma unroll
  for (int block = 0; block < C::SLOTS_KEPT; block++) slots.kept[block] = read_slot<C>(table, group, block);
}

template <typename C>
inline Slot slot_of(thread const Slots<C::SLOTS_KEPT>& slots, int group, int block) {
  if (C::RESIDENT) return slots.kept[C::RESIDENT ? block : 0];
  return read_slot<C>(slots.table, group, block);
}

// The next state of a unit whose lanes hold the heads f, g, t_a, t_b in COPIES lanes each; returned in the lanes of f.
template <int MODE, int COPIES>
inline float interpolate(float q, int head, float dt, float w_tau, float A) {
  if (MODE == PURE) return next_pure_state(q, dt, w_tau, A);  // (3)
  float other = simd_shuffle_xor(q, COPIES);  // f with g, t_a with t_b
  float t_argument = select(other * dt + q, q * dt + other, head == 2);
  float value = tanh_or_sigmoid(head < 2, select(t_argument, q, head < 2));  // (2)
  float f = value;
  float g = simd_shuffle_xor(value, COPIES);
  float t_interp = simd_shuffle_xor(value, 2 * COPIES);
  return next_state<MODE>(f, g, t_interp);  // (3)
}

// With weights in registers, a step's inputs from device memory are read one step ahead into `waits`, to hide the latency behind
// arithmetic; otherwise just before a product, whose weights take longer to read.

// (1): one backbone layer of step t, z = activation(W in + added), times the dropout factors if there are any. Row r adds
// added[r * width], and in the next step added[stride + r * width].
template <typename C, bool AHEAD, typename P, typename IO>
inline void backbone_layer(
    thread const P& product, threadgroup const float4* in, threadgroup float* z, device const IO* added, int stride, int width,
    thread float* waits, bool has_dropout, device const float* dropout, int t, thread const Rows<C::ROWS>& rows) {
#pragma unroll(P::UNROLL)
  for (int block = 0; block < P::BLOCKS; block++) {
    int j = result_of(product, block);
    bool mine = product.primary && j < C::Z;
    float here[C::ROWS];
#pragma unroll
    for (int r = 0; r < C::ROWS; r++) {
      int i = block * C::ROWS + r;
      here[r] = AHEAD ? waits[AHEAD ? i : 0] : mine && valid(rows, t, r) ? float(added[r * width + j]) : 0.0f;
      if (AHEAD) waits[i] = mine && valid(rows, t + 1, r) ? float(added[stride + r * width + j]) : 0.0f;
    }
    float sums[C::ROWS * C::OUTPUTS];
    run_product<C::ROWS>(product, in, block, sums);
#pragma unroll
    for (int r = 0; r < C::ROWS; r++) {
      if (!mine || !valid(rows, t, r)) continue;
      float value = activate<C::ACTIVATION>(sums[r * C::OUTPUTS] + here[r]);  // (1)
      z[r * C::Z_ROW + j] = has_dropout ? value * dropout[r * C::Z + j] : value;
    }
  }
}

// The LSTM's part of step t; its h is written into the windows of the stages.
template <typename C, typename IO>
inline void memory_of_all(
    thread const typename C::Gates& gates, thread const Slots<C::SLOTS_KEPT>& slots, threadgroup const float4* h,
    threadgroup float* windows, threadgroup float* c, device const IO* x_gates, thread float* waits, device float* c_out, int t,
    thread const Rows<C::ROWS>& rows) {
#pragma unroll(C::UNROLL)
  for (int block = 0; block < C::BLOCKS; block++) {
    Slot slot = slot_of<C>(slots, gates.group, block);
    threadgroup float* inner = windows + slot.stage * C::ROWS * C::WINDOW_ROW + slot.own;
    memory_step<C>(gates, block, slot.unit, h, inner, int(C::WINDOW_ROW), c, x_gates, waits, c_out, t, rows);
  }
}

// Whether the inputs enter before the heads of a unit; the heads then add only a bias, the same at every step.
template <typename C>
inline bool has_bias(Slot slot) {
  return C::DEPTH > 0 || slot.stage > 0;
}

// The value that a head adds to its product: the projected inputs, or the bias.
template <typename C, typename IO>
inline float added_to_head(
    device const IO* x_proj, device const float* b_heads, Slot slot, int head, int t, int r, thread const Rows<C::ROWS>& rows) {
  if (slot.unit < 0) return 0.0f;
  if (has_bias<C>(slot)) return b_heads[head * C::H + slot.unit];
  return valid(rows, t, r) ? float(x_proj[(place(rows, t, r) * C::HEADS + head) * C::FIRST + slot.own]) : 0.0f;
}

inline float elapsed(device const float* dt, int at, bool is_valid) { return is_valid ? dt[at] : 0.0f; }

// Writes a unit's new value into the window of its own stage (with MEMORY into the states instead) and into that of the stage above.
template <typename C>
inline void put_state(threadgroup float* windows, threadgroup float* states, Slot slot, int r, float value) {
  if (C::MEMORY) {
    states[r * C::H_ROW + slot.unit] = value;
  } else {
    windows[(slot.stage * C::ROWS + r) * C::WINDOW_ROW + slot.own] = value;
  }
  if (C::STAGES > 1 && slot.other >= 0) windows[((slot.stage + 1) * C::ROWS + r) * C::WINDOW_ROW + slot.other] = value;
}

// Writes the new state of a slot's unit at step t into the windows that read it, and into y; a row without that step keeps its state.
template <typename C>
inline void write_state(
    Slot slot, int r, int t, float value, threadgroup const float* windows, threadgroup float* next_windows, threadgroup float* states,
    device float* y, thread const Rows<C::ROWS>& rows) {
  bool now = valid(rows, t, r);
  if (now) {
    put_state<C>(next_windows, states, slot, r, value);
  } else if (C::STATE_BUFFERS == 2) {
    put_state<C>(next_windows, states, slot, r, windows[(slot.stage * C::ROWS + r) * C::WINDOW_ROW + slot.own]);
  }
  if (t >= 0 && t < rows.steps) y[place(rows, t, r) * C::H + slot.unit] = now ? value : 0.0f;
}

// The heads and the new states y of the units of one stage, or with stage -1 of all units. `in`: the windows, or the last backbone layer.
template <typename C, typename IO>
inline void heads_step(
    thread const typename C::Heads& heads, thread const Slots<C::SLOTS_KEPT>& slots, int stage, threadgroup const float4* in,
    threadgroup float* windows, threadgroup float* next_windows, threadgroup float* states, device const IO* x_proj,
    device const float* b_heads, device const float* pure, device const float* dt, thread float* waits, thread float* dt_waits,
    device float* y, int tick, thread const Rows<C::ROWS>& rows) {
  typedef typename C::Heads Heads;
  enum { ROWS = C::ROWS, COUNT = C::HEADS_TOGETHER };
  int head = heads.owned;
#pragma unroll(C::UNROLL)
  for (int first = 0; first < C::BLOCKS; first += COUNT) {
    if (COUNT == 1 && stage >= 0 && slot_of<C>(slots, heads.group, first).stage != stage) continue;  // the same for all lanes of a simdgroup
    Slot slot[COUNT];
    float added[COUNT * ROWS], passed[COUNT * ROWS], sums[COUNT * ROWS * C::HEADS], values[COUNT * ROWS];
#pragma unroll
    for (int i = 0; i < COUNT * ROWS; i++) {
      int n = i / ROWS, r = i % ROWS, wait = C::RESIDENT ? first * ROWS + i : 0;
      if (r == 0) slot[n] = slot_of<C>(slots, heads.group, first + n);
      int t = C::PIPELINED ? tick - slot[n].stage : tick;
      added[i] = C::RESIDENT ? waits[wait] : added_to_head<C>(x_proj, b_heads, slot[n], head, t, r, rows);
      passed[i] = C::RESIDENT ? dt_waits[wait] : elapsed(dt, place(rows, t, r), valid(rows, t, r));
      if (C::RESIDENT && !has_bias<C>(slot[n])) waits[wait] = added_to_head<C>(x_proj, b_heads, slot[n], head, t + 1, r, rows);
      if (C::RESIDENT) dt_waits[wait] = elapsed(dt, place(rows, t + 1, r), valid(rows, t + 1, r));
    }
#pragma unroll
    for (int n = 0; n < COUNT; n++) {
      threadgroup const float4* window = in + (C::STAGES > 1 ? slot[n].stage * ROWS * Heads::ROW4 : 0);
      partial_sums<ROWS>(heads, window, first + n, sums + n * ROWS * C::HEADS);
    }
#pragma unroll
    for (int n = 0; n < COUNT; n++) join_lanes<ROWS>(heads, sums + n * ROWS * C::HEADS);
#pragma unroll
    for (int i = 0; i < COUNT * ROWS; i++) {
      int u = slot[i / ROWS].unit;
      float w_tau = C::MODE == PURE && u >= 0 ? pure[u] : 0.0f, A = C::MODE == PURE && u >= 0 ? pure[C::H + u] : 0.0f;
      values[i] = interpolate<C::MODE, Heads::COPIES>(sums[i * C::HEADS] + added[i], head, passed[i], w_tau, A);
    }
#pragma unroll
    for (int i = 0; i < COUNT * ROWS; i++) {
      Slot own = slot[i / ROWS];
      if (own.unit < 0 || head != 0 || !heads.primary || rows.row0 + i % ROWS >= rows.B) continue;
      int t = C::PIPELINED ? tick - own.stage : tick;
      write_state<C>(own, i % ROWS, t, values[i], windows, next_windows, states, y, rows);
    }
  }
}

template <typename C, typename IO>
inline void cfc_forward(
    device const IO* x_proj,                      // (T, B, Z), or (T, B, HEADS FIRST) where DEPTH is 0
    device const typename C::Weight* w_first,     // packed (Z, H)
    device const typename C::Weight* w_middle,    // DEPTH - 1 times packed (Z, Z)
    device const float* b_middle,                 // (DEPTH - 1, Z)
    device const typename C::Weight* w_heads,     // packed (HEADS SLOTS, Z or WINDOW)
    device const float* b_heads,                  // (HEADS, H)
    device const float* pure,                     // (2, H): w_tau, A
    device const float* dropout,                  // (DEPTH, T, B, Z)
    device const float* dt,                       // (T, B)
    device const float* h0,                       // (B, H)
    device const IO* x_gates,                     // (T, B, 4 H) and the next two with MEMORY
    device const typename C::Weight* w_gates,     // packed (4 SLOTS, H)
    device const float* c0,                       // (B, H)
    device const int* slot_table,                 // (SLOTS, 4) where there are several stages
    device const int* lengths,                    // (B)
    device const int* dims,                       // T, B, whether there is dropout
    device float* y,                              // (T, B, H)
    device float* c_out,                          // (T, B, H), one element without MEMORY
    int group_index, int thread_index, threadgroup float4* scratch) {
  enum { WINDOWS = C::STAGES * C::ROWS * C::WINDOW_ROW };
  int T = dims[0];
  bool has_dropout = dims[2] != 0;
  threadgroup float* buffers = (threadgroup float*)scratch;                       // (STATE_BUFFERS, STAGES, ROWS, WINDOW_ROW)
  threadgroup float* layers = buffers + C::STATE_BUFFERS * WINDOWS;               // (LAYER_BUFFERS, ROWS, Z_ROW)
  threadgroup float* states = layers + C::LAYER_BUFFERS * C::ROWS * C::Z_ROW;     // (ROWS, H_ROW), with MEMORY
  threadgroup float* c = states + C::ROWS * C::H_ROW;                             // (ROWS, H), with MEMORY
  fill(buffers, C::STATE_BUFFERS * WINDOWS + C::ROWS * (C::LAYER_BUFFERS * C::Z_ROW + (C::MEMORY ? C::H_ROW : 0)), thread_index, C::THREADS, 0.0f);
  threadgroup_barrier(mem_flags::mem_threadgroup);

  Rows<C::ROWS> rows;
  load_rows(rows, lengths, dims[1], group_index * C::ROWS);
  typename C::First first;
  typename C::Heads heads;
  typename C::Gates gates;
  if (C::MEMORY) load_product(gates, w_gates, thread_index);
  if (C::DEPTH > 0) load_product(first, w_first, thread_index);
  load_product(heads, w_heads, thread_index);
  Slots<C::SLOTS_KEPT> slots;
  load_slots<C>(slots, slot_table, heads.group);
  for (int block = 0; block < C::BLOCKS; block++) {
    Slot slot = read_slot<C>(slot_table, heads.group, block);
    for (int r = 0; r < C::ROWS && rows.row0 + r < rows.B && heads.part == 0 && slot.unit >= 0; r++) {
      int at = (rows.row0 + r) * C::H + slot.unit;
      put_state<C>(buffers, states, slot, r, h0[at]);
      if (C::MEMORY) c[r * C::H + slot.unit] = c0[at];
    }
  }
  float z_waits[C::Z_VALUES], waits[C::UNIT_VALUES], dt_waits[C::UNIT_VALUES], gate_waits[C::UNIT_VALUES];
#pragma unroll
  for (int i = 0; i < C::UNIT_VALUES && C::RESIDENT; i++) {
    Slot slot = slots.kept[i / C::ROWS];
    int r = i % C::ROWS, t = C::PIPELINED ? -slot.stage : 0;
    waits[i] = added_to_head<C>(x_proj, b_heads, slot, heads.owned, t, r, rows);
    dt_waits[i] = elapsed(dt, place(rows, t, r), valid(rows, t, r));
    if (C::MEMORY) gate_waits[i] = added_to_gate<C>(x_gates, slot.unit, gates.owned, t, r, rows);
  }
#pragma unroll
  for (int i = 0; i < C::Z_VALUES && C::RESIDENT && C::DEPTH > 0; i++) {
    int j = result_of(first, i / C::ROWS), r = i % C::ROWS;
    z_waits[i] = first.primary && j < C::Z && valid(rows, 0, r) ? float(x_proj[place(rows, 0, r) * C::Z + j]) : 0.0f;
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);

  int ticks = rows.steps > 0 && C::PIPELINED ? rows.steps + C::STAGES - 1 : rows.steps;
  for (int tick = 0; tick < ticks; tick++) {
    threadgroup float* windows = buffers + (tick % C::STATE_BUFFERS) * WINDOWS;
    threadgroup float* next_windows = buffers + ((tick + 1) % C::STATE_BUFFERS) * WINDOWS;
    threadgroup float* z = windows;
    int at = place(rows, tick, 0);
    if (C::MEMORY) {
      memory_of_all<C>(gates, slots, (threadgroup const float4*)states, windows, c, x_gates, gate_waits, c_out, tick, rows);
      threadgroup_barrier(mem_flags::mem_threadgroup);
    }
    for (int layer = 0; layer < C::DEPTH; layer++) {
      threadgroup const float4* in = (threadgroup const float4*)z;
      device const float* factors = dropout + (has_dropout ? (layer * T * rows.B + at) * C::Z : 0);
      z = layers + (layer % 2) * C::ROWS * C::Z_ROW;
      if (layer == 0) {
        backbone_layer<C, bool(C::RESIDENT)>(first, in, z, x_proj + at * C::Z, rows.B * C::Z, int(C::Z), z_waits, has_dropout, factors, tick, rows);
      } else {
        typename C::Middle middle;
        load_product(middle, w_middle + (layer - 1) * 4 * C::Middle::FLOAT4S * C::THREADS, thread_index);
        backbone_layer<C, false>(middle, in, z, b_middle + (layer - 1) * C::Z, 0, 0, z_waits, has_dropout, factors, tick, rows);
      }
      threadgroup_barrier(mem_flags::mem_threadgroup);
    }
    for (int stage = 0; stage < (C::MEMORY ? int(C::STAGES) : 1); stage++) {
      heads_step<C>(
          heads, slots, C::MEMORY ? stage : -1, (threadgroup const float4*)z, windows, next_windows, states, x_proj, b_heads, pure, dt,
          waits, dt_waits, y, tick, rows);
      threadgroup_barrier(mem_flags::mem_threadgroup);
    }
  }
  clear_rows<C::THREADS>(y, rows.steps, T, int(C::H), rows, thread_index);
  if (C::MEMORY) {
    clear_rows<C::THREADS>(c_out, rows.steps, T, int(C::H), rows, thread_index);
  } else if (group_index == 0 && thread_index == 0) {
    c_out[0] = 0.0f;
  }
}

// Writes the gradient of a unit's head into the window of its own stage and into that of the stage below.
template <typename C>
inline void put_heads(threadgroup float* windows, Slot slot, int head, int r, float d) {
  windows[(slot.stage * C::ROWS + r) * C::Q_ROW + slot.own * C::HEADS + head] = d;
  if (C::STAGES > 1 && slot.other >= 0) windows[((slot.stage - 1) * C::ROWS + r) * C::Q_ROW + slot.other * C::HEADS + head] = d;
}

// The heads of a unit's lanes in the backward scan; the first lane of each head writes.
template <typename C>
inline int head_of(int part) {
  return part / (C::SPLIT / C::HEADS);
}
template <typename C>
inline bool writes_head(int part) {
  return part % (C::SPLIT / C::HEADS) == 0;
}

template <typename C, typename IO>
inline float gradient_at(device const IO* dy, Slot slot, int t, int r, thread const Rows<C::ROWS>& rows) {
  return slot.unit >= 0 && valid(rows, t, r) ? float(dy[place(rows, t, r) * C::H + slot.unit]) : 0.0f;
}
template <typename C>
inline float slope_at(device const float* slope_q, Slot slot, int head, int t, int r, thread const Rows<C::ROWS>& rows) {
  return slot.unit >= 0 && valid(rows, t, r) ? slope_q[(place(rows, t, r) * C::HEADS + head) * C::H + slot.unit] : 0.0f;
}

// The inputs of a backward step for one block of units: the gradients dy and the heads' slopes of that step, read ahead.
template <int COUNT>
struct Entering {
  float dy[COUNT], slope[COUNT];
};

// The heads' gradients that a pipeline carries between launches, (B, HEADS, H): of the step after the launch's last one, which its windows
// still need, and of its first step.
struct HeadEnds {
  device const float* carry;
  device float* first;
};

// The gradients of the states of one block of units at step t, from `sums` (the stage above) and dy: stored in dh, and turned into the
// heads' gradients in `windows`.
template <typename C, typename IO>
inline void enter_step(
    thread const float* sums, Slot slot, int part, int block, int t, threadgroup float* windows, device const IO* dy,
    device const float* slope_q, thread Entering<C::UNIT_VALUES>& entering, device float* dh, HeadEnds ends, thread const Rows<C::ROWS>& rows) {
  int head = head_of<C>(part);
#pragma unroll
  for (int r = 0; r < C::ROWS; r++) {
    int i = C::RESIDENT ? block * C::ROWS + r : 0;
    float arriving = C::RESIDENT ? entering.dy[i] : gradient_at<C>(dy, slot, t, r, rows);
    float slope = C::RESIDENT ? entering.slope[i] : slope_at<C>(slope_q, slot, head, t, r, rows);
    if (C::RESIDENT) entering.dy[i] = gradient_at<C>(dy, slot, t - 1, r, rows);
    if (C::RESIDENT) entering.slope[i] = slope_at<C>(slope_q, slot, head, t - 1, r, rows);
    if (slot.unit < 0 || rows.row0 + r >= rows.B || !writes_head<C>(part)) continue;
    float d = valid(rows, t, r) ? sums[r] + arriving : 0.0f, dq = d * slope;
    int end = ((rows.row0 + r) * C::HEADS + head) * C::H + slot.unit;
    if (C::PIPELINED && t == rows.steps) dq = ends.carry[end];
    if (C::PIPELINED && t == 0) ends.first[end] = dq;
    put_heads<C>(windows, slot, head, r, dq);
    if (head == 0 && t >= 0 && t < rows.steps) dh[place(rows, t, r) * C::H + slot.unit] = d;
  }
}

// From the gradients of a layer's results to those of the products of the layer below it, at step t. `waits` as in the forward scan.
template <typename C, bool AHEAD, typename P>
inline void layer_back(
    thread const P& product, threadgroup const float4* in, threadgroup float* dz, device const float* slopes, thread float* waits,
    device float* dz_out, int t, thread const Rows<C::ROWS>& rows) {
#pragma unroll(P::UNROLL)
  for (int block = 0; block < P::BLOCKS; block++) {
    int j = result_of(product, block);
    bool mine = product.primary && j < C::Z;
    float slope[C::ROWS];
#pragma unroll
    for (int r = 0; r < C::ROWS; r++) {
      int i = block * C::ROWS + r, at = r * C::Z + j;
      slope[r] = AHEAD ? waits[AHEAD ? i : 0] : mine && valid(rows, t, r) ? slopes[at] : 0.0f;
      if (AHEAD) waits[i] = mine && valid(rows, t - 1, r) ? slopes[at - rows.B * C::Z] : 0.0f;
    }
    float sums[C::ROWS * C::OUTPUTS];
    run_product<C::ROWS>(product, in, block, sums);
#pragma unroll
    for (int r = 0; r < C::ROWS; r++) {
      if (!mine || rows.row0 + r >= rows.B) continue;
      float value = valid(rows, t, r) ? sums[r * C::OUTPUTS] * slope[r] : 0.0f;
      dz[r * C::Z_ROW_BACK + j] = value;
      dz_out[r * C::Z + j] = value;
    }
  }
}

// The LSTM's part of step t, from the gradient of its h, the result of `first`.
template <typename C>
inline void memory_of_all_back(
    thread const typename C::FirstBack& first, thread const Slots<C::SLOTS_KEPT>& slots, threadgroup const float4* in,
    device const float* slopes, device const float* dy_c, threadgroup float* dc, threadgroup float* d_gates, device float* d_gates_out,
    int t, thread const Rows<C::ROWS>& rows) {
#pragma unroll(C::UNROLL)
  for (int block = 0; block < C::BLOCKS; block++) {
    Slot slot = slot_of<C>(slots, first.group, block);
    float sums[C::ROWS];
    MemorySlopes<C::ROWS> here;
    read_memory_slopes<C>(here, slopes, dy_c, slot.unit, first.part, t, rows);  // the loads overlap with the product
    run_product<C::ROWS>(first, in + (C::STAGES > 1 ? slot.stage * C::ROWS * C::FirstBack::ROW4 : 0), block, sums);
    memory_step_back<C>(here, sums, slot.unit, first.part, dc, d_gates, d_gates_out, t, rows);
  }
}

// The gradients of the states before a step, sums (TOGETHER, ROWS) for the blocks from `from` on: from the gates' gradients, or the heads'
// or the first layer's.
template <typename C>
inline void states_back(
    thread const typename C::FirstBack& first, thread const typename C::GatesBack& gates, thread const Slots<C::SLOTS_KEPT>& slots, int from,
    threadgroup const float4* d, threadgroup const float4* d_gates, thread float* sums) {
#pragma unroll
  for (int n = 0; n < C::TOGETHER; n++) {
    if (C::MEMORY) {
      partial_sums<C::ROWS>(gates, d_gates, from + n, sums + n * C::ROWS);
    } else {
      int stage = C::STAGES > 1 ? slot_of<C>(slots, first.group, from + n).stage : 0;
      partial_sums<C::ROWS>(first, d + stage * C::ROWS * C::FirstBack::ROW4, from + n, sums + n * C::ROWS);
    }
  }
#pragma unroll
  for (int n = 0; n < C::TOGETHER; n++) {
    if (C::MEMORY) {
      join_lanes<C::ROWS>(gates, sums + n * C::ROWS);
    } else {
      join_lanes<C::ROWS>(first, sums + n * C::ROWS);
    }
  }
}

// The backward scan: only the sequential part, dh -> dq -> dz -> dh. A pipeline of stages runs from its last tick to its first.
template <typename C, typename IO>
inline void cfc_backward(
    device const IO* dy,                          // (T, B, H)
    device const float* carry,                    // (B, H): the gradient of the last state from later steps
    device const float* carry_q,                  // (B, HEADS, H): used instead if PIPELINED: gradients of the next step's heads
    device const float* slope_q,                  // (T, B, HEADS, H): slopes of the next state by the heads
    device const float* slopes,                   // (DEPTH, T, B, Z): slopes of the activations
    device const typename C::Weight* w_heads,     // packed transposes of the forward's weights
    device const typename C::Weight* w_middle,
    device const typename C::Weight* w_first,
    device const float* dy_c,                     // (T, B, H) and the next four with MEMORY
    device const float* carry_c,                  // (B, H)
    device const float* slopes_gates,             // (T, B, 6, H), see memory_gate_slopes
    device const typename C::Weight* w_gates,     // packed (SLOTS, 4 H)
    device const typename C::Weight* w_above,     // packed (SLOTS, HEADS WINDOW): from the heads of the stage above, with several stages
    device const int* slot_table,                 // (SLOTS, 4) where there are several stages
    device const int* lengths,                    // (B)
    device const int* dims,                       // T, B
    device float* dh,                             // (T, B, H): total gradient of each state
    device float* dz,                             // (DEPTH, T, B, Z): of the backbone's products
    device float* dh0,                            // (B, H)
    device float* dq0,                            // (B, HEADS, H): of the first step's heads where PIPELINED, else one element
    device float* d_gates_out,                    // (T, B, 4, H) and the next with MEMORY, else one element each
    device float* dc0,                            // (B, H)
    int group_index, int thread_index, threadgroup float4* scratch) {
  typedef typename C::FirstBack FirstBack;
  typedef typename C::GatesBack GatesBack;
  enum { WINDOWS = C::STAGES * C::ROWS * C::Q_ROW, LAST = C::STAGES - 1, COUPLED = C::MEMORY && C::STAGES > 1 };
  int T = dims[0];
  threadgroup float* buffers = (threadgroup float*)scratch;                       // dq, (STATE_BUFFERS, STAGES, ROWS, Q_ROW)
  threadgroup float* layers = buffers + C::STATE_BUFFERS * WINDOWS;               // dz, (LAYER_BUFFERS, ROWS, Z_ROW_BACK)
  threadgroup float* d_gates = layers + C::LAYER_BUFFERS * C::ROWS * C::Z_ROW_BACK;  // (ROWS, GATES_ROW), with MEMORY
  threadgroup float* dc = d_gates + C::ROWS * C::GATES_ROW;                       // (ROWS, 4, H), with MEMORY
  threadgroup float* waiting = dc + C::ROWS * 4 * C::H;                           // dh of lower stages, (ROWS, H), where COUPLED
  enum { ZEROS = C::STATE_BUFFERS * WINDOWS + C::ROWS * (C::LAYER_BUFFERS * C::Z_ROW_BACK + (C::MEMORY ? int(C::GATES_ROW) : 0)) };
  fill(buffers, int(ZEROS), thread_index, C::THREADS, 0.0f);

  Rows<C::ROWS> rows;
  load_rows(rows, lengths, dims[1], group_index * C::ROWS);
  typename C::HeadsBack heads;
  FirstBack first, above;
  GatesBack gates;
  for (int r = 0; r < C::ROWS && rows.row0 + r < rows.B && C::MEMORY; r++) {
    for (int i = thread_index; i < 4 * C::H; i += C::THREADS) dc[r * 4 * C::H + i] = carry_c[(rows.row0 + r) * C::H + i % C::H];
    for (int i = thread_index; i < C::H && COUPLED; i += C::THREADS) waiting[r * C::H + i] = carry[(rows.row0 + r) * C::H + i];
  }
  if (C::MEMORY) load_product(gates, w_gates, thread_index);
  if (C::DEPTH > 0) load_product(heads, w_heads, thread_index);
  load_product(first, w_first, thread_index);
  if (COUPLED) load_product(above, w_above, thread_index);
  Slots<C::SLOTS_KEPT> slots;
  load_slots<C>(slots, slot_table, first.group);

  // the first tick: in a pipeline it includes the step after the last one, whose carried gradients are in the windows
  int entered = C::PIPELINED ? rows.steps + LAST : rows.steps - 1;
  HeadEnds ends = {carry_q, dq0};
  Entering<C::UNIT_VALUES> entering;
  float z_waits[C::Z_VALUES_BACK];
#pragma unroll
  for (int i = 0; i < C::UNIT_VALUES && C::RESIDENT; i++) {
    Slot slot = slots.kept[i / C::ROWS];
    int r = i % C::ROWS, t = entered - (C::PIPELINED ? slot.stage : 0);
    entering.dy[i] = gradient_at<C>(dy, slot, t, r, rows);
    entering.slope[i] = slope_at<C>(slope_q, slot, head_of<C>(first.part), t, r, rows);
  }
#pragma unroll
  for (int i = 0; i < C::Z_VALUES_BACK && C::RESIDENT && C::DEPTH > 0; i++) {
    int j = result_of(heads, i / C::ROWS), r = i % C::ROWS, t = rows.steps - 1;
    z_waits[i] = heads.primary && j < C::Z && valid(rows, t, r) ? slopes[(((C::DEPTH - 1) * T + t) * rows.B + rows.row0 + r) * C::Z + j] : 0.0f;
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);

  // the first tick starts from the carried gradients; each tick's last product gives the gradients for the tick before it
#pragma unroll(C::UNROLL)
  for (int block = 0; block < C::BLOCKS; block++) {
    Slot slot = slot_of<C>(slots, first.group, block);
    if (rows.steps == 0 || (COUPLED && slot.stage != LAST)) continue;
    float sums[C::ROWS];
    for (int r = 0; r < C::ROWS; r++) sums[r] = slot.unit >= 0 && rows.row0 + r < rows.B ? carry[(rows.row0 + r) * C::H + slot.unit] : 0.0f;
    int t = entered - (C::PIPELINED ? slot.stage : 0);
    enter_step<C>(sums, slot, first.part, block, t, buffers + (entered % C::STATE_BUFFERS) * WINDOWS, dy, slope_q, entering, dh, ends, rows);
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);

  for (int tick = rows.steps > 0 ? entered : -1; tick >= 0; tick--) {
    threadgroup float* windows = buffers + (tick % C::STATE_BUFFERS) * WINDOWS;
    threadgroup float* windows_before = buffers + ((tick + 1) % C::STATE_BUFFERS) * WINDOWS;
    threadgroup float* d = windows;
    for (int stage = LAST - 1; stage >= 0 && COUPLED; stage--) {
#pragma unroll(C::UNROLL)
      for (int from = 0; from < C::BLOCKS; from += C::TOGETHER) {
        threadgroup const float4* in = (threadgroup const float4*)windows + (stage + 1) * C::ROWS * FirstBack::ROW4;
        float sums[C::TOGETHER * C::ROWS];
#pragma unroll
        for (int n = 0; n < C::TOGETHER; n++) {
          if (slot_of<C>(slots, above.group, from + n).stage != stage) continue;  // the same for all lanes of a simdgroup
          run_product<C::ROWS>(above, in, from + n, sums + n * C::ROWS);
        }
#pragma unroll
        for (int n = 0; n < C::TOGETHER; n++) {
          Slot slot = slot_of<C>(slots, above.group, from + n);
          if (slot.stage != stage) continue;
          thread float* arriving = sums + n * C::ROWS;
          for (int r = 0; r < C::ROWS; r++) arriving[r] += slot.unit >= 0 && rows.row0 + r < rows.B ? waiting[r * C::H + slot.unit] : 0.0f;
          enter_step<C>(arriving, slot, above.part, from + n, tick, windows, dy, slope_q, entering, dh, ends, rows);
        }
      }
      threadgroup_barrier(mem_flags::mem_threadgroup);
    }
    for (int layer = C::DEPTH - 1; layer >= 0; layer--) {
      threadgroup const float4* in = (threadgroup const float4*)d;
      int offset = (layer * T * rows.B + place(rows, tick, 0)) * C::Z;
      d = layers + (layer % 2) * C::ROWS * C::Z_ROW_BACK;
      if (layer == C::DEPTH - 1) {
        layer_back<C, bool(C::RESIDENT)>(heads, in, d, slopes + offset, z_waits, dz + offset, tick, rows);
      } else {
        typename C::MiddleBack middle;
        load_product(middle, w_middle + layer * 4 * C::MiddleBack::FLOAT4S * C::THREADS, thread_index);
        layer_back<C, false>(middle, in, d, slopes + offset, z_waits, dz + offset, tick, rows);
      }
      threadgroup_barrier(mem_flags::mem_threadgroup);
    }
    if (C::MEMORY) {
      memory_of_all_back<C>(first, slots, (threadgroup const float4*)d, slopes_gates, dy_c, dc, d_gates, d_gates_out, tick, rows);
      threadgroup_barrier(mem_flags::mem_threadgroup);
    }
#pragma unroll(C::UNROLL)
    for (int from = 0; from < C::BLOCKS; from += C::TOGETHER) {
      float sums[C::TOGETHER * C::ROWS];
      states_back<C>(first, gates, slots, from, (threadgroup const float4*)d, (threadgroup const float4*)d_gates, sums);
#pragma unroll
      for (int n = 0; n < C::TOGETHER; n++) {
        Slot slot = slot_of<C>(slots, first.group, from + n);
        thread float* arriving = sums + n * C::ROWS;
        int t = tick - 1 - (C::PIPELINED ? slot.stage : 0);
        for (int r = 0; r < C::ROWS && slot.unit >= 0 && first.part == 0; r++) {
          if (t == -1 && rows.row0 + r < rows.B) dh0[(rows.row0 + r) * C::H + slot.unit] = arriving[r];
          if (COUPLED && rows.row0 + r < rows.B) waiting[r * C::H + slot.unit] = arriving[r];
        }
        if (COUPLED && slot.stage != LAST) continue;
        enter_step<C>(arriving, slot, first.part, from + n, t, windows_before, dy, slope_q, entering, dh, ends, rows);
      }
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
  }
  clear_rows<C::THREADS>(dh, rows.steps, T, int(C::H), rows, thread_index);
  for (int layer = 0; layer < C::DEPTH; layer++) {
    clear_rows<C::THREADS>(dz + layer * T * rows.B * C::Z, rows.steps, T, int(C::Z), rows, thread_index);
  }
  if (C::DEPTH == 0 && group_index == 0 && thread_index == 0) dz[0] = 0.0f;  // of one element then
  if (rows.steps == 0) clear_rows<C::THREADS>(dh0, 0, 1, int(C::H), rows, thread_index);
  if (C::PIPELINED && rows.steps == 0) clear_rows<C::THREADS>(dq0, 0, 1, int(C::HEADS) * int(C::H), rows, thread_index);
  if (!C::PIPELINED && group_index == 0 && thread_index == 0) dq0[0] = 0.0f;
  if (C::MEMORY) {
    clear_rows<C::THREADS>(d_gates_out, rows.steps, T, 4 * C::H, rows, thread_index);
    for (int r = 0; r < C::ROWS && rows.row0 + r < rows.B; r++) {
      for (int u = thread_index; u < C::H; u += C::THREADS) dc0[(rows.row0 + r) * C::H + u] = dc[r * 4 * C::H + u];
    }
  } else if (group_index == 0 && thread_index == 0) {
    d_gates_out[0] = 0.0f;
    dc0[0] = 0.0f;
  }
}
