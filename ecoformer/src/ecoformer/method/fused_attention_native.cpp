// EcoFormer's attention for inference on a CPU, float32: from unnormalised query-key vectors and values to the output.
//
// For every sample and head, over tokens i, supports s and bits k:
//
//   dots      d_is = q_i . a_s / |q_i|, kept (N x m floats), and their sum; qk is read once
//   (sigma)   mean |u|^2 + mean |a|^2 - 2 mean d, where |u|^2 is 1, or 0 for a token of no length
//   codes     h_ik = sign of sum_s (exp(-(|u_i|^2 + |a_s|^2 - 2 d_is) / (2 sigma)) - mvec_s) A_ks, kept as bits
//   sums      of v over tokens whose next four bits agree: 16 sums for every four bits in place of 4 products a token
//   tables    state sum_i h_ik v_i out of these sums; then, for every four bits, its sum under each of the 16 signs
//   outputs   one row of each table, c v_i beside it, over the denominator (whole numbers, so exact)
//
// Lanes of a vector are tokens up to the codes, and channels of v from there on. Few codes have a 0 in place of a sign;
// those take a path of their own. A NaN where a sign should be makes its whole head NaN and is no code.
// Pairs of sample and head go to threads whole; those left over are cut along the tokens. Results are the same from
// call to call for one number of threads.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
#include <utility>

#ifdef _OPENMP
#include <omp.h>
#endif

namespace {

using std::int64_t;

#if defined(__AVX512F__)
constexpr int W = 16, MOST = 28;  // lanes; sums held in registers at once
#elif defined(__AVX__)
constexpr int W = 8, MOST = 13;
#elif defined(__aarch64__)
constexpr int W = 4, MOST = 25;
#else
constexpr int W = 4, MOST = 13;
#endif
constexpr int LONGEST_CODE = 32;
constexpr int64_t FEW = 512;  // tokens that are not worth one more thread
constexpr float TINY = 1e-18f;  // kernel_hash.TINY

typedef float V __attribute__((vector_size(W * 4), may_alias));
typedef std::int32_t I __attribute__((vector_size(W * 4), may_alias));

V load(const float* from) {
    V x;
    std::memcpy(&x, from, sizeof x);
    return x;
}

// The first `count` lanes, and 0 in the others: what lies behind a row's end is not read.
V load(const float* from, int64_t count) {
    if (count >= W) return load(from);
    V x = {};
    std::memcpy(&x, from, count * sizeof(float));
    return x;
}

void store(float* to, V x, int64_t count) {
    if (count >= W)
        std::memcpy(to, &x, sizeof x);  // of a size that the compiler knows: one instruction
    else
        std::memcpy(to, &x, count * sizeof(float));
}

// Rows a and b with blocks of S lanes exchanged: one step of a transposition.
template <int S, int... L>
void exchange(V& a, V& b, std::integer_sequence<int, L...>) {
#if defined(__clang__) || __GNUC__ >= 12
    V low = __builtin_shufflevector(a, b, (L & S ? W + L - S : L)...);
    b = __builtin_shufflevector(a, b, (L & S ? W + L : L + S)...);
#else
    V low = __builtin_shuffle(a, b, I{(L & S ? W + L - S : L)...});
    b = __builtin_shuffle(a, b, I{(L & S ? W + L : L + S)...});
#endif
    a = low;
}

template <int S>
void transpose(V* rows) {
    if constexpr (S < W) {
        for (int row = 0; row < W; ++row)
            if (!(row & S)) exchange<S>(rows[row], rows[row + S], std::make_integer_sequence<int, W>());
        transpose<2 * S>(rows);
    }
}

double sum(V x) {
    double total = 0;
    for (int lane = 0; lane < W; ++lane) total += x[lane];
    return total;
}

// e^x to about one unit in the last place; 0 below the normal numbers.
V exponential(V x) {
    const V lowest = V{} - 87.0f, highest = V{} + 89.0f, magic = V{} + 12582912.0f;  // 1.5 * 2^23
    I under = x < lowest;
    x = x > highest ? highest : x;
    x = under ? lowest : x;
    V shifted = x * 1.44269504f + magic, n = shifted - magic;
    V r = x - n * 0.693145752f;
    r = r - n * 1.42860677e-6f;
    V p = r * 1.98756915e-4f + 1.39819995e-3f;
    p = p * r + 8.33345205e-3f;
    p = p * r + 4.16657962e-2f;
    p = p * r + 1.66666657e-1f;
    p = p * r + 0.5f;
    p = p * (r * r) + r + 1.0f;
    V power = (V)(((I)shifted - (I)magic + 127) << 23);
    return under ? V{} : p * power;
}

// out_k = sum_c x_c w_ck for as many k as there are in L; every sum stays in a register.
template <int... L>
void products(const V* x, int64_t n, const float* w, V* out, std::integer_sequence<int, L...>) {
    V sums[sizeof...(L)] = {};
    for (int64_t c = 0; c < n; ++c, w += sizeof...(L)) {
        const V one = x[c];
        ((sums[L] += one * w[L]), ...);
    }
    ((out[L] = sums[L]), ...);
}

using Products = void (*)(const V*, int64_t, const float*, V*);

template <int... L>
Products products_of(int count, std::integer_sequence<int, L...>) {
    static constexpr Products all[] = {[](const V* x, int64_t n, const float* w, V* out) {
        products(x, n, w, out, std::make_integer_sequence<int, L + 1>());
    }...};
    return all[count - 1];
}

// A matrix (K, n) laid out for `products`: parts of at most MOST rows, about equal, columns contiguous in each.
struct Matrix {
    int64_t rows, columns, part;

