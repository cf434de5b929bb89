// New keys and values into the caches, as each keeps them. Included by attention.h.

static inline void quantize_key(int8_t* to, uint16_t& scale, const float (&x)[SCALE_GROUP], int64_t count) {
    assign(scale, byte_step(x));
    const float unit = bf16_value(scale);
    const F inverse = set1(unit > 0 ? 1.0f / unit : 0.0f);
    int8_t whole[SCALE_GROUP];
    for (int64_t i = 0; i < SCALE_GROUP; i += W)
        store_s8(whole + i, maximum(set1(-127.0f), minimum(set1(127.0f), round_even(mul(load(x + i), inverse)))));
    __builtin_memcpy(to, whole, count);
}

template <class T>
static inline void store_key(const Attention& a, char* buffer, uint16_t* scales, int64_t at, const T* from) {
    if (a.storage == STORED_INT8) {
        for (int64_t g = 0; g < scale_groups(a.D); ++g) {
            float x[SCALE_GROUP];
            const int64_t count = smaller(SCALE_GROUP, a.D - g * SCALE_GROUP);
            widen_row(x, from + g * SCALE_GROUP, count, SCALE_GROUP);
            quantize_key(reinterpret_cast<int8_t*>(buffer) + at * a.D + g * SCALE_GROUP,
                         scales[at * scale_groups(a.D) + g], x, count);
        }
    } else if (a.storage == STORED_FLOAT32) {
        widen_row(reinterpret_cast<float*>(buffer) + at * a.D, from, a.D, a.D);
    } else {
        auto* to = reinterpret_cast<uint16_t*>(buffer) + at * a.D;
        int64_t i = 0;
        for (; i + W <= a.D; i += W) store_bf16(to + i, load_as_float(from + i));
        for (; i < a.D; ++i) assign(to[i], value(from[i]));
    }
}

template <class T>
static void store_new(const Attention& a) {
    int64_t total = 0;
    for (int64_t n = 0; n < a.N; ++n) total += a.lengths[n * 3 + 1];
    const int threads = total * a.G * a.D < (1 << 16) ? 1 : a.threads;
    int64_t before = 0;
    for (int64_t n = 0; n < a.N; ++n) {
        const int64_t count = a.lengths[n * 3 + 1], past = a.lengths[n * 3], first = before;
        before += count;
        // A task takes some tokens, so that one long prompt keeps all threads busy.
        parallel_for(blocks(count, 64), threads, [&](int64_t task) {
            for (int64_t g = 0; g < a.G; ++g) {
                const Head head = head_of(a, n, g);
                for (int64_t t = task * 64; t < smaller(count, task * 64 + 64); ++t) {
                    const auto* k = static_cast<const T*>(a.k) + (first + t) * a.k_stride + g * a.D;
                    const auto* v = static_cast<const T*>(a.v) + (first + t) * a.v_stride + g * a.D;
                    store_key(a, head.keys, head.key_scales, past + t, k);
                    store_key(a, head.values, head.value_scales, past + t, v);
                }
            }
        });
    }
}
