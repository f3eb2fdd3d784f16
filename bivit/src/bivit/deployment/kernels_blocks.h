// Transformer blocks on bits, the same for every tier; `kernels.cpp` includes this after `kernels_vectors.h`.
//
// Words of 64 bits hold signs: bit 1 is +1, bit 0 is -1, and a second plane n (absent where nothing is 0) marks what is
// not 0. Rows end in zero bits. Of K inputs a linear layer's integer is  dot = |n| - 2 popcount((x ^ w) & n).
// A block goes in three phases, with one wait for the other threads after each but the last:
//   tokens to queries, keys and values:  LayerNorm, sign, qkv, sign, tile by tile
//   attention of every window and head:  bits in, bits out
//   tokens again:                        proj, residual, LayerNorm, sign, fc1, threshold, fc2, residual

struct Bits {  // of a tile of rows
    std::vector<uint64_t> x, n;
    std::vector<uint8_t> tables;
    int16_t total[TILE];
    bool zeros = false;
    long words = 0;
    uint8_t* aligned = nullptr;

    void size(long of_words) {
        words = of_words;
        x.assign(TILE * words, 0);
        n.assign(TILE * words, 0);
        tables.resize(TILE * words * TABLE_BYTES + 64);
        aligned = tables.data() + (64 - (uintptr_t)tables.data() % 64) % 64;
    }

    // After x and n are filled: counts, and whether the second plane is needed.
    void close(const Linear& of, long rows) {
        zeros = of.rule == TERNARY;
        for (long r = 0; r < TILE; r++) {
            long sum = of.inputs;
            if (of.rule != PLUS && r < rows) {
                sum = 0;
                for (long k = 0; k < words; k++) sum += __builtin_popcountll(n[r * words + k]);
                zeros |= sum != of.inputs;
            }
            total[r] = (int16_t)sum;
        }
        for (long r = 0; TABLE_BYTES && r < rows; r++)
            prepare(&x[r * words], zeros ? &n[r * words] : nullptr, words, aligned + r * words * TABLE_BYTES);
    }
};

// pop[row][64] of one block of channels; dot = total - 2 pop.
static inline void pops(const Linear& layer, Bits& in, long block, uint16_t* pop) {
    const uint8_t* w = layer.weights + block * in.words * 512;
    if (in.zeros)
        count<true>(in.x.data(), in.n.data(), in.aligned, w, in.words, pop);
    else
        count<false>(in.x.data(), nullptr, in.aligned, w, in.words, pop);
}

// out = dot * scale + bias, plus `base` where there is one; rows of `stride` floats.
template <bool ADDED>
static inline void scaled(const uint16_t* pop, int32_t total, const float* scale, const float* bias, const float* base,
                          float* y, long width) {
    if (width == 64)  // a number that the compiler knows
#pragma omp simd
        for (int c = 0; c < 64; c++) {
            const float v = (float)(total - 2 * (int32_t)pop[c]) * scale[c] + bias[c];
            y[c] = ADDED ? base[c] + v : v;
        }
    else
        for (long c = 0; c < width; c++) {
            const float v = (float)(total - 2 * (int32_t)pop[c]) * scale[c] + bias[c];
            y[c] = ADDED ? base[c] + v : v;
        }
}

static void to_floats(const Linear& layer, Bits& in, long rows, const float* base, float* out, long stride) {
    alignas(64) uint16_t pop[TILE * 64];
    for (long block = 0; 64 * block < layer.outputs; block++) {
        pops(layer, in, block, pop);
        const float *scale = layer.scale + 64 * block, *bias = layer.bias + 64 * block;
        const long width = layer.outputs - 64 * block < 64 ? layer.outputs - 64 * block : 64;
        for (long r = 0; r < rows; r++) {
            const long at = r * stride + 64 * block;
            if (base)
                scaled<true>(pop + 64 * r, in.total[r], scale, bias, base + at, out + at, width);
            else
                scaled<false>(pop + 64 * r, in.total[r], scale, bias, nullptr, out + at, width);
        }
    }
}

