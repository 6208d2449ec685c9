// Small matrices by columns, and simdgroup matrices: 8 x 8 elements over the 32 lanes of a simdgroup, two each.
#pragma once

namespace metal {
template <class T, int COLUMNS, int ROWS>
struct matrix {
  vec<T, ROWS> columns[COLUMNS];
  matrix() = default;
  MSL_FUNC explicit matrix(T diagonal) {
    for (int c = 0; c < COLUMNS; c++)
      for (int r = 0; r < ROWS; r++) columns[c][r] = c == r ? diagonal : (T)0;
  }
  template <class... Vs, class = enable_if_t<sizeof...(Vs) + 2 == COLUMNS>>
  MSL_FUNC matrix(vec<T, ROWS> a, vec<T, ROWS> b, Vs... rest) : columns{a, b, rest...} {}
  MSL_FUNC thread vec<T, ROWS>& operator[](int c) thread { return columns[c]; }
  MSL_FUNC vec<T, ROWS> operator[](int c) const { return columns[c]; }
};
template <class T, int C, int R>
MSL_FUNC vec<T, R> operator*(matrix<T, C, R> m, vec<T, C> v) {
  vec<T, R> sum = m[0] * v[0];
  for (int c = 1; c < C; c++) sum += m[c] * v[c];
  return sum;
}
template <class T, int C, int R, int K>
MSL_FUNC matrix<T, K, R> operator*(matrix<T, C, R> a, matrix<T, K, C> b) {
  matrix<T, K, R> product;
  for (int k = 0; k < K; k++) product[k] = a * b[k];
  return product;
}
template <class T, int C, int R>
MSL_FUNC matrix<T, R, C> transpose(matrix<T, C, R> m) {
  matrix<T, R, C> t;
  for (int c = 0; c < C; c++)
    for (int r = 0; r < R; r++) t[r][c] = m[c][r];
  return t;
}
#define MSL_MATRICES(T)                                                                      \
  typedef matrix<T, 2, 2> T##2x2;                                                            \
  typedef matrix<T, 2, 3> T##2x3;                                                            \
  typedef matrix<T, 2, 4> T##2x4;                                                            \
  typedef matrix<T, 3, 2> T##3x2;                                                            \
  typedef matrix<T, 3, 3> T##3x3;                                                            \
  typedef matrix<T, 3, 4> T##3x4;                                                            \
  typedef matrix<T, 4, 2> T##4x2;                                                            \
  typedef matrix<T, 4, 3> T##4x3;                                                            \
  typedef matrix<T, 4, 4> T##4x4;
MSL_MATRICES(float)
MSL_MATRICES(half)
#undef MSL_MATRICES

template <class T, int COLUMNS, int ROWS>
struct simdgroup_matrix {
  static_assert(COLUMNS == 8 && ROWS == 8, "Metal's simdgroup matrices are 8 x 8");
  vec<T, 2> items;
  simdgroup_matrix() = default;
  MSL_FUNC explicit simdgroup_matrix(T diagonal, MSL_HERE);
  MSL_FUNC thread vec<T, 2>& thread_elements() thread { return items; }
  MSL_FUNC vec<T, 2> thread_elements() const { return items; }
};
typedef simdgroup_matrix<float, 8, 8> simdgroup_float8x8;
typedef simdgroup_matrix<half, 8, 8> simdgroup_half8x8;
typedef simdgroup_matrix<bfloat, 8, 8> simdgroup_bfloat8x8;

// Which elements a lane holds on Apple's GPUs: (row, column) and (row, column + 1).
MSL_FUNC uint matrix_row(uint lane) { return ((lane >> 4) & 1) * 4 + ((lane >> 1) & 3); }
MSL_FUNC uint matrix_column(uint lane) { return ((lane >> 3) & 1) * 4 + (lane & 1) * 2; }
MSL_FUNC uint matrix_lane(uint row, uint column) {
  return (row & 3) << 1 | (row >> 2) << 4 | ((column >> 1) & 1) | (column >> 2) << 3;
}
MSL_FUNC uint lane_in_simdgroup(msl_site site) { return exchange<uint>(0u, site).self; }

template <class T, int C, int R>
simdgroup_matrix<T, C, R>::simdgroup_matrix(T diagonal, msl_site site) {
  const uint lane = lane_in_simdgroup(site), row = matrix_row(lane), column = matrix_column(lane);
  items = vec<T, 2>{row == column ? diagonal : (T)0, row == column + 1 ? diagonal : (T)0};
}
template <class T, int C, int R>
MSL_FUNC simdgroup_matrix<T, C, R> make_filled_simdgroup_matrix(T value) {
  simdgroup_matrix<T, C, R> m;
  m.items = vec<T, 2>{value, value};
  return m;
}

#define MSL_MATRIX_MEMORY(SPACE)                                                                                            \
  template <class T, class U>                                                                                               \
  MSL_FUNC void simdgroup_load(thread simdgroup_matrix<T, 8, 8>& m, const SPACE U* p, ulong row_length = 8, ulong2 origin = {0, 0}, \
                               bool transposed = false, MSL_HERE) {                                                         \
    const uint lane = lane_in_simdgroup(site);                                                                              \
    for (uint k = 0; k < 2; k++) {                                                                                          \
      const ulong r = matrix_row(lane), c = matrix_column(lane) + k;                                                        \
      m.items[k] = (T)p[((transposed ? c : r) + origin.y) * row_length + (transposed ? r : c) + origin.x];                  \
    }                                                                                                                       \
  }                                                                                                                         \
  template <class T, class U>                                                                                               \
  MSL_FUNC void simdgroup_store(simdgroup_matrix<T, 8, 8> m, SPACE U* p, ulong row_length = 8, ulong2 origin = {0, 0},      \
                                bool transposed = false, MSL_HERE) {                                                        \
    const uint lane = lane_in_simdgroup(site);                                                                              \
    for (uint k = 0; k < 2; k++) {                                                                                          \
      const ulong r = matrix_row(lane), c = matrix_column(lane) + k;                                                        \
      p[((transposed ? c : r) + origin.y) * row_length + (transposed ? r : c) + origin.x] = (U)m.items[k];                  \
    }                                                                                                                       \
  }
#ifdef MSL_CHECK
MSL_MATRIX_MEMORY(device)
MSL_MATRIX_MEMORY(threadgroup)
MSL_MATRIX_MEMORY(constant)
#else
MSL_MATRIX_MEMORY()
#endif
#undef MSL_MATRIX_MEMORY

template <class D, class A, class B, class C>
MSL_FUNC void simdgroup_multiply_accumulate(thread simdgroup_matrix<D, 8, 8>& d, simdgroup_matrix<A, 8, 8> a, simdgroup_matrix<B, 8, 8> b,
                                            simdgroup_matrix<C, 8, 8> c, MSL_HERE) {
  exchange<vec<A, 2>> a_lanes(a.items, site);
  vec<A, 2> a_row[4];
  for (uint k = 0; k < 8; k += 2) a_row[k / 2] = a_lanes.at(matrix_lane(matrix_row(a_lanes.self), k));
  exchange<vec<B, 2>> b_lanes(b.items, site);
  float sum[2] = {(float)c.items[0], (float)c.items[1]};
  for (uint k = 0; k < 8; k++) {
    const vec<B, 2> b_pair = b_lanes.at(matrix_lane(k, matrix_column(b_lanes.self)));
    sum[0] += (float)a_row[k / 2][k % 2] * (float)b_pair[0];
    sum[1] += (float)a_row[k / 2][k % 2] * (float)b_pair[1];
  }
  d.items = vec<D, 2>{(D)sum[0], (D)sum[1]};
}
template <class D, class A, class B>
MSL_FUNC void simdgroup_multiply(thread simdgroup_matrix<D, 8, 8>& d, simdgroup_matrix<A, 8, 8> a, simdgroup_matrix<B, 8, 8> b, MSL_HERE) {
  simdgroup_multiply_accumulate(d, a, b, make_filled_simdgroup_matrix<float, 8, 8>(0.0f), site);
}
}  // namespace metal
