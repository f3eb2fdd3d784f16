// What one tier has of its own: popcounts of a tile of rows against 64 output channels, signs of floats to bits, masks of
// comparisons, and vectors of 64-bit words. `kernels.cpp` includes this file once for each tier, in a namespace and with
// the instruction set of that tier; TIER says which: VPOPCNT, AVX512BW, AVX2 or PORTABLE.
//
// Every tier gives the same integers. `TILE` rows share what they load of the weights.

#if TIER == VPOPCNT || TIER == AVX512BW
using Words = __m512i;  // eight words
constexpr long LANES = 8;
static inline Words load(const uint64_t* p) { return _mm512_loadu_si512(p); }
static inline void store(uint64_t* p, Words v) { _mm512_storeu_si512(p, v); }
static inline Words all(uint64_t v) { return _mm512_set1_epi64((long long)v); }
static inline Words exclusive_or(Words a, Words b) { return _mm512_xor_si512(a, b); }
static inline Words both(Words a, Words b) { return _mm512_and_si512(a, b); }
static inline Words add(Words a, Words b) { return _mm512_add_epi64(a, b); }
static inline Words subtract(Words a, Words b) { return _mm512_sub_epi64(a, b); }
static inline Words least(Words a, Words b) { return _mm512_min_epi64(a, b); }
static inline uint64_t least_of(Words v) { return (uint64_t)_mm512_reduce_min_epi64(v); }
static inline uint64_t at_most(Words a, Words b) { return _mm512_cmple_epi64_mask(a, b); }
static inline uint64_t above(Words a, Words b) { return _mm512_cmpgt_epi64_mask(a, b); }
static inline uint64_t unequal(Words a, Words b) { return _mm512_cmpneq_epi64_mask(a, b); }
static inline void store_floats(float* p, Words v) { _mm256_storeu_ps(p, _mm512_cvtepi64_ps(v)); }

// 64 floats to 64 bits: those above 0 (at least 0 where `plus`), and those that are not 0.
static inline void signs(const float* x, bool plus, uint64_t* positive, uint64_t* nonzero) {
    const __m512 zero = _mm512_setzero_ps();
    uint64_t p = 0, n = 0;
    for (int i = 0; i < 4; i++) {
        const __m512 v = _mm512_loadu_ps(x + 16 * i);
        p |= (uint64_t)(plus ? _mm512_cmp_ps_mask(v, zero, _CMP_GE_OQ) : _mm512_cmp_ps_mask(v, zero, _CMP_GT_OQ)) << (16 * i);
        n |= (uint64_t)_mm512_cmp_ps_mask(v, zero, _CMP_NEQ_OQ) << (16 * i);
    }
    *positive = p, *nonzero = n;
}

// The same of fewer floats.
static inline void some_signs(const float* x, long count, bool plus, uint64_t* positive, uint64_t* nonzero) {
    const __m512 zero = _mm512_setzero_ps();
    uint64_t p = 0, n = 0;
    for (long first = 0; first < count; first += 16) {
        const __mmask16 valid = (__mmask16)(count - first < 16 ? (1 << (count - first)) - 1 : 0xffff);
        const __m512 v = _mm512_maskz_loadu_ps(valid, x + first);
        const __mmask16 above = plus ? _mm512_mask_cmp_ps_mask(valid, v, zero, _CMP_GE_OQ)
                                     : _mm512_mask_cmp_ps_mask(valid, v, zero, _CMP_GT_OQ);
        p |= (uint64_t)above << first;
        n |= (uint64_t)_mm512_mask_cmp_ps_mask(valid, v, zero, _CMP_NEQ_OQ) << first;
    }
    *positive = p, *nonzero = n;
}

static inline uint64_t at_least(const int16_t* a, const int16_t* b) {  // of 64
    const uint64_t low = _mm512_cmpge_epi16_mask(_mm512_loadu_si512(a), _mm512_loadu_si512(b));
    return low | (uint64_t)_mm512_cmpge_epi16_mask(_mm512_loadu_si512(a + 32), _mm512_loadu_si512(b + 32)) << 32;
}