// Signs of dot * scale + bias, by integer thresholds; a row is ceil(outputs / 64) words.
static void to_bits(const Linear& layer, Bits& in, long rows, uint64_t* x, uint64_t* n, long words) {
    alignas(64) uint16_t pop[TILE * 64];
    for (long block = 0; 64 * block < layer.outputs; block++) {
        pops(layer, in, block, pop);
        const int16_t *positive = layer.positive + 64 * block, *zero = layer.zero + 64 * block,
                      *low = layer.low + 64 * block;
        const long left = layer.outputs - 64 * block;
        const uint64_t valid = left < 64 ? ((uint64_t)1 << left) - 1 : ~(uint64_t)0;
        for (long r = 0; r < rows; r++) {
            alignas(64) int16_t d[64];
            const int16_t total = in.total[r];
#pragma omp simd
            for (int c = 0; c < 64; c++) d[c] = (int16_t)(total - 2 * (int16_t)pop[64 * r + c]);
            uint64_t bits = at_least(d, positive);
            if (layer.plane == FOLDED) bits |= ~at_least(d, low) & valid;
            x[r * words + block] = bits;
            if (n) n[r * words + block] = layer.plane == TWO ? bits | (at_least(d, low) & ~at_least(d, zero)) : valid;
        }
    }
}

// --- signs of tokens -------------------------------------------------------------------------------------------------

// Signs of a row of floats. False if it holds what is no number.
static inline bool signs_of(const float* from, long width, bool plus, uint64_t* x, uint64_t* n) {
    uint64_t missing = 0;
    const long whole = width / 64, left = width % 64;
    for (long k = 0; k < whole; k++) {
        signs(from + 64 * k, plus, x + k, n + k);
        missing |= ~n[k];
    }
    if (left) {
        some_signs(from + 64 * whole, left, plus, x + whole, n + whole);
        missing |= ~n[whole] & (((uint64_t)1 << left) - 1);
    }
    if (missing)  // a zero, or what is no number
        for (long c = 0; c < width; c++)
            if (from[c] != from[c]) return false;
    return true;
}

// The same, after a LayerNorm where there is one.
static bool signs_of(const float* from, long width, const Norm& norm, bool plus, float* row, uint64_t* x, uint64_t* n) {
    float odd;
    if (norm.present) {
        float sum = 0, squares = 0;
#pragma omp simd reduction(+ : sum)
        for (long c = 0; c < width; c++) sum += from[c];
        const float mean = sum / (float)width;
#pragma omp simd reduction(+ : squares)
        for (long c = 0; c < width; c++) squares += (from[c] - mean) * (from[c] - mean);
        const float scale = 1 / std::sqrt(squares / (float)width + (float)norm.eps);
        odd = scale * 0 + mean * 0;
        if (norm.weight) {
#pragma omp simd
            for (long c = 0; c < width; c++) row[c] = (from[c] - mean) * scale * norm.weight[c] + norm.bias[c];
        } else {
#pragma omp simd
            for (long c = 0; c < width; c++) row[c] = (from[c] - mean) * scale;
        }
    } else {
        return signs_of(from, width, plus, x, n);
    }
    const long words = (width + 63) / 64;
    for (long k = 0; k < words; k++) signs(row + 64 * k, plus, x + k, n + k);
    if (width % 64) {
        const uint64_t valid = ((uint64_t)1 << width % 64) - 1;
        x[words - 1] &= valid;
        n[words - 1] &= valid;
    }
    return odd == 0;
}

// --- attention -------------------------------------------------------------------------------------------------------

// `width` bits of a row from bit `first` on, as words of their own.
static inline void get_bits(const uint64_t* row, long first, long width, uint64_t* out) {
    const long words = (width + 63) / 64;
    if (width == 64 && first % 64 == 0) {
        *out = row[first / 64];
        return;
    }
    for (long k = 0; k < words; k++) {
        const long at = first + 64 * k, shift = at % 64, left = width - 64 * k;
        uint64_t v = row[at / 64] >> shift;
        if (shift && left > 64 - shift) v |= row[at / 64 + 1] << (64 - shift);
        out[k] = left < 64 ? v & (((uint64_t)1 << left) - 1) : v;
    }
}

