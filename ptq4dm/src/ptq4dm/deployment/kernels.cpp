// A quantised U-Net as a list of steps over NHWC buffers, run by one call (see kernels.py and program.py).
//
// One instruction set per compilation: what the compiler's flags allow is used. Everything but `dot` is written with
// the compiler's vectors. A product takes 32-bit words: four u8 inputs times four s8 weights into a 32-bit sum, which
// is exact, or one float times one float.
//
// Letters: B batch, H W rows and columns, C channels, O outputs, L lanes of a vector.

#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <thread>
#include <vector>
#if defined(__x86_64__)
#include <immintrin.h>
#endif
#ifdef _OPENMP
#include <omp.h>
#endif

#if defined(__AVX512F__)
constexpr int L = 16;
#elif defined(__AVX2__)
constexpr int L = 8;
#else
constexpr int L = 4;
#endif
constexpr int M = L == 16 ? 8 : 4;  // pixels of a tile: the sums of 3 vectors each fill the registers

typedef float vf __attribute__((vector_size(4 * L)));
typedef int32_t vi __attribute__((vector_size(4 * L)));
typedef float vfu __attribute__((vector_size(4 * L), aligned(1), may_alias));
typedef int32_t viu __attribute__((vector_size(4 * L), aligned(1), may_alias));
typedef uint8_t vb __attribute__((vector_size(L), aligned(1), may_alias));
#define INLINE static inline __attribute__((always_inline))

INLINE vf loadf(const float* p) { return *(const vfu*)p; }
INLINE vi loadi(const int32_t* p) { return *(const viu*)p; }
INLINE void store(float* p, vf x) { *(vfu*)p = x; }
INLINE vf all(float x) { return x - (vf){}; }
INLINE vf to_float(vi x) { return __builtin_convertvector(x, vf); }

INLINE vf larger(vf a, vf b) {
#if defined(__AVX512F__)
    return (vf)_mm512_max_ps((__m512)a, (__m512)b);
#elif defined(__AVX2__)
    return (vf)_mm256_max_ps((__m256)a, (__m256)b);
#else
    vi c = a > b;
    return (vf)(((vi)a & c) | ((vi)b & ~c));
#endif
}

INLINE vf smaller(vf a, vf b) {
#if defined(__AVX512F__)
    return (vf)_mm512_min_ps((__m512)a, (__m512)b);
#elif defined(__AVX2__)
    return (vf)_mm256_min_ps((__m256)a, (__m256)b);
#else
    vi c = a < b;
    return (vf)(((vi)a & c) | ((vi)b & ~c));
#endif
}

// Half to even, for |x| below 2^22.
INLINE vf nearest(vf x) {
#if defined(__AVX512F__)
    return (vf)_mm512_roundscale_ps((__m512)x, 8);
#elif defined(__AVX2__)
    return (vf)_mm256_round_ps((__m256)x, 8);
#else
    vf big = all(12582912.0f), y = x + big;
    __asm__("" : "+x"(y));
    return y - big;
#endif
}

INLINE vi dot(vi sum, vi inputs, vi weights) {
#if defined(__AVX512VNNI__)
    return (vi)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)inputs, (__m512i)weights);
#elif defined(__AVX512BW__)
    __m512i a = (__m512i)inputs, w = (__m512i)weights, low = _mm512_set1_epi16(255);
    __m512i even = _mm512_madd_epi16(_mm512_and_si512(a, low), _mm512_srai_epi16(_mm512_slli_epi16(w, 8), 8));
    __m512i odd = _mm512_madd_epi16(_mm512_srli_epi16(a, 8), _mm512_srai_epi16(w, 8));
    return (vi)_mm512_add_epi32((__m512i)sum, _mm512_add_epi32(even, odd));
#elif defined(__AVXVNNI__)
    return (vi)_mm256_dpbusd_avx_epi32((__m256i)sum, (__m256i)inputs, (__m256i)weights);
