// The matrix products of a step: out (ROWS, J) = in (ROWS, K) W^T, by all threads of a threadgroup.
//
// SPLIT neighbouring lanes (a lane group) share K: each takes every SPLIT-th float4 of it, for the same OUTPUTS results, and the partial
// sums are added by shuffles. Weights are packed so that each thread finds its float4s at a stride of the threadgroup's size (see
// weight_layout.py); each is read once for all ROWS. Inputs are in threadgroup memory, zero-padded to SPLIT * SHARE floats per row.

// Four packed weights, by the element type of their array; `unpack` converts them to floats.
struct Half4 {
  uint2 bits;
};
struct Bfloat4 {
  uint2 bits;
};
template <typename T>
struct Packed {
  typedef Bfloat4 type;
};
template <>
struct Packed<half> {
  typedef Half4 type;
};
template <>
struct Packed<float> {
  typedef float4 type;
};

inline float4 unpack(float4 w) { return w; }
inline float4 unpack(Bfloat4 w) {  // a bfloat16 is the upper half of a float
  float4 result;
  result.x = as_type<float>(w.bits.x << 16);
  result.y = as_type<float>(w.bits.x & 0xffff0000u);
  result.z = as_type<float>(w.bits.y << 16);
  result.w = as_type<float>(w.bits.y & 0xffff0000u);
  return result;
}
inline float4 unpack(Half4 w) {
  half2 low = as_type<half2>(w.bits.x), high = as_type<half2>(w.bits.y);
  float4 result;
  result.x = float(low.x);
  result.y = float(low.y);
  result.z = float(high.x);
  result.w = float(high.y);
  return result;
}

// A thread's weights kept in registers for the whole sequence.
template <int COUNT, typename V>
struct Resident {
  V values[COUNT];
};

// A thread's weights read from device memory each time.
template <int COUNT, typename V>
struct Streamed {
  device const V* packed;
  int stride;
};

// Functions, since methods would leave the address space of their object open.
template <int COUNT, typename V>
inline void load_weights(thread Resident<COUNT, V>& weights, device const V* packed, int stride) {
#pragma unroll
  for (int i = 0; i < COUNT; i++) weights.values[i] = packed[i * stride];
}
template <int COUNT, typename V>
inline void load_weights(thread Streamed<COUNT, V>& weights, device const V* packed, int stride) {
  weights.packed = packed;
  weights.stride = stride;
}
template <int COUNT, typename V>
inline float4 weight_at(thread const Resident<COUNT, V>& weights, int i) {
  return unpack(weights.values[i]);
}
template <int COUNT, typename V>
inline float4 weight_at(thread const Streamed<COUNT, V>& weights, int i) {
  return unpack(weights.packed[i * weights.stride]);
}

template <bool RESIDENT, int COUNT, typename V = float4>
struct Weights {
  typedef Streamed<COUNT, V> type;
};
template <int COUNT, typename V>
struct Weights<true, COUNT, V> {
  typedef Resident<COUNT, V> type;
};

// sums (ROWS * OUTPUTS * WIDE) += one float4 of each row times the same float4 of each result's weights; WIDE sums, 1 or 2, divide a result
template <int SPLIT, int SHARE, int OUTPUTS, int ROWS, int WIDE, typename W>
inline void accumulate(threadgroup const float4* in, thread const W& weights, int block, int k, int part, thread float* sums) {
  float4 v[ROWS];
#pragma unroll
  for (int r = 0; r < ROWS; r++) v[r] = in[(r * (SHARE / 4) + k) * SPLIT + part];
#pragma unroll
  for (int c = 0; c < OUTPUTS; c++) {
    float4 w = weight_at(weights, (block * OUTPUTS + c) * (SHARE / 4) + k);
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
      int even = (r * OUTPUTS + c) * WIDE, odd = even + WIDE - 1;
      sums[even] += v[r].x * w.x;
      sums[odd] += v[r].y * w.y;
      sums[even] += v[r].z * w.z;
      sums[odd] += v[r].w * w.w;
    }
  }
}

// Adds the partial sums of 2 * BIT lanes. While there are several results the lanes divide them, so that with OUTPUTS = SPLIT lane p ends
// with result p in sums[0]; with fewer results, neighbouring lanes end with copies of the same one.
template <int OUTPUTS, int BIT>
struct LaneSum {
  static inline void run(thread float* sums, int part) {
    const int half_count = OUTPUTS / 2;
    bool upper = (part & BIT) != 0;
#pragma unroll
    for (int i = 0; i < half_count; i++) {
      float sent = select(sums[i + half_count], sums[i], upper);
      float kept = select(sums[i], sums[i + half_count], upper);
      sums[i] = kept + simd_shuffle_xor(sent, BIT);
    }
    LaneSum<half_count, BIT / 2>::run(sums, part);
  }
};
// Three results are treated as four with the last one unused.
template <int BIT>
struct LaneSum<3, BIT> {
  static inline void run(thread float* sums, int part) {
    float four[4] = {sums[0], sums[1], sums[2], 0.0f};
    LaneSum<4, BIT>::run(four, part);
    sums[0] = four[0];
  }
};
template <int BIT>
struct LaneSum<1, BIT> {
  static inline void run(thread float* sums, int part) {
    sums[0] += simd_shuffle_xor(sums[0], BIT);
    LaneSum<1, BIT / 2>::run(sums, part);
  }
};
template <int OUTPUTS>
struct LaneSum<OUTPUTS, 0> {
  static inline void run(thread float* sums, int part) {}
};
template <>
struct LaneSum<1, 0> {
  static inline void run(thread float* sums, int part) {}
};

