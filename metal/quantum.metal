// LQNet and CTRQNet, equations (1) to (5): one threadgroup runs ROWS sequences through all their steps, forward and backward.
// Arrays are time-major. The drive u and the noise are computed before the forward scan; the slopes, from the stored states, before the
// backward scan; the weights' gradients after it. A step is two products, each followed by a barrier: omega |psi|^2, and
// w_h psi for both parts of psi at once.

template <int H_, bool NOISE_, int THREADS_, int ROWS_, int SPLIT_, bool RESIDENT_>
struct Quantum {
  enum { H = H_, NOISE = NOISE_, THREADS = THREADS_, ROWS = ROWS_, PARTS = 2 * ROWS_ };
  typedef Product<H_, H_, SPLIT_, 1, THREADS_, RESIDENT_> Square;  // all four products, forward and backward
  enum { ROW = 4 * Square::ROW4 };
};

// All lanes of a unit hold its sums; this is the lane that finishes row r, so that rows are finished in parallel.
template <typename P>
inline bool finishes(thread const P& product, int r) {
  return product.part == r % P::SPLIT;
}

// The sum over the units of a row, in every lane.
template <typename P>
inline float sum_row(thread const P& product, threadgroup const float* row) {
  threadgroup const float4* values = (threadgroup const float4*)row;
  float sum = 0.0f;
#pragma unroll 4
  for (int k = 0; k < P::SHARE / 4; k++) {
    float4 v = values[k * P::SPLIT + product.part];
    sum += v.x + v.y + v.z + v.w;
  }
  LaneSum<1, P::SPLIT / 2>::run(&sum, product.part);
  return sum;
}

