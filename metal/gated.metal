// RNN, LSTM and GRU, equations (1) to (3): ROWS sequences by one threadgroup, all their steps, forward and backward. The directions of a
// bidirectional layer are rows of work like the sequences, with weights of their own: every array has them first.
// Arrays are time-major. The products with the inputs x come before the forward scan; the gates' slopes, which follow from the stored
// states, come before the backward scan, and the weights' gradients after it.

enum Cell { RNN_TANH = 0, RNN_RELU = 1, LSTM = 2, GRU = 3 };

// The sizes of one variant; SPLIT is 4, 8, 16 or 32.
template <int CELL_, int H_, int THREADS_, int ROWS_, int SPLIT_, bool RESIDENT_>
struct Gated {
  enum {
    CELL = CELL_, H = H_, THREADS = THREADS_, ROWS = ROWS_, RESIDENT = RESIDENT_,
    GATES = CELL_ == LSTM ? 4 : CELL_ == GRU ? 3 : 1,   // LSTM: i, f, g, o; GRU: r, z, n
    BLOCKS = CELL_ == GRU ? 4 : GATES,                  // of the products' gradients; GRU: r, z, n's part of W_h h, n
    SLOPES = CELL_ == LSTM ? 6 : CELL_ == GRU ? 5 : 1,  // see Slopes
    SLOT = GATES == 1 ? SPLIT_ : SPLIT_ / 4             // lanes for each gate of a unit
  };
  // an RNN's lanes take four neighbouring units, which share what is read of h; else the gates of one unit
  typedef Product<H_, GATES * H_, SPLIT_, (GATES == 1 ? 4 : int(GATES)), THREADS_, RESIDENT_> Forward;
  typedef Product<GATES * H_, H_, SPLIT_, 1, THREADS_, RESIDENT_> Back;
  enum { BACK_BUFFERS = 2 * ROWS_ * int(Back::ROW4) * 16 <= 32768 ? 2 : 1 };
};

// The projected inputs of a lane in a block of results, `x_proj` those of the step.
template <typename C, typename IO>
inline void read_inputs(
    thread const typename C::Forward& product, int block, device const IO* x_proj, int t, thread const int* length, thread float* projected) {
  int u = C::GATES == 1 ? result_of(product, block) : unit_of(product, block);
  int gate = C::GATES == 1 ? 0 : product.owned;
  for (int r = 0; r < C::ROWS; r++) {
    projected[r] = u < C::H && gate < C::GATES && t < length[r] ? float(x_proj[(r * C::GATES + gate) * C::H + u]) : 0.0f;
  }
}

// The results of one block of the product with h, and with them the next state of its units. The inputs of the step after it are read
// before its product, so that they have come when they are needed.
template <typename C, typename IO>
inline void forward_block(
    thread const typename C::Forward& product, int block, threadgroup const float* h, threadgroup float* h_next, thread float* c,
    thread float* ahead, device const IO* x_next, device const float* b_hn, device IO* y, device IO* c_out, int t, int rows,
    thread const int* length) {
  typedef typename C::Forward Forward;
  enum { H_ROW = 4 * int(Forward::ROW4), COPIES = Forward::COPIES };
  int u = C::GATES == 1 ? result_of(product, block) : unit_of(product, block);
  int gate = C::GATES == 1 ? 0 : product.owned;
  float projected[C::ROWS], sums[C::ROWS * Forward::OUTPUTS];
  for (int r = 0; r < C::ROWS; r++) projected[r] = ahead[r];
  read_inputs<C>(product, block, x_next, t + 1, length, ahead);
  run_product<C::ROWS>(product, (threadgroup const float4*)h, block, sums);
  float bias = C::CELL == GRU && u < C::H ? b_hn[u] : 0.0f;
  for (int r = 0; r < C::ROWS; r++) {
    float q = sums[r * Forward::OUTPUTS], next, c_next = 0.0f;
    float a = projected[r] + q;  // (1)
    if (C::CELL == LSTM) {
      float value = gate == 2 ? fast_tanh(a) : fast_sigmoid(a);  // (2)
      float i = value;
      float f = simd_shuffle_xor(value, int(COPIES));
      float g = simd_shuffle_xor(value, 2 * int(COPIES));
      float o = simd_shuffle_xor(value, 3 * int(COPIES));
      c_next = f * c[r] + i * g;  // (3)
      next = o * fast_tanh(c_next);
    } else if (C::CELL == GRU) {
      float value = fast_sigmoid(a);  // (2)
      float reset = simd_shuffle_xor(value, 2 * int(COPIES));  // for n's lanes that of r's
      float z = simd_shuffle_xor(value, 3 * int(COPIES));      // and of z's
      float n = fast_tanh(projected[r] + reset * (q + bias));
      float before = u < C::H ? h[r * H_ROW + u] : 0.0f;
      next = n + z * (before - n);  // (3)
    } else {
      next = C::CELL == RNN_TANH ? fast_tanh(a) : a > 0.0f ? a : 0.0f;  // (2)
    }
    bool writes = product.primary && gate == (C::CELL == GRU ? 2 : 0) && u < C::H && r < rows;
    bool valid = t < length[r];
    if (valid) c[r] = c_next;
    if (!writes) continue;
    h_next[r * H_ROW + u] = valid ? next : h[r * H_ROW + u];
    y[r * C::H + u] = IO(valid ? next : 0.0f);
    if (C::CELL == LSTM) c_out[r * C::H + u] = IO(valid ? c_next : 0.0f);
  }
}