static inline uint64_t at_least(const float* a, float b) {  // of 64
    uint64_t bits = 0;
    for (int i = 0; i < 4; i++)
        bits |= (uint64_t)_mm512_cmp_ps_mask(_mm512_loadu_ps(a + 16 * i), _mm512_set1_ps(b), _CMP_GE_OQ) << (16 * i);
    return bits;
}

#elif TIER == AVX2
using Words = __m256i;  // four words, each below 2^31 where they are compared
constexpr long LANES = 4;
static inline Words load(const uint64_t* p) { return _mm256_loadu_si256((const __m256i*)p); }
static inline void store(uint64_t* p, Words v) { _mm256_storeu_si256((__m256i*)p, v); }
static inline Words all(uint64_t v) { return _mm256_set1_epi64x((long long)v); }
static inline Words exclusive_or(Words a, Words b) { return _mm256_xor_si256(a, b); }
static inline Words both(Words a, Words b) { return _mm256_and_si256(a, b); }
static inline Words add(Words a, Words b) { return _mm256_add_epi64(a, b); }
static inline Words subtract(Words a, Words b) { return _mm256_sub_epi64(a, b); }
static inline Words least(Words a, Words b) { return _mm256_blendv_epi8(a, b, _mm256_cmpgt_epi64(a, b)); }
static inline uint64_t above(Words a, Words b) {
    return (uint64_t)_mm256_movemask_pd(_mm256_castsi256_pd(_mm256_cmpgt_epi64(a, b)));
}
static inline uint64_t at_most(Words a, Words b) { return above(a, b) ^ 15; }
static inline uint64_t unequal(Words a, Words b) {
    return (uint64_t)_mm256_movemask_pd(_mm256_castsi256_pd(_mm256_cmpeq_epi64(a, b))) ^ 15;
}
static inline void store_floats(float* p, Words v) {
    const __m256i even = _mm256_permutevar8x32_epi32(v, _mm256_setr_epi32(0, 2, 4, 6, 0, 0, 0, 0));
    _mm_storeu_ps(p, _mm_cvtepi32_ps(_mm256_castsi256_si128(even)));
}
static inline uint64_t least_of(Words v) {
    uint64_t w[4];
    store(w, v);
    const uint64_t a = w[0] < w[1] ? w[0] : w[1], b = w[2] < w[3] ? w[2] : w[3];
    return a < b ? a : b;
}

static inline void signs(const float* x, bool plus, uint64_t* positive, uint64_t* nonzero) {
    const __m256 zero = _mm256_setzero_ps();
    uint64_t p = 0, n = 0;
    for (int i = 0; i < 8; i++) {
        const __m256 v = _mm256_loadu_ps(x + 8 * i);
        const __m256 c = plus ? _mm256_cmp_ps(v, zero, _CMP_GE_OQ) : _mm256_cmp_ps(v, zero, _CMP_GT_OQ);
        p |= (uint64_t)_mm256_movemask_ps(c) << (8 * i);
        n |= (uint64_t)_mm256_movemask_ps(_mm256_cmp_ps(v, zero, _CMP_NEQ_OQ)) << (8 * i);
    }
    *positive = p, *nonzero = n;
}

static inline uint64_t at_least(const int16_t* a, const int16_t* b) {
    uint64_t below = 0;
    for (int i = 0; i < 2; i++) {
        const __m256i* p = (const __m256i*)(a + 32 * i);
        const __m256i* q = (const __m256i*)(b + 32 * i);
        const __m256i low = _mm256_cmpgt_epi16(_mm256_loadu_si256(q), _mm256_loadu_si256(p));
        const __m256i high = _mm256_cmpgt_epi16(_mm256_loadu_si256(q + 1), _mm256_loadu_si256(p + 1));
        const __m256i packed = _mm256_permute4x64_epi64(_mm256_packs_epi16(low, high), 0xd8);  // undo the halves' mix
        below |= (uint64_t)(uint32_t)_mm256_movemask_epi8(packed) << (32 * i);
    }
    return ~below;
}

static inline uint64_t at_least(const float* a, float b) {
    uint64_t bits = 0;
    for (int i = 0; i < 8; i++) {
        const __m256 c = _mm256_cmp_ps(_mm256_loadu_ps(a + 8 * i), _mm256_set1_ps(b), _CMP_GE_OQ);
        bits |= (uint64_t)_mm256_movemask_ps(c) << (8 * i);
    }
    return bits;
}

