// Fake quantisation in one pass, and the scores of candidate grids for the range search. Float32.
//
// ptq4dm_fake_quantize does to each value what the formula says, operation by operation, so its results are torch's to
// the bit; torch takes six passes over the memory.
//
// ptq4dm_range_scores sums |x - fake_quantised(x)| ** 2.4 over a channel's values, for every channel and candidate. The
// power is e^2 (e^2)^(1/5), and the fifth root is s y^4 with y = s^(-1/5) by Newton's steps, which need no division and
// no logarithm. A pair of channel and candidate is one thread's from end to end, so sums do not depend on threads.

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
  bits = 0x4C2BC000 - bits / 5;  // s^(-1/5), at most 3.2 % off; three steps leave 3e-9
  float y;
  std::memcpy(&y, &bits, sizeof y);
  for (int step = 0; step < 3; ++step) {
    const float y2 = y * y;
    y *= 1.2f - 0.2f * s * y * (y2 * y2);
  }
  const float y2 = y * y;
  return s * (s * (y2 * y2));
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
