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

// dot[row][64] of one block of channels.
static inline void dots(const Linear& layer, Bits& in, long block, int16_t* dot) {
    uint16_t pop[TILE * 64];
    const uint8_t* w = layer.weights + block * in.words * 512;
    if (in.zeros)
        count<true>(in.x.data(), in.n.data(), in.aligned, w, in.words, pop);
    else
        count<false>(in.x.data(), nullptr, in.aligned, w, in.words, pop);
    for (int r = 0; r < TILE; r++) {
        const int16_t total = in.total[r];
#pragma omp simd
        for (int c = 0; c < 64; c++) dot[64 * r + c] = (int16_t)(total - 2 * (int16_t)pop[64 * r + c]);
    }
}

// out = dot * scale + bias, plus `base` where there is one; rows of `stride` floats.
static void to_floats(const Linear& layer, Bits& in, long rows, const float* base, float* out, long stride) {
    int16_t dot[TILE * 64];
    for (long block = 0; 64 * block < layer.outputs; block++) {
        dots(layer, in, block, dot);
        const float *scale = layer.scale + 64 * block, *bias = layer.bias + 64 * block;
        const long width = layer.outputs - 64 * block < 64 ? layer.outputs - 64 * block : 64;
        for (long r = 0; r < rows; r++) {
            float* y = out + r * stride + 64 * block;
            const int16_t* d = dot + 64 * r;
            if (base) {
                const float* b = base + r * stride + 64 * block;
                if (width == 64)
#pragma omp simd
                    for (int c = 0; c < 64; c++) y[c] = b[c] + ((float)d[c] * scale[c] + bias[c]);
                else
                    for (long c = 0; c < width; c++) y[c] = b[c] + ((float)d[c] * scale[c] + bias[c]);
            } else if (width == 64)
#pragma omp simd
                for (int c = 0; c < 64; c++) y[c] = (float)d[c] * scale[c] + bias[c];
            else
                for (long c = 0; c < width; c++) y[c] = (float)d[c] * scale[c] + bias[c];
        }
    }
}

// Signs of dot * scale + bias, by integer thresholds; a row is ceil(outputs / 64) words.
static void to_bits(const Linear& layer, Bits& in, long rows, uint64_t* x, uint64_t* n, long words) {
    int16_t dot[TILE * 64];
    for (long block = 0; 64 * block < layer.outputs; block++) {
        dots(layer, in, block, dot);
        const int16_t *positive = layer.positive + 64 * block, *zero = layer.zero + 64 * block,
                      *low = layer.low + 64 * block;
        const long left = layer.outputs - 64 * block;
        const uint64_t valid = left < 64 ? ((uint64_t)1 << left) - 1 : ~(uint64_t)0;
        for (long r = 0; r < rows; r++) {
            const int16_t* d = dot + 64 * r;
            uint64_t bits = at_least(d, positive);
            if (layer.plane == FOLDED) bits |= ~at_least(d, low) & valid;
            x[r * words + block] = bits;
            if (n) n[r * words + block] = layer.plane == TWO ? bits | (at_least(d, low) & ~at_least(d, zero)) : valid;
        }
    }
}

// --- signs of tokens -------------------------------------------------------------------------------------------------

// Signs of a row of floats, after a LayerNorm where there is one. False if the row holds what is no number.
static bool signs_of(const float* from, long width, const Norm& norm, bool plus, float* row, uint64_t* x, uint64_t* n) {
    float odd = 0;
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
        int nans = 0;
#pragma omp simd reduction(+ : nans)
        for (long c = 0; c < width; c++) {
            nans += from[c] != from[c];
            row[c] = from[c];
        }
        odd = nans ? NAN : 0;
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
    bool zeros;

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
            for (long w = 0; w < words; w++) k[w * padded + j] = one[w];
            get_bits(row, offset_v, width, one.data());
            for (long w = 0; w < words; w++) v[(j / 64 * words + w) * 64 + j % 64] = one[w];
            const uint64_t* plane = planes(j);
            if (!plane) continue;
            get_bits(plane, offset_q, width, &nq[j * words]);
            for (long w = 0; w < words; w++) missing |= ~nq[j * words + w] & full(w);
            get_bits(plane, offset_k, width, one.data());
            for (long w = 0; w < words; w++) nk[w * padded + j] = one[w], missing |= ~one[w] & full(w);
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
        }
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
            float largest = -INFINITY;
            const long sign = ZEROS ? 1 : 2;
            float* l = logits.data();
            for (long j = 0; j < tokens; j++) {
                float value = (float)(int32_t)(width - sign * (long)distance[j]) * (float)rule.scale;
                if (bias) value += bias[i * padded + j];
                if (mask) value += mask[i * padded + j];
                l[j] = value;
            }
