// CfC, equations (1) to (3): ROWS sequences by one threadgroup, all their steps, forward and backward.
// Arrays are time-major. The products with the inputs x come before the forward scan; the gates' slopes, which follow from the stored
// states, come before the backward scan, and the weights' gradients after it.

enum Mode { DEFAULT = 0, NO_GATE = 1, PURE = 2 };

// The sizes of one variant; SPLIT is 4, 8, 16 or 32. DEPTH backbone layers of Z units (Z = H where DEPTH is 0), HEADS linear heads a unit.
// MEMORY: an LSTM step comes first, and the CfC step works on its h.
template <int H_, int Z_, int DEPTH_, int MODE_, int ACTIVATION_, bool MEMORY_, int THREADS_, int ROWS_, int SPLIT_, bool RESIDENT_>
struct CfC {
  enum {
    H = H_, Z = Z_, DEPTH = DEPTH_, MODE = MODE_, ACTIVATION = ACTIVATION_, MEMORY = MEMORY_, THREADS = THREADS_, ROWS = ROWS_,
    HEADS = MODE_ == PURE ? 1 : 4,
    OUTPUTS = 4,
    STATE_BUFFERS = DEPTH_ > 0 || MEMORY_ ? 1 : 2,  // with nothing between, a step writes its result beside what others still read
    LAYER_BUFFERS = DEPTH_ > 1 ? 2 : DEPTH_
  };
  typedef Product<H_, Z_, SPLIT_, OUTPUTS, THREADS_, RESIDENT_> First;
  typedef Product<Z_, Z_, SPLIT_, OUTPUTS, THREADS_, false> Middle;
  typedef Product<Z_, HEADS * H_, SPLIT_, HEADS, THREADS_, RESIDENT_> Heads;
  typedef Product<H_, 4 * H_, SPLIT_, 4, THREADS_, RESIDENT_> Gates;
  typedef Product<4 * H_, H_, SPLIT_, 1, THREADS_, RESIDENT_> GatesBack;
  // the same backward: from the heads' gradients to z's, and on to h's
  typedef Product<HEADS * H_, Z_, SPLIT_, OUTPUTS, THREADS_, RESIDENT_> HeadsBack;
  typedef Product<Z_, Z_, SPLIT_, OUTPUTS, THREADS_, false> MiddleBack;
  typedef Product<(DEPTH_ > 0 ? Z_ : HEADS * H_), H_, SPLIT_, 1, THREADS_, RESIDENT_> FirstBack;
};

// (3): the next state of a unit. Its lanes hold the heads f, g, t_a, t_b, COPIES lanes each; the lanes of f return the state.
template <int MODE, int COPIES>
inline float interpolate(float q, int head, float dt, float w_tau, float A) {
  if (MODE == PURE) {
    float f = q;  // (2)
    float rate = fabs(w_tau) + fabs(f);
    return A - A * exp(-dt * rate) * f;  // (3)
  }
  float other = simd_shuffle_xor(q, COPIES);  // f with g, t_a with t_b
  float t_argument = head == 2 ? q * dt + other : other * dt + q;
  float value = head < 2 ? fast_tanh(q) : fast_sigmoid(t_argument);  // (2)
  float f = value;
  float g = simd_shuffle_xor(value, COPIES);
  float t_interp = simd_shuffle_xor(value, 2 * COPIES);  // (3)
  return MODE == NO_GATE ? f + g * t_interp : f * (1.0f - t_interp) + g * t_interp;
}