    Matrix(int64_t rows, int64_t columns) : rows(rows), columns(columns) {
        const int64_t parts = (rows + MOST - 1) / MOST;
        part = (rows + parts - 1) / parts;
    }

    void pack(const float* from, float* to) const {
        for (int64_t first = 0; first < rows; first += part)
            for (int64_t c = 0; c < columns; ++c)
                for (int64_t k = first; k < std::min(rows, first + part); ++k) *to++ = from[k * columns + c];
    }

    void times(const V* x, const float* packed, V* out) const {
        for (int64_t first = 0; first < rows; first += part) {
            const int64_t count = std::min(rows - first, part);
            products_of(static_cast<int>(count), std::make_integer_sequence<int, MOST>())(
                x, columns, packed + first * columns, out + first);
        }
    }
};

struct Strides {
    int64_t batch, head, token;
};

struct Problem {
    const float *qk, *v, *anchor, *mvec, *A;
    float* out;
    int64_t batch, heads, tokens, width, supports, bits;
    Strides of_qk, of_v, of_out;
    float bias;
    bool global;

    int64_t blocks() const { return (tokens + W - 1) / W; }
    int64_t wide() const { return (width + W - 1) / W; }      // vectors of a row of v
    int64_t groups() const { return (bits + 3) / 4; }         // of four bits
    int64_t table() const { return groups() * 16 * wide(); }  // vectors of all sums, or of all tables
};

// What is kept of a pair; tables, state and counts are each thread's own.
struct Shared {
    V *dots, *lengths;  // (blocks, m), (blocks): d, and |u|^2
    I *codes, *zeros;   // (blocks): bit k for a code of +1, and for one of 0
    V *tables, *state;  // (groups, 16, wide), (bits + 1, wide); the last row is the sum of v
    float* counts;      // (bits): sums of codes

    static int64_t vectors(const Problem& p) {
        return p.blocks() * (p.supports + 3) + p.table() + (p.bits + 1) * p.wide() + LONGEST_CODE / W;
    }
    Shared(const Problem& p, V* at) {
        dots = at;
        lengths = dots + p.blocks() * p.supports;
        codes = reinterpret_cast<I*>(lengths + p.blocks());
        zeros = codes + p.blocks();
        tables = reinterpret_cast<V*>(zeros + p.blocks());
        state = tables + p.table();
        counts = reinterpret_cast<float*>(state + (p.bits + 1) * p.wide());
    }
};

// What one thread works in, and leaves for the others of its pair to read.
struct Own {
    V *columns, *kernel, *pre;  // (wide W) of 16 tokens transposed, (m), (bits)
    V *sums, *state;            // (groups, 16, wide), and (bits + 1, wide) of tokens with a 0 in their code
    I* signs;                   // (bits): sums of codes
    double* totals;             // sum of d, sum of |u|^2, number of NaN codes

