// RNN, LSTM and GRU, equations (1) to (3), pointwise: one thread computes all gates of one unit of one sequence at one step. These kernels
// are launched separately: for all steps at once before the backward scan, and for a single step between matrix products, for sizes at
// which a scan in one launch (gated.metal) does not pay.

enum Cell { RNN_TANH = 0, RNN_RELU = 1, LSTM = 2, GRU = 3 };

template <int CELL>
struct CellSizes {
  enum {
    GATES = CELL == LSTM ? 4 : CELL == GRU ? 3 : 1,  // LSTM: i, f, g, o; GRU: r, z, n
    BLOCKS = CELL == GRU ? 4 : GATES,                // blocks of the products' gradients; GRU: r, z, n's part of W_h h, n
    SLOPES = CELL == LSTM ? 6 : CELL == GRU ? 5 : 1  // see gated_slopes
  };
};

inline float rnn_unit(int cell, float a) { return cell == RNN_TANH ? fast_tanh(a) : a > 0.0f ? a : 0.0f; }  // (2)

struct LstmUnit {
  float i, f, g, o, c, tanh_c;
};

// The gates from q = W_h h and x = W_x x + b (gates H apart) and the previous c.
template <int H>
inline LstmUnit lstm_unit(device const float* q, device const float* x, float c) {
  LstmUnit unit;
  unit.i = fast_sigmoid(x[0] + q[0]);  // (1), (2)
  unit.f = fast_sigmoid(x[H] + q[H]);
  unit.g = fast_tanh(x[2 * H] + q[2 * H]);
  unit.o = fast_sigmoid(x[3 * H] + q[3 * H]);
  unit.c = unit.f * c + unit.i * unit.g;  // (3)
  unit.tanh_c = fast_tanh(unit.c);
  return unit;
}

struct GruUnit {
  float r, z, n, q_n;
};

template <int H>
inline GruUnit gru_unit(device const float* q, device const float* x, float b_hn) {
  GruUnit unit;
  unit.r = fast_sigmoid(x[0] + q[0]);  // (1), (2)
  unit.z = fast_sigmoid(x[H] + q[H]);
  unit.q_n = q[2 * H] + b_hn;
  unit.n = fast_tanh(x[2 * H] + unit.r * unit.q_n);
  return unit;
}

// The slopes of all steps at once, from the states before them. RNN: dh/da. LSTM: c by a_i, a_f, a_g; o tanh(c) by a_o and by c; and f.
// GRU: h by a_r, a_z, q_n, a_n and by the previous h.
template <int CELL, int H, bool PROJECTED, int THREADS>
inline void gated_slopes(
    device const float* q,       // (N, GATES, H), N rows (direction, step and sequence)
    device const float* x_proj,  // (N, GATES, H)
    device const float* b_hn,    // (D, H) of a GRU
    device const float* before,  // (N, H): c of an LSTM, h of a GRU
    device const int* dims,      // N, rows per direction
    device float* slopes,        // (N, SLOPES, H)
    device float* m,             // (N, H): o tanh(c) where PROJECTED, else one element
    int group_index, int thread_index, threadgroup float4* scratch) {
  typedef CellSizes<CELL> C;
  int index = group_index * THREADS + thread_index;
  if (index >= dims[0] * H) return;
  int row = index / H, u = index % H;
  int gates = row * C::GATES * H + u;
  device float* by = slopes + row * C::SLOPES * H + u;
  if (CELL == LSTM) {
    LstmUnit at = lstm_unit<H>(q + gates, x_proj + gates, before[index]);
    by[0] = at.g * at.i * (1.0f - at.i);
    by[H] = before[index] * at.f * (1.0f - at.f);
    by[2 * H] = at.i * (1.0f - at.g * at.g);
    by[3 * H] = at.tanh_c * at.o * (1.0f - at.o);
    by[4 * H] = at.o * (1.0f - at.tanh_c * at.tanh_c);
    by[5 * H] = at.f;
    if (PROJECTED) m[index] = at.o * at.tanh_c;
  } else if (CELL == GRU) {
    GruUnit at = gru_unit<H>(q + gates, x_proj + gates, b_hn[row / dims[1] * H + u]);
    float by_n = (1.0f - at.z) * (1.0f - at.n * at.n);
    by[0] = by_n * at.q_n * at.r * (1.0f - at.r);
    by[H] = (before[index] - at.n) * at.z * (1.0f - at.z);
    by[2 * H] = by_n * at.r;
    by[3 * H] = by_n;
    by[4 * H] = at.z;
  } else {
    float h = rnn_unit(CELL, x_proj[index] + q[index]);
    by[0] = CELL == RNN_TANH ? (1.0f - h) * (1.0f + h) : h > 0.0f ? 1.0f : 0.0f;
  }
  if (!PROJECTED && index == 0) m[0] = 0.0f;
}