#else
using Words = uint64_t;
constexpr long LANES = 1;
static inline Words load(const uint64_t* p) { return *p; }
static inline void store(uint64_t* p, Words v) { *p = v; }
static inline Words all(uint64_t v) { return v; }
static inline Words exclusive_or(Words a, Words b) { return a ^ b; }
static inline Words both(Words a, Words b) { return a & b; }
static inline Words add(Words a, Words b) { return a + b; }
static inline Words subtract(Words a, Words b) { return a - b; }
static inline Words least(Words a, Words b) { return a < b ? a : b; }
static inline uint64_t least_of(Words v) { return v; }
static inline uint64_t at_most(Words a, Words b) { return (int64_t)a <= (int64_t)b; }
static inline uint64_t above(Words a, Words b) { return (int64_t)a > (int64_t)b; }
static inline uint64_t unequal(Words a, Words b) { return a != b; }
static inline void store_floats(float* p, Words v) { *p = (float)(int64_t)v; }

static inline void signs(const float* x, bool plus, uint64_t* positive, uint64_t* nonzero) {
    uint64_t p = 0, n = 0;
    for (int i = 0; i < 64; i++) {
        p |= (uint64_t)(plus ? x[i] >= 0 : x[i] > 0) << i;
        n |= (uint64_t)(x[i] < 0 || x[i] > 0) << i;
    }
    *positive = p, *nonzero = n;
}

static inline uint64_t at_least(const int16_t* a, const int16_t* b) {
    uint64_t bits = 0;
    for (int i = 0; i < 64; i++) bits |= (uint64_t)(a[i] >= b[i]) << i;
    return bits;
}

static inline uint64_t at_least(const float* a, float b) {
    uint64_t bits = 0;
    for (int i = 0; i < 64; i++) bits |= (uint64_t)(a[i] >= b) << i;
    return bits;
}
#endif

#if TIER == AVX2 || TIER == PORTABLE
static inline void some_signs(const float* x, long count, bool plus, uint64_t* positive, uint64_t* nonzero) {
    float padded[64] = {};
    memcpy(padded, x, count * sizeof(float));
    signs(padded, plus, positive, nonzero);
    const uint64_t valid = ((uint64_t)1 << count) - 1;
    *positive &= valid, *nonzero &= valid;
}
#endif

// --- popcounts of words ----------------------------------------------------------------------------------------------

#if TIER == VPOPCNT
static inline Words popcount(Words v) { return _mm512_popcnt_epi64(v); }
#elif TIER == AVX512BW
static inline Words popcount(Words v) {
    const __m512i table = _mm512_broadcast_i32x4(_mm_setr_epi8(0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4));
    const __m512i nibble = _mm512_set1_epi8(15);
    const __m512i low = _mm512_shuffle_epi8(table, _mm512_and_si512(v, nibble));
    const __m512i high = _mm512_shuffle_epi8(table, _mm512_and_si512(_mm512_srli_epi16(v, 4), nibble));
    return _mm512_sad_epu8(_mm512_add_epi8(low, high), _mm512_setzero_si512());
}
#elif TIER == AVX2
static inline Words popcount(Words v) {
    const __m256i table = _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4));
    const __m256i nibble = _mm256_set1_epi8(15);
    const __m256i low = _mm256_shuffle_epi8(table, _mm256_and_si256(v, nibble));
    const __m256i high = _mm256_shuffle_epi8(table, _mm256_and_si256(_mm256_srli_epi16(v, 4), nibble));
    return _mm256_sad_epu8(_mm256_add_epi8(low, high), _mm256_setzero_si256());
}
#else
static inline Words popcount(Words v) { return (Words)__builtin_popcountll(v); }
#endif

// --- a tile of rows against 64 channels ------------------------------------------------------------------------------
// pop[row][channel] = popcount((x ^ w) & n) over the words of a row; n absent (null) means all ones.

#if TIER == VPOPCNT
// Weights: [out / 64][2][words][4][8] words; channel 64 block + 32 half + 4 lane + vector. So the four sums of a lane,
// shifted into one another, are 32 counts of 16 bits in the channels' order.
constexpr int TILE = 6;
constexpr long TABLE_BYTES = 0;
static inline void prepare(const uint64_t*, const uint64_t*, long, uint8_t*) {}