    static int64_t vectors(const Problem& p) {
        return p.wide() * W + p.supports + 2 * p.bits + p.table() + (p.bits + 1) * p.wide() + 2;
    }
    Own(const Problem& p, V* at) {
        columns = at;
        kernel = columns + p.wide() * W;
        pre = kernel + p.supports;
        sums = pre + p.bits;
        state = sums + p.table();
        signs = reinterpret_cast<I*>(state + (p.bits + 1) * p.wide());
        totals = reinterpret_cast<double*>(signs + p.bits);
    }
};

// A head's hash, laid out for `products`, and |a_s|^2 with their mean behind them.
struct Head {
    float *anchor, *A, *lengths;

    static int64_t floats(const Problem& p) { return p.supports * (p.width + p.bits + 1) + 1; }
    Head(const Problem& p, float* at) {
        anchor = at;
        A = anchor + p.supports * p.width;
        lengths = A + p.bits * p.supports;
    }
    void pack(const Problem& p, int64_t h) {
        const float* from = p.anchor + h * p.supports * p.width;
        Matrix(p.supports, p.width).pack(from, anchor);
        Matrix(p.bits, p.supports).pack(p.A + h * p.bits * p.supports, A);
        double total = 0;
        for (int64_t s = 0; s < p.supports; ++s) {
            V squares = {};
            for (int64_t c = 0; c < p.width; c += W) {
                const V x = load(from + s * p.width + c, p.width - c);
                squares += x * x;
            }
            const double length = sum(squares);
            lengths[s] = static_cast<float>(length);
            total += length;
        }
        lengths[p.supports] = static_cast<float>(total / p.supports);
    }
};

float sign_of(std::uint32_t code, std::uint32_t zero, int64_t k) {
    return zero >> k & 1 ? 0.0f : code >> k & 1 ? 1.0f : -1.0f;
}

void dots(const Problem& p, const Head& head, const float* qk, int64_t first, int64_t last, Shared& shared, Own& own) {
    const Matrix supports(p.supports, p.width);
    double totals[W] = {};
    V lengths = {};  // whole numbers
    for (int64_t block = first; block < last; ++block) {
        const int64_t live = std::min<int64_t>(W, p.tokens - block * W);
        const float* rows = qk + block * W * p.of_qk.token;
        for (int64_t j = 0; j < p.wide(); ++j) {
            V tile[W] = {};
            const int64_t count = p.width - j * W;
            if (live == W && count >= W)
                for (int row = 0; row < W; ++row) tile[row] = load(rows + row * p.of_qk.token + j * W);
            else
                for (int row = 0; row < live; ++row) tile[row] = load(rows + row * p.of_qk.token + j * W, count);
            transpose<1>(tile);
            std::copy(tile, tile + W, own.columns + j * W);
        }
        V square[4] = {};
        for (int64_t c = 0; c < p.wide() * W; c += 4)
            for (int i = 0; i < 4; ++i) square[i] += own.columns[c + i] * own.columns[c + i];
        V length = (square[0] + square[1]) + (square[2] + square[3]), inverse;
        for (int lane = 0; lane < W; ++lane) length[lane] = std::sqrt(length[lane]);
        const I zero = length <= TINY;
        inverse = zero ? V{} : 1.0f / length;
        shared.lengths[block] = zero ? V{} : V{} + 1.0f;
        V* d = shared.dots + block * p.supports;
        supports.times(own.columns, head.anchor, d);
        V added = {};
        for (int64_t s = 0; s < p.supports; ++s) added += d[s] *= inverse;
        for (int i = 0; i < W; ++i) totals[i] += added[i];
        lengths += shared.lengths[block];
    }
    own.totals[0] = 0;
    for (double total : totals) own.totals[0] += total;
    own.totals[1] = sum(lengths);
}

void codes(const Problem& p, const Head& head, int64_t h, double sigma, int64_t first, int64_t last, Shared& shared,
           Own& own) {
    const Matrix projection(p.bits, p.supports);
    const float scale = static_cast<float>(-0.5 / sigma);
    const float* mvec = p.mvec + h * p.supports;
    I lane, broken = {};
    for (int i = 0; i < W; ++i) lane[i] = i;
    std::fill(own.signs, own.signs + p.bits, I{});
    for (int64_t block = first; block < last; ++block) {
        const V length = shared.lengths[block], *d = shared.dots + block * p.supports;
        for (int64_t s = 0; s < p.supports; ++s)
            own.kernel[s] = exponential((length + head.lengths[s] - 2.0f * d[s]) * scale) - mvec[s];
        projection.times(own.kernel, head.A, own.pre);
        const I live = lane < static_cast<int>(std::min<int64_t>(W, p.tokens - block * W));
        I code = {}, zeros = {};
        for (int64_t k = 0; k < p.bits; ++k) {
            const V pre = own.pre[k];
            const I more = pre > 0.0f, less = pre < 0.0f, bit = I{} + static_cast<std::int32_t>(1u << k);
            code |= more & bit;
            zeros |= ~(more | less) & bit;
            broken |= (pre != pre) & live;
            own.signs[k] += (less - more) & live;
        }
        shared.codes[block] = code;
        shared.zeros[block] = zeros;
    }
    own.totals[2] = 0;
    for (int i = 0; i < W; ++i) own.totals[2] -= broken[i];
}

template <int G>  // groups of four bits
void sums(const Problem& p, const float* v, int64_t first, int64_t last, const Shared& shared, Own& own) {
    const int64_t wide = p.wide();
    const auto* code = reinterpret_cast<const std::uint32_t*>(shared.codes);
    const auto* zero = reinterpret_cast<const std::uint32_t*>(shared.zeros);
    std::fill(own.sums, own.sums + p.table() + (p.bits + 1) * wide, V{});  // and the state behind them
    for (int64_t i = first * W; i < std::min(last * W, p.tokens); ++i) {
        const float* row = v + i * p.of_v.token;
        if (zero[i]) {
            for (int64_t j = 0; j < wide; ++j) {
                const V x = load(row + j * W, p.width - j * W);
                for (int64_t k = 0; k < p.bits; ++k) own.state[k * wide + j] += x * sign_of(code[i], zero[i], k);
                own.state[p.bits * wide + j] += x;
            }
            continue;
        }
        V* to[G];
        for (int g = 0; g < G; ++g) to[g] = own.sums + (g * 16 + (code[i] >> 4 * g & 15)) * wide;
        for (int64_t j = 0; j < wide; ++j) {
            const V x = load(row + j * W, p.width - j * W);
            for (int g = 0; g < G; ++g) to[g][j] += x;
        }
    }
}

// The state and the tables of the whole pair, from what `threads` threads have summed.
void tables(const Problem& p, V* owns, int threads, Shared& shared) {
    const int64_t wide = p.wide();
    V *all = shared.tables, *state = shared.state;
    std::fill(all, all + p.table() + (p.bits + 1) * wide, V{});  // and the state behind them
    std::fill(shared.counts, shared.counts + p.bits, 0.0f);
    for (int t = 0; t < threads; ++t) {
        const Own own(p, owns + t * Own::vectors(p));
        for (int64_t at = 0; at < p.table() + (p.bits + 1) * wide; ++at) all[at] += own.sums[at];
        for (int64_t k = 0; k < p.bits; ++k)
            for (int lane = 0; lane < W; ++lane) shared.counts[k] += static_cast<float>(own.signs[k][lane]);
    }
    for (int64_t j = 0; j < wide; ++j) {
        V everyone = {};
        for (int64_t four = 0; four < 16; ++four) everyone += all[four * wide + j];
        state[p.bits * wide + j] += everyone;
        for (int64_t k = 0; k < p.bits; ++k) {
            const V* with = all + k / 4 * 16 * wide + j;
            V x = {};
            for (int64_t four = 0; four < 16; ++four)
                if (four >> k % 4 & 1) x += with[four * wide];
            state[k * wide + j] += 2.0f * x - everyone;
        }
        for (int64_t g = 0; g < p.groups(); ++g) {
            const V* of_bit = state + 4 * g * wide + j;
            V* row = all + g * 16 * wide + j;
            row[0] = p.global && g == 0 ? p.bias * state[p.bits * wide + j] : V{};
            for (int64_t k = 4 * g; k < std::min(p.bits, 4 * g + 4); ++k) row[0] -= state[k * wide + j];
            const int64_t signs = 1 << std::min<int64_t>(4, p.bits - 4 * g);
            for (int64_t four = 1; four < signs; ++four)
                row[four * wide] = row[(four & (four - 1)) * wide] + 2.0f * of_bit[__builtin_ctz(four) * wide];
        }
    }
}

template <int G>
void outputs(const Problem& p, const float* v, float* out, int64_t first, int64_t last, const Shared& shared) {
    const int64_t wide = p.wide();
    const auto* code = reinterpret_cast<const std::uint32_t*>(shared.codes);
    const auto* zero = reinterpret_cast<const std::uint32_t*>(shared.zeros);
    const float everyone = static_cast<float>(p.tokens) * p.bias;
    float below[G][16] = {};
    for (int64_t k = 0; k < p.bits; ++k)
        for (int four = 0; four < 16; ++four)
            below[k / 4][four] += four >> k % 4 & 1 ? shared.counts[k] : -shared.counts[k];
    for (int64_t i = first * W; i < std::min(last * W, p.tokens); ++i) {
        const float* row = v + i * p.of_v.token;
        float* to = out + i * p.of_out.token;
        float denominator = everyone;
        if (zero[i]) {
            for (int64_t k = 0; k < p.bits; ++k) denominator += shared.counts[k] * sign_of(code[i], zero[i], k);
            for (int64_t j = 0; j < wide; ++j) {
                V x = p.bias * (p.global ? shared.state[p.bits * wide + j] : load(row + j * W, p.width - j * W));
                for (int64_t k = 0; k < p.bits; ++k) x += shared.state[k * wide + j] * sign_of(code[i], zero[i], k);
                store(to + j * W, x / denominator, p.width - j * W);
            }
            continue;
        }
        const V* from[G];
        for (int g = 0; g < G; ++g) {
            const int four = code[i] >> 4 * g & 15;
            from[g] = shared.tables + (g * 16 + four) * wide;
            denominator += below[g][four];
        }
        const float factor = 1.0f / denominator;
        for (int64_t j = 0; j < wide; ++j) {
            V x = from[0][j];
            for (int g = 1; g < G; ++g) x += from[g][j];
            if (!p.global) x += p.bias * load(row + j * W, p.width - j * W);
            store(to + j * W, x * factor, p.width - j * W);
        }
    }
}

struct ByGroups {
    decltype(&sums<1>) sums;
    decltype(&outputs<1>) outputs;
};

template <int... L>
ByGroups by_groups(int64_t groups, std::integer_sequence<int, L...>) {
    static constexpr ByGroups all[] = {{sums<L + 1>, outputs<L + 1>}...};
    return all[groups - 1];
}

void barrier(int threads) {
    if (threads > 1) {
#ifdef _OPENMP
#pragma omp barrier
#endif
    }
}

// One pair of sample and head, by `threads` threads of which this is number `thread`.
void attend(const Problem& p, float* heads, int64_t pair, int thread, int threads, V* shared_at, V* owns) {
    const int64_t b = pair / p.heads, h = pair % p.heads, blocks = p.blocks();
    const int64_t first = blocks * thread / threads, last = blocks * (thread + 1) / threads;
    const float* qk = p.qk + b * p.of_qk.batch + h * p.of_qk.head;
    const float* v = p.v + b * p.of_v.batch + h * p.of_v.head;
    float* out = p.out + b * p.of_out.batch + h * p.of_out.head;
    const Head head(p, heads + h * Head::floats(p));
    Shared shared(p, shared_at);
    const Shared mine(p, shared_at + thread * Shared::vectors(p));
    shared.tables = mine.tables, shared.state = mine.state, shared.counts = mine.counts;  // cheaper than to wait
    Own own(p, owns + thread * Own::vectors(p));

    dots(p, head, qk, first, last, shared, own);
    barrier(threads);
    double total = 0, lengths = 0;
    for (int t = 0; t < threads; ++t) {
        const Own other(p, owns + t * Own::vectors(p));
        total += other.totals[0], lengths += other.totals[1];
    }
    const double mean = lengths / p.tokens + head.lengths[p.supports] - 2 * total / p.supports / p.tokens;
    const double least = std::numeric_limits<float>::min();
    const ByGroups by = by_groups(p.groups(), std::make_integer_sequence<int, LONGEST_CODE / 4>());
    codes(p, head, h, mean < least ? least : mean, first, last, shared, own);  // a NaN stays one
    by.sums(p, v, first, last, shared, own);
    barrier(threads);
    tables(p, owns, threads, shared);
    double broken = 0;
    for (int t = 0; t < threads; ++t) broken += Own(p, owns + t * Own::vectors(p)).totals[2];
    if (broken == 0)
        by.outputs(p, v, out, first, last, shared);
    else
        for (int64_t i = first * W; i < std::min(last * W, p.tokens); ++i)
            std::fill_n(out + i * p.of_out.token, p.width, std::numeric_limits<float>::quiet_NaN());
}

}  // namespace

