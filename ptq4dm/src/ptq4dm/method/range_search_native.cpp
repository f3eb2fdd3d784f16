// Scores of candidate grids for the range search: for every channel and candidate the sum over the channel's values of
// |x - fake_quantised(x)| ** 2.4, float32, sums in double.
//
// The power is e^2 (e^2)^(1/5), and the fifth root is s y^4 with y = s^(-1/5) by Newton's steps, which need no division
// and no logarithm. A pair of channel and candidate is one thread's from end to end, so sums do not depend on threads.

#include <cmath>
#include <cstdint>
#include <cstring>

namespace {

constexpr std::int64_t BLOCK = 2048;  // values whose sum is kept in float32

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
        float q = std::nearbyint(row[i] / d) + z;
        q = q < bottom ? bottom : q;
        q = q > top ? top : q;
        sum += power((q - z) * d - row[i]);
      }
      total += sum;
    }
    scores[pair] = total;
  }
}