// Into a row of zeros. Threads may write other heads of the row at once where widths are whole bytes.
static inline void put_bits(uint64_t* row, long first, long width, const uint64_t* from) {
    if (width % 8 == 0 && first % 8 == 0) {
        memcpy((uint8_t*)row + first / 8, from, width / 8);
        return;
    }
    for (long i = 0; i < width; i++)
        row[(first + i) / 64] |= (from[i / 64] >> i % 64 & 1) << (first + i) % 64;
}

static inline void transpose(uint64_t* a) {  // bit j of word i becomes bit i of word j
    uint64_t mask = 0x00000000ffffffffull;
    for (int j = 32; j; j >>= 1, mask ^= mask << j)
        for (int k = 0; k < 64; k = (k + j + 1) & ~j) {
            const uint64_t t = ((a[k] >> j) ^ a[k + j]) & mask;
            a[k] ^= t << j;
            a[k + j] ^= t;
        }
}

struct Head {  // keys and values of one window and head
    long tokens, width, words, padded, columns;  // words of a token; tokens up to a vector's multiple; words of a mask
    std::vector<uint64_t> q, nq, k, nk, v, nv, distance, penalty;  // k: [words][padded]; v: [columns][width up to 64s]
    std::vector<float> logits;
    std::vector<uint8_t> near;  // distances as bytes, where `narrow`
    bool zeros, narrow;         // narrow: AVX-512, and a token is one word

    void size(long of_tokens, long of_width) {
        tokens = of_tokens, width = of_width;
        words = (width + 63) / 64;
        padded = (tokens + 63) / 64 * 64;
        columns = padded / 64;
        for (auto* part : {&q, &nq, &k, &nk}) part->assign(padded * words, 0);
        for (auto* part : {&v, &nv}) part->assign(columns * words * 64, 0);
        distance.assign(padded, 0);
        penalty.assign(padded, 0);
        logits.assign(padded, -INFINITY);
        near.assign(padded, 0);
        narrow = LANES == 8 && words == 1 && tokens < 16384;
        for (long j = tokens; j < padded; j++) penalty[j] = 1 << 24;
    }

    // rows(j): bits of token j of the window; planes(j): the second plane, or null.
    template <typename Rows, typename Planes>
    void read(long offset_q, long offset_k, long offset_v, Rows rows, Planes planes) {
        std::vector<uint64_t> one(words);
        uint64_t missing = 0;
        for (long j = 0; j < tokens; j++) {
            const uint64_t* row = rows(j);
            get_bits(row, offset_q, width, &q[j * words]);
            get_bits(row, offset_k, width, one.data());
            for (long w = 0; w < words; w++) k[place(j, w)] = one[w];
            get_bits(row, offset_v, width, one.data());
            for (long w = 0; w < words; w++) v[(j / 64 * words + w) * 64 + j % 64] = one[w];
            const uint64_t* plane = planes(j);
            if (!plane) continue;  // of all tokens or of none
            get_bits(plane, offset_q, width, &nq[j * words]);
            for (long w = 0; w < words; w++) missing |= ~nq[j * words + w] & full(w);
            get_bits(plane, offset_k, width, one.data());
            for (long w = 0; w < words; w++) nk[place(j, w)] = one[w], missing |= ~one[w] & full(w);
            get_bits(plane, offset_v, width, one.data());
            for (long w = 0; w < words; w++)
                nv[(j / 64 * words + w) * 64 + j % 64] = one[w], missing |= ~one[w] & full(w);
        }
        zeros = missing != 0;
        for (long j = tokens; j < padded; j++)  // the last use left transposed bits there
            for (long w = 0; w < words; w++) v[(j / 64 * words + w) * 64 + j % 64] = nv[(j / 64 * words + w) * 64 + j % 64] = 0;
        for (long i = 0; i < columns * words; i++) {
            transpose(&v[64 * i]);
            if (zeros) transpose(&nv[64 * i]);
            if (narrow) {
                by_fours(&v[64 * i]);
                if (zeros) by_fours(&nv[64 * i]);
            }
        }
    }

    // Where key j stands. Narrow: in its 64 tokens at [j % 8][j / 8], so that eight vectors of counts, shifted into one
    // another, are 64 bytes in the tokens' order.
    long place(long j, long w) const { return narrow ? j / 64 * 64 + j % 8 * 8 + j % 64 / 8 : w * padded + j; }

