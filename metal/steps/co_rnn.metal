// The kernels of CoRNN, generated from its step in ember_mlx/cells.py by `make steps`.
// They are here to be read; nothing loads this file.
// They stand on pointwise.metal, cell_pointwise.metal, product.metal, sequences.metal, cell.metal.

// The forward scan.
template <int H, int THREADS, int ROWS, int SPLIT, bool RESIDENT>
inline void cornn_576013fe00dc_forward(
    device const float* x_proj,  // (D, T, B, 1, H)
    device const float* weights,  // D times packed, one product after the other
    device const float* initial0,  // (D, B, H)
    device const float* initial1,  // (D, B, H)
    device const int* lengths,  // (B)
    device const int* dims,  // T, B
    device float* after0,  // (D, T, B, H)
    device float* after1,  // (D, T, B, H)
    int group_index, int thread_index, threadgroup float4* scratch) {
  typedef CellTile<H, THREADS, ROWS, SPLIT> C;
  enum { AHEAD = RESIDENT && 1 * C::COUNT <= 16 };
  CellRows<ROWS> rows = rows_of_group<ROWS>(lengths, dims, group_index);
  int group = thread_index / SPLIT, part = thread_index % SPLIT;
  threadgroup float* arguments = (threadgroup float*)scratch;  // 4 times (ROWS, C::ROW)
  fill(arguments, 4 * ROWS * C::ROW, thread_index, THREADS, 0.0f);
  typedef Product<H, 1 * H, SPLIT, 1, THREADS, RESIDENT> Product0;  // W
  typedef Product<H, 1 * H, SPLIT, 1, THREADS, RESIDENT> Product1;  // W_z
  device const float* packed = weights + rows.direction * 4 * (int(Product0::FLOAT4S) + int(Product1::FLOAT4S)) * THREADS;
  Product0 product0;
  load_product(product0, packed, thread_index);
  packed += 4 * int(Product0::FLOAT4S) * THREADS;
  Product1 product1;
  load_product(product1, packed, thread_index);
  float s0[C::COUNT], s1[C::COUNT], x0_read[C::COUNT];
#pragma unroll(C::UNROLL)
  for (int block = 0; block < C::BLOCKS; block++) {
    int u = block * C::GROUPS + group, read = or_last(u, H);
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
      int i = block * ROWS + r;
      s0[i] = initial0[place_of_state(rows, r) * H + read];
      s1[i] = initial1[place_of_state(rows, r) * H + read];
    }
  }
  if (AHEAD) {
#pragma unroll(C::UNROLL)
    for (int block = 0; block < C::BLOCKS; block++) {
      int u = block * C::GROUPS + group, read = or_last(u, H);
#pragma unroll
      for (int r = 0; r < ROWS; r++) {
        int i = block * ROWS + r;
        int place = place_near(rows, 0, r);
        x0_read[i] = x_proj[(place * 1 + 0) * H + read];
      }
    }
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  for (int t = 0; t < rows.steps; t++) {
    float x0[C::COUNT];
#pragma unroll(C::UNROLL)
    for (int block = 0; block < C::BLOCKS; block++) {
      int u = block * C::GROUPS + group, read = or_last(u, H);
#pragma unroll
      for (int r = 0; r < ROWS; r++) {
        int i = block * ROWS + r;
        int place = place_near(rows, t, r);
        if (!AHEAD) x0_read[i] = x_proj[(place * 1 + 0) * H + read];
        x0[i] = x0_read[i];
      }
    }
    threadgroup float* a0 = arguments + (t % 2) * ROWS * C::ROW;
    threadgroup float* a1 = arguments + (2 * 1 + t % 2) * ROWS * C::ROW;
#pragma unroll(C::UNROLL)
    for (int block = 0; block < C::BLOCKS; block++) {
      int u = block * C::GROUPS + group;
#pragma unroll
      for (int r = 0; r < ROWS; r++) {
        int i = block * ROWS + r;
        if (part == 0 && u < H && r < rows.count) {
          a0[r * C::ROW + u] = s0[i];
          a1[r * C::ROW + u] = s1[i];
        }
      }
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    if (AHEAD) {
#pragma unroll(C::UNROLL)
      for (int block = 0; block < C::BLOCKS; block++) {
        int u = block * C::GROUPS + group, read = or_last(u, H);
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
          int i = block * ROWS + r;
          int place = place_near(rows, t + 1, r);
          x0_read[i] = x_proj[(place * 1 + 0) * H + read];
        }
      }
    }
    float q0_0[C::COUNT];
    float q1_1[C::COUNT];
#pragma unroll(C::UNROLL)
    for (int block = 0; block < C::BLOCKS; block++) {
      partial_sums<ROWS>(product0, (threadgroup const float4*)a0, block, q0_0 + block * ROWS);
      partial_sums<ROWS>(product1, (threadgroup const float4*)a1, block, q1_1 + block * ROWS);
    }
#pragma unroll(C::UNROLL)
    for (int block = 0; block < C::BLOCKS; block++) {
      join_lanes<ROWS>(product0, q0_0 + block * ROWS);
      join_lanes<ROWS>(product1, q1_1 + block * ROWS);
    }
#pragma unroll(C::UNROLL)
    for (int block = 0; block < C::BLOCKS; block++) {
      int u = block * C::GROUPS + group;
#pragma unroll
      for (int r = 0; r < ROWS; r++) {
        int i = block * ROWS + r;
        float v13 = (fast_tanh((x0[i] + q0_0[i]) + q1_1[i]) - (2.0f * s0[i])) - (4.0f * s1[i]);
        float v16 = s1[i] + (0.05f * v13);
        float next0 = s0[i] + (0.05f * v16);
        float next1 = v16;
        bool valid = has_step(rows, t, r);
        s0[i] = valid ? next0 : s0[i];
        s1[i] = valid ? next1 : s1[i];
        if (part == 0 && u < H && r < rows.count) {
          after0[place_at(rows, t, r) * H + u] = valid ? next0 : 0.0f;
          after1[place_at(rows, t, r) * H + u] = valid ? next1 : 0.0f;
        }
      }
    }
  }
  clear_steps<THREADS>(after0, rows.steps, H, rows, thread_index);
  clear_steps<THREADS>(after1, rows.steps, H, rows, thread_index);
}