template <bool ZEROS>
static inline void count(const uint64_t* x, const uint64_t* n, const uint8_t*, const uint8_t* weights, long words,
                         uint16_t* pop) {
    const uint64_t* w = (const uint64_t*)weights;
    for (int half = 0; half < 2; half++, w += 32 * words) {
        __m512i sum[TILE][4];
        for (int r = 0; r < TILE; r++)
            for (int v = 0; v < 4; v++) sum[r][v] = _mm512_setzero_si512();
        for (long k = 0; k < words; k++) {
            const __m512i w0 = load(w + 32 * k), w1 = load(w + 32 * k + 8), w2 = load(w + 32 * k + 16),
                          w3 = load(w + 32 * k + 24);
            for (int r = 0; r < TILE; r++) {
                const __m512i a = all(x[r * words + k]);
                __m512i d0 = _mm512_xor_si512(a, w0), d1 = _mm512_xor_si512(a, w1), d2 = _mm512_xor_si512(a, w2),
                        d3 = _mm512_xor_si512(a, w3);
                if (ZEROS) {
                    const __m512i m = all(n[r * words + k]);
                    d0 = both(d0, m), d1 = both(d1, m), d2 = both(d2, m), d3 = both(d3, m);
                }
                sum[r][0] = add(sum[r][0], _mm512_popcnt_epi64(d0));
                sum[r][1] = add(sum[r][1], _mm512_popcnt_epi64(d1));
                sum[r][2] = add(sum[r][2], _mm512_popcnt_epi64(d2));
                sum[r][3] = add(sum[r][3], _mm512_popcnt_epi64(d3));
            }
        }
        for (int r = 0; r < TILE; r++) {
            const __m512i low = _mm512_or_si512(sum[r][0], _mm512_slli_epi64(sum[r][1], 16));
            const __m512i high = _mm512_or_si512(sum[r][2], _mm512_slli_epi64(sum[r][3], 16));
            _mm512_storeu_si512(pop + 64 * r + 32 * half, _mm512_or_si512(low, _mm512_slli_epi64(high, 32)));
        }
    }
}

#elif TIER == AVX512BW || TIER == AVX2
// Weights: [out / 64][8 words][64] bytes. A nibble of four activations (and its nibble of non-zeros) is a table of
// sixteen counts; a byte shuffle looks up four inputs of every channel at once. A row's tables lie side by side.
constexpr int TILE = 4;
constexpr long TABLE_BYTES = 256;  // of a word: sixteen nibbles of sixteen counts
constexpr long LONGEST_SUM = 31;   // groups of eight inputs that a byte can count

static inline void prepare(const uint64_t* x, const uint64_t* n, long words, uint8_t* tables) {
    for (long k = 0; k < words; k++) {
        uint64_t a = x[k], m = n ? n[k] : ~(uint64_t)0;
        for (int i = 0; i < 16; i++, a >>= 4, m >>= 4, tables += 16)
            memcpy(tables, TABLES.counts[(m & 15) << 4 | (a & 15)], 16);
    }
}