#elif defined(__AVX2__)
    __m256i a = (__m256i)inputs, w = (__m256i)weights, low = _mm256_set1_epi16(255);
    __m256i even = _mm256_madd_epi16(_mm256_and_si256(a, low), _mm256_srai_epi16(_mm256_slli_epi16(w, 8), 8));
    __m256i odd = _mm256_madd_epi16(_mm256_srli_epi16(a, 8), _mm256_srai_epi16(w, 8));
    return (vi)_mm256_add_epi32((__m256i)sum, _mm256_add_epi32(even, odd));
#else
    for (int byte = 0; byte < 4; ++byte)
        sum += ((inputs >> (8 * byte)) & 255) * ((weights << (24 - 8 * byte)) >> 24);
    return sum;
#endif
}
INLINE vf dot(vf sum, vf inputs, vf weights) { return sum + inputs * weights; }

INLINE vf exponential(vf x) {
    x = smaller(larger(x, all(-87.0f)), all(88.0f));
    vf n = nearest(x * 1.44269504f);
    vf r = x - n * 0.693359375f + n * 2.12194440e-4f;
    vf p = ((((r * 1.9875691500e-4f + 1.3981999507e-3f) * r + 8.3334519073e-3f) * r + 4.1665795894e-2f) * r +
            1.6666665459e-1f) * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    vi e = __builtin_convertvector(n, vi);
    return p * (vf)((e + 127) << 23);
}
INLINE vf silu(vf x) { return x / (exponential(-x) + 1.0f); }

// x Phi(x); erf by formula 7.1.26 of Abramowitz and Stegun, within 1.5e-7.
INLINE vf gelu(vf x) {
    vf z = x * 0.70710678f, a = larger(z, -z), t = 1.0f / (a * 0.3275911f + 1.0f);
    vf tail = ((((t * 1.061405429f - 1.453152027f) * t + 1.421413741f) * t - 0.284496736f) * t + 0.254829592f) * t *
              exponential(-a * a);
    vi negative = z < 0.0f;
    vf upper = 2.0f - tail;
    vf twice = (vf)(((vi)tail & negative) | ((vi)upper & ~negative));
    return 0.5f * x * twice;
}

// --- steps: the same fields in program.py ----------------------------------------------------------------------------

struct Moments {  // per channel of each image: sum and sum of squares
    const float *first, *second;
    int64_t first_channels, second_channels, batch, pixels;
    double* sums;  // (B, 2, C)
};

struct Prepare {  // concatenate, normalise, activate, enlarge, quantise, pad
    const float *first, *second;
    int64_t first_channels, second_channels, batch, height, width, enlarge;
    int64_t top, left, bottom, right;  // padding
    void* out;
    int64_t stride;      // of a pixel, in elements
    int64_t kind;        // 0 float, 1 u8 codes, 2 float on the grid
    int64_t norm, groups;  // 0 none, 1 group, 2 layer
    const double* sums;
    const float *gamma, *beta;
    int64_t activation;  // 0 none, 1 SiLU, 2 GEGLU: the second half of the channels is the gate
    const float* modulation;  // (B, 2 C) scale and shift, or null
    int32_t* totals;     // of a pixel's codes, or null
    double delta, zero_point, top_code, epsilon;
};

struct Product {  // convolution, linear layer
    const void* in;
    const void* weights;     // [block][row words][lanes] words
    const int32_t* start;    // of the sums, (O)
    const int32_t* offset;   // weight zero points times the pixel totals, (O), or null
    const int32_t* totals;
    const float *scale, *bias, *shift, *residual;
    float* out;
    int64_t batch, height, width;  // of the output
    int64_t in_height, in_width;   // padded
    int64_t words, rows, columns, stride;  // 32-bit words of a pixel; kernel; stride
    int64_t outputs, is_float, out_stride, shift_stride, residual_stride;
    double output_scale;
};