// The backward scan.
template <int H, int THREADS, int ROWS, int SPLIT, bool RESIDENT>
inline void cornn_240856312e4f_backward(
    device const float* d_after0,  // (D, T, B, H)
    device const float* d_after1,  // (D, T, B, H)
    device const float* coefficients,  // (D, T, B, 1, H)
    device const float* weights,  // D times packed, one transposed product after the other
    device const float* carry0,  // (D, B, H): from beyond these steps
    device const float* carry1,  // (D, B, H): from beyond these steps
    device const int* lengths,  // (B)
    device const int* dims,  // T, B
    device float* d,  // (D, T, B, 1, H)
    device float* d_before0,  // (D, B, H)
    device float* d_before1,  // (D, B, H)
    int group_index, int thread_index, threadgroup float4* scratch) {
  typedef CellTile<H, THREADS, ROWS, SPLIT> C;
  enum { AHEAD = RESIDENT && 3 * C::COUNT <= 24 };
  CellRows<ROWS> rows = rows_of_group<ROWS>(lengths, dims, group_index);
  int group = thread_index / SPLIT, part = thread_index % SPLIT;
  typedef Product<1 * H, H, SPLIT, 1, THREADS, RESIDENT> Product0;  // W
  typedef Product<1 * H, H, SPLIT, 1, THREADS, RESIDENT> Product1;  // W_z
  // floats of a row of each call's gradients
  enum { ROW0 = 4 * int(Product0::ROW4), ROW1 = 4 * int(Product1::ROW4) };
  threadgroup float* gradients = (threadgroup float*)scratch;
  fill(gradients, 2 * ROWS * (ROW0 + ROW1), thread_index, THREADS, 0.0f);
  device const float* packed = weights + rows.direction * 4 * (int(Product0::FLOAT4S) + int(Product1::FLOAT4S)) * THREADS;
  Product0 product0;
  load_product(product0, packed, thread_index);
  packed += 4 * int(Product0::FLOAT4S) * THREADS;
  Product1 product1;
  load_product(product1, packed, thread_index);
  float g0[C::COUNT], g1[C::COUNT], y0_read[C::COUNT], y1_read[C::COUNT], k0_read[C::COUNT];
#pragma unroll(C::UNROLL)
  for (int block = 0; block < C::BLOCKS; block++) {
    int u = block * C::GROUPS + group, read = or_last(u, H);
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
      int i = block * ROWS + r;
      g0[i] = carry0[place_of_state(rows, r) * H + read];
      g1[i] = carry1[place_of_state(rows, r) * H + read];
    }
  }
  if (AHEAD) {
#pragma unroll(C::UNROLL)
    for (int block = 0; block < C::BLOCKS; block++) {
      int u = block * C::GROUPS + group, read = or_last(u, H);
#pragma unroll
      for (int r = 0; r < ROWS; r++) {
        int i = block * ROWS + r;
        int place = place_near(rows, rows.steps - 1, r);
        y0_read[i] = d_after0[place * H + read];
        y1_read[i] = d_after1[place * H + read];
        k0_read[i] = coefficients[(place * 1 + 0) * H + read];
      }
    }
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  for (int t = rows.steps - 1; t >= 0; t--) {
    float y0[C::COUNT], y1[C::COUNT], k0[C::COUNT];
#pragma unroll(C::UNROLL)
    for (int block = 0; block < C::BLOCKS; block++) {
      int u = block * C::GROUPS + group, read = or_last(u, H);
#pragma unroll
      for (int r = 0; r < ROWS; r++) {
        int i = block * ROWS + r;
        int place = place_near(rows, t, r);
        if (!AHEAD) y0_read[i] = d_after0[place * H + read];
        y0[i] = y0_read[i];
        if (!AHEAD) y1_read[i] = d_after1[place * H + read];
        y1[i] = y1_read[i];
        if (!AHEAD) k0_read[i] = coefficients[(place * 1 + 0) * H + read];
        k0[i] = k0_read[i];
        g0[i] += has_step(rows, t, r) ? y0[i] : 0.0f;
        g1[i] += has_step(rows, t, r) ? y1[i] : 0.0f;
      }
    }
    float m0[C::COUNT], r1[C::COUNT], r0[C::COUNT];
    if (AHEAD) {
#pragma unroll(C::UNROLL)
      for (int block = 0; block < C::BLOCKS; block++) {
        int u = block * C::GROUPS + group, read = or_last(u, H);
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
          int i = block * ROWS + r;
          int place = place_near(rows, t - 1, r);
          y0_read[i] = d_after0[place * H + read];
          y1_read[i] = d_after1[place * H + read];
          k0_read[i] = coefficients[(place * 1 + 0) * H + read];
        }
      }
    }
    threadgroup float* b1 = gradients + (t % 2 * ROW1 + 2 * (ROW0)) * ROWS;
    threadgroup float* b0 = gradients + (t % 2 * ROW0 + 2 * (0)) * ROWS;
#pragma unroll(C::UNROLL)
    for (int block = 0; block < C::BLOCKS; block++) {
      int u = block * C::GROUPS + group;
#pragma unroll
      for (int r = 0; r < ROWS; r++) {
        int i = block * ROWS + r;
        m0[i] = g1[i] + 0.05f * g0[i];
        float e0 = k0[i] * m0[i];
        bool valid = has_step(rows, t, r);
        if (part == 0 && u < H && r < rows.count) {
          device float* d_here = d + place_at(rows, t, r) * 1 * H + u;
          d_here[0] = valid ? e0 : 0.0f;
          b1[r * ROW1 + u] = e0;
          b0[r * ROW0 + u] = e0;
        }
      }
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
#pragma unroll(C::UNROLL)
    for (int block = 0; block < C::BLOCKS; block++) {
      partial_sums<ROWS>(product1, (threadgroup const float4*)b1, block, r1 + block * ROWS);
      partial_sums<ROWS>(product0, (threadgroup const float4*)b0, block, r0 + block * ROWS);
    }
#pragma unroll(C::UNROLL)
    for (int block = 0; block < C::BLOCKS; block++) {
      join_lanes<ROWS>(product1, r1 + block * ROWS);
      join_lanes<ROWS>(product0, r0 + block * ROWS);
    }
#pragma unroll(C::UNROLL)
    for (int block = 0; block < C::BLOCKS; block++) {
#pragma unroll
      for (int r = 0; r < ROWS; r++) {
        int i = block * ROWS + r;
        float next0 = g0[i] - 0.1f * m0[i] + r0[i];
        float next1 = 0.8f * m0[i] + r1[i];
        g0[i] = has_step(rows, t, r) ? next0 : g0[i];
        g1[i] = has_step(rows, t, r) ? next1 : g1[i];
      }
    }
  }
#pragma unroll(C::UNROLL)
  for (int block = 0; block < C::BLOCKS; block++) {
    int u = block * C::GROUPS + group;
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
      int i = block * ROWS + r;
      if (part == 0 && u < H && r < rows.count) {
        d_before0[place_of_state(rows, r) * H + u] = g0[i];
        d_before1[place_of_state(rows, r) * H + u] = g1[i];
      }
    }
  }
  clear_steps<THREADS>(d, rows.steps, 1 * H, rows, thread_index);
}

