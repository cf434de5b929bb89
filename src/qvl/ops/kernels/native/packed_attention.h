// Attention of many queries (vision windows, whole frames, prompts) over packed sequences, with the softmax taken as
// the keys go by. Included inside the namespace of one instruction set.
//
// A task is a head and up to QUERY_BLOCK queries of a sequence. It copies KEY_BLOCK keys (turned on their side) and
// their values to memory of its own as floats, and then takes STRIP queries at a time: scores, softmax, mix. Both
// products are register tiles of the same shape. Memory grows with neither the queries nor the keys.

constexpr int64_t QUERY_BLOCK = 240, KEY_BLOCK = 128, STRIP = 60;
constexpr int64_t SCORE_STRIDE = KEY_BLOCK + 16;  // no power of two: its rows would share places in the cache
constexpr float NEVER = -3e38f;                   // below every score, yet a number

static inline int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

// out (MR rows, NV vectors) = turn[row] out + a (MR rows, depth) times b (depth, NV vectors); turn null: out is fresh.
template <int MR, int NV>
static inline void add_tile(const float* a, int64_t a_stride, const float* b, int64_t b_stride, int64_t depth,
                            const float* turn, float* out, int64_t out_stride) {
    F acc[MR][NV];
    for (int m = 0; m < MR; ++m)
        for (int v = 0; v < NV; ++v)
            acc[m][v] = turn ? mul(set1(turn[m]), load(out + m * out_stride + v * W)) : zero();
    for (int64_t k = 0; k < depth; ++k) {
        F row[NV];
        for (int v = 0; v < NV; ++v) row[v] = load(b + k * b_stride + v * W);
        for (int m = 0; m < MR; ++m) {
            const F factor = set1(a[m * a_stride + k]);
            for (int v = 0; v < NV; ++v) acc[m][v] = fma(factor, row[v], acc[m][v]);
        }
    }
    for (int m = 0; m < MR; ++m)
        for (int v = 0; v < NV; ++v) store(out + m * out_stride + v * W, acc[m][v]);
}

template <int MR, int NV>
static inline void add_rest(int64_t rows, const float* a, int64_t a_stride, const float* b, int64_t b_stride,
                            int64_t depth, const float* turn, float* out, int64_t out_stride) {
    if (rows == MR) return add_tile<MR, NV>(a, a_stride, b, b_stride, depth, turn, out, out_stride);
    if constexpr (MR > 1) add_rest<MR - 1, NV>(rows, a, a_stride, b, b_stride, depth, turn, out, out_stride);
}

template <int MR, int NV>
static inline void add_columns(int64_t rows, const float* a, int64_t a_stride, const float* b, int64_t b_stride,
                               int64_t depth, const float* turn, float* out, int64_t out_stride) {
    for (int64_t m = 0; m < rows; m += MR)
        add_rest<MR, NV>(smaller(MR, rows - m), a + m * a_stride, a_stride, b, b_stride, depth,
                         turn ? turn + m : nullptr, out + m * out_stride, out_stride);
}

// Tiles that fill the registers: 5 x 5 is the one that divides a head of 80.
static void add_product(int64_t rows, const float* a, int64_t a_stride, const float* b, int64_t b_stride,
                        int64_t depth, const float* turn, float* out, int64_t out_stride, int64_t vectors) {
    for (int64_t v = 0; v < vectors;) {
        const int64_t left = vectors - v;
        const float* from = b + v * W;
        float* to = out + v * W;
        if constexpr (REGISTERS == 32) {
            if (left % 5 == 0 && left % 4) {
                add_columns<5, 5>(rows, a, a_stride, from, b_stride, depth, turn, to, out_stride);
                v += 5;
                continue;
            }
            if (left >= 4) {
                add_columns<6, 4>(rows, a, a_stride, from, b_stride, depth, turn, to, out_stride);
                v += 4;
                continue;
            }
        }
        if (left >= 2) {
            add_columns<6, 2>(rows, a, a_stride, from, b_stride, depth, turn, to, out_stride);
            v += 2;
        } else {
            add_columns<6, 1>(rows, a, a_stride, from, b_stride, depth, turn, to, out_stride);
            v += 1;
        }
    }
}