// `given`: addresses of qk, v, anchor, mvec, A and out; B, H, N, C, m, b; the strides of B, H and N of qk, v and out.
// All is float32: qk, v and out (B, H, N, C), the last axis contiguous; anchor (H, m, C), mvec (H, m) and A (H, b, m)
// contiguous. Returns 0, or 1 without having begun where memory is short.
extern "C" int ecoformer_attention(const void* given, float bias, int global, int threads) {
    struct {
        const float *qk, *v, *anchor, *mvec, *A;
        float* out;
        int64_t batch, heads, tokens, width, supports, bits;
        Strides of_qk, of_v, of_out;
    } a;
    static_assert(sizeof a == 21 * sizeof(int64_t), "an address takes as much as a size");
    std::memcpy(&a, given, sizeof a);
    const Problem p{a.qk, a.v, a.anchor, a.mvec, a.A, a.out, a.batch, a.heads, a.tokens, a.width, a.supports, a.bits,
                    a.of_qk, a.of_v, a.of_out, bias, global != 0};
    const int64_t pairs = p.batch * p.heads;
    threads = static_cast<int>(std::min<int64_t>(threads, 1 + pairs * p.tokens / FEW));
    const int64_t of_shared = Shared::vectors(p), of_own = Own::vectors(p);
    const int64_t of_heads = (p.heads * Head::floats(p) + W - 1) / W;
    const std::unique_ptr<void, void (*)(void*)> memory(
        std::aligned_alloc(64, ((of_heads + threads * (of_shared + of_own)) * sizeof(V) + 63) / 64 * 64), std::free);
    if (!memory) return 1;
    float* heads = static_cast<float*>(memory.get());
    V *shared = static_cast<V*>(memory.get()) + of_heads, *owns = shared + threads * of_shared;
#ifdef _OPENMP
#pragma omp parallel num_threads(threads)
#endif
    {
#ifdef _OPENMP
        const int thread = omp_get_thread_num(), present = omp_get_num_threads();
#else
        const int thread = 0, present = 1;
#endif
        for (int64_t h = thread; h < p.heads; h += present) Head(p, heads + h * Head::floats(p)).pack(p, h);
        barrier(present);
        const int64_t whole = pairs / present * present;
        for (int64_t pair = thread; pair < whole; pair += present)
            attend(p, heads, pair, 0, 1, shared + thread * of_shared, owns + thread * of_own);
        if (0 < whole && whole < pairs) barrier(present);
        for (int64_t pair = whole; pair < pairs; ++pair) attend(p, heads, pair, thread, present, shared, owns);
    }
    return 0;
}