#if TIER == AVX512BW
using Bytes = __m512i;
static inline Bytes load_bytes(const uint8_t* p) { return _mm512_loadu_si512(p); }
static inline Bytes table_at(const uint8_t* p) { return _mm512_broadcast_i32x4(_mm_load_si128((const __m128i*)p)); }
static inline Bytes low_nibbles(Bytes v) { return _mm512_and_si512(v, _mm512_set1_epi8(15)); }
static inline Bytes high_nibbles(Bytes v) { return low_nibbles(_mm512_srli_epi16(v, 4)); }
static inline Bytes look_up(Bytes t, Bytes i) { return _mm512_shuffle_epi8(t, i); }
static inline Bytes add_bytes(Bytes a, Bytes b) { return _mm512_add_epi8(a, b); }
static inline Bytes no_bytes() { return _mm512_setzero_si512(); }
static inline void widen(uint16_t* pop, Bytes v, bool first) {
    __m512i low = _mm512_cvtepu8_epi16(_mm512_castsi512_si256(v));
    __m512i high = _mm512_cvtepu8_epi16(_mm512_extracti64x4_epi64(v, 1));
    if (!first) {
        low = _mm512_add_epi16(low, _mm512_loadu_si512(pop));
        high = _mm512_add_epi16(high, _mm512_loadu_si512(pop + 32));
    }
    _mm512_storeu_si512(pop, low);
    _mm512_storeu_si512(pop + 32, high);
}
#else
using Bytes = __m256i;
static inline Bytes load_bytes(const uint8_t* p) { return _mm256_loadu_si256((const __m256i*)p); }
static inline Bytes table_at(const uint8_t* p) { return _mm256_broadcastsi128_si256(_mm_load_si128((const __m128i*)p)); }
static inline Bytes low_nibbles(Bytes v) { return _mm256_and_si256(v, _mm256_set1_epi8(15)); }
static inline Bytes high_nibbles(Bytes v) { return low_nibbles(_mm256_srli_epi16(v, 4)); }
static inline Bytes look_up(Bytes t, Bytes i) { return _mm256_shuffle_epi8(t, i); }
static inline Bytes add_bytes(Bytes a, Bytes b) { return _mm256_add_epi8(a, b); }
static inline Bytes no_bytes() { return _mm256_setzero_si256(); }
static inline void widen(uint16_t* pop, Bytes v, bool first) {
    __m256i low = _mm256_cvtepu8_epi16(_mm256_castsi256_si128(v));
    __m256i high = _mm256_cvtepu8_epi16(_mm256_extracti128_si256(v, 1));
    if (!first) {
        low = _mm256_add_epi16(low, _mm256_loadu_si256((const __m256i*)pop));
        high = _mm256_add_epi16(high, _mm256_loadu_si256((const __m256i*)(pop + 16)));
    }
    _mm256_storeu_si256((__m256i*)pop, low);
    _mm256_storeu_si256((__m256i*)(pop + 16), high);
}
#endif

template <bool ZEROS>
static inline void count(const uint64_t*, const uint64_t*, const uint8_t* tables, const uint8_t* weights, long words,
                         uint16_t* pop) {
    constexpr int VECTORS = 64 / sizeof(Bytes);
    const long groups = 8 * words;
    for (long first = 0; first < groups; first += LONGEST_SUM) {
        const long last = first + LONGEST_SUM < groups ? first + LONGEST_SUM : groups;
        Bytes sum[TILE][VECTORS];
        for (int r = 0; r < TILE; r++)
            for (int v = 0; v < VECTORS; v++) sum[r][v] = no_bytes();
        for (long g = first; g < last; g++) {
            Bytes low[VECTORS], high[VECTORS];
            for (int v = 0; v < VECTORS; v++) {
                const Bytes w = load_bytes(weights + 64 * g + (long)sizeof(Bytes) * v);
                low[v] = low_nibbles(w), high[v] = high_nibbles(w);
            }
            for (int r = 0; r < TILE; r++) {
                const uint8_t* t = tables + r * words * TABLE_BYTES + 32 * g;
                const Bytes a = table_at(t), b = table_at(t + 16);
                for (int v = 0; v < VECTORS; v++)
                    sum[r][v] = add_bytes(sum[r][v], add_bytes(look_up(a, low[v]), look_up(b, high[v])));
            }
        }
        for (int r = 0; r < TILE; r++)
            for (int v = 0; v < VECTORS; v++) widen(pop + 64 * r + (long)sizeof(Bytes) * v, sum[r][v], first == 0);
    }
}

#else
// Weights: [out][words] words.
constexpr int TILE = 4;
constexpr long TABLE_BYTES = 0;
static inline void prepare(const uint64_t*, const uint64_t*, long, uint8_t*) {}

template <bool ZEROS>
static inline void count(const uint64_t* x, const uint64_t* n, const uint8_t*, const uint8_t* weights, long words,
                         uint16_t* pop) {
    const uint64_t* w = (const uint64_t*)weights;
    for (int c = 0; c < 64; c++, w += words)
        for (int r = 0; r < TILE; r++) {
            uint64_t sum = 0;
            for (long k = 0; k < words; k++) {
                const uint64_t differ = x[r * words + k] ^ w[k];
                sum += (uint64_t)__builtin_popcountll(ZEROS ? differ & n[r * words + k] : differ);
            }
            pop[64 * r + c] = (uint16_t)sum;
        }
}
#endif