template <typename C, typename IO>
inline void quantum_forward(
    device const IO* u_in,            // (T, B, H): the drive (1)
    device const float* omega,        // packed (H, H)
    device const float* w_h,          // packed (H, H)
    device const float* tau,          // (H)
    device const float* noise,        // (T, B, 2, H) with NOISE
    device const float* dt_in,        // (T, B)
    device const float* h_c0,         // (B, H)
    device const float* h_s0,         // (B, H)
    device const float* constants,    // nu_0, beta
    device const int* lengths,        // (B)
    device const int* dims,           // T, B
    device IO* h_c_out,               // (T, B, H)
    device IO* h_s_out,               // (T, B, H)
    int group_index, int thread_index, threadgroup float4* scratch) {
  typedef typename C::Square Square;
  int T = dims[0], B = dims[1], row0 = group_index * C::ROWS;
  threadgroup float* p = (threadgroup float*)scratch;        // (ROWS, ROW): |psi|^2
  threadgroup float* density = p + C::ROWS * C::ROW;         // (ROWS, ROW): the same after (3)
  threadgroup float* rotated = density + C::ROWS * C::ROW;   // (ROWS, 2, ROW): psi after (3)
  threadgroup float* psi = rotated + C::PARTS * C::ROW;      // (ROWS, 2, ROW)
  fill(p, 6 * C::ROWS * C::ROW, thread_index, C::THREADS, 0.0f);
  threadgroup_barrier(mem_flags::mem_threadgroup);

  int length[C::ROWS];
  int steps = read_lengths<C::ROWS>(lengths, row0, B, length);
  for (int r = 0; r < C::ROWS && row0 + r < B; r++) {
    for (int u = thread_index; u < C::H; u += C::THREADS) {
      float h_c = h_c0[(row0 + r) * C::H + u], h_s = h_s0[(row0 + r) * C::H + u];
      psi[2 * r * C::ROW + u] = h_c;
      psi[(2 * r + 1) * C::ROW + u] = h_s;
      p[r * C::ROW + u] = h_c * h_c + h_s * h_s;
    }
  }
  Square rotation, recurrent;
  load_product(rotation, omega, thread_index);
  load_product(recurrent, w_h, thread_index);
  threadgroup_barrier(mem_flags::mem_threadgroup);

  for (int t = 0; t < steps; t++) {
    int step = t * B + row0;
    for (int block = 0; block < Square::BLOCKS; block++) {
      float sums[C::ROWS];
      run_product<C::ROWS>(rotation, (threadgroup const float4*)p, block, sums);
      int u = unit_of(rotation, block);
      for (int r = 0; r < C::ROWS; r++) {
        if (!finishes(rotation, r) || u >= C::H || t >= length[r]) continue;
        float theta = dt_in[step + r] * sums[r];  // (2)
        float c = cos(theta), s = sin(theta), h_c = psi[2 * r * C::ROW + u], h_s = psi[(2 * r + 1) * C::ROW + u];
        float r_c = h_c * c - h_s * s, r_s = h_c * s + h_s * c;
        if (C::NOISE) {
          r_c += noise[(step + r) * 2 * C::H + u];  // (3)
          r_s += noise[((step + r) * 2 + 1) * C::H + u];
        }
        rotated[2 * r * C::ROW + u] = r_c;
        rotated[(2 * r + 1) * C::ROW + u] = r_s;
        density[r * C::ROW + u] = r_c * r_c + r_s * r_s;
      }
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    float nu[C::ROWS];
    for (int r = 0; r < C::ROWS; r++) {
      nu[r] = constants[0] * exp(-constants[1] * sum_row(recurrent, density + r * C::ROW) / float(C::H));  // (4)
    }
    for (int block = 0; block < Square::BLOCKS; block++) {
      float sums[C::PARTS];
      run_product<C::PARTS>(recurrent, (threadgroup const float4*)rotated, block, sums);
      int u = unit_of(recurrent, block);
      for (int r = 0; r < C::ROWS; r++) {
        if (!finishes(recurrent, r) || u >= C::H || row0 + r >= B) continue;
        int place = (step + r) * C::H + u;
        if (t >= length[r]) {
          h_c_out[place] = IO(0.0f);
          h_s_out[place] = IO(0.0f);
          continue;
        }
        float exponent = nu[r] * dt_in[step + r] / tau[u], stay = exp(-exponent), kappa = one_minus_exp(exponent);  // (5)
        float driven = fast_tanh(sums[2 * r] + float(u_in[place]));  // (1)
        float h_c = stay * rotated[2 * r * C::ROW + u] + kappa * driven;
        float h_s = stay * rotated[(2 * r + 1) * C::ROW + u] + kappa * fast_tanh(sums[2 * r + 1]);
        psi[2 * r * C::ROW + u] = h_c;
        psi[(2 * r + 1) * C::ROW + u] = h_s;
        p[r * C::ROW + u] = h_c * h_c + h_s * h_s;
        h_c_out[place] = IO(h_c);
        h_s_out[place] = IO(h_s);
      }
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
  }
  clear_rest<C::ROWS, C::THREADS>(h_c_out, steps, T, B, int(C::H), row0, thread_index);
  clear_rest<C::ROWS, C::THREADS>(h_s_out, steps, T, B, int(C::H), row0, thread_index);
}

// The slopes of a unit at a step, in storage order, (T, B, COUNT, H).
enum Slope { BY_Q_C, BY_Q_S, BY_NU_C, BY_NU_S, STAY, R_C, R_S, COS, SIN, H_C, H_S, SLOPES };

// The gradient of both parts of a unit's state at a step: stored, and turned into the gradients of its products and its share of nu's.
template <typename C>
inline void enter_quantum_step(
    float dh_c, float dh_s, int u, device const float* slopes, threadgroup float* dh, threadgroup float* d_q, threadgroup float* d_nu,
    device float* dh_out) {
  dh[u] = dh_out[u] = dh_c;
  dh[C::ROW + u] = dh_out[C::H + u] = dh_s;
  d_q[u] = dh_c * slopes[BY_Q_C * C::H + u];
  d_q[C::ROW + u] = dh_s * slopes[BY_Q_S * C::H + u];
  d_nu[u] = dh_c * slopes[BY_NU_C * C::H + u] + dh_s * slopes[BY_NU_S * C::H + u];
}

// The backward scan: only the sequential part, dh -> dr -> dtheta -> dh.
template <typename C, typename IO>
inline void quantum_backward(
    device const IO* dy_c,            // (T, B, H)
    device const IO* dy_s,            // (T, B, H)
    device const float* carry,        // (B, 2, H): the gradient of the last state from later steps
    device const float* slopes,       // (T, B, SLOPES, H)
    device const float* omega,        // packed transposes of the forward's weights
    device const float* w_h,
    device const float* dt_in,        // (T, B)
    device const int* lengths,        // (B)
    device const int* dims,           // T, B
    device float* dh_out,             // (T, B, 2, H): total gradient of each state
    device float* dr_out,             // (T, B, 2, H): of psi after (3)
    device float* dh0,                // (B, 2, H)
    int group_index, int thread_index, threadgroup float4* scratch) {
  typedef typename C::Square Square;
  int T = dims[0], B = dims[1], row0 = group_index * C::ROWS;
  threadgroup float* d_q = (threadgroup float*)scratch;      // (ROWS, 2, ROW)
  threadgroup float* d_nu = d_q + C::PARTS * C::ROW;         // (ROWS, ROW)
  threadgroup float* d_theta = d_nu + C::ROWS * C::ROW;      // (ROWS, ROW), times dt
  threadgroup float* dh = d_theta + C::ROWS * C::ROW;        // (ROWS, 2, ROW)
  fill(d_q, 6 * C::ROWS * C::ROW, thread_index, C::THREADS, 0.0f);
  threadgroup_barrier(mem_flags::mem_threadgroup);

  int length[C::ROWS];
  int steps = read_lengths<C::ROWS>(lengths, row0, B, length);
  Square recurrent, rotation;
  load_product(recurrent, w_h, thread_index);
  load_product(rotation, omega, thread_index);
  for (int block = 0; block < Square::BLOCKS && steps > 0; block++) {
    int u = unit_of(rotation, block);
    for (int r = 0; r < C::ROWS; r++) {
      if (!finishes(rotation, r) || u >= C::H || steps > length[r]) continue;
      int step = (steps - 1) * B + row0 + r;
      float dh_c = float(dy_c[step * C::H + u]) + carry[(row0 + r) * 2 * C::H + u];
      float dh_s = float(dy_s[step * C::H + u]) + carry[((row0 + r) * 2 + 1) * C::H + u];
      enter_quantum_step<C>(
          dh_c, dh_s, u, slopes + step * SLOPES * C::H, dh + 2 * r * C::ROW, d_q + 2 * r * C::ROW, d_nu + r * C::ROW, dh_out + step * 2 * C::H);
    }
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);

  for (int t = steps - 1; t >= 0; t--) {
    float by_norm[C::ROWS];
    for (int r = 0; r < C::ROWS; r++) by_norm[r] = sum_row(recurrent, d_nu + r * C::ROW);
    for (int block = 0; block < Square::BLOCKS; block++) {
      float sums[C::PARTS];
      run_product<C::PARTS>(recurrent, (threadgroup const float4*)d_q, block, sums);
      int u = unit_of(recurrent, block);
      for (int r = 0; r < C::ROWS; r++) {
        if (!finishes(recurrent, r) || u >= C::H || row0 + r >= B) continue;
        int step = t * B + row0 + r;
        device float* dr = dr_out + step * 2 * C::H;
        if (t >= length[r]) {
          dr[u] = dr[C::H + u] = 0.0f;
          dh_out[step * 2 * C::H + u] = dh_out[(step * 2 + 1) * C::H + u] = 0.0f;
          continue;
        }
        device const float* slope = slopes + step * SLOPES * C::H + u;
        threadgroup float* dh_row = dh + 2 * r * C::ROW + u;
        float stay = slope[STAY * C::H], c = slope[COS * C::H], s = slope[SIN * C::H], h_c = slope[H_C * C::H], h_s = slope[H_S * C::H];
        float dr_c = sums[2 * r] + stay * dh_row[0] + by_norm[r] * slope[R_C * C::H];
        float dr_s = sums[2 * r + 1] + stay * dh_row[C::ROW] + by_norm[r] * slope[R_S * C::H];
        dr[u] = dr_c;
        dr[C::H + u] = dr_s;
        d_theta[r * C::ROW + u] = dt_in[step] * (dr_s * (h_c * c - h_s * s) - dr_c * (h_c * s + h_s * c));
        dh_row[0] = dr_c * c + dr_s * s;
        dh_row[C::ROW] = dr_s * c - dr_c * s;
      }
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    for (int block = 0; block < Square::BLOCKS; block++) {
      float sums[C::ROWS];
      run_product<C::ROWS>(rotation, (threadgroup const float4*)d_theta, block, sums);
      int u = unit_of(rotation, block);
      for (int r = 0; r < C::ROWS; r++) {
        if (!finishes(rotation, r) || u >= C::H || row0 + r >= B || t > length[r]) continue;
        int step = t * B + row0 + r, before = step - B;
        device const float* slope = slopes + step * SLOPES * C::H + u;
        threadgroup float* dh_row = dh + 2 * r * C::ROW;
        // at t = length there is no incoming gradient yet: the sums and dh are 0
        float dh_c = dh_row[u] + 2.0f * sums[r] * slope[H_C * C::H];
        float dh_s = dh_row[C::ROW + u] + 2.0f * sums[r] * slope[H_S * C::H];
        if (t == 0) {
          dh0[(row0 + r) * 2 * C::H + u] = dh_c;
          dh0[((row0 + r) * 2 + 1) * C::H + u] = dh_s;
          continue;
        }
        enter_quantum_step<C>(
            dh_c + float(dy_c[before * C::H + u]), dh_s + float(dy_s[before * C::H + u]), u, slopes + before * SLOPES * C::H, dh_row,
            d_q + 2 * r * C::ROW, d_nu + r * C::ROW, dh_out + before * 2 * C::H);
      }
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
  }
  clear_rest<C::ROWS, C::THREADS>(dh_out, steps, T, B, 2 * C::H, row0, thread_index);
  clear_rest<C::ROWS, C::THREADS>(dr_out, steps, T, B, 2 * C::H, row0, thread_index);
  if (steps == 0) clear_rest<C::ROWS, C::THREADS>(dh0, 0, 1, B, 2 * C::H, row0, thread_index);
}
