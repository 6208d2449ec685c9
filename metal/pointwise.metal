// Pointwise functions and their slopes for the backward pass.
//
// tanh and sigmoid use one fast exp and one fast divide: the absolute error is below 3e-7 for any argument, and the limits are right, since
// an exp that overflows divides to 0. Metal guarantees an error of 3 + 2 |x| ulp for fast::exp, CUDA 2 + 1.2 |x| ulp for __expf; for large
// |x| the result no longer depends on it. tanh and 1 - exp(-a), which would cancel near 0, use a polynomial there, with a relative error
// below 2e-7, chosen by `select`. For tanh this costs ten more PTX instructions, six of them the series, which run in parallel with the
// slower exp and divide.

enum Activation { LECUN_TANH = 0, TANH = 1, RELU = 2, SILU = 3, GELU = 4 };

inline bool is_small(float a) { return fabs(a) < 0.5f; }
inline float small_tanh(float a) {
  float square = a * a;
  return a + a * square * (((0.0179992244f * square - 0.0533910692f) * square + 0.133305147f) * square - 0.333333105f);
}
inline float fast_tanh(float a) { return select(1.0f - fast::divide(2.0f, fast::exp(2.0f * a) + 1.0f), small_tanh(a), is_small(a)); }
inline float fast_sigmoid(float a) { return fast::divide(1.0f, 1.0f + fast::exp(-a)); }

// tanh or sigmoid, without a branch between lanes that need different ones: tanh(a) = 2 sigmoid(2 a) - 1. `select`, because a compiler may
// turn `?:` into a branch and duplicate the shuffles that follow in both arms.
inline float tanh_or_sigmoid(bool is_tanh, float a) {
  float s = fast_sigmoid(select(a, 2.0f * a, is_tanh));
  return select(s, select(2.0f * s - 1.0f, small_tanh(a), is_small(a)), is_tanh);
}

// 1 - exp(-a) for a >= 0
inline float one_minus_exp(float a) {
  float series = a - a * a * ((((0.00116460701f * a - 0.00823854469f) * a + 0.0416500308f) * a - 0.166665643f) * a + 0.5f);
  return select(1.0f - exp(-a), series, a < 0.5f);
}

// Abramowitz and Stegun 7.1.26, absolute error below 1.5e-7; Metal has no erf
inline float fast_erf(float a) {
  float magnitude = a < 0.0f ? -a : a;
  float t = 1.0f / (1.0f + 0.3275911f * magnitude);
  float series = ((((1.061405429f * t - 1.453152027f) * t + 1.421413741f) * t - 0.284496736f) * t + 0.254829592f) * t;
  float result = 1.0f - series * exp(-magnitude * magnitude);
  return a < 0.0f ? -result : result;
}

template <int ACTIVATION>
inline float activate(float a) {
  if (ACTIVATION == LECUN_TANH) return 1.7159f * fast_tanh(0.666f * a);
  if (ACTIVATION == TANH) return fast_tanh(a);
  if (ACTIVATION == RELU) return a > 0.0f ? a : 0.0f;
  if (ACTIVATION == SILU) return a * fast_sigmoid(a);
  return 0.5f * a * (1.0f + fast_erf(0.70710678f * a));
}

// The slope of `activate` at a, given its value z.
template <int ACTIVATION>
inline float activation_slope(float a, float z) {
  if (ACTIVATION == LECUN_TANH) return (1.7159f - z) * (1.7159f + z) * (0.666f / 1.7159f);
  if (ACTIVATION == TANH) return (1.0f - z) * (1.0f + z);
  if (ACTIVATION == RELU) return a > 0.0f ? 1.0f : 0.0f;
  if (ACTIVATION == SILU) {
    float s = fast_sigmoid(a);
    return s * (1.0f + a * (1.0f - s));
  }
  return 0.5f * (1.0f + fast_erf(0.70710678f * a)) + 0.39894228f * a * exp(-0.5f * a * a);
}