#pragma omp simd reduction(max : largest)
            for (long j = 0; j < tokens; j++) largest = l[j] > largest ? l[j] : largest;
            const float limit = rule.relative ? largest + (float)rule.log_beta : FLT_MIN;
            for (long c = 0; c < columns; c++) set[c] = at_least(l + 64 * c, limit);
            if (tokens % 64) set[columns - 1] &= ((uint64_t)1 << tokens % 64) - 1;
            return;
        }
        const int64_t start = rule.relative ? (int64_t)least_of(smallest) : 0;
        const Words limit = all((uint64_t)(start + (ZEROS ? rule.threshold : rule.threshold >> 1)));
        for (long j = 0; j < vectors; j++)
            set[LANES * j / 64] |= at_most(load(&distance[LANES * j]), limit) << (LANES * j % 64);
    }

    // Sums of the active values: their signs into bits, and themselves into `sums` where it is given.
    template <bool ZEROS>
    void sum(const uint64_t* set, uint64_t* x, uint64_t* n, float* sums) {
        long count = 0;
        for (long c = 0; c < columns; c++) count += __builtin_popcountll(set[c]);
        const Words zero = all(0);
        for (long w = 0; w < words; w++) {
            uint64_t positive = 0, nonzero = 0;
            const long channels = width - 64 * w < 64 ? width - 64 * w : 64;
            for (long first = 0; first < channels; first += LANES) {
                Words plus = zero, present = zero;
                for (long c = 0; c < columns; c++) {
                    const Words chosen = all(set[c]);
                    plus = add(plus, popcount(both(chosen, load(&v[(c * words + w) * 64 + first]))));
                    if (ZEROS) present = add(present, popcount(both(chosen, load(&nv[(c * words + w) * 64 + first]))));
                }
                const Words total = subtract(add(plus, plus), ZEROS ? present : all((uint64_t)count));
                positive |= above(total, zero) << first;
                nonzero |= unequal(total, zero) << first;
                if (sums) {
                    uint64_t values[LANES];
                    store(values, total);
                    for (long i = 0; i < LANES && first + i < channels; i++)
                        sums[64 * w + first + i] = (float)(int64_t)values[i];
                }
            }
            x[w] = positive & full(w);
            n[w] = nonzero & full(w);
        }
    }

    void attend(long i, const Attention& rule, const float* bias, const float* mask, uint64_t* set, uint64_t* x,
                uint64_t* n, float* sums) {
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
    const Norm none = {0, nullptr, nullptr, 0};
    const long words = (layer.inputs + 63) / 64;
#pragma omp parallel num_threads(threads)
    {
        Bits tile;
        tile.size(words);
        std::vector<float> row(words * 64, 0.0f);
#pragma omp for schedule(static)
        for (long first = 0; first < rows; first += TILE) {
            const long many = rows - first < TILE ? rows - first : TILE;
            bool whole[TILE];
            for (long r = 0; r < many; r++)
                whole[r] = signs_of(in + (first + r) * layer.inputs, layer.inputs, none, layer.rule == PLUS, row.data(),
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
    const Norm none = {0, nullptr, nullptr, 0};
    const long tokens = rule.tokens, width = rule.width, words = (width + 63) / 64;
#pragma omp parallel num_threads(threads)
    {
        Head head;
        head.size(tokens, width);
        std::vector<float> row(words * 64, 0.0f);
        std::vector<uint64_t> x(3 * words * tokens), n(3 * words * tokens), set(head.columns), bits(words), plane(words);
#pragma omp for schedule(static)
        for (long pair = 0; pair < pairs; pair++) {
            const float* parts[3] = {q, k, v};
            bool whole = true;
            for (long j = 0; j < tokens; j++)
                for (long p = 0; p < 3; p++)
                    whole &= signs_of(parts[p] + (pair * tokens + j) * width, width, none, rule.plus, row.data(),
                                      &x[(3 * j + p) * words], &n[(3 * j + p) * words]);
            head.read(
                0, 64 * words, 128 * words, [&](long j) { return &x[3 * j * words]; },
                [&](long j) { return rule.plus ? nullptr : &n[3 * j * words]; });
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
