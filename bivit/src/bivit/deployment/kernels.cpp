// One-bit transformer blocks on a CPU: signs packed 64 to a word, products by popcount, in four tiers.
//
//   vpopcnt   AVX-512 with VPOPCNTDQ: counts of whole words
//   avx512bw  AVX-512 BW alone: byte shuffles look up the counts of four inputs of 64 channels
//   avx2      the same with 32 channels
//   portable  the compiler's popcount
//
// The file is compiled without -march: a tier's functions carry their instruction set, and Python says which to take
// (`kernels.py`). Nothing of torch is used: pointers and sizes come in structs of 8-byte fields, laid out as Python packs
// them. Contraction of products and sums into one rounding must be off, or thresholds and sums would round differently.

#include <cfloat>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

enum Rule : int64_t { PLUS = 0, TERNARY = 1, EXACT = 2 };  // sign(0): +1; 0, two planes; 0, two planes where it occurs
enum Plane : int64_t { ONE = 0, TWO = 1, FOLDED = 2 };     // of a layer's outputs; FOLDED: below `low` is +1 as well

struct Linear {
    const uint8_t* weights;               // bits in the tier's order, channels up to a multiple of 64
    const float *scale, *bias;            // [channels]
    const int16_t *positive, *zero, *low; // the smallest dot whose output is > 0, >= 0, and not flushed to 0 from below
    int64_t inputs, outputs, rule, plane;
};
struct Norm {
    int64_t present;
    const float *weight, *bias;
    double eps;
};
struct Attention {
    int64_t heads, width, tokens, windows;  // tokens of a window, windows of an image
    const int32_t* map;                     // [windows][tokens]: place of the token in the image, -1: outside
    const float *bias, *mask;               // [heads or windows][tokens][tokens up to a multiple of 64]
    int64_t relative, threshold, plus;      // active: width - dot at most `threshold`, above the row's least if relative
    double scale, log_beta;                 // where there is a bias or a mask: logits at least this below the largest, or
                                            // above 0 if not relative
};
struct Block {
    int64_t residual;
    Norm norm1;
    Linear qkv;
    Attention attention;  // no heads: none
    Linear proj;
    Norm norm2;
    Linear fc1, fc2;  // no outputs: none
};

struct Tables {
    alignas(16) uint8_t counts[256][16];
    Tables() {
        for (int m = 0; m < 16; m++)
            for (int a = 0; a < 16; a++)
                for (int w = 0; w < 16; w++) counts[m << 4 | a][w] = (uint8_t)__builtin_popcount((a ^ w) & m);
    }
};
static const Tables TABLES;

#define VPOPCNT 1
#define AVX512BW 2
#define AVX2 3
#define PORTABLE 4

#define DO_PRAGMA(words) _Pragma(#words)
#if defined(__clang__)
#define BEGIN_TARGET(features) DO_PRAGMA(clang attribute push(__attribute__((target(features))), apply_to = function))
#define END_TARGET _Pragma("clang attribute pop")
#else
#define BEGIN_TARGET(features) _Pragma("GCC push_options") DO_PRAGMA(GCC target(features))
#define END_TARGET _Pragma("GCC pop_options")
#endif

#if defined(__x86_64__)
BEGIN_TARGET("avx512f,avx512bw,avx512dq,avx512vl,avx512vpopcntdq,avx2,fma,popcnt,bmi,bmi2")
#define TIER VPOPCNT
namespace vpopcnt {
#include "kernels_vectors.h"
#include "kernels_blocks.h"
}
#undef TIER
END_TARGET
BEGIN_TARGET("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,popcnt,bmi,bmi2")
#define TIER AVX512BW
namespace avx512bw {
#include "kernels_vectors.h"
#include "kernels_blocks.h"
}
#undef TIER
END_TARGET
BEGIN_TARGET("avx2,fma,popcnt,bmi,bmi2")
#define TIER AVX2
namespace avx2 {
#include "kernels_vectors.h"
#include "kernels_blocks.h"
}
#undef TIER
END_TARGET
BEGIN_TARGET("popcnt")
#define TIER PORTABLE
namespace popcnt {
#include "kernels_vectors.h"
#include "kernels_blocks.h"
}
#undef TIER
END_TARGET
#endif
#define TIER PORTABLE
namespace portable {
#include "kernels_vectors.h"
#include "kernels_blocks.h"
}
#undef TIER

#if defined(__x86_64__)
#define CALL(tier, function, ...)                                                                    \
    switch (tier) {                                                                                  \
        case VPOPCNT: return vpopcnt::function(__VA_ARGS__);                                         \
        case AVX512BW: return avx512bw::function(__VA_ARGS__);                                       \
        case AVX2: return avx2::function(__VA_ARGS__);                                               \
        default:                                                                                     \
            if (__builtin_cpu_supports("popcnt")) return popcnt::function(__VA_ARGS__);              \
            return portable::function(__VA_ARGS__);                                                  \
    }
#else
#define CALL(tier, function, ...) return portable::function(__VA_ARGS__);
#endif

extern "C" {
void bivit_linear(const Linear* layer, const float* in, float* out, long rows, int tier, int threads) {
    CALL(tier, linear, *layer, in, out, rows, threads)
}

void bivit_attention(const Attention* rule, const float* q, const float* k, const float* v, float* out, long pairs,
                     int tier, int threads) {
    CALL(tier, attention, *rule, q, k, v, out, pairs, threads)
}

void bivit_unpack(const uint8_t* bits, const float* scale, float* out, long outputs, long inputs, int tier, int threads) {
    CALL(tier, unpack, bits, scale, out, outputs, inputs, threads)
}

void bivit_block(const Block* b, const float* in, float* out, long images, long tokens, int tier, int threads) {
    CALL(tier, block, *b, in, out, images, tokens, threads)
}
}
