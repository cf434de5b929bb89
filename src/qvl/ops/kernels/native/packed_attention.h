// Attention of many queries (vision windows, whole frames, prompts) over packed sequences, with the softmax taken as
// the keys go by. Included inside the namespace of one instruction set.
//
// A task is a head and up to QUERY_BLOCK queries of a sequence. It copies KEY_BLOCK keys (turned on their side) and
// their values to memory of its own as floats, and then takes STRIP queries at a time: scores, softmax, mix. Both
// products are register tiles of the same shape. Memory grows with neither the queries nor the keys.

constexpr int64_t QUERY_BLOCK = 240, STRIP = 60;
constexpr float NEVER = -3e38f;                   // below every score, yet a number

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