// RESULTS results from INPUTS inputs. Results are computed in blocks: in each block, lane group g computes OUTPUTS of them, and after
// `run_product` each lane holds one in sums[row * OUTPUTS]: number `owned` of its group, in the lanes with `primary` set (others hold
// copies). WEIGHT is the element type of the packed weights' array.
template <int INPUTS, int RESULTS, int SPLIT_, int OUTPUTS_, int THREADS_, bool RESIDENT_, typename WEIGHT = float>
struct Product {
  typedef WEIGHT Element;
  typedef typename Packed<WEIGHT>::type Four;
  enum {
    SPLIT = SPLIT_, OUTPUTS = OUTPUTS_, THREADS = THREADS_, RESIDENT = RESIDENT_,
    SHARE = (INPUTS + 4 * SPLIT_ - 1) / (4 * SPLIT_) * 4,  // inputs per lane
    ROW4 = SPLIT_ * SHARE / 4,                             // float4s of a padded row of inputs
    GROUPS = THREADS_ / SPLIT_,
    BLOCKS = (RESULTS + GROUPS * OUTPUTS_ - 1) / (GROUPS * OUTPUTS_),
    FLOAT4S = BLOCKS * OUTPUTS_ * SHARE / 4,  // float4s of weights per lane
    COPIES = SPLIT_ / (OUTPUTS_ == 3 ? 4 : OUTPUTS_),
    UNROLL = RESIDENT_ ? int(BLOCKS) : 1  // blocks: weights in registers cannot be indexed by a variable
  };
  typename Weights<RESIDENT_, FLOAT4S, Four>::type weights;
  int part, group, owned;
  bool primary;
};

template <typename P>
inline void load_product(thread P& product, device const typename P::Element* packed, int thread_index) {
  product.part = thread_index % P::SPLIT;
  product.group = thread_index / P::SPLIT;
  product.owned = product.part / P::COPIES;
  product.primary = product.part % P::COPIES == 0;
  load_weights(product.weights, (device const typename P::Four*)packed + thread_index, int(P::THREADS));
}

// The unit whose head `owned` a lane owns, if a lane group's results are the heads of one unit.
template <typename P>
inline int unit_of(thread const P& product, int block) {
  return block * P::GROUPS + product.group;
}

// The result that a lane owns, if a lane group's results are neighbours.
template <typename P>
inline int result_of(thread const P& product, int block) {
  return unit_of(product, block) * P::OUTPUTS + product.owned;
}

// The same for all of a lane's share.
template <int ROWS, int WIDE, typename P>
inline void add_share(thread const P& product, threadgroup const float4* in, int block, thread float* sums) {
#pragma unroll
  for (int i = 0; i < ROWS * P::OUTPUTS * WIDE; i++) sums[i] = 0.0f;
  if (P::RESIDENT) {
#pragma unroll
    for (int k = 0; k < P::SHARE / 4; k++) {
      accumulate<P::SPLIT, P::SHARE, P::OUTPUTS, ROWS, WIDE>(in, product.weights, block, k, product.part, sums);
    }
  } else {
#pragma unroll 2
    for (int k = 0; k < P::SHARE / 4; k++) {
      accumulate<P::SPLIT, P::SHARE, P::OUTPUTS, ROWS, WIDE>(in, product.weights, block, k, product.part, sums);
    }
  }
}

// A lane's partial sums for one block, (ROWS, OUTPUTS). One sum alone would wait for itself at every multiply-add, so it is made of two.
template <int ROWS, typename P>
inline void partial_sums(thread const P& product, threadgroup const float4* in, int block, thread float* sums) {
  if (ROWS * P::OUTPUTS == 1) {
    float two[2];
    add_share<ROWS, 2>(product, in, block, two);
    sums[0] = two[0] + two[1];
  } else {
    add_share<ROWS, 1>(product, in, block, sums);
  }
}

// From partial sums to results.
template <int ROWS, typename P>
inline void join_lanes(thread const P& product, thread float* sums) {
#pragma unroll
  for (int r = 0; r < ROWS; r++) LaneSum<P::OUTPUTS, P::SPLIT / 2>::run(sums + r * P::OUTPUTS, product.part);
}

// Both for one block. With several blocks per lane, computing all partial sums first, then all shuffles, then the results hides their
// latency.
template <int ROWS, typename P>
inline void run_product(thread const P& product, threadgroup const float4* in, int block, thread float* sums) {
  partial_sums<ROWS>(product, in, block, sums);
  join_lanes<ROWS>(product, sums);
}

inline void fill(threadgroup float* values, int count, int thread_index, int threads, float value) {
  for (int i = thread_index; i < count; i += threads) values[i] = value;
}