struct Attention {
    const float *q, *k, *v;
    float *out, *keys, *values, *scores;
    int64_t batch, heads, queries, tokens, width, q_stride, k_stride, v_stride, out_stride;
    double scale;
};

struct Step {
    int64_t kind;
    const void* fields;
};

// --- moments ---------------------------------------------------------------------------------------------------------

static void moments(const Moments& s, int thread, int threads) {
    const int64_t channels = s.first_channels + s.second_channels;
    const int64_t blocks_first = (s.first_channels + L - 1) / L;
    const int64_t blocks = blocks_first + (s.second_channels + L - 1) / L;
    const int64_t tasks = s.batch * blocks;
    for (int64_t task = tasks * thread / threads; task < tasks * (thread + 1) / threads; ++task) {
        const int64_t b = task / blocks, block = task % blocks;
        const bool first = block < blocks_first;
        const int64_t width = first ? s.first_channels : s.second_channels;
        const int64_t c = (first ? block : block - blocks_first) * L;
        const float* x = (first ? s.first : s.second) + b * s.pixels * width + c;
        double* sum = s.sums + b * 2 * channels + (first ? c : s.first_channels + c);
        const int lanes = width - c < L ? int(width - c) : L;
        double total[L] = {}, square[L] = {};
        for (int64_t p = 0; p < s.pixels; p += 64) {
            const int64_t end = p + 64 < s.pixels ? p + 64 : s.pixels;
            float ones[L] = {}, twos[L] = {};
            if (lanes == L) {
                vf one = {}, two = {};
                for (int64_t i = p; i < end; ++i) {
                    const vf value = loadf(x + i * width);
                    one += value;
                    two += value * value;
                }
                store(ones, one);
                store(twos, two);
            } else {
                for (int64_t i = p; i < end; ++i)
                    for (int l = 0; l < lanes; ++l) {
                        const float value = x[i * width + l];
                        ones[l] += value;
                        twos[l] += value * value;
                    }
            }
            for (int l = 0; l < L; ++l) {
                total[l] += ones[l];
                square[l] += twos[l];
            }
        }
        for (int l = 0; l < lanes; ++l) {
            sum[l] = total[l];
            sum[l + channels] = square[l];
        }
    }
}

// --- preparation -----------------------------------------------------------------------------------------------------

constexpr int MOST_CHANNELS = 8192;

struct Quantise {
    vf delta, zero, top;
    INLINE vf code(const Quantise& q, vf x) {
        return smaller(larger(nearest(x / q.delta) + q.zero, (vf){}), q.top);
    }
};

template <int KIND>
INLINE void put(const Quantise& q, vf y, void* out, int64_t c, int lanes, vi& total) {
    if (KIND == 1) {
        const vi code = __builtin_convertvector(Quantise::code(q, y), vi);
        uint8_t* to = (uint8_t*)out + c;
        if (lanes == L) {
            *(vb*)to = __builtin_convertvector(code, vb);
            total += code;
        } else {
            for (int l = 0; l < lanes; ++l) {
                to[l] = uint8_t(code[l]);
                total[l] += code[l];
            }
        }
    } else {
        if (KIND == 2) y = (Quantise::code(q, y) - q.zero) * q.delta;
        float* to = (float*)out + c;
        if (lanes == L) store(to, y);
        else for (int l = 0; l < lanes; ++l) to[l] = y[l];
    }
}

INLINE vf part(const float* x, int lanes) {
    if (lanes == L) return loadf(x);
    float values[L] = {};
    for (int l = 0; l < lanes; ++l) values[l] = x[l];
    return loadf(values);
}