// What the derivative takes of the step.
template <int H, int THREADS>
inline void cornn_5e3dbac8aa56_coefficients(
    device const float* x_proj,  // (D, T, R, 1, H)
    device const float* results0,  // (N, 1, H)
    device const float* results1,  // (N, 1, H)
    device const int* dims,  // N, R, T, t
    device float* coefficients,  // (N, 1, H)
    int group_index, int thread_index, threadgroup float4* scratch) {
  int index = group_index * THREADS + thread_index;
  if (index >= dims[0] * H) return;
  int row = index / H, u = index % H, direction = row / dims[1];
  int place = (direction * dims[2] + dims[3]) * dims[1] + row % dims[1];
  float x0 = x_proj[(place * 1 + 0) * H + u];
  float q0_0 = results0[(row * 1 + 0) * H + u];
  float q1_0 = results1[(row * 1 + 0) * H + u];
  float v7 = fast_tanh((x0 + q0_0) + q1_0);
  coefficients[(row * 1 + 0) * H + u] = 0.05f * (1.0f - (v7 * v7));
}

// The states after one step.
template <int H, int THREADS>
inline void cornn_71b2ea4c101c_next(
    device const float* x_proj,  // (D, T, R, 1, H)
    device const float* before0,  // (N, H)
    device const float* before1,  // (N, H)
    device const float* results0,  // (N, 1, H)
    device const float* results1,  // (N, 1, H)
    device const int* dims,  // N, R, T, t
    device float* after0,  // (N, H)
    device float* after1,  // (N, H)
    int group_index, int thread_index, threadgroup float4* scratch) {
  int index = group_index * THREADS + thread_index;
  if (index >= dims[0] * H) return;
  int row = index / H, u = index % H, direction = row / dims[1];
  int place = (direction * dims[2] + dims[3]) * dims[1] + row % dims[1];
  float x0 = x_proj[(place * 1 + 0) * H + u];
  float s0 = before0[index];
  float s1 = before1[index];
  float q0_0 = results0[(row * 1 + 0) * H + u];
  float q1_0 = results1[(row * 1 + 0) * H + u];
  float v15 = 0.05f * ((fast_tanh((x0 + q0_0) + q1_0) - (2.0f * s0)) - (4.0f * s1));
  float v16 = s1 + v15;
  after0[index] = s0 + (0.05f * v16);
  after1[index] = v16;
}

