// RNN, LSTM and GRU, equations (1) to (3): one threadgroup runs ROWS sequences through all their steps, forward and backward. The
// directions of a bidirectional layer run in parallel, like more sequences, with their own weights; D is the first axis of every array.
// Arrays are time-major. The products with the inputs x are computed before the forward scan; the gates' slopes, from the stored states
// (gated_pointwise.metal), before the backward scan; the weights' gradients after it.
//
// An LSTM may project its h to P features. A step then has two products, one after the other: forward from h to the gates, and from
// m = o tanh(c) to h; backward from the gates' gradients to h's, and from those to m's.

// The sizes of one variant; SPLIT is 4, 8, 16 or 32. P is 0 if h is not projected.
template <int CELL_, int H_, int P_, int THREADS_, int ROWS_, int SPLIT_, bool RESIDENT_>
struct Gated {
  enum {
    CELL = CELL_, H = H_, THREADS = THREADS_, ROWS = ROWS_, RESIDENT = RESIDENT_,
    PROJECTED = P_ > 0,
    FEATURES = P_ > 0 ? P_ : H_,  // features of h
    GATES = CellSizes<CELL_>::GATES, BLOCKS = CellSizes<CELL_>::BLOCKS, SLOPES = CellSizes<CELL_>::SLOPES,
    SLOT = GATES == 1 ? SPLIT_ : SPLIT_ / 4,  // lanes per gate of a unit
    GROUPS = THREADS_ / SPLIT_,
    OUTPUTS = FEATURES <= int(GROUPS) ? 1 : FEATURES <= 2 * int(GROUPS) ? 2 : 4  // results per lane group if the results are P features
  };
  // an RNN's lanes compute four neighbouring units, which share the reads of h; otherwise the gates of one unit
  typedef Product<FEATURES, GATES * H_, SPLIT_, (GATES == 1 ? 4 : int(GATES)), THREADS_, RESIDENT_> Forward;
  typedef Product<H_, FEATURES, SPLIT_, OUTPUTS, THREADS_, RESIDENT_> Project;
  typedef Product<(PROJECTED ? int(FEATURES) : GATES * H_), H_, SPLIT_, 1, THREADS_, RESIDENT_> Back;
  typedef Product<GATES * H_, FEATURES, SPLIT_, OUTPUTS, THREADS_, RESIDENT_> ProjectBack;
  enum {
    // floats per row of: h, m, the products' gradients, h's gradient
    H_ROW = 4 * Forward::ROW4, M_ROW = 4 * Project::ROW4, D_ROW = PROJECTED ? 4 * ProjectBack::ROW4 : 4 * Back::ROW4, DH_ROW = 4 * Back::ROW4,
    BUFFERS = PROJECTED ? 1 : 2,  // double-buffered if a step has only one product
    // values read ahead into a lane's registers, for each block and row; backward only if five of each leave enough registers for the
    // weights
    AHEAD_BACK = RESIDENT_ && Back::BLOCKS * ROWS_ <= 4,
    WAITING = RESIDENT_ ? Forward::BLOCKS * ROWS_ : 1, WAITING_BACK = AHEAD_BACK ? Back::BLOCKS * ROWS_ : 1
  };
};

// The unit and gate of a lane in a block of results.
template <typename C>
inline int unit_at(thread const typename C::Forward& product, int block) {
  return C::GATES == 1 ? result_of(product, block) : unit_of(product, block);
}
template <typename C>
inline int gate_of(thread const typename C::Forward& product) {
  return C::GATES == 1 ? 0 : product.owned;
}

// All lanes read before a product; lanes without a unit read the last unit's values. A condition that differs between lanes could lead the
// compiler to merge it with the same condition after the product into one branch around the shuffles.
inline int or_last(int index, int count) { return min(index, count - 1); }

// The projected inputs of a lane in a block of results; `x_proj` points to step t.
template <typename C, typename IO>
inline void read_inputs(
    thread const typename C::Forward& product, int block, device const IO* x_proj, int t, thread const int* length, thread float* projected) {
  int u = or_last(unit_at<C>(product, block), C::H), gate = or_last(gate_of<C>(product), C::GATES);
#pragma unroll
  for (int r = 0; r < C::ROWS; r++) projected[r] = t < length[r] ? float(x_proj[(r * C::GATES + gate) * C::H + u]) : 0.0f;
}