// Rows of keys or values turned on their side: (depth, SCORE_STRIDE), zeros where there are no more rows.
template <class T>
static void turn_keys(const T* keys, int64_t stride, int64_t count, int64_t depth, float* out) {
    for (int64_t row = 0; row < count; row += W) {
        const T* from = keys + row * stride;
        const int64_t rows = smaller(W, count - row), whole = rows == W ? depth / W * W : 0;
        for (int64_t k = 0; k < whole; k += W) {
            F square[W];
            for (int i = 0; i < W; ++i) square[i] = load_as_float(from + i * stride + k);
            transpose(square);
            for (int i = 0; i < W; ++i) store(out + (k + i) * SCORE_STRIDE + row, square[i]);
        }
        for (int64_t k = whole; k < depth; ++k)
            for (int64_t i = 0; i < W; ++i)
                out[k * SCORE_STRIDE + row + i] = i < rows ? value(from[i * stride + k]) : 0.0f;
    }
}

// The queries of a task, and what is known of them after the keys so far: the largest score, the sum of weights, and
// the values mixed with those weights.
struct Queries {
    const float* rows;
    float *most, *total, *mixed;
    int64_t width, padded;  // of a head; rounded up to whole vectors
};

// Scores of `rows` queries become weights; `turn` is what their sums so far are worth under the new largest score.
static void soften(float* scores, int64_t rows, int64_t vectors, float* most, float* total, float* turn) {
    float before[STRIP + W];
    for (int64_t m = 0; m < rows; ++m) {
        F top = set1(most[m]);
        for (int64_t v = 0; v < vectors; ++v) top = maximum(top, load(scores + m * SCORE_STRIDE + v * W));
        before[m] = most[m];
        most[m] = largest(top);
    }
    for (int64_t m = 0; m < rows; m += W)
        store(turn + m, exponential(sub(load(before + m), load(most + m))));
    for (int64_t m = 0; m < rows; ++m) {
        const F top = set1(most[m]);
        F weights = zero();
        for (int64_t v = 0; v < vectors; ++v) {
            float* place = scores + m * SCORE_STRIDE + v * W;
            const F weight = exponential(sub(load(place), top));
            store(place, weight);
            weights = add(weights, weight);
        }
        total[m] = total[m] * turn[m] + sum(weights);
    }
}

// Which keys a query sees: places low .. high - 1 of its sequence.
struct Sight {
    bool causal;
    int64_t window, past, keys;
    int64_t low(int64_t query) const { return window ? larger(0, past + query - window + 1) : 0; }
    int64_t high(int64_t query) const { return causal ? smaller(keys, past + query + 1) : keys; }
};

static void hide(float* scores, int64_t rows, int64_t query, int64_t first, int64_t padded, const Sight& sight) {
    const float hidden = -__builtin_inff();
    for (int64_t m = 0; m < rows; ++m) {
        const int64_t low = sight.low(query + m) - first, high = sight.high(query + m) - first;
        float* row = scores + m * SCORE_STRIDE;
        for (int64_t i = 0; i < smaller(low, padded); ++i) row[i] = hidden;
        for (int64_t i = larger(0, high); i < padded; ++i) row[i] = hidden;
    }
}

// `count` queries from `query` on meet the keys first .. first + keys - 1, copied before.
static void meet(const Queries& q, int64_t query, int64_t offset, int64_t count, int64_t first, int64_t keys,
                 const float* turned, const float* values, float* scores, const Sight& sight) {
    const int64_t padded = rounded_up(keys, W), last = query + count - 1;
    if (sight.high(last) <= first || sight.low(query) >= first + keys) return;
    float turn[STRIP + W];
    add_product(count, q.rows + offset * q.width, q.width, turned, SCORE_STRIDE, q.width, nullptr, scores,
                SCORE_STRIDE, padded / W);
    if (padded > keys || sight.high(query) < first + keys || sight.low(last) > first)
        hide(scores, count, query, first, padded, sight);
    soften(scores, count, padded / W, q.most + offset, q.total + offset, turn);
    add_product(count, scores, SCORE_STRIDE, values, q.padded, keys, turn, q.mixed + offset * q.padded, q.padded,
                q.padded / W);
}

