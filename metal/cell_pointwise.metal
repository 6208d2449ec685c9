// What a cell's step may call beside pointwise.metal: Metal has no expm1, log1p or erf, and exp(a) - 1 and log(1 + a) have no digits of a small a,
// where a series stands instead, chosen by `select`. The errors are relative, with the 4 ulp that Metal states for exp and log; on the CPU, where
// these are exact, all are below 4e-7.

// exp(a) - 1: below 8e-7
inline float exp_minus_one(float a) {
  float tail = 0.00138888889f + a * (0.000198412698f + a * 0.0000248015873f);
  float series = a + a * a * (0.5f + a * (0.166666667f + a * (0.0416666667f + a * (0.00833333333f + a * tail))));
  return select(exp(a) - 1.0f, series, fabs(a) < 0.5f);
}

// log(1 + a): below 5e-7; of a small a 2 atanh(a / (2 + a))
inline float log_one_plus(float a) {
  float s = fast::divide(a, 2.0f + a), square = s * s;
  float tail = 0.111111111f + square * (0.0909090909f + square * 0.0769230769f);
  float powers = 0.333333333f + square * (0.2f + square * (0.142857143f + square * tail));
  return select(log(1.0f + a), 2.0f * (s + s * square * powers), fabs(a) < 0.5f);
}

// log(1 + exp(a)): below 8e-7
inline float soft_plus(float a) { return select(0.0f, a, a > 0.0f) + log_one_plus(exp(-fabs(a))); }

// Below 4e-7; see fast_erf
inline float erf_of(float a) {
  float square = a * a;
  float tail = -0.0268661727f + square * (0.00522397762f - square * 0.000854832701f);
  float series = a * (1.12837917f + square * (-0.376126389f + square * (0.112837917f + square * tail)));
  return select(fast_erf(a), series, fabs(a) < 0.5f);
}