template <int ACTIVATION, int KIND>
INLINE void prepared_part(const Quantise& q, const float* x, int64_t from, int64_t count, const float* slope,
                          const float* shift, bool affine, void* out, vi& total) {
    for (int64_t c = 0; c < count; c += L) {
        const int lanes = count - c < L ? int(count - c) : L;
        vf y = part(x + c, lanes);
        if (affine) y = y * loadf(slope + from + c) + loadf(shift + from + c);
        if (ACTIVATION == 1) y = silu(y);
        if (ACTIVATION == 2) y *= gelu(part(x + count + c, lanes));
        put<KIND>(q, y, out, from + c, lanes, total);
    }
}

// Row y of an image, without its padding; `slope` and `shift` by channel, made here for a layer norm.
template <int ACTIVATION, int KIND>
static void prepared_row(const Prepare& s, int64_t b, int64_t y, char* out, int32_t* totals, float* slope, float* shift) {
    const int64_t channels = s.first_channels + s.second_channels, size = KIND == 1 ? 1 : 4;
    const int64_t in_height = s.height / s.enlarge, in_width = s.width / s.enlarge, row = (b * in_height + y / s.enlarge) * in_width;
    const Quantise q{all(float(s.delta)), all(float(s.zero_point)), all(float(s.top_code))};
    const bool affine = s.norm != 0;
    for (int64_t x = 0; x < s.width; ++x) {
        const int64_t from = row + (s.enlarge == 2 ? x / 2 : x);
        const float* first = s.first + from * s.first_channels;
        void* to = out + x * s.stride * size;
        if (s.norm == 2) {
            double one = 0, two = 0;
            for (int64_t c = 0; c < channels; ++c) one += first[c];
            const double mean = one / channels;
            for (int64_t c = 0; c < channels; ++c) two += (first[c] - mean) * (first[c] - mean);
            const float by = float(1 / std::sqrt(two / channels + s.epsilon)), middle = float(mean);
            for (int64_t c = 0; c < channels; ++c) {
                slope[c] = by * (s.gamma ? s.gamma[c] : 1);
                shift[c] = (s.beta ? s.beta[c] : 0) - middle * slope[c];
            }
        }
        vi total = {};
        if (ACTIVATION == 2) prepared_part<2, KIND>(q, first, 0, channels / 2, slope, shift, false, to, total);
        else {
            prepared_part<ACTIVATION, KIND>(q, first, 0, s.first_channels, slope, shift, affine, to, total);
            if (s.second_channels)
                prepared_part<ACTIVATION, KIND>(q, s.second + from * s.second_channels, s.first_channels,
                                                s.second_channels, slope, shift, affine, to, total);
        }
        if (totals) {
            int32_t sum = 0;
            for (int l = 0; l < L; ++l) sum += total[l];
            totals[x] = sum;
        }
    }
}

template <int ACTIVATION>
static void prepared_row_of(const Prepare& s, int64_t b, int64_t y, char* out, int32_t* totals, float* slope, float* shift) {
    if (s.kind == 1) prepared_row<ACTIVATION, 1>(s, b, y, out, totals, slope, shift);
    else if (s.kind == 2) prepared_row<ACTIVATION, 2>(s, b, y, out, totals, slope, shift);
    else prepared_row<ACTIVATION, 0>(s, b, y, out, totals, slope, shift);
}