// Whether step t is valid for row r; with a single row every step of the group is.
template <int ROWS>
inline bool has_step(thread const int* length, int t, int r) {
  return ROWS == 1 || t < length[r];
}

// If there are few values and weights are in registers, a step's inputs from device memory are read one step ahead into `ahead`, to hide
// the latency; otherwise just before a product, which takes longer.

// The product with h, and the next state of the units: h_next, or m if h is projected. x, y and c_out point to step t.
template <typename C, typename IO>
inline void units_step(
    thread const typename C::Forward& product, threadgroup const float* h, threadgroup float* h_next, threadgroup float* c, thread float* ahead,
    device const IO* x, int stride, device const float* b_hn, device IO* y, device IO* c_out, int t, int rows, thread const int* length) {
  typedef typename C::Forward Forward;
  enum { COPIES = Forward::COPIES, NEXT_ROW = C::PROJECTED ? int(C::M_ROW) : int(C::H_ROW) };
  int gate = gate_of<C>(product);
  bool writes = product.primary && gate == (C::CELL == GRU ? 2 : 0);
#pragma unroll(Forward::UNROLL)
  for (int block = 0; block < Forward::BLOCKS; block++) {
    int u = unit_at<C>(product, block);
    float projected[C::ROWS], sums[C::ROWS * Forward::OUTPUTS];
    if (C::RESIDENT) {
#pragma unroll
      for (int r = 0; r < C::ROWS; r++) projected[r] = ahead[C::RESIDENT ? block * C::ROWS + r : 0];
      read_inputs<C>(product, block, x + stride, t + 1, length, ahead + (C::RESIDENT ? block * C::ROWS : 0));
    } else {
      read_inputs<C>(product, block, x, t, length, projected);
    }
    float bias = C::CELL == GRU ? b_hn[or_last(u, C::H)] : 0.0f;
    run_product<C::ROWS>(product, (threadgroup const float4*)h, block, sums);
    float next[C::ROWS], f[C::ROWS], added[C::ROWS];  // for an LSTM o, f and i g
#pragma unroll
    for (int r = 0; r < C::ROWS; r++) {
      float q = sums[r * Forward::OUTPUTS];
      float a = projected[r] + q;  // (1)
      if (C::CELL == LSTM) {
        float value = tanh_or_sigmoid(gate == 2, a);  // (2)
        float i = value;
        f[r] = simd_shuffle_xor(value, int(COPIES));
        float g = simd_shuffle_xor(value, 2 * int(COPIES));
        float o = simd_shuffle_xor(value, 3 * int(COPIES));
        added[r] = i * g;
        next[r] = o;
      } else if (C::CELL == GRU) {
        float value = fast_sigmoid(a);  // (2)
        float reset = simd_shuffle_xor(value, 2 * int(COPIES));  // n's lanes get r
        float z = simd_shuffle_xor(value, 3 * int(COPIES));      // and z
        float n = fast_tanh(projected[r] + reset * (q + bias));
        next[r] = n + z * (h[r * C::H_ROW + or_last(u, C::H)] - n);  // (3)
      } else {
        next[r] = rnn_unit(C::CELL, a);  // (2)
      }
    }
#pragma unroll
    for (int r = 0; r < C::ROWS; r++) {
      if (!writes || u >= C::H || r >= rows) continue;
      bool valid = has_step<C::ROWS>(length, t, r);
      float h_new = next[r];
      if (C::CELL == LSTM) {
        float c_next = f[r] * c[r * C::H + u] + added[r];  // (3)
        h_new = next[r] * fast_tanh(c_next);
        if (valid) c[r * C::H + u] = c_next;
        c_out[r * C::H + u] = IO(valid ? c_next : 0.0f);
      }
      h_next[r * NEXT_ROW + u] = valid || C::PROJECTED ? h_new : h[r * C::H_ROW + u];
      if (!C::PROJECTED) y[r * C::H + u] = IO(valid ? h_new : 0.0f);
    }
  }
}