template <class T>
static void attend_block(const PackedAttention& p, const T* q, const T* k, const T* v, T* out, int64_t query,
                         int64_t count, const Sight& sight) {
    const int64_t width = p.width, padded = rounded_up(width, W), block = smaller(count, QUERY_BLOCK);
    auto* memory = static_cast<float*>(scratch(
        2, 4 * (block * (width + padded) + 2 * QUERY_BLOCK + 4 * W + width * SCORE_STRIDE + KEY_BLOCK * padded +
                STRIP * SCORE_STRIDE)));
    float* rows = memory;
    float* turned = rows + block * width;
    float* values = turned + width * SCORE_STRIDE;
    float* scores = values + KEY_BLOCK * padded;
    Queries queries{rows, scores + STRIP * SCORE_STRIDE, nullptr, nullptr, width, padded};
    queries.total = queries.most + QUERY_BLOCK + W;
    queries.mixed = queries.total + QUERY_BLOCK + W;
    for (int64_t m = 0; m < count; ++m) {
        widen_row(rows + m * width, q + m * p.q_token, width, width);
        for (int64_t i = 0; i < width; ++i) rows[m * width + i] *= p.scale;
        queries.most[m] = NEVER;
        queries.total[m] = 0.0f;
    }
    __builtin_memset(queries.mixed, 0, count * padded * 4);
    const int64_t end = sight.high(query + count - 1);
    for (int64_t first = sight.low(query); first < end; first += KEY_BLOCK) {
        const int64_t keys = smaller(KEY_BLOCK, end - first);
        turn_keys(k + first * p.k_token, p.k_token, keys, width, turned);
        for (int64_t s = 0; s < keys; ++s) widen_row(values + s * padded, v + (first + s) * p.v_token, width, padded);
        for (int64_t m = 0; m < count; m += STRIP)
            meet(queries, query + m, m, smaller(STRIP, count - m), first, keys, turned, values, scores, sight);
    }
    for (int64_t m = 0; m < count; ++m) {
        float* row = queries.mixed + m * padded;
        const F by = set1(1.0f / queries.total[m]);
        for (int64_t i = 0; i < padded; i += W) store(row + i, mul(load(row + i), by));
        write_row(out + m * p.heads * width, row, static_cast<const T*>(nullptr), width);
    }
}

template <class T>
static void packed_attention_of(const PackedAttention& p) {
    auto* starts = static_cast<int64_t*>(scratch(0, 3 * (p.sequences + 1) * 8));  // of tasks, queries and keys
    int64_t *queries = starts + p.sequences + 1, *keys = queries + p.sequences + 1;
    starts[0] = queries[0] = keys[0] = 0;
    for (int64_t i = 0; i < p.sequences; ++i) {
        starts[i + 1] = starts[i] + blocks(p.q_lengths[i], QUERY_BLOCK) * p.heads;
        queries[i + 1] = queries[i] + p.q_lengths[i];
        keys[i + 1] = keys[i] + p.k_lengths[i];
    }
    const auto *q = static_cast<const T*>(p.q), *k = static_cast<const T*>(p.k), *v = static_cast<const T*>(p.v);
    auto* out = static_cast<T*>(p.out);
    parallel_for(starts[p.sequences], p.threads, [&](int64_t task) {
        int64_t low = 0, high = p.sequences;  // the sequence whose tasks this is one of
        while (high - low > 1) {
            const int64_t middle = (low + high) / 2;
            (starts[middle] <= task ? low : high) = middle;
        }
        const int64_t length = p.q_lengths[low], parts = blocks(length, QUERY_BLOCK), place = task - starts[low];
        const int64_t head = place / parts, shared = head / p.shared, query = place % parts * QUERY_BLOCK;
        const Sight sight{p.causal, p.window, p.k_lengths[low] - length, p.k_lengths[low]};
        const int64_t row = queries[low] + query;
        attend_block(p, q + row * p.q_token + head * p.q_head, k + keys[low] * p.k_token + shared * p.k_head,
                     v + keys[low] * p.v_token + shared * p.v_head, out + (row * p.heads + head) * p.width, query,
                     smaller(QUERY_BLOCK, length - query), sight);
    });
}

static void packed_attention(const PackedAttention& p) {
    if (p.dtype == FLOAT32) return packed_attention_of<float>(p);
    packed_attention_of<uint16_t>(p);
}