static void prepare(const Prepare& s, int thread, int threads) {
    alignas(64) float slope[MOST_CHANNELS + L], shift[MOST_CHANNELS + L];
    const int64_t in_channels = s.first_channels + s.second_channels;
    const int64_t channels = s.activation == 2 ? in_channels / 2 : in_channels;
    const int64_t rows = s.height + s.top + s.bottom, columns = s.width + s.left + s.right;
    const int64_t in_height = s.enlarge == 2 ? s.height / 2 : s.height, in_width = s.enlarge == 2 ? s.width / 2 : s.width;
    const int64_t size = s.kind == 1 ? 1 : 4, tasks = s.batch * rows;
    const float zero = float(s.zero_point);
    int64_t image = -1;
    for (int64_t task = tasks * thread / threads; task < tasks * (thread + 1) / threads; ++task) {
        const int64_t b = task / rows, row = task % rows, y = row - s.top;
        char* out = (char*)s.out + task * columns * s.stride * size;
        int32_t* totals = s.totals ? s.totals + task * columns : nullptr;
        if (s.norm == 1 && b != image) {
            const double* sum = s.sums + b * 2 * in_channels;
            const int64_t each = in_channels / s.groups;
            const double count = double(each) * in_height * in_width;
            for (int64_t g = 0; g < s.groups; ++g) {
                double one = 0, two = 0;
                for (int64_t c = g * each; c < (g + 1) * each; ++c) {
                    one += sum[c];
                    two += sum[c + in_channels];
                }
                const double mean = one / count, spread = two / count - mean * mean;
                const double by = 1 / std::sqrt((spread > 0 ? spread : 0) + s.epsilon);
                for (int64_t c = g * each; c < (g + 1) * each; ++c) {
                    double a = by * (s.gamma ? s.gamma[c] : 1), e = (s.beta ? s.beta[c] : 0) - mean * a;
                    if (s.modulation) {
                        const double scale = 1 + s.modulation[b * 2 * in_channels + c];
                        a *= scale;
                        e = e * scale + s.modulation[b * 2 * in_channels + in_channels + c];
                    }
                    slope[c] = float(a);
                    shift[c] = float(e);
                }
            }
            image = b;
        }
        const bool inside = y >= 0 && y < s.height;
        for (int64_t column = 0; column < columns; ++column) {
            const bool within = inside && column >= s.left && column < s.left + s.width;
            char* to = out + column * s.stride * size;
            const int64_t from = within ? channels : 0, count = s.stride - from;  // within: what fills up the words
            if (s.kind == 1) {
                if (!within) std::memset(to, uint8_t(zero), channels);
                if (s.stride > channels) std::memset(to + channels, 0, s.stride - channels);
            } else {
                std::memset(to + 4 * from, 0, 4 * count);
            }
            if (totals && !within) totals[column] = int32_t(channels * zero);
        }
        if (!inside) continue;
        char* to = out + s.left * s.stride * size;
        int32_t* sums = totals ? totals + s.left : nullptr;
        if (s.activation == 1) prepared_row_of<1>(s, b, y, to, sums, slope, shift);
        else if (s.activation == 2) prepared_row_of<2>(s, b, y, to, sums, slope, shift);
        else prepared_row_of<0>(s, b, y, to, sums, slope, shift);
    }
}

// --- products --------------------------------------------------------------------------------------------------------

template <typename V> struct Word;
template <> struct Word<vi> {
    typedef int32_t type;
    INLINE vi everywhere(const int32_t* p) {
        int32_t word;
        std::memcpy(&word, p, 4);
        return word - (vi){};
    }
};
template <> struct Word<vf> {
    typedef float type;
    INLINE vf everywhere(const float* p) { return all(*p); }
};

// Sums of M pixels and V vectors of outputs: `rows` stretches of `length` words, `step` words apart in the input.
template <typename T, int V>
INLINE void tile(T (&sum)[M][V], const typename Word<T>::type* const (&in)[M], const typename Word<T>::type* weights,
                 int64_t rows, int64_t length, int64_t step) {
    for (int64_t row = 0; row < rows; ++row) {
        const typename Word<T>::type* at[M];
        for (int m = 0; m < M; ++m) at[m] = in[m] + row * step;
        for (int64_t k = 0; k < length; ++k) {
            T w[V];
            for (int v = 0; v < V; ++v) std::memcpy(&w[v], weights + v * L, sizeof(T));
            for (int m = 0; m < M; ++m) {
                const T a = Word<T>::everywhere(at[m] + k);
                for (int v = 0; v < V; ++v) sum[m][v] = dot(sum[m][v], a, w[v]);
            }
            weights += V * L;
        }
    }
}

