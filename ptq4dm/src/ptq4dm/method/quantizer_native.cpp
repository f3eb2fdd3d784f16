// Fake quantisation in one pass, and the scores of candidate grids for the range search. Float32.
//
// ptq4dm_fake_quantize does to each value what the formula says, operation by operation, so its results are torch's to
// the bit; torch takes six passes over the memory.
//
// ptq4dm_range_scores sums |x - fake_quantised(x)| ** 2.4 over a channel's values, for every channel and candidate. With
// s = e^2 the power is s (s y^4) (1 - r)^(-4/5), where y is a guess at s^(-1/5) from the bits of s, r = 1 - s y^5, and a
// polynomial stands for the last factor: no logarithm, no division. A pair of channel and candidate is one thread's from
// end to end, so sums do not depend on threads.

#include <cmath>
#include <cstdint>
#include <cstring>

namespace {

constexpr std::int64_t BLOCK = 2048;  // values whose sum is kept in float32
constexpr std::int64_t SHARE = 1 << 15;  // values that are worth a thread

inline float fake(float x, float delta, float zero, float bottom, float top) {
  float q = std::nearbyint(x / delta) + zero;
  q = q < bottom ? bottom : q;
  q = q > top ? top : q;
  return (q - zero) * delta;
}

inline float power(float error) {
  const float s = error * error;
  std::int32_t bits;
  std::memcpy(&bits, &s, sizeof bits);
  bits = static_cast<std::int32_t>(1277904896.f - 0.2f * static_cast<float>(bits));  // s^(-1/5), at most 3 % off
  float y;
  std::memcpy(&y, &bits, sizeof y);
  const float y2 = y * y, s_y4 = s * (y2 * y2);
  const float r = 1.f - s_y4 * y;  // |r| < 0.156
  float p = 0.617047242f;  // (1 - r)^(-4/5) to 3e-8
  p = p * r + 0.638103313f;
  p = p * r + 0.638097881f;
  p = p * r + 0.671690194f;
  p = p * r + 0.720000922f;
  p = p * r + 0.800000945f;
  p = p * r + 1.f;
  return s * (s_y4 * p);
}

}  // namespace

extern "C" void ptq4dm_range_scores(const float* x, const float* delta, const float* zero, double* scores,
                                    std::int64_t channels, std::int64_t values, std::int64_t candidates, float bottom,
                                    float top, int threads) {
#pragma omp parallel for num_threads(threads) schedule(dynamic, 4)
  for (std::int64_t pair = 0; pair < channels * candidates; ++pair) {
    const float* row = x + pair / candidates * values;
    const float d = delta[pair], z = zero[pair];
    double total = 0;
    for (std::int64_t first = 0; first < values; first += BLOCK) {
      const std::int64_t end = first + BLOCK < values ? first + BLOCK : values;
      float sum = 0;
#pragma omp simd reduction(+ : sum)
      for (std::int64_t i = first; i < end; ++i) {
        sum += power(fake(row[i], d, z, bottom, top) - row[i]);
      }
      total += sum;
    }
    scores[pair] = total;
  }
}

extern "C" void ptq4dm_fake_quantize(const float* x, float* out, std::int64_t values, const float* delta,
                                     const float* zero, float bottom, float top, int threads) {
  const float d = *delta, z = *zero;
  const std::int64_t shares = (values + SHARE - 1) / SHARE;
#pragma omp parallel for num_threads(shares < threads ? static_cast<int>(shares) : threads) if (shares > 1)
  for (std::int64_t share = 0; share < shares; ++share) {
    const std::int64_t end = (share + 1) * SHARE < values ? (share + 1) * SHARE : values;
#pragma omp simd
    for (std::int64_t i = share * SHARE; i < end; ++i) out[i] = fake(x[i], d, z, bottom, top);
  }
}
