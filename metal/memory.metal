// The LSTM of a mixed memory: gates a, i, f, o from the state and the inputs, its c, and its h, from which another recurrence's step
// starts. A lane group computes the four gates of a unit. The scan's sizes C define H, ROWS, SPLIT, the product Gates (OUTPUTS 4) and
// GATES_ROW, the floats per row of the gates' gradients; RESIDENT: x_gates is read one step ahead.

// The projected inputs that a gate adds to its product.
template <typename C, typename IO>
inline float added_to_gate(device const IO* x_gates, int u, int gate, int t, int r, thread const Rows<C::ROWS>& rows) {
  return u >= 0 && valid(rows, t, r) ? float(x_gates[(place(rows, t, r) * 4 + gate) * C::H + u]) : 0.0f;
}

// Step t of unit u (-1: none) of this lane group in a block, from the states h. Its h is written to inner[r * inner_row]; c is updated in
// place.
template <typename C, typename IO>
inline void memory_step(
    thread const typename C::Gates& gates, int block, int u, threadgroup const float4* h, threadgroup float* inner, int inner_row,
    threadgroup float* c, device const IO* x_gates, thread float* waits, device float* c_out, int t, thread const Rows<C::ROWS>& rows) {
  typedef typename C::Gates Gates;
  int gate = gates.owned;
  float here[C::ROWS];
#pragma unroll
  for (int r = 0; r < C::ROWS; r++) {
    int i = C::RESIDENT ? block * C::ROWS + r : 0;
    here[r] = C::RESIDENT ? waits[i] : added_to_gate<C>(x_gates, u, gate, t, r, rows);
    if (C::RESIDENT) waits[i] = added_to_gate<C>(x_gates, u, gate, t + 1, r, rows);
  }
  float sums[C::ROWS * 4];
  run_product<C::ROWS>(gates, h, block, sums);
#pragma unroll
  for (int r = 0; r < C::ROWS; r++) {
    float q = sums[r * 4] + here[r];
    float value = tanh_or_sigmoid(gate == 0, gate == 2 ? q + 1.0f : q);
    float a = value;
    float i = simd_shuffle_xor(value, int(Gates::COPIES));
    float f = simd_shuffle_xor(value, 2 * int(Gates::COPIES));
    float o = simd_shuffle_xor(value, 3 * int(Gates::COPIES));
    if (u < 0 || gate != 0 || !gates.primary || rows.row0 + r >= rows.B) continue;
    float c_next = c[r * C::H + u] * f + a * i;
    if (valid(rows, t, r)) {
      c[r * C::H + u] = c_next;
      inner[r * inner_row] = fast_tanh(c_next) * o;
    }
    c_out[place(rows, t, r) * C::H + u] = valid(rows, t, r) ? c_next : 0.0f;
  }
}

// The values that a lane needs backward for its gate: by_gate, the derivative of c (gates a, i, f) or h (o) by the gate's product; by_c,
// that of h by c; sigma(f + 1); and the incoming gradient of c at this step.
template <int ROWS>
struct MemorySlopes {
  float by_gate[ROWS], by_c[ROWS], f[ROWS], arriving[ROWS];
};

// slopes (T, B, 6, H): of c by a, i, f; of h by o and by c; and sigma(f + 1).
template <typename C>
inline void read_memory_slopes(
    thread MemorySlopes<C::ROWS>& here, device const float* slopes, device const float* dy_c, int u, int part, int t,
    thread const Rows<C::ROWS>& rows) {
  int gate = part / (C::SPLIT / 4);
#pragma unroll
  for (int r = 0; r < C::ROWS; r++) {
    bool now = u >= 0 && valid(rows, t, r);
    int at = place(rows, t, r);
    device const float* own = slopes + at * 6 * C::H + u;
    here.by_gate[r] = now ? own[gate * C::H] : 0.0f;
    here.by_c[r] = now ? own[4 * C::H] : 0.0f;
    here.f[r] = now ? own[5 * C::H] : 0.0f;
    here.arriving[r] = now ? dy_c[at * C::H + u] : 0.0f;
  }
}

// From the gradient dh (ROWS) of a unit's h, the same in all its lanes, and the incoming gradient of c, to those of its gates and of the
// previous c. Each gate's lanes keep their own copy of dc (ROWS, 4, H).
template <typename C>
inline void memory_step_back(
    thread const MemorySlopes<C::ROWS>& here, thread const float* dh, int u, int part, threadgroup float* dc, threadgroup float* d_gates,
    device float* d_gates_out, int t, thread const Rows<C::ROWS>& rows) {
  int gate = part / (C::SPLIT / 4);
#pragma unroll
  for (int r = 0; r < C::ROWS; r++) {
    if (u < 0 || rows.row0 + r >= rows.B || part % (C::SPLIT / 4) != 0) continue;
    int i = (r * 4 + gate) * C::H + u;
    float dc_here = dc[i] + here.arriving[r] + dh[r] * here.by_c[r];
    float d = valid(rows, t, r) ? (gate < 3 ? dc_here : dh[r]) * here.by_gate[r] : 0.0f;
    d_gates[r * C::GATES_ROW + gate * C::H + u] = d;
    d_gates_out[(place(rows, t, r) * 4 + gate) * C::H + u] = d;
    if (valid(rows, t, r)) dc[i] = dc_here * here.f[r];
  }
}

// Before the backward scan, for all steps at once, one thread for each value of N rows:
// the LSTM's h, and the slopes that `memory_step_back` takes; compare `memory_step`.
template <int H, int THREADS>
inline void memory_gate_slopes(
    device const float* q,  // (N, 4, H)
    device const float* c,  // (N, H): before the step
    device const int* dims, // N
    device float* h_inner, device float* slopes,  // (N, H), (N, 6, H)
    int group_index, int thread_index, threadgroup float4* scratch) {
  int index = group_index * THREADS + thread_index;
  if (index >= dims[0] * H) return;
  int n = index / H, u = index % H;
  device const float* gates = q + n * 4 * H + u;
  device float* by = slopes + n * 6 * H + u;
  float a = fast_tanh(gates[0]), i = fast_sigmoid(gates[H]), f = fast_sigmoid(gates[2 * H] + 1.0f), o = fast_sigmoid(gates[3 * H]);
  float tanh_c = fast_tanh(c[index] * f + a * i);
  h_inner[index] = tanh_c * o;
  by[0] = (1.0f - a * a) * i;
  by[H] = a * i * (1.0f - i);
  by[2 * H] = c[index] * f * (1.0f - f);
  by[3 * H] = tanh_c * o * (1.0f - o);
  by[4 * H] = o * (1.0f - tanh_c * tanh_c);
  by[5 * H] = f;
}