// From m to h, W_hr m.
template <typename C, typename IO>
inline void project_step(
    thread const typename C::Project& product, threadgroup const float* m, threadgroup float* h, device IO* y, int t, int rows,
    thread const int* length) {
#pragma unroll(C::Project::UNROLL)
  for (int block = 0; block < C::Project::BLOCKS; block++) {
    int j = result_of(product, block);
    float sums[C::ROWS * C::OUTPUTS];
    run_product<C::ROWS>(product, (threadgroup const float4*)m, block, sums);
#pragma unroll
    for (int r = 0; r < C::ROWS; r++) {
      if (!product.primary || j >= C::FEATURES || r >= rows) continue;
      float next = sums[r * C::OUTPUTS];  // (3)
      bool valid = has_step<C::ROWS>(length, t, r);
      if (valid) h[r * C::H_ROW + j] = next;
      y[r * C::FEATURES + j] = IO(valid ? next : 0.0f);
    }
  }
}

template <typename C, typename IO>
inline void gated_forward(
    device const IO* x_proj,     // (D, T, B, GATES H): W_x x + b
    device const float* w_h,     // D times packed (GATES H, FEATURES)
    device const float* w_hr,    // D times packed (FEATURES, H) where PROJECTED
    device const float* b_hn,    // (D, H) of a GRU
    device const float* h0,      // (D, B, FEATURES)
    device const float* c0,      // (D, B, H) of an LSTM
    device const int* lengths,   // (B)
    device const int* dims,      // T, B
    device IO* y,                // (D, T, B, FEATURES)
    device IO* c_out,            // (D, T, B, H) of an LSTM, else one element
    int group_index, int thread_index, threadgroup float4* scratch) {
  typedef typename C::Forward Forward;
  int T = dims[0], B = dims[1], per_direction = (B + C::ROWS - 1) / C::ROWS;
  int direction = group_index / per_direction, row0 = group_index % per_direction * C::ROWS;
  int rows = B - row0 < C::ROWS ? B - row0 : int(C::ROWS), first = direction * T * B, state0 = direction * B + row0;
  threadgroup float* states = (threadgroup float*)scratch;            // (BUFFERS, ROWS, H_ROW)
  threadgroup float* m = states + C::BUFFERS * C::ROWS * C::H_ROW;    // (ROWS, M_ROW) where PROJECTED
  threadgroup float* c = m + (C::PROJECTED ? C::ROWS * C::M_ROW : 0);  // (ROWS, H) of an LSTM
  fill(states, C::BUFFERS * C::ROWS * C::H_ROW + (C::PROJECTED ? C::ROWS * C::M_ROW : 0), thread_index, C::THREADS, 0.0f);
  threadgroup_barrier(mem_flags::mem_threadgroup);

  int length[C::ROWS];
  int steps = read_lengths<C::ROWS>(lengths, row0, B, length);
  for (int r = 0; r < rows; r++) {
    for (int j = thread_index; j < C::FEATURES; j += C::THREADS) states[r * C::H_ROW + j] = h0[(state0 + r) * C::FEATURES + j];
    for (int u = thread_index; u < C::H && C::CELL == LSTM; u += C::THREADS) c[r * C::H + u] = c0[(state0 + r) * C::H + u];
  }
  Forward product;
  typename C::Project project;
  load_product(product, w_h + direction * 4 * Forward::FLOAT4S * C::THREADS, thread_index);
  if (C::PROJECTED) load_product(project, w_hr + direction * 4 * C::Project::FLOAT4S * C::THREADS, thread_index);
  float ahead[C::WAITING];
#pragma unroll
  for (int block = 0; block < Forward::BLOCKS && C::RESIDENT; block++) {
    read_inputs<C>(product, block, x_proj + (first + row0) * C::GATES * C::H, 0, length, ahead + (C::RESIDENT ? block * C::ROWS : 0));
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);

  for (int t = 0; t < steps; t++) {
    int step = first + t * B + row0;
    threadgroup float* h = states + t % C::BUFFERS * C::ROWS * C::H_ROW;
    threadgroup float* h_next = C::PROJECTED ? m : states + (t + 1) % C::BUFFERS * C::ROWS * C::H_ROW;
    device IO* y_step = y + step * C::FEATURES;
    device IO* c_step = c_out + (C::CELL == LSTM ? step * C::H : 0);
    units_step<C>(
        product, h, h_next, c, ahead, x_proj + step * C::GATES * C::H, B * C::GATES * C::H, b_hn + direction * C::H, y_step, c_step, t, rows,
        length);
    threadgroup_barrier(mem_flags::mem_threadgroup);
    if (C::PROJECTED) {
      project_step<C>(project, m, h, y_step, t, rows, length);
      threadgroup_barrier(mem_flags::mem_threadgroup);
    }
  }
  clear_rest<C::ROWS, C::THREADS>(y + first * C::FEATURES, steps, T, B, int(C::FEATURES), row0, thread_index);
  if (C::CELL == LSTM) {
    clear_rest<C::ROWS, C::THREADS>(c_out + first * C::H, steps, T, B, int(C::H), row0, thread_index);
  } else if (group_index == 0 && thread_index == 0) {
    c_out[0] = IO(0.0f);
  }
}