template <typename C, typename IO>
inline void gated_forward(
    device const IO* x_proj,     // (D, T, B, GATES H): W_x x + b
    device const float* w_h,     // D times packed (GATES H, H)
    device const float* b_hn,    // (D, H) of a GRU
    device const float* h0,      // (D, B, H)
    device const float* c0,      // (D, B, H) of an LSTM
    device const int* lengths,   // (B)
    device const int* dims,      // T, B
    device IO* y,                // (D, T, B, H)
    device IO* c_out,            // (D, T, B, H) of an LSTM, else one element
    int group_index, int thread_index, threadgroup float4* scratch) {
  typedef typename C::Forward Forward;
  enum { H_ROW = 4 * int(Forward::ROW4) };
  int T = dims[0], B = dims[1], per_direction = (B + C::ROWS - 1) / C::ROWS;
  int direction = group_index / per_direction, row0 = group_index % per_direction * C::ROWS;
  int rows = B - row0 < C::ROWS ? B - row0 : int(C::ROWS), first = direction * T * B;
  threadgroup float* states = (threadgroup float*)scratch;  // (2, ROWS, H_ROW): a step writes its result beside what others still read
  fill(states, 2 * C::ROWS * H_ROW, thread_index, C::THREADS, 0.0f);
  threadgroup_barrier(mem_flags::mem_threadgroup);

  int length[C::ROWS];
  int steps = read_lengths<C::ROWS>(lengths, row0, B, length);
  for (int r = 0; r < rows; r++) {
    for (int u = thread_index; u < C::H; u += C::THREADS) states[r * H_ROW + u] = h0[(direction * B + row0 + r) * C::H + u];
  }
  Forward product;
  load_product(product, w_h + direction * 4 * Forward::FLOAT4S * C::THREADS, thread_index);
  float c[Forward::BLOCKS * C::ROWS];  // of the units whose gates this lane takes
  float ahead[Forward::BLOCKS * C::ROWS];
  for (int block = 0; block < Forward::BLOCKS; block++) {
    int u = unit_of(product, block);
    for (int r = 0; r < C::ROWS; r++) {
      c[block * C::ROWS + r] = C::CELL == LSTM && u < C::H && r < rows ? c0[(direction * B + row0 + r) * C::H + u] : 0.0f;
    }
    read_inputs<C>(product, block, x_proj + (first + row0) * C::GATES * C::H, 0, length, ahead + block * C::ROWS);
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);

  for (int t = 0; t < steps; t++) {
    int step = first + t * B + row0;
    threadgroup float* h = states + t % 2 * C::ROWS * H_ROW;
    threadgroup float* h_next = states + (t + 1) % 2 * C::ROWS * H_ROW;
    device const IO* x = x_proj + (step + B) * C::GATES * C::H;
    device IO* c_step = c_out + (C::CELL == LSTM ? step * C::H : 0);
    if (C::RESIDENT) {
#pragma unroll
      for (int block = 0; block < Forward::BLOCKS; block++) {
        forward_block<C>(
            product, block, h, h_next, c + block * C::ROWS, ahead + block * C::ROWS, x, b_hn + direction * C::H, y + step * C::H, c_step, t,
            rows, length);
      }
    } else {
      for (int block = 0; block < Forward::BLOCKS; block++) {
        forward_block<C>(
            product, block, h, h_next, c + block * C::ROWS, ahead + block * C::ROWS, x, b_hn + direction * C::H, y + step * C::H, c_step, t,
            rows, length);
      }
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
  }
  clear_rest<C::ROWS, C::THREADS>(y + first * C::H, steps, T, B, int(C::H), row0, thread_index);
  if (C::CELL == LSTM) {
    clear_rest<C::ROWS, C::THREADS>(c_out + first * C::H, steps, T, B, int(C::H), row0, thread_index);
  } else if (group_index == 0 && thread_index == 0) {
    c_out[0] = IO(0.0f);
  }
}

// What a lane needs of a step for its gate of a unit, beside what arrives: its own slope and those that all of a unit's lanes take.
// The slopes (SLOPES, H) of a step: RNN of h by a; LSTM of c by a_i, a_f, a_g, of h by a_o and by c, and f; GRU of h by a_r, a_z, q_n, a_n and
// by the h before.
struct Slopes {
  float dy, dy_c, own, shared, through;
};

template <typename C, typename IO>
inline Slopes read_slopes(int u, int part, bool valid, int step, device const IO* dy, device const IO* dy_c, device const float* slopes) {
  Slopes found = {0.0f, 0.0f, 0.0f, 0.0f, 0.0f};
  if (!valid) return found;
  found.dy = float(dy[step * C::H + u]);
  found.own = slopes[(step * C::SLOPES + part / C::SLOT) * C::H + u];
  if (C::GATES > 1) found.shared = slopes[(step * C::SLOPES + 4) * C::H + u];
  if (C::CELL == LSTM) {
    found.dy_c = float(dy_c[step * C::H + u]);
    found.through = slopes[(step * C::SLOPES + 5) * C::H + u];
  }
  return found;
}

// From the gradient of a unit's h that arrives at a step to those of its products, one lane of each gate writing its own. `kept` is what goes
// to the state before past the products: of an LSTM the gradient of c, of a GRU a part of h's.
template <typename C>
inline void enter_step(float arriving, int u, int part, bool valid, thread const Slopes& at, threadgroup float* d, device float* d_out, thread float& kept) {
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
  if (part % C::SLOT != 0) return;
  if (slot < C::GATES) d[slot * C::H + u] = value;
  d_out[slot * C::H + u] = value;
}

// The backward scan: only what is sequential, dh -> d -> dh.
template <typename C, typename IO>
inline void gated_backward(
    device const IO* dy,            // (D, T, B, H)
    device const float* carry,      // (D, B, H): the gradient of the last state from beyond these steps
    device const float* slopes,     // (D, T, B, SLOPES, H), see Slopes
    device const float* w_h,        // D times packed (H, GATES H)
    device const IO* dy_c,          // (D, T, B, H) and the next of an LSTM
    device const float* carry_c,    // (D, B, H)
    device const int* lengths,      // (B)
    device const int* dims,         // T, B
    device float* d_out,            // (D, T, B, BLOCKS, H): of the products
    device float* dh0,              // (D, B, H)
    device float* dc0,              // (D, B, H) of an LSTM, else one element
    int group_index, int thread_index, threadgroup float4* scratch) {
  typedef typename C::Back Back;
  enum { D_ROW = 4 * int(Back::ROW4) };
  int T = dims[0], B = dims[1], per_direction = (B + C::ROWS - 1) / C::ROWS;
  int direction = group_index / per_direction, row0 = group_index % per_direction * C::ROWS;
  int rows = B - row0 < C::ROWS ? B - row0 : int(C::ROWS), first = direction * T * B, state0 = direction * B + row0;
  threadgroup float* buffers = (threadgroup float*)scratch;  // (BACK_BUFFERS, ROWS, D_ROW)
  fill(buffers, C::BACK_BUFFERS * C::ROWS * D_ROW, thread_index, C::THREADS, 0.0f);

  int length[C::ROWS];
  int steps = read_lengths<C::ROWS>(lengths, row0, B, length);
  Back product;
  load_product(product, w_h + direction * 4 * Back::FLOAT4S * C::THREADS, thread_index);
  float kept[Back::BLOCKS * C::ROWS];  // each lane of a unit has its own copy
  float arriving[Back::BLOCKS * C::ROWS];
  Slopes ahead[C::RESIDENT ? int(Back::BLOCKS) * C::ROWS : 1];  // of the step before, read while the product runs; there are few if weights fit
#pragma unroll 4
  for (int block = 0; block < Back::BLOCKS; block++) {
    int u = unit_of(product, block);
#pragma unroll
    for (int r = 0; r < C::ROWS; r++) {
      bool exists = u < C::H && r < rows;
      kept[block * C::ROWS + r] = C::CELL == LSTM && exists ? carry_c[(state0 + r) * C::H + u] : 0.0f;
      arriving[block * C::ROWS + r] = exists ? carry[(state0 + r) * C::H + u] : 0.0f;
      if (C::RESIDENT) {
        bool valid = exists && steps - 1 < length[r];
        ahead[block * C::ROWS + r] = read_slopes<C>(u, product.part, valid, first + (steps - 1) * B + row0 + r, dy, dy_c, slopes);
      }
    }
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);

  // step t's gradients follow from what arrives of the step after it; then t's product gives what arrives at the step before
  for (int t = steps - 1; t >= 0; t--) {
    threadgroup float* d = buffers + t % C::BACK_BUFFERS * C::ROWS * D_ROW;
#pragma unroll 4
    for (int block = 0; block < Back::BLOCKS; block++) {
      int u = unit_of(product, block);
#pragma unroll
      for (int r = 0; r < C::ROWS; r++) {  // bounds known to the compiler: else the arrays would not be registers
        if (r >= rows || u >= C::H) continue;
        int step = first + t * B + row0 + r, place = block * C::ROWS + r;
        bool valid = t < length[r];
        Slopes at;
        if (C::RESIDENT) {
          at = ahead[place];
          ahead[place] = read_slopes<C>(u, product.part, t > 0 && t - 1 < length[r], step - B, dy, dy_c, slopes);
        } else {
          at = read_slopes<C>(u, product.part, valid, step, dy, dy_c, slopes);
        }
        enter_step<C>(arriving[place], u, product.part, valid, at, d + r * D_ROW, d_out + step * C::BLOCKS * C::H, kept[place]);
      }
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
#pragma unroll 4
    for (int block = 0; block < Back::BLOCKS; block++) {
      float sums[C::ROWS];
      run_product<C::ROWS>(product, (threadgroup const float4*)d, block, sums);
      for (int r = 0; r < C::ROWS; r++) {
        int place = block * C::ROWS + r;
        arriving[place] = sums[r] + (C::CELL == GRU ? kept[place] : 0.0f);
      }
    }
    if (C::BACK_BUFFERS == 1) threadgroup_barrier(mem_flags::mem_threadgroup);
  }

#pragma unroll 4
  for (int block = 0; block < Back::BLOCKS; block++) {
    int u = unit_of(product, block);
#pragma unroll
    for (int r = 0; r < C::ROWS; r++) {
      int place = block * C::ROWS + r;
      if (r >= rows || u >= C::H || product.part != 0) continue;
      dh0[(state0 + r) * C::H + u] = steps > 0 ? arriving[place] : 0.0f;
      if (C::CELL == LSTM) dc0[(state0 + r) * C::H + u] = steps > 0 ? kept[place] : 0.0f;
    }
  }
  clear_rest<C::ROWS, C::THREADS>(d_out + first * C::BLOCKS * C::H, steps, T, B, int(C::BLOCKS) * int(C::H), row0, thread_index);
  if (C::CELL != LSTM && group_index == 0 && thread_index == 0) dc0[0] = 0.0f;
}