template <int V>
INLINE void finish(const Product& s, vf (&y)[V], int64_t pixel, int64_t image, int64_t from) {
    for (int v = 0; v < V; ++v) {
        const int64_t o = from + v * L;
        const int lanes = s.outputs - o < L ? int(s.outputs - o) : L;
        if (lanes <= 0) return;
        vf value = y[v] + loadf(s.bias + o);
        if (s.shift) value += part(s.shift + image * s.shift_stride + o, lanes);
        if (s.residual) value = (value + part(s.residual + pixel * s.residual_stride + o, lanes)) * float(s.output_scale);
        float* to = s.out + pixel * s.out_stride + o;
        if (lanes == L) store(to, value);
        else for (int l = 0; l < lanes; ++l) to[l] = value[l];
    }
}

template <typename T, int V>
static void product_tile(const Product& s, const typename Word<T>::type* weights, int64_t from, int64_t first) {
    typedef typename Word<T>::type W;
    const int64_t each = s.height * s.width, pixels = s.batch * each, length = s.columns * s.words;
    const W* in[M];
    int64_t corner[M], image[M];
    for (int m = 0; m < M; ++m) {
        const int64_t p = first + m < pixels ? first + m : pixels - 1, inside = p % each;
        image[m] = p / each;
        corner[m] = (image[m] * s.in_height + inside / s.width * s.stride) * s.in_width + inside % s.width * s.stride;
        in[m] = (const W*)s.in + corner[m] * s.words;
    }
    T sum[M][V];
    for (int m = 0; m < M; ++m)
        for (int v = 0; v < V; ++v) {
            sum[m][v] = (T){};
            if constexpr (sizeof(T) && __is_same(T, vi)) sum[m][v] = loadi(s.start + from + v * L);
        }
    tile<T, V>(sum, in, weights, s.rows, length, s.in_width * s.words);
    for (int m = 0; m < M; ++m) {
        if (first + m >= pixels) return;
        vf y[V];
        if constexpr (__is_same(T, vi)) {
            int32_t total = 0;
            if (s.offset)
                for (int64_t row = 0; row < s.rows; ++row)
                    for (int64_t column = 0; column < s.columns; ++column)
                        total += s.totals[corner[m] + row * s.in_width + column];
            for (int v = 0; v < V; ++v) {
                vi value = sum[m][v];
                if (s.offset) value -= loadi(s.offset + from + v * L) * total;
                y[v] = to_float(value) * loadf(s.scale + from + v * L);
            }
        } else {
            for (int v = 0; v < V; ++v) y[v] = sum[m][v];
        }
        finish<V>(s, y, first + m, image[m], from);
    }
}

// Vectors of outputs by threes; what is left by twos, so that no block is narrow if it can be helped.
INLINE int vectors_of(int64_t left) { return left == 4 || left == 2 ? 2 : left == 1 ? 1 : 3; }

template <typename T>
static void product_of(const Product& s, int thread, int threads) {
    typedef typename Word<T>::type W;
    const int64_t vectors = (s.outputs + L - 1) / L, tiles = (s.batch * s.height * s.width + M - 1) / M;
    const int64_t depth = s.rows * s.columns * s.words, all_tasks = vectors * tiles;
    const int64_t begin = all_tasks * thread / threads, end = all_tasks * (thread + 1) / threads;
    int64_t done = 0;  // in tiles times vectors, so that threads get equal shares
    for (int64_t vector = 0; vector < vectors;) {
        const int count = vectors_of(vectors - vector);
        const W* weights = (const W*)s.weights + vector * L * depth;
        const int64_t low = begin - done, high = end - done;
        const int64_t first = low <= 0 ? 0 : (low + count - 1) / count, last = high <= 0 ? 0 : (high + count - 1) / count;
        for (int64_t t = first; t < last && t < tiles; ++t) {
            if (count == 3) product_tile<T, 3>(s, weights, vector * L, t * M);
            else if (count == 2) product_tile<T, 2>(s, weights, vector * L, t * M);
            else product_tile<T, 1>(s, weights, vector * L, t * M);
        }
        done += count * tiles;
        vector += count;
    }
}