// The slopes that a lane needs at a step for its gate of a unit: its own, and those that all lanes of the unit use; see gated_slopes.
struct Slopes {
  float dy, dy_c, own, shared, through;
};

template <typename C, typename IO>
inline Slopes read_slopes(int u, int part, bool valid, int step, device const IO* dy, device const IO* dy_c, device const float* slopes) {
  Slopes found = {0.0f, 0.0f, 0.0f, 0.0f, 0.0f};
  if (!valid) return found;
  if (!C::PROJECTED) found.dy = float(dy[step * C::H + u]);
  found.own = slopes[(step * C::SLOPES + part / C::SLOT) * C::H + u];
  if (C::GATES > 1) found.shared = slopes[(step * C::SLOPES + 4) * C::H + u];
  if (C::CELL == LSTM) {
    found.dy_c = float(dy_c[step * C::H + u]);
    found.through = slopes[(step * C::SLOPES + 5) * C::H + u];
  }
  return found;
}

// From the gradient of a unit's h, or m, at a step to the gradients of its products; one lane per gate writes. Returns the part of the
// previous state's gradient that bypasses the products, from the next step's `kept`: for an LSTM the gradient of c, for a GRU a part of
// h's.
template <typename C>
inline float enter_step(float arriving, float kept, int u, int part, bool valid, thread const Slopes& at, threadgroup float* d, device float* d_out) {
  int slot = part / C::SLOT;
  float value = 0.0f;
  if (valid) {
    float dh = arriving + at.dy;
    value = dh * at.own;
    if (C::CELL == GRU) kept = dh * at.shared;
    if (C::CELL == LSTM) {
      float dc = kept + at.dy_c + dh * at.shared;
      if (slot < 3) value = dc * at.own;
      kept = dc * at.through;
    }
  }
  if (part % C::SLOT == 0) {
    if (slot < C::GATES) d[slot * C::H + u] = value;
    d_out[slot * C::H + u] = value;
  }
  return kept;
}

// The gradients carried in from later steps, and those of the state before these steps, for the group's sequences.
struct Ends {
  device const float* carry;
  device float* d0;
};

// The gradients dh of h (P features), by the product of the next step.
template <typename C, typename IO>
inline void project_back(
    thread const typename C::ProjectBack& product, threadgroup const float* d, threadgroup float* dh, device const IO* dy, device float* dh_out,
    Ends h, int t, int steps, int step, int rows, thread const int* length) {
#pragma unroll(C::ProjectBack::UNROLL)
  for (int block = 0; block < C::ProjectBack::BLOCKS; block++) {
    int j = result_of(product, block);
    bool mine = product.primary && j < C::FEATURES;
    float added[C::ROWS], sums[C::ROWS * C::OUTPUTS];
#pragma unroll
    for (int r = 0; r < C::ROWS; r++) {  // the loads overlap with the product
      added[r] = t >= 0 && t < length[r] ? float(dy[(step + r) * C::FEATURES + or_last(j, C::FEATURES)]) : 0.0f;
      sums[r * C::OUTPUTS] = r < rows && t + 1 == steps ? h.carry[r * C::FEATURES + or_last(j, C::FEATURES)] : 0.0f;
    }
    if (t + 1 < steps) run_product<C::ROWS>(product, (threadgroup const float4*)d, block, sums);
#pragma unroll
    for (int r = 0; r < C::ROWS; r++) {
      if (!mine || r >= rows) continue;
      float arriving = sums[r * C::OUTPUTS];
      if (t < 0) {
        h.d0[r * C::FEATURES + j] = arriving;
      } else {
        dh[r * C::DH_ROW + j] = arriving + added[r];
        dh_out[(step + r) * C::FEATURES + j] = arriving + added[r];
      }
    }
  }
}