// (1): one backbone layer of one step, z = activation(W in + added), times the dropout factors if there are any
template <typename C, typename P, typename IO>
inline void backbone_layer(
    thread const P& product, threadgroup const float4* in, threadgroup float* z, int z_width,
    device const IO* added, int added_width, device const float* dropout, int t, thread const int* length) {
  for (int block = 0; block < P::BLOCKS; block++) {
    float sums[C::ROWS * C::OUTPUTS];
    run_product<C::ROWS>(product, in, block, sums);
    int j = result_of(product, block);
    if (!product.primary || j >= C::Z) continue;
    for (int r = 0; r < C::ROWS; r++) {
      if (t >= length[r]) continue;
      float value = activate<C::ACTIVATION>(sums[r * C::OUTPUTS] + float(added[r * added_width + j]));  // (1)
      z[r * z_width + j] = dropout ? value * dropout[r * C::Z + j] : value;
    }
  }
}

// The LSTM step: gates a, i, f, o from h and x_proj; h_inner and c are its results.
template <typename C, typename IO>
inline void memory_step(
    thread const typename C::Gates& gates, threadgroup const float4* h, int h_width, threadgroup float* h_inner, threadgroup float* c,
    device const IO* x_proj, device IO* c_out, int t, int row0, int B, thread const int* length) {
  typedef typename C::Gates Gates;
  for (int block = 0; block < Gates::BLOCKS; block++) {
    float sums[C::ROWS * 4];
    run_product<C::ROWS>(gates, h, block, sums);
    int u = unit_of(gates, block), gate = gates.owned;
    for (int r = 0; r < C::ROWS; r++) {
      bool valid = u < C::H && t < length[r];
      float q = sums[r * 4] + (valid ? float(x_proj[(r * 4 + gate) * C::H + u]) : 0.0f);
      float value = gate == 0 ? fast_tanh(q) : fast_sigmoid(gate == 2 ? q + 1.0f : q);
      float a = value;
      float i = simd_shuffle_xor(value, int(Gates::COPIES));
      float f = simd_shuffle_xor(value, 2 * int(Gates::COPIES));
      float o = simd_shuffle_xor(value, 3 * int(Gates::COPIES));
      if (u >= C::H || gate != 0 || !gates.primary || row0 + r >= B) continue;
      float c_next = c[r * C::H + u] * f + a * i;
      if (valid) {
        c[r * C::H + u] = c_next;
        h_inner[r * h_width + u] = fast_tanh(c_next) * o;
      }
      c_out[r * C::H + u] = IO(valid ? c_next : 0.0f);
    }
  }
}