    // Channels 4 l + v of each 32 to [v][l]: four vectors of counts then make 32 numbers of 16 bits in order.
    static void by_fours(uint64_t* columns) {
        uint64_t old[64];
        memcpy(old, columns, sizeof old);
        for (int i = 0; i < 64; i++) columns[i / 32 * 32 + i % 4 * 8 + i % 32 / 4] = old[i];
    }

    uint64_t full(long word) const {
        return width - 64 * word < 64 ? ((uint64_t)1 << (width - 64 * word)) - 1 : ~(uint64_t)0;
    }

    // The active set of query i as bits. A distance is the number of differing channels; where there are zeros, twice
    // that and one for every channel that either lacks: width - dot.
    template <bool ZEROS>
    void active(long i, const Attention& rule, const float* bias, const float* mask, uint64_t* set) {
        const uint64_t* query = &q[i * words];
        Words smallest = all(1 << 24);
        const long vectors = (tokens + LANES - 1) / LANES;
        for (long j = 0; j < vectors; j++) {
            Words far = all(0), common = all(0);
            for (long w = 0; w < words; w++) {
                Words differ = exclusive_or(all(query[w]), load(&k[w * padded + LANES * j]));
                if (ZEROS) {
                    const Words present = both(all(nq[i * words + w]), load(&nk[w * padded + LANES * j]));
                    differ = both(differ, present);
                    common = add(common, popcount(present));
                }
                far = add(far, popcount(differ));
            }
            if (ZEROS) far = subtract(add(add(far, far), all(width)), common);
            if (j == vectors - 1) far = add(far, load(&penalty[LANES * j]));
            store(&distance[LANES * j], far);
            smallest = least(smallest, far);
        }
        for (long c = 0; c < columns; c++) set[c] = 0;
        if (bias || mask) {
            by_logits<ZEROS>(i, rule, bias, mask, distance.data(), set);
            return;
        }
        const int64_t start = rule.relative ? (int64_t)least_of(smallest) : 0;
        const Words limit = all((uint64_t)(start + (ZEROS ? rule.threshold : rule.threshold >> 1)));
        for (long j = 0; j < vectors; j++)
            set[LANES * j / 64] |= at_most(load(&distance[LANES * j]), limit) << (LANES * j % 64);
    }

