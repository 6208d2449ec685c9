// CfC, equations (2) and (3), pointwise: the next state and its slopes. The scans of cfc.metal use the first functions; the kernels below
// are launched separately.

enum Mode { DEFAULT = 0, NO_GATE = 1, PURE = 2 };

// (3): the next state of a unit, from tanh f, tanh g and t_interp; in pure mode from f.
template <int MODE>
inline float next_state(float f, float g, float t_interp) {
  return MODE == NO_GATE ? f + g * t_interp : f * (1.0f - t_interp) + g * t_interp;
}
inline float next_pure_state(float f, float dt, float w_tau, float A) {
  return A - A * fast::exp(-dt * (fabs(w_tau) + fabs(f))) * f;
}

// Run before the backward scan, for all steps at once: one thread for each value of N rows (step and sequence).

// (1): z = activation(a) times the dropout factor, and its slope.
template <int ACTIVATION, int THREADS>
inline void cfc_activate(
    device const float* a,        // (N, Z)
    device const float* dropout,  // (N, Z)
    device const int* dims,       // N Z, whether there is dropout
    device float* z, device float* slope,
    int group_index, int thread_index, threadgroup float4* scratch) {
  int i = group_index * THREADS + thread_index;
  if (i >= dims[0]) return;
  float value = activate<ACTIVATION>(a[i]), factor = dims[1] ? dropout[i] : 1.0f;
  z[i] = value * factor;
  slope[i] = activation_slope<ACTIVATION>(a[i], value) * factor;
}

// The derivatives of the next state by the heads' products q, by dt, and in pure mode by w_tau and A; compare `interpolate`.
template <int MODE, int H, int THREADS>
inline void cfc_slopes(
    device const float* q,      // (N, HEADS, H)
    device const float* dt,     // (N)
    device const float* pure,   // (2, H)
    device const int* dims,     // N
    device float* by_q,         // (N, HEADS, H)
    device float* by_dt,        // (N, H)
    device float* by_w_tau,     // (N, H) and the next in pure mode, else one element each
    device float* by_A,
    int group_index, int thread_index, threadgroup float4* scratch) {
  int i = group_index * THREADS + thread_index;
  if (i >= dims[0] * H) return;
  int n = i / H, u = i % H;
  float passed = dt[n];
  if (MODE == PURE) {
    float f = q[i], w_tau = pure[u], A = pure[H + u];
    float rate = fabs(w_tau) + fabs(f), decay = fast::exp(-passed * rate);
    by_q[i] = -A * (decay - passed * decay * fabs(f));  // in this order, to get 0 where passed |f| would overflow
    by_dt[i] = A * decay * f * rate;
    by_w_tau[i] = A * decay * f * passed * (w_tau < 0.0f ? -1.0f : 1.0f);
    by_A[i] = 1.0f - decay * f;
    return;
  }
  device const float* heads = q + n * 4 * H + u;
  device float* by_head = by_q + n * 4 * H + u;
  float f = fast_tanh(heads[0]), g = fast_tanh(heads[H]), t_a = heads[2 * H];
  float t_interp = fast_sigmoid(t_a * passed + heads[3 * H]);
  float slope = (MODE == NO_GATE ? g : g - f) * t_interp * (1.0f - t_interp);
  by_head[0] = (1.0f - f * f) * (MODE == NO_GATE ? 1.0f : 1.0f - t_interp);
  by_head[H] = (1.0f - g * g) * t_interp;
  by_head[2 * H] = slope * passed;
  by_head[3 * H] = slope;
  by_dt[i] = slope * t_a;
  if (i == 0) by_w_tau[0] = by_A[0] = 0.0f;
}

// A single step, for sizes at which a scan in one launch does not pay: the products are computed outside; one thread per unit and sequence.

// (2), (3): the next state, and y; past a sequence's length the state is unchanged and y is 0.
template <int MODE, int H, int THREADS>
inline void cfc_next(
    device const float* q,      // (B, HEADS, H)
    device const float* dt,     // (B)
    device const float* pure,   // (2, H)
    device const float* h,      // (B, H)
    device const int* lengths,  // (B)
    device const int* dims,     // B, the step
    device float* h_next, device float* y,  // (B, H)
    int group_index, int thread_index, threadgroup float4* scratch) {
  int i = group_index * THREADS + thread_index;
  if (i >= dims[0] * H) return;
  int b = i / H, u = i % H;
  float value;
  if (MODE == PURE) {
    value = next_pure_state(q[i], dt[b], pure[u], pure[H + u]);
  } else {
    device const float* heads = q + b * 4 * H + u;
    value = next_state<MODE>(fast_tanh(heads[0]), fast_tanh(heads[H]), fast_sigmoid(heads[2 * H] * dt[b] + heads[3 * H]));
  }
  bool now = dims[1] < lengths[b];
  h_next[i] = now ? value : h[i];
  y[i] = now ? value : 0.0f;
}

// The LSTM's h, its next c, and the c to store.
template <int H, int THREADS>
inline void cfc_memory_next(
    device const float* q,      // (B, 4, H)
    device const float* c,      // (B, H)
    device const int* lengths,  // (B)
    device const int* dims,     // B, the step
    device float* h_inner, device float* c_next, device float* c_out,  // (B, H)
    int group_index, int thread_index, threadgroup float4* scratch) {
  int index = group_index * THREADS + thread_index;
  if (index >= dims[0] * H) return;
  int b = index / H;
  device const float* gates = q + b * 4 * H + index % H;
  float a = fast_tanh(gates[0]), i = fast_sigmoid(gates[H]), f = fast_sigmoid(gates[2 * H] + 1.0f), o = fast_sigmoid(gates[3 * H]);
  float value = c[index] * f + a * i;
  bool now = dims[1] < lengths[b];
  h_inner[index] = fast_tanh(value) * o;
  c_next[index] = now ? value : c[index];
  c_out[index] = now ? value : 0.0f;
}