// Behind one step backward and its products, and before those of the step before it.
template <int H, int THREADS>
inline void cornn_9489c29a4e15_previous(
    device const float* d_after0,  // (D, T, B, H)
    device const float* d_after1,  // (D, T, B, H)
    device const float* coefficients,  // (D, T, B, 1, H)
    device const float* arriving0,  // (D, B, H): of the states after step t
    device const float* arriving1,  // (D, B, H): of the states after step t
    device const float* returned1,  // (D, B, H): what a product sends back
    device const float* returned0,  // (D, B, H): what a product sends back
    device const int* lengths,  // (B)
    device const int* dims,  // N, R, T, t
    device float* before0,  // (D, B, H)
    device float* before1,  // (D, B, H)
    device float* d,  // (D, B, 2, H)
    int group_index, int thread_index, threadgroup float4* scratch) {
  int index = group_index * THREADS + thread_index;
  if (index >= dims[0] * H) return;
  int row = index / H, u = index % H, direction = row / dims[1];
  int place = (direction * dims[2] + dims[3]) * dims[1] + row % dims[1];
  place -= dims[3] == dims[2] ? dims[1] : 0;
  bool valid = dims[3] < lengths[row % dims[1]];
  float g0 = arriving0[index] + (valid ? d_after0[place * H + u] : 0.0f);
  float g1 = arriving1[index] + (valid ? d_after1[place * H + u] : 0.0f);
  float r1 = returned1[index];
  float r0 = returned0[index];
  float m0 = g1 + 0.05f * g0;
  float b0 = valid ? g0 - 0.1f * m0 + r0 : g0;
  before0[index] = b0;
  float b1 = valid ? 0.8f * m0 + r1 : g1;
  before1[index] = b1;
  {
    int place = (direction * dims[2] + max(dims[3] - 1, 0)) * dims[1] + row % dims[1];
    bool valid = dims[3] > 0 && dims[3] - 1 < lengths[row % dims[1]];
    device const float* by = coefficients + place * 1 * H + u;
    float g0 = b0 + (valid ? d_after0[place * H + u] : 0.0f);
    float g1 = b1 + (valid ? d_after1[place * H + u] : 0.0f);
    float m0 = g1 + 0.05f * g0;
    d[(row * 2 + 0) * H + u] = valid ? by[0 * H] * m0 : 0.0f;
    d[(row * 2 + 1) * H + u] = valid ? by[0 * H] * m0 : 0.0f;
  }
}