    // The same where logits are not integers.
    template <bool ZEROS, typename Distance>
    void by_logits(long i, const Attention& rule, const float* bias, const float* mask, const Distance* far,
                   uint64_t* set) {
        const int32_t sign = ZEROS ? 1 : 2, all_channels = (int32_t)width;
        const float scale = (float)rule.scale;
        float* l = logits.data();
#pragma omp simd
        for (long j = 0; j < tokens; j++) l[j] = (float)(all_channels - sign * (int32_t)far[j]) * scale;
        for (const float* more : {bias, mask}) {
            if (!more) continue;
#pragma omp simd
            for (long j = 0; j < tokens; j++) l[j] += more[i * padded + j];
        }
        float largest = -INFINITY;
#pragma omp simd reduction(max : largest)
        for (long j = 0; j < tokens; j++) largest = l[j] > largest ? l[j] : largest;
        const float limit = rule.relative ? largest + (float)rule.log_beta : FLT_MIN;
        for (long c = 0; c < columns; c++) set[c] = at_least(l + 64 * c, limit);
        if (tokens % 64) set[columns - 1] &= ((uint64_t)1 << tokens % 64) - 1;
    }

#if TIER == VPOPCNT || TIER == AVX512BW
    template <bool ZEROS>
    void active_narrow(long i, const Attention& rule, const float* bias, const float* mask, uint64_t* set) {
        const Words query = all(q[i]), present = all(nq[i]), channels = all(width);
        Words smallest = _mm512_set1_epi8(-1);
        for (long c = 0; c < columns; c++) {
            Words far[8];
            for (int v = 0; v < 8; v++) {
                Words differ = exclusive_or(query, load(&k[64 * c + 8 * v]));
                if (ZEROS) {
                    const Words seen = both(present, load(&nk[64 * c + 8 * v]));
                    differ = popcount(both(differ, seen));
                    far[v] = subtract(add(add(differ, differ), channels), popcount(seen));
                } else {
                    far[v] = popcount(differ);
                }
            }
            for (int v = 0; v < 4; v++) far[v] = _mm512_or_si512(far[v], _mm512_slli_epi64(far[v + 4], 32));
            for (int v = 0; v < 2; v++) far[v] = _mm512_or_si512(far[v], _mm512_slli_epi64(far[v + 2], 16));
            Words bytes = _mm512_or_si512(far[0], _mm512_slli_epi64(far[1], 8));
            if (c == columns - 1 && tokens % 64)  // no token is there
                bytes = _mm512_mask_set1_epi8(bytes, ~(uint64_t)0 << tokens % 64, -1);
            _mm512_storeu_si512(&near[64 * c], bytes);
            smallest = _mm512_min_epu8(smallest, bytes);
        }
        if (bias || mask) {
            by_logits<ZEROS>(i, rule, bias, mask, near.data(), set);
            return;
        }
        int64_t limit = ZEROS ? rule.threshold : rule.threshold >> 1;
        if (rule.relative) {
            __m256i half = _mm256_min_epu8(_mm512_castsi512_si256(smallest), _mm512_extracti64x4_epi64(smallest, 1));
            __m128i part = _mm_min_epu8(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
            part = _mm_minpos_epu16(_mm_min_epu8(part, _mm_srli_epi16(part, 8)));
            limit += _mm_cvtsi128_si32(part) & 255;
        }
        const Words most = _mm512_set1_epi8((char)(limit < 254 ? limit : 254));
        for (long c = 0; c < columns; c++) set[c] = _mm512_cmple_epu8_mask(load((uint64_t*)&near[64 * c]), most);
    }

    template <bool ZEROS, int HALVES>  // of 32 channels
    void sum_narrow(const uint64_t* set, uint64_t* x, uint64_t* n, float* sums) {
        Words plus[4 * HALVES], present[4 * HALVES];
        for (int g = 0; g < 4 * HALVES; g++) plus[g] = present[g] = all(0);
        long count = 0;
        for (long c = 0; c < columns; c++) {
            const Words chosen = all(set[c]);
            count += __builtin_popcountll(set[c]);
            for (int g = 0; g < 4 * HALVES; g++) {
                plus[g] = add(plus[g], popcount(both(chosen, load(&v[64 * c + 8 * g]))));
                if (ZEROS) present[g] = add(present[g], popcount(both(chosen, load(&nv[64 * c + 8 * g]))));
            }
        }
        uint64_t positive = 0, nonzero = 0;
        for (int h = 0; h < HALVES; h++) {
            const Words chosen = sixteens(plus + 4 * h), zero = all(0);
            const Words taken = ZEROS ? sixteens(present + 4 * h) : _mm512_set1_epi16((short)count);
            const Words total = _mm512_sub_epi16(_mm512_add_epi16(chosen, chosen), taken);
            positive |= (uint64_t)_mm512_cmpgt_epi16_mask(total, zero) << (32 * h);
            nonzero |= (uint64_t)_mm512_cmpneq_epi16_mask(total, zero) << (32 * h);
            if (!sums) continue;
            const __m512i low = _mm512_cvtepi16_epi32(_mm512_castsi512_si256(total));
            const __m512i high = _mm512_cvtepi16_epi32(_mm512_extracti64x4_epi64(total, 1));
            const uint64_t valid = full(0) >> (32 * h);
            _mm512_mask_storeu_ps(sums + 32 * h, (__mmask16)valid, _mm512_cvtepi32_ps(low));
            _mm512_mask_storeu_ps(sums + 32 * h + 16, (__mmask16)(valid >> 16), _mm512_cvtepi32_ps(high));
        }
        *x = positive & full(0);
        *n = nonzero & full(0);
    }

    static Words sixteens(const Words* v) {
        const Words low = _mm512_or_si512(v[0], _mm512_slli_epi64(v[1], 16));
        const Words high = _mm512_or_si512(v[2], _mm512_slli_epi64(v[3], 16));
        return _mm512_or_si512(low, _mm512_slli_epi64(high, 32));
    }

    template <bool ZEROS>
    void attend_narrow(long i, const Attention& rule, const float* bias, const float* mask, uint64_t* set, uint64_t* x,
                       uint64_t* n, float* sums) {
        active_narrow<ZEROS>(i, rule, bias, mask, set);
        if (width > 32)
            sum_narrow<ZEROS, 2>(set, x, n, sums);
        else
            sum_narrow<ZEROS, 1>(set, x, n, sums);
    }
#endif

    // Sums of the active values: their signs into bits, and themselves into `sums` where it is given.
    template <bool ZEROS>
    void sum(const uint64_t* set, uint64_t* x, uint64_t* n, float* sums) {
        constexpr int GROUPS = 4;  // vectors of channels at a time
        const Words zero = all(0);
        long count = 0;
        for (long c = 0; c < columns; c++) count += __builtin_popcountll(set[c]);
        for (long w = 0; w < words; w++) {
            uint64_t positive = 0, nonzero = 0;
            const long channels = width - 64 * w < 64 ? width - 64 * w : 64;
            for (long start = 0; start < channels; start += GROUPS * LANES) {
                Words plus[GROUPS], present[GROUPS];
                for (int g = 0; g < GROUPS; g++) plus[g] = present[g] = zero;
                for (long c = 0; c < columns; c++) {
                    const Words chosen = all(set[c]);
                    const long at = (c * words + w) * 64 + start;
                    for (int g = 0; g < GROUPS; g++) {
                        plus[g] = add(plus[g], popcount(both(chosen, load(&v[at + LANES * g]))));
                        if (ZEROS) present[g] = add(present[g], popcount(both(chosen, load(&nv[at + LANES * g]))));
                    }
                }
                for (int g = 0; g < GROUPS; g++) {
                    const Words total = subtract(add(plus[g], plus[g]), ZEROS ? present[g] : all((uint64_t)count));
                    const long first = start + LANES * g;
                    positive |= above(total, zero) << first;
                    nonzero |= unequal(total, zero) << first;
                    if (!sums) continue;
                    float values[LANES];
                    store_floats(values, total);
                    for (long i = 0; i < LANES && first + i < channels; i++) sums[64 * w + first + i] = values[i];
                }
            }
            x[w] = positive & full(w);
            n[w] = nonzero & full(w);
        }
    }

    void attend(long i, const Attention& rule, const float* bias, const float* mask, uint64_t* set, uint64_t* x,
                uint64_t* n, float* sums) {
#if TIER == VPOPCNT || TIER == AVX512BW
        if (narrow) {
            if (zeros)
                attend_narrow<true>(i, rule, bias, mask, set, x, n, sums);
            else
                attend_narrow<false>(i, rule, bias, mask, set, x, n, sums);
            return;
        }
#endif
        if (zeros) {
            active<true>(i, rule, bias, mask, set);
            sum<true>(set, x, n, sums);
        } else {
            active<false>(i, rule, bias, mask, set);
            sum<false>(set, x, n, sums);
        }
    }
};

// --- what Python calls -----------------------------------------------------------------------------------------------

static void linear(const Linear& layer, const float* in, float* out, long rows, int threads) {
    const long words = (layer.inputs + 63) / 64;
#pragma omp parallel num_threads(threads)
    {
        Bits tile;
        tile.size(words);
#pragma omp for schedule(static)
        for (long first = 0; first < rows; first += TILE) {
            const long many = rows - first < TILE ? rows - first : TILE;
            bool whole[TILE];
            for (long r = 0; r < many; r++)
                whole[r] = signs_of(in + (first + r) * layer.inputs, layer.inputs, layer.rule == PLUS,
                                    &tile.x[r * words], &tile.n[r * words]);
            tile.close(layer, many);
            float* y = out + first * layer.outputs;
            to_floats(layer, tile, many, nullptr, y, layer.outputs);
            for (long r = 0; r < many; r++)
                for (long c = 0; !whole[r] && c < layer.outputs; c++) y[r * layer.outputs + c] = NAN;
        }
    }
}

// q, k, v [pairs of sample and head][tokens][width] as floats to sums of the active values.
static void attention(const Attention& rule, const float* q, const float* k, const float* v, float* out, long pairs,
                      int threads) {
    const long tokens = rule.tokens, width = rule.width, words = (width + 63) / 64;
#pragma omp parallel num_threads(threads)
    {
        Head head;
        head.size(tokens, width);
        std::vector<uint64_t> x(3 * words * tokens), n(3 * words * tokens), set(head.columns), bits(words), plane(words);
#pragma omp for schedule(static)
        for (long pair = 0; pair < pairs; pair++) {
            const float* parts[3] = {q, k, v};
            bool whole = true;
            for (long j = 0; j < tokens; j++)
                for (long p = 0; p < 3; p++)
                    whole &= signs_of(parts[p] + (pair * tokens + j) * width, width, rule.plus, &x[(3 * j + p) * words],
                                      &n[(3 * j + p) * words]);
            bool planes = false;
            for (long i = 0; i < 3 * tokens * words; i++) planes |= n[i] != head.full(i % words);
            planes &= !rule.plus;
            head.read(
                0, 64 * words, 128 * words, [&](long j) { return &x[3 * j * words]; },
                [&](long j) { return planes ? &n[3 * j * words] : nullptr; });
            float* y = out + pair * tokens * width;
            for (long i = 0; i < tokens; i++)
                head.attend(i, rule, nullptr, nullptr, set.data(), bits.data(), plane.data(), y + i * width);
            for (long i = 0; !whole && i < tokens * width; i++) y[i] = NAN;
        }
    }
}

// One block: [images][tokens of an image][channels] of floats to the same. `in` is kept.
static void block(const Block& b, const float* in, float* out, long images, long tokens, int threads) {
    const Attention& a = b.attention;
    const bool attends = a.heads > 0, mixes = b.fc1.outputs > 0;
    const long channels = attends ? b.qkv.inputs : b.fc1.inputs, rows = images * tokens;
    const long words = (channels + 63) / 64, qkv_words = (b.qkv.outputs + 63) / 64;
    const long inner = attends ? b.proj.inputs : 0, inner_words = (inner + 63) / 64;
    const long hidden_words = (b.fc1.outputs + 63) / 64;
    const bool plane = b.qkv.plane == TWO;
    // One more row than there are tokens: what stands outside of the image, zeros.
    std::vector<uint64_t> bits, planes, sums, sum_planes;
    std::vector<uint8_t> broken(images, 0);
    if (attends) {
        bits.resize((rows + 1) * qkv_words);
        planes.resize(plane ? (rows + 1) * qkv_words : 0);
        sums.assign(rows * inner_words, 0);
        sum_planes.assign(rows * inner_words, 0);
    }
    const bool whole_bytes = a.width % 8 == 0;
    const long groups = whole_bytes ? a.heads : 1, in_group = whole_bytes ? 1 : a.heads;
    const long windows = attends ? images * a.windows : 0;
    long parts = attends ? (2 * threads + windows * groups - 1) / (windows * groups) : 1;
    if (threads == 1 || !whole_bytes) parts = 1;
#pragma omp parallel num_threads(threads)
    {
        Bits tile, hidden, summed;
        std::vector<float> row(words * 64, 0.0f);
        tile.size(words);
        if (mixes) hidden.size(hidden_words);
        if (attends) {
            summed.size(inner_words);
            const long extra = a.map ? 1 : 0;
#pragma omp for schedule(static)
            for (long first = 0; first < rows + extra; first += TILE) {
                const long many = rows + extra - first < TILE ? rows + extra - first : TILE;
                for (long r = 0; r < many; r++) {
                    uint64_t *x = &tile.x[r * words], *n = &tile.n[r * words];
                    if (first + r == rows) {  // zeros: their sign is 0, or +1
                        for (long k = 0; k < words; k++) x[k] = n[k] = 0;
                        for (long c = 0; b.qkv.rule == PLUS && c < channels; c++) x[c / 64] |= (uint64_t)1 << c % 64;
                    } else if (!signs_of(in + (first + r) * channels, channels, b.norm1, b.qkv.rule == PLUS, row.data(),
                                         x, n))
                        broken[(first + r) / tokens] = 1;
                }
                tile.close(b.qkv, many);
                to_bits(b.qkv, tile, many, &bits[first * qkv_words], plane ? &planes[first * qkv_words] : nullptr,
                        qkv_words);
            }
            Head head;
            head.size(a.tokens, a.width);
            std::vector<uint64_t> set(head.columns), x(head.words), n(head.words);
#pragma omp for schedule(dynamic)
            for (long task = 0; task < windows * groups * parts; task++) {
                const long part = task % parts, group = task / parts % groups, window = task / parts / groups;
                const long image = window / a.windows, here = window % a.windows;
                const auto place = [&](long j) {
                    if (!a.map) return image * tokens + here * a.tokens + j;
                    const long at = a.map[here * a.tokens + j];
                    return at < 0 ? rows : image * tokens + at;
                };
                for (long h = group * in_group; h < (group + 1) * in_group; h++) {
                    head.read(
                        h * a.width, inner + h * a.width, 2 * inner + h * a.width,
                        [&](long j) { return &bits[place(j) * qkv_words]; },
                        [&](long j) { return plane ? &planes[place(j) * qkv_words] : nullptr; });
                    const float* bias = a.bias ? a.bias + h * a.tokens * head.padded : nullptr;
                    const float* mask = a.mask ? a.mask + here * a.tokens * head.padded : nullptr;
                    for (long i = a.tokens * part / parts; i < a.tokens * (part + 1) / parts; i++) {
                        const long at = place(i);
                        if (at == rows) continue;
                        head.attend(i, a, bias, mask, set.data(), x.data(), n.data(), nullptr);
                        if (b.proj.rule == PLUS)  // a sum of 0 counts as +1
                            for (long w = 0; w < head.words; w++) x[w] |= ~n[w] & head.full(w);
                        put_bits(&sums[at * inner_words], h * a.width, a.width, x.data());
                        put_bits(&sum_planes[at * inner_words], h * a.width, a.width, n.data());
                    }
                }
            }
        }
#pragma omp for schedule(static)
        for (long first = 0; first < rows; first += TILE) {
            const long many = rows - first < TILE ? rows - first : TILE;
            float* y = out + first * channels;
            const float* from = in + first * channels;
            if (attends) {
                memcpy(summed.x.data(), &sums[first * inner_words], many * inner_words * 8);
                memcpy(summed.n.data(), &sum_planes[first * inner_words], many * inner_words * 8);
                summed.close(b.proj, many);
                to_floats(b.proj, summed, many, b.residual ? from : nullptr, y, channels);
                from = y;
            }
            if (mixes) {
                for (long r = 0; r < many; r++)
                    if (!signs_of(from + r * channels, channels, b.norm2, b.fc1.rule == PLUS, row.data(),
                                  &tile.x[r * words], &tile.n[r * words]))
                        broken[(first + r) / tokens] = 1;
                tile.close(b.fc1, many);
                to_bits(b.fc1, tile, many, hidden.x.data(), hidden.n.data(), hidden_words);
                hidden.close(b.fc2, many);
                to_floats(b.fc2, hidden, many, b.residual ? from : nullptr, y, channels);
            }
        }
    }
    for (long image = 0; image < images; image++)
        for (long i = 0; broken[image] && i < tokens * channels; i++) out[image * tokens * channels + i] = NAN;
}

// Weights of one bit as floats, +-scale: [outputs][8 words] bytes to [outputs][inputs].
static void unpack(const uint8_t* bits, const float* scale, float* out, long outputs, long inputs, int threads) {
    const long width = (inputs + 63) / 64 * 8;
#pragma omp parallel for schedule(static) num_threads(threads)
    for (long o = 0; o < outputs; o++) {
        float* y = out + o * inputs;
        const float values[2] = {-scale[o], scale[o]};
        for (long i = 0; i < inputs / 8; i++)
            for (int j = 0; j < 8; j++) y[8 * i + j] = values[bits[o * width + i] >> j & 1];
        for (long i = inputs / 8 * 8; i < inputs; i++) y[i] = values[bits[o * width + i / 8] >> i % 8 & 1];
    }
}