// The gradients at step t (-1: the state before the first step): from the product, plus `kept`, which bypassed it.
template <typename C, typename IO>
inline void units_back(
    thread const typename C::Back& product, threadgroup const float* in, threadgroup const float* kept, threadgroup float* kept_next,
    threadgroup float* d, thread Slopes* ahead, device const IO* dy, device const IO* dy_c, device const float* slopes, device float* d_out,
    Ends h, Ends c, int t, int steps, int step, int stride, int rows, thread const int* length) {
  typedef typename C::Back Back;
#pragma unroll(Back::UNROLL)
  for (int block = 0; block < Back::BLOCKS; block++) {
    int u = unit_of(product, block), read = or_last(u, C::H), part = product.part;
    Slopes at[C::ROWS];
    float passed[C::ROWS], sums[C::ROWS];
#pragma unroll
    for (int r = 0; r < C::ROWS; r++) {
      int place = C::AHEAD_BACK ? block * C::ROWS + r : 0;
      passed[r] = C::GATES > 1 && r < rows ? kept[r * C::H + read] : 0.0f;
      sums[r] = !C::PROJECTED && r < rows && t + 1 == steps ? h.carry[r * C::H + read] : 0.0f;
      if (C::AHEAD_BACK) {
        at[r] = ahead[place];
        ahead[place] = read_slopes<C>(read, part, t > 0 && t - 1 < length[r], step + r - stride, dy, dy_c, slopes);
      } else {
        at[r] = read_slopes<C>(read, part, t >= 0 && t < length[r], step + r, dy, dy_c, slopes);
      }
    }
    if (C::PROJECTED ? t >= 0 : t + 1 < steps) run_product<C::ROWS>(product, (threadgroup const float4*)in, block, sums);
#pragma unroll
    for (int r = 0; r < C::ROWS; r++) {
      if (u >= C::H || r >= rows) continue;
      float arriving = sums[r] + (C::CELL == GRU ? passed[r] : 0.0f);
      if (t >= 0) {
        float through = enter_step<C>(
            arriving, passed[r], u, part, has_step<C::ROWS>(length, t, r), at[r], d + r * C::D_ROW, d_out + (step + r) * C::BLOCKS * C::H);
        if (C::GATES > 1 && part == 0) kept_next[r * C::H + u] = through;
      } else if (part == 0) {
        if (!C::PROJECTED) h.d0[r * C::H + u] = arriving;
        if (C::CELL == LSTM) c.d0[r * C::H + u] = passed[r];
      }
    }
  }
}