// A single step. Ended sequences are computed too, since their results affect nothing else and are not stored.
template <int CELL, int H, int THREADS>
inline void gated_next(
    device const float* q,       // (D, B, GATES, H)
    device const float* x_proj,  // (D, T, B, GATES, H)
    device const float* b_hn,    // (D, H) of a GRU
    device const float* before,  // (D, B, H): c of an LSTM, h of a GRU
    device const int* dims,      // D, T, B, the step
    device float* h_next,        // (D, B, H); for an LSTM o tanh(c), before the projection
    device float* c_next,        // (D, B, H) of an LSTM, else one element
    int group_index, int thread_index, threadgroup float4* scratch) {
  typedef CellSizes<CELL> C;
  int index = group_index * THREADS + thread_index, B = dims[2];
  if (index >= dims[0] * B * H) return;
  int row = index / H, u = index % H, direction = row / B;
  int gates = row * C::GATES * H + u, at_step = ((direction * dims[1] + dims[3]) * B + row % B) * C::GATES * H + u;
  if (CELL == LSTM) {
    LstmUnit at = lstm_unit<H>(q + gates, x_proj + at_step, before[index]);
    h_next[index] = at.o * at.tanh_c;
    c_next[index] = at.c;
    return;
  }
  if (CELL == GRU) {
    GruUnit at = gru_unit<H>(q + gates, x_proj + at_step, b_hn[direction * H + u]);
    h_next[index] = at.n + at.z * (before[index] - at.n);  // (3)
  } else {
    h_next[index] = rnn_unit(CELL, x_proj[at_step] + q[index]);
  }
  if (index == 0) c_next[0] = 0.0f;
}

// A single backward step, from the gradient of its h to those of its products. `kept` is the part of the previous state's gradient that
// bypasses the products: for an LSTM the gradient of c, for a GRU a part of h's.
template <int CELL, int H, bool PROJECTED, int THREADS>
inline void gated_previous(
    device const float* arriving,  // (D, B, H): the gradient of h from the next step; if PROJECTED that of o tanh(c), dy included
    device const float* dy,        // (D, T, B, H)
    device const float* slopes,    // (D, T, B, SLOPES, H)
    device const float* dy_c,      // (D, T, B, H) and the next of an LSTM
    device const float* kept,      // (D, B, H)
    device const int* lengths,     // (B)
    device const int* dims,        // D, T, B, the step
    device float* d,               // (D, B, BLOCKS, H)
    device float* kept_next,       // (D, B, H) of LSTM and GRU, else one element
    int group_index, int thread_index, threadgroup float4* scratch) {
  typedef CellSizes<CELL> C;
  int index = group_index * THREADS + thread_index, B = dims[2];
  if (index >= dims[0] * B * H) return;
  int row = index / H, u = index % H, step = (row / B * dims[1] + dims[3]) * B + row % B;
  bool valid = dims[3] < lengths[row % B];
  device float* out = d + row * C::BLOCKS * H + u;
  device const float* by = slopes + step * C::SLOPES * H + u;
  float dh = arriving[index] + (PROJECTED ? 0.0f : dy[step * H + u]);
  if (CELL == LSTM) {
    float dc = kept[index] + dy_c[step * H + u] + dh * by[4 * H];
    for (int gate = 0; gate < 3; gate++) out[gate * H] = valid ? dc * by[gate * H] : 0.0f;
    out[3 * H] = valid ? dh * by[3 * H] : 0.0f;
    kept_next[index] = valid ? dc * by[5 * H] : kept[index];
  } else if (CELL == GRU) {
    for (int block = 0; block < 4; block++) out[block * H] = valid ? dh * by[block * H] : 0.0f;
    kept_next[index] = valid ? dh * by[4 * H] : 0.0f;
  } else {
    out[0] = valid ? dh * by[0] : 0.0f;
    if (index == 0) kept_next[0] = 0.0f;
  }
}