static void product(const Product& s, int thread, int threads) {
    if (s.is_float) product_of<vf>(s, thread, threads);
    else product_of<vi>(s, thread, threads);
}

// --- attention -------------------------------------------------------------------------------------------------------

INLINE int64_t padded(int64_t n) { return (n + L - 1) / L * L; }

// Keys (d words deep, tokens wide) and values (tokens deep, d wide), vector by vector as `product` reads weights.
static void attention_order(const Attention& s, int thread, int threads) {
    const int64_t heads = s.batch * s.heads, wide = padded(s.tokens), across = padded(s.width);
    for (int64_t head = heads * thread / threads; head < heads * (thread + 1) / threads; ++head) {
        const int64_t b = head / s.heads, h = head % s.heads;
        const float* k = s.k + b * s.tokens * s.k_stride + h * s.width;
        const float* v = s.v + b * s.tokens * s.v_stride + h * s.width;
        float* keys = s.keys + head * wide * s.width;
        float* values = s.values + head * across * s.tokens;
        for (int64_t vector = 0; vector < wide / L;) {
            const int count = vectors_of(wide / L - vector), n = count * L;
            float* to = keys + vector * L * s.width;
            for (int64_t l = 0; l < n; ++l) {
                const int64_t token = vector * L + l;
                for (int64_t d = 0; d < s.width; ++d) to[d * n + l] = token < s.tokens ? k[token * s.k_stride + d] : 0;
            }
            vector += count;
        }
        for (int64_t vector = 0; vector < across / L;) {
            const int count = vectors_of(across / L - vector), n = count * L;
            float* to = values + vector * L * s.tokens;
            for (int64_t token = 0; token < s.tokens; ++token)
                for (int64_t l = 0; l < n; ++l) {
                    const int64_t d = vector * L + l;
                    to[token * n + l] = d < s.width ? v[token * s.v_stride + d] : 0;
                }
            vector += count;
        }
    }
}

template <int V>
INLINE void rows_times(const float* const (&in)[M], const float* weights, int64_t depth, float* const (&out)[M], int rows,
                       int64_t valid, const float* factors) {
    vf sum[M][V];
    for (int m = 0; m < M; ++m)
        for (int v = 0; v < V; ++v) sum[m][v] = (vf){};
    tile<vf, V>(sum, in, weights, 1, depth, 0);
    for (int m = 0; m < rows; ++m)
        for (int v = 0; v < V; ++v) {
            const vf value = sum[m][v] * factors[m];
            const int64_t left = valid - v * L;
            if (left >= L) store(out[m] + v * L, value);
            else for (int l = 0; l < left; ++l) out[m][v * L + l] = value[l];
        }
}

static void rows_product(const float* const (&in)[M], const float* weights, int64_t depth, float* const (&out)[M], int rows,
                         int64_t outputs, bool fill, const float* factors) {
    const int64_t vectors = padded(outputs) / L;
    for (int64_t vector = 0; vector < vectors;) {
        const int count = vectors_of(vectors - vector);
        float* to[M];
        for (int m = 0; m < M; ++m) to[m] = out[m] + vector * L;
        const int64_t valid = (fill ? vectors * L : outputs) - vector * L;
        const float* w = weights + vector * L * depth;
        if (count == 3) rows_times<3>(in, w, depth, to, rows, valid, factors);
        else if (count == 2) rows_times<2>(in, w, depth, to, rows, valid, factors);
        else rows_times<1>(in, w, depth, to, rows, valid, factors);
        vector += count;
    }
}