// The backward scan: only the sequential part, dh -> d -> dh.
template <typename C, typename IO>
inline void gated_backward(
    device const IO* dy,            // (D, T, B, FEATURES)
    device const float* carry,      // (D, B, FEATURES): the gradient of the last state from later steps
    device const float* slopes,     // (D, T, B, SLOPES, H), see gated_slopes
    device const float* w_h,        // D times packed (FEATURES, GATES H)
    device const float* w_hr,       // D times packed (H, FEATURES) where PROJECTED
    device const IO* dy_c,          // (D, T, B, H) and the next of an LSTM
    device const float* carry_c,    // (D, B, H)
    device const int* lengths,      // (B)
    device const int* dims,         // T, B
    device float* d_out,            // (D, T, B, BLOCKS, H): of the products
    device float* dh_out,           // (D, T, B, FEATURES): of h where PROJECTED, else one element
    device float* dh0,              // (D, B, FEATURES)
    device float* dc0,              // (D, B, H) of an LSTM, else one element
    int group_index, int thread_index, threadgroup float4* scratch) {
  typedef typename C::Back Back;
  int T = dims[0], B = dims[1], per_direction = (B + C::ROWS - 1) / C::ROWS;
  int direction = group_index / per_direction, row0 = group_index % per_direction * C::ROWS;
  int rows = B - row0 < C::ROWS ? B - row0 : int(C::ROWS), first = direction * T * B, state0 = direction * B + row0;
  threadgroup float* buffers = (threadgroup float*)scratch;                 // d, (BUFFERS, ROWS, D_ROW)
  threadgroup float* dh = buffers + C::BUFFERS * C::ROWS * C::D_ROW;        // (ROWS, DH_ROW) where PROJECTED
  threadgroup float* kept = dh + (C::PROJECTED ? C::ROWS * C::DH_ROW : 0);  // (2, ROWS, H) of LSTM and GRU
  fill(buffers, C::BUFFERS * C::ROWS * C::D_ROW + (C::PROJECTED ? C::ROWS * C::DH_ROW : 0), thread_index, C::THREADS, 0.0f);

  int length[C::ROWS];
  int steps = read_lengths<C::ROWS>(lengths, row0, B, length);
  for (int r = 0; r < rows && C::GATES > 1; r++) {
    for (int u = thread_index; u < C::H; u += C::THREADS) {
      kept[((steps + 1) % 2 * C::ROWS + r) * C::H + u] = C::CELL == LSTM ? carry_c[(state0 + r) * C::H + u] : 0.0f;
    }
  }
  Back product;
  typename C::ProjectBack project;
  device const float* w_features = w_h + direction * 4 * C::ProjectBack::FLOAT4S * C::THREADS;
  if (C::PROJECTED) load_product(project, w_features, thread_index);
  load_product(product, (C::PROJECTED ? w_hr : w_h) + direction * 4 * Back::FLOAT4S * C::THREADS, thread_index);
  Slopes ahead[C::WAITING_BACK];
#pragma unroll
  for (int i = 0; i < C::WAITING_BACK && C::AHEAD_BACK; i++) {
    int u = or_last(unit_of(product, i / C::ROWS), C::H), r = i % C::ROWS, t = steps - 1;
    ahead[i] = read_slopes<C>(u, product.part, t >= 0 && t < length[r], first + t * B + row0 + r, dy, dy_c, slopes);
  }
  Ends h = {carry + state0 * C::FEATURES, dh0 + state0 * C::FEATURES}, c = {carry_c, dc0 + (C::CELL == LSTM ? state0 * C::H : 0)};
  threadgroup_barrier(mem_flags::mem_threadgroup);

  // each step's product gives the gradient for the step before it; the last step starts from the carried gradient
  for (int t = steps - 1; t >= -1; t--) {
    int step = first + t * B + row0;
    threadgroup float* d = buffers + (t + 2) % C::BUFFERS * C::ROWS * C::D_ROW;
    threadgroup const float* d_after = buffers + (t + 1) % C::BUFFERS * C::ROWS * C::D_ROW;
    threadgroup const float* arriving = d_after;
    if (C::PROJECTED) arriving = dh;
    threadgroup const float* kept_after = kept + (t + 2) % 2 * C::ROWS * C::H;
    threadgroup float* kept_here = kept + (t + 1) % 2 * C::ROWS * C::H;
    if (C::PROJECTED) {
      project_back<C>(project, d_after, dh, dy, dh_out, h, t, steps, step, rows, length);
      threadgroup_barrier(mem_flags::mem_threadgroup);
    }
    units_back<C>(
        product, arriving, kept_after, kept_here, d, ahead, dy, dy_c, slopes, d_out, h, c, t, steps, step, B, rows, length);
    threadgroup_barrier(mem_flags::mem_threadgroup);
  }
  clear_rest<C::ROWS, C::THREADS>(d_out + first * C::BLOCKS * C::H, steps, T, B, int(C::BLOCKS) * int(C::H), row0, thread_index);
  if (C::PROJECTED) clear_rest<C::ROWS, C::THREADS>(dh_out + first * C::FEATURES, steps, T, B, int(C::FEATURES), row0, thread_index);
  if (!C::PROJECTED && group_index == 0 && thread_index == 0) dh_out[0] = 0.0f;
  if (C::CELL != LSTM && group_index == 0 && thread_index == 0) dc0[0] = 0.0f;
}