template <typename C, typename IO>
inline void cfc_forward(
    device const IO* x_proj,        // (T, B, Z), or (T, B, HEADS H) where DEPTH is 0
    device const float* w_first,    // packed (Z, H)
    device const float* w_middle,   // DEPTH - 1 times packed (Z, Z)
    device const float* b_middle,   // (DEPTH - 1, Z)
    device const float* w_heads,    // packed (HEADS H, Z)
    device const float* b_heads,    // (HEADS H)
    device const float* pure,       // (2, H): w_tau, A
    device const float* dropout,    // (DEPTH, T, B, Z)
    device const float* dt,         // (T, B)
    device const float* h0,         // (B, H)
    device const IO* x_gates,       // (T, B, 4 H) and the next two with MEMORY
    device const float* w_gates,    // packed (4 H, H)
    device const float* c0,         // (B, H)
    device const int* lengths,      // (B)
    device const int* dims,         // T, B, whether there is dropout
    device IO* y,                   // (T, B, H)
    device IO* c_out,               // (T, B, H), one element without MEMORY
    int group_index, int thread_index, threadgroup float4* scratch) {
  typedef typename C::First First;
  typedef typename C::Middle Middle;
  typedef typename C::Heads Heads;
  typedef typename C::Gates Gates;
  enum { H_ROW = 4 * (C::DEPTH > 0 ? int(First::ROW4) : int(Heads::ROW4)), Z_ROW = 4 * Heads::ROW4 };
  int T = dims[0], B = dims[1], row0 = group_index * C::ROWS;
  threadgroup float* states = (threadgroup float*)scratch;                        // (STATE_BUFFERS, ROWS, H_ROW)
  threadgroup float* layers = states + C::STATE_BUFFERS * C::ROWS * H_ROW;        // (LAYER_BUFFERS, ROWS, Z_ROW)
  threadgroup float* inner = layers + C::LAYER_BUFFERS * C::ROWS * Z_ROW;         // (ROWS, H_ROW), with MEMORY
  threadgroup float* c = inner + C::ROWS * H_ROW;                                 // (ROWS, H), with MEMORY
  fill(states, C::ROWS * (C::STATE_BUFFERS * H_ROW + C::LAYER_BUFFERS * Z_ROW + (C::MEMORY ? H_ROW : 0)), thread_index, C::THREADS, 0.0f);
  threadgroup_barrier(mem_flags::mem_threadgroup);

  int length[C::ROWS];
  int steps = read_lengths<C::ROWS>(lengths, row0, B, length);
  for (int r = 0; r < C::ROWS && row0 + r < B; r++) {
    for (int u = thread_index; u < C::H; u += C::THREADS) {
      states[r * H_ROW + u] = h0[(row0 + r) * C::H + u];
      if (C::MEMORY) c[r * C::H + u] = c0[(row0 + r) * C::H + u];
    }
  }
  First first;
  Heads heads;
  Gates gates;
  if (C::MEMORY) load_product(gates, w_gates, thread_index);
  if (C::DEPTH > 0) load_product(first, w_first, thread_index);
  load_product(heads, w_heads, thread_index);
  threadgroup_barrier(mem_flags::mem_threadgroup);

  for (int t = 0; t < steps; t++) {
    int step = t * B + row0;
    threadgroup float* h = states + (t % C::STATE_BUFFERS) * C::ROWS * H_ROW;
    threadgroup float* h_next = states + ((t + 1) % C::STATE_BUFFERS) * C::ROWS * H_ROW;
    threadgroup float* z = h;
    if (C::MEMORY) {
      memory_step<C>(gates, (threadgroup const float4*)h, int(H_ROW), inner, c, x_gates + step * 4 * C::H, c_out + step * C::H, t, row0, B, length);
      z = inner;
      threadgroup_barrier(mem_flags::mem_threadgroup);
    }
    for (int layer = 0; layer < C::DEPTH; layer++) {
      threadgroup const float4* in = (threadgroup const float4*)z;
      device const float* factors = dims[2] ? dropout + (layer * T * B + step) * C::Z : 0;
      z = layers + (layer % 2) * C::ROWS * Z_ROW;
      if (layer == 0) {
        backbone_layer<C>(first, in, z, int(Z_ROW), x_proj + step * C::Z, int(C::Z), factors, t, length);
      } else {
        Middle middle;
        load_product(middle, w_middle + (layer - 1) * 4 * Middle::FLOAT4S * C::THREADS, thread_index);
        backbone_layer<C>(middle, in, z, int(Z_ROW), b_middle + (layer - 1) * C::Z, 0, factors, t, length);
      }
      threadgroup_barrier(mem_flags::mem_threadgroup);
    }
    for (int block = 0; block < Heads::BLOCKS; block++) {
      float sums[C::ROWS * C::HEADS];
      run_product<C::ROWS>(heads, (threadgroup const float4*)z, block, sums);
      int u = unit_of(heads, block), head = heads.owned;
      bool exists = u < C::H;
      for (int r = 0; r < C::ROWS; r++) {
        bool valid = exists && t < length[r];
        float q = sums[r * C::HEADS];
        if (valid) q += C::DEPTH > 0 ? b_heads[head * C::H + u] : float(x_proj[(step + r) * C::HEADS * C::H + head * C::H + u]);
        float w_tau = C::MODE == PURE && exists ? pure[u] : 0.0f, A = C::MODE == PURE && exists ? pure[C::H + u] : 0.0f;
        float next = interpolate<C::MODE, Heads::COPIES>(q, head, valid ? dt[step + r] : 0.0f, w_tau, A);
        if (!exists || head != 0 || !heads.primary || row0 + r >= B) continue;
        h_next[r * H_ROW + u] = valid ? next : h[r * H_ROW + u];
        y[(step + r) * C::H + u] = IO(valid ? next : 0.0f);
      }
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
  }
  clear_rest<C::ROWS, C::THREADS>(y, steps, T, B, int(C::H), row0, thread_index);
  if (C::MEMORY) {
    clear_rest<C::ROWS, C::THREADS>(c_out, steps, T, B, int(C::H), row0, thread_index);
  } else if (group_index == 0 && thread_index == 0) {
    c_out[0] = IO(0.0f);
  }
}

// The gradient of a unit's state at a step (numbered t B + row): kept, and turned into those of the unit's heads.
template <typename C>
inline void enter_step(float dh, int u, int part, int step, device const float* slope_q, threadgroup float* dq, device float* dh_out) {
  enum { COPIES = C::FirstBack::COPIES / C::HEADS };
  int head = part / COPIES;
  if (part % COPIES != 0) return;
  dq[head * C::H + u] = dh * slope_q[(step * C::HEADS + head) * C::H + u];
  if (head == 0) dh_out[step * C::H + u] = dh;
}

// From the gradients of a layer's results to those of the products of the layer below it, one step.
template <typename C, typename P>
inline void layer_back(
    thread const P& product, threadgroup const float4* in, threadgroup float* dz, int z_width,
    device const float* slopes, device float* dz_out, int t, int row0, int B, thread const int* length) {
  for (int block = 0; block < P::BLOCKS; block++) {
    float sums[C::ROWS * C::OUTPUTS];
    run_product<C::ROWS>(product, in, block, sums);
    int j = result_of(product, block);
    if (!product.primary || j >= C::Z) continue;
    for (int r = 0; r < C::ROWS && row0 + r < B; r++) {
      float value = t < length[r] ? sums[r * C::OUTPUTS] * slopes[r * C::Z + j] : 0.0f;
      dz[r * z_width + j] = value;
      dz_out[r * C::Z + j] = value;
    }
  }
}

// The last product of a step: the gradient of the state before it, which enters the step before.
template <typename C, typename P, typename IO>
inline void leave_step(
    thread const P& product, threadgroup const float4* in, int t, int row0, int B, thread const int* length, device const IO* dy,
    device const float* slope_q, threadgroup float* dq, int q_width, device float* dh, device float* dh0) {
  for (int block = 0; block < P::BLOCKS; block++) {
    float sums[C::ROWS];
    run_product<C::ROWS>(product, in, block, sums);
    int u = unit_of(product, block);
    for (int r = 0; r < C::ROWS && row0 + r < B && u < C::H; r++) {
      int before = (t - 1) * B + row0 + r;
      if (t == 0) {
        if (product.part == 0) dh0[(row0 + r) * C::H + u] = sums[r];
      } else {
        float arriving = t - 1 < length[r] ? sums[r] + float(dy[before * C::H + u]) : 0.0f;
        enter_step<C>(arriving, u, product.part, before, slope_q, dq + r * q_width, dh);
      }
    }
  }
}

// From the gradient of the LSTM's h of a unit, and the one of c that arrives, to those of its gates and of the c before.
template <typename C>
inline void memory_back(
    float dh_inner, int u, int part, device const float* slopes, float dy_c, threadgroup float* dc, threadgroup float* d_gates,
    device float* d_gates_out) {
  enum { COPIES = C::FirstBack::COPIES / 4 };
  int gate = part / COPIES;
  if (part % COPIES != 0) return;
  // slopes (6, H): of c by a, i, f; of h by o and by c; and sigma(f + 1)
  float dc_here = dc[gate * C::H + u] + dy_c + dh_inner * slopes[4 * C::H + u];
  float d = gate < 3 ? dc_here * slopes[gate * C::H + u] : dh_inner * slopes[3 * C::H + u];
  d_gates[gate * C::H + u] = d;
  d_gates_out[gate * C::H + u] = d;
  dc[gate * C::H + u] = dc_here * slopes[5 * C::H + u];  // each lane of a unit keeps its own copy
}

// The backward scan: only what is sequential, dh -> dq -> dz -> dh.
template <typename C, typename IO>
inline void cfc_backward(
    device const IO* dy,              // (T, B, H)
    device const float* carry,        // (B, H): the gradient of the last state from beyond these steps
    device const float* slope_q,      // (T, B, HEADS, H): slopes of the next state by the heads
    device const float* slopes,       // (DEPTH, T, B, Z): slopes of the activations
    device const float* w_heads,      // packed transposes of the forward's weights
    device const float* w_middle,
    device const float* w_first,
    device const IO* dy_c,            // (T, B, H) and the next three with MEMORY
    device const float* carry_c,      // (B, H)
    device const float* slopes_gates, // (T, B, 6, H), see memory_back
    device const float* w_gates,      // packed (H, 4 H)
    device const int* lengths,        // (B)
    device const int* dims,           // T, B
    device float* dh,                 // (T, B, H): whole gradient of each state
    device float* dz,                 // (DEPTH, T, B, Z): of the backbone's products
    device float* dh0,                // (B, H)
    device float* d_gates_out,        // (T, B, 4, H) and the next with MEMORY, else one element each
    device float* dc0,                // (B, H)
    int group_index, int thread_index, threadgroup float4* scratch) {
  typedef typename C::HeadsBack HeadsBack;
  typedef typename C::MiddleBack MiddleBack;
  typedef typename C::FirstBack FirstBack;
  typedef typename C::GatesBack GatesBack;
  enum { GATES_ROW = 4 * GatesBack::ROW4, Q_ROW = 4 * (C::DEPTH > 0 ? int(HeadsBack::ROW4) : int(FirstBack::ROW4)), Z_ROW = 4 * FirstBack::ROW4 };
  int T = dims[0], B = dims[1], row0 = group_index * C::ROWS;
  threadgroup float* heads_d = (threadgroup float*)scratch;                       // dq, (STATE_BUFFERS, ROWS, Q_ROW)
  threadgroup float* layers = heads_d + C::STATE_BUFFERS * C::ROWS * Q_ROW;       // dz, (LAYER_BUFFERS, ROWS, Z_ROW)
  threadgroup float* d_gates = layers + C::LAYER_BUFFERS * C::ROWS * Z_ROW;        // (ROWS, GATES_ROW), with MEMORY
  threadgroup float* dc = d_gates + C::ROWS * GATES_ROW;                          // (ROWS, 4, H), with MEMORY
  fill(heads_d, C::ROWS * (C::STATE_BUFFERS * Q_ROW + C::LAYER_BUFFERS * Z_ROW + (C::MEMORY ? GATES_ROW : 0)), thread_index, C::THREADS, 0.0f);

  int length[C::ROWS];
  int steps = read_lengths<C::ROWS>(lengths, row0, B, length);
  HeadsBack heads;
  FirstBack first;
  GatesBack gates;
  if (C::MEMORY) load_product(gates, w_gates, thread_index);
  for (int r = 0; r < C::ROWS && row0 + r < B && C::MEMORY; r++) {
    for (int i = thread_index; i < 4 * C::H; i += C::THREADS) dc[r * 4 * C::H + i] = carry_c[(row0 + r) * C::H + i % C::H];
  }
  if (C::DEPTH > 0) load_product(heads, w_heads, thread_index);
  load_product(first, w_first, thread_index);
  threadgroup_barrier(mem_flags::mem_threadgroup);

  for (int block = 0; block < FirstBack::BLOCKS && steps > 0; block++) {
    int u = unit_of(first, block), t = steps - 1;
    for (int r = 0; r < C::ROWS && row0 + r < B && u < C::H; r++) {
      int step = t * B + row0 + r;
      float arriving = t < length[r] ? float(dy[step * C::H + u]) + carry[(row0 + r) * C::H + u] : 0.0f;
      threadgroup float* dq = heads_d + (t % C::STATE_BUFFERS) * C::ROWS * Q_ROW;
      enter_step<C>(arriving, u, first.part, step, slope_q, dq + r * Q_ROW, dh);
    }
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);

  for (int t = steps - 1; t >= 0; t--) {
    threadgroup float* d = heads_d + (t % C::STATE_BUFFERS) * C::ROWS * Q_ROW;
    threadgroup float* dq_before = heads_d + ((t + 1) % C::STATE_BUFFERS) * C::ROWS * Q_ROW;
    for (int layer = C::DEPTH - 1; layer >= 0; layer--) {
      threadgroup const float4* in = (threadgroup const float4*)d;
      int offset = ((layer * T + t) * B + row0) * C::Z;
      d = layers + (layer % 2) * C::ROWS * Z_ROW;
      if (layer == C::DEPTH - 1) {
        layer_back<C>(heads, in, d, int(Z_ROW), slopes + offset, dz + offset, t, row0, B, length);
      } else {
        MiddleBack middle;
        load_product(middle, w_middle + layer * 4 * MiddleBack::FLOAT4S * C::THREADS, thread_index);
        layer_back<C>(middle, in, d, int(Z_ROW), slopes + offset, dz + offset, t, row0, B, length);
      }
      threadgroup_barrier(mem_flags::mem_threadgroup);
    }
    if (C::MEMORY) {
      for (int block = 0; block < FirstBack::BLOCKS; block++) {
        float sums[C::ROWS];
        run_product<C::ROWS>(first, (threadgroup const float4*)d, block, sums);
        int u = unit_of(first, block);
        for (int r = 0; r < C::ROWS && row0 + r < B && u < C::H; r++) {
          int step = t * B + row0 + r;
          if (t < length[r]) {
            memory_back<C>(
                sums[r], u, first.part, slopes_gates + step * 6 * C::H, float(dy_c[step * C::H + u]), dc + r * 4 * C::H,
                d_gates + r * GATES_ROW, d_gates_out + step * 4 * C::H);
          } else if (first.part == 0) {
            for (int gate = 0; gate < 4; gate++) d_gates_out[(step * 4 + gate) * C::H + u] = 0.0f;
          }
        }
      }
      threadgroup_barrier(mem_flags::mem_threadgroup);
      leave_step<C>(gates, (threadgroup const float4*)d_gates, t, row0, B, length, dy, slope_q, dq_before, int(Q_ROW), dh, dh0);
    } else {
      leave_step<C>(first, (threadgroup const float4*)d, t, row0, B, length, dy, slope_q, dq_before, int(Q_ROW), dh, dh0);
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
  }
  clear_rest<C::ROWS, C::THREADS>(dh, steps, T, B, int(C::H), row0, thread_index);
  for (int layer = 0; layer < C::DEPTH; layer++) {
    clear_rest<C::ROWS, C::THREADS>(dz + layer * T * B * C::Z, steps, T, B, int(C::Z), row0, thread_index);
  }
  if (C::DEPTH == 0 && group_index == 0 && thread_index == 0) dz[0] = 0.0f;  // of one element then
  if (steps == 0) clear_rest<C::ROWS, C::THREADS>(dh0, 0, 1, B, int(C::H), row0, thread_index);
  if (C::MEMORY) {
    clear_rest<C::ROWS, C::THREADS>(d_gates_out, steps, T, B, 4 * C::H, row0, thread_index);
    for (int r = 0; r < C::ROWS && row0 + r < B; r++) {
      for (int u = thread_index; u < C::H; u += C::THREADS) dc0[(row0 + r) * C::H + u] = dc[r * 4 * C::H + u];
    }
  } else if (group_index == 0 && thread_index == 0) {
    d_gates_out[0] = 0.0f;
    dc0[0] = 0.0f;
  }
}