static void attention(const Attention& s, int thread, int threads, int worker) {
    const int64_t tiles = (s.queries + M - 1) / M, tasks = s.batch * s.heads * tiles, wide = padded(s.tokens);
    float* scores = s.scores + worker * M * wide;
    float scales[M], inverse[M];
    for (int m = 0; m < M; ++m) scales[m] = float(s.scale);
    for (int64_t task = tasks * thread / threads; task < tasks * (thread + 1) / threads; ++task) {
        const int64_t head = task / tiles, first = task % tiles * M, b = head / s.heads, h = head % s.heads;
        const int rows = s.queries - first < M ? int(s.queries - first) : M;
        const float* in[M];
        const float* weights[M];
        float *found[M], *out[M];
        for (int m = 0; m < M; ++m) {
            const int64_t row = b * s.queries + (m < rows ? first + m : first);
            in[m] = s.q + row * s.q_stride + h * s.width;
            out[m] = s.out + row * s.out_stride + h * s.width;
            weights[m] = found[m] = scores + m * wide;
        }
        rows_product(in, s.keys + head * wide * s.width, s.width, found, rows, s.tokens, true, scales);
        for (int m = 0; m < rows; ++m) {
            float* row = found[m];
            for (int64_t t = s.tokens; t < wide; ++t) row[t] = -INFINITY;
            vf most = loadf(row), sum = {};
            for (int64_t t = L; t < wide; t += L) most = larger(most, loadf(row + t));
            float top = most[0], total = 0;
            for (int l = 1; l < L; ++l) top = most[l] > top ? most[l] : top;
            for (int64_t t = 0; t < wide; t += L) {
                const vf e = exponential(loadf(row + t) - top);
                store(row + t, e);
                if (t + L <= s.tokens) sum += e;
                else for (int l = 0; l < s.tokens - t; ++l) total += e[l];
            }
            for (int l = 0; l < L; ++l) total += sum[l];
            inverse[m] = 1 / total;
        }
        rows_product(weights, s.values + head * padded(s.width) * s.tokens, s.tokens, out, rows, s.width, false, inverse);
    }
}

// --- all steps -------------------------------------------------------------------------------------------------------

// How far the pieces of a step are: taken, and finished. A thread that the system has set aside between two pieces
// keeps nobody waiting, as it would at a barrier.
struct Progress {
    std::atomic<int> taken{0}, finished{0};
};

constexpr int PIECES = 4;  // of a step, a thread

static void piece_of(const Step& step, int piece, int pieces, int worker) {
    switch (step.kind) {
        case 0: moments(*(const Moments*)step.fields, piece, pieces); break;
        case 1: prepare(*(const Prepare*)step.fields, piece, pieces); break;
        case 2: product(*(const Product*)step.fields, piece, pieces); break;
        case 3: attention_order(*(const Attention*)step.fields, piece, pieces); break;
        case 4: attention(*(const Attention*)step.fields, piece, pieces, worker); break;
    }
}

static void all_steps(const Step* steps, int64_t count, Progress* progress, int pieces, int worker) {
    for (int64_t i = 0; i < count; ++i) {
        Progress& now = progress[i];
        for (int piece; (piece = now.taken.fetch_add(1, std::memory_order_relaxed)) < pieces;) {
            piece_of(steps[i], piece, pieces, worker);
            now.finished.fetch_add(1, std::memory_order_release);
        }
        for (int turn = 0; now.finished.load(std::memory_order_acquire) < pieces; ++turn)
            if (turn > 2000) std::this_thread::yield();
    }
}

extern "C" int ptq4dm_lanes() { return L; }

extern "C" void ptq4dm_run(const Step* steps, int64_t count, int threads) {
#ifdef _OPENMP
    if (threads > 1) {
        std::vector<Progress> progress(count);
#pragma omp parallel num_threads(threads)
        all_steps(steps, count, progress.data(), PIECES * threads, omp_get_thread_num());
        return;
    }
#endif
    for (int64_t i = 0; i < count; ++i) piece_of(steps[i], 0, 1, 0);
}
