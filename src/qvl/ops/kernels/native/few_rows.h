// Few rows (decoding): dot products along K, on the weight as the checkpoint stores it. Included inside the
// namespace of one instruction set.
//
// Every weight is read from memory once, NR output features at a time; the rows of x stay in the nearest cache.
// With up to about 16 rows the time is that of reading the weight.

// Of each kind of dot product: OUTPUTS weights go together in a tile, and memory is asked for those AHEAD weights on.

// Weights of type T, a vector at a time as floats.
template <class T>
struct WidenedDots {
    using Weight = T;
    using Input = float;
    static constexpr int STEP = W, OUTPUTS = 2, AHEAD = 8;
    using Loaded = F;
    static inline Loaded weights(const Weight* w) { return load_as_float(w); }
    static inline F dot(F acc, Loaded w, const Input* x) { return fma(w, load(x), acc); }
    static void prepare(Input* to, const T* from, int64_t K) { widen_row(to, from, K, rounded_up(K, STEP)); }
};

#ifdef QVL_BF16_DOT
struct BFloatDots {
    using Weight = uint16_t;
    using Input = uint16_t;
    static constexpr int STEP = 2 * W, OUTPUTS = 3, AHEAD = 3;
    using Loaded = Pairs;
    static inline Loaded weights(const Weight* w) { return load_pairs(w); }
    static inline F dot(F acc, Loaded w, const Input* x) { return dot_bf16(acc, w, load_pairs(x)); }
    static void prepare(Input* to, const uint16_t* from, int64_t K) {
        __builtin_memcpy(to, from, K * 2);
        for (int64_t k = K; k < rounded_up(K, STEP); ++k) to[k] = 0;
    }
};
#else
// Even and odd places apart: that is how bf16 weights widen to floats without a shuffle.
struct BFloatDots {
    using Weight = uint16_t;
    using Input = float;
    static constexpr int STEP = 2 * W, OUTPUTS = REGISTERS == 32 ? 3 : 2, AHEAD = OUTPUTS;
    struct Loaded {
        F even, odd;
    };
    static inline Loaded weights(const Weight* w) {
        Loaded both;
        split_bf16(w, both.even, both.odd);
        return both;
    }
    static inline F dot(F acc, Loaded w, const Input* x) {
        return fma(w.odd, load(x + W), fma(w.even, load(x), acc));
    }
    static void prepare(Input* to, const uint16_t* from, int64_t K) {
        for (int64_t k = 0; k < rounded_up(K, STEP); ++k) {
            const int64_t place = k / STEP * STEP + (k % 2) * W + k % STEP / 2;
            to[place] = k < K ? bf16_value(from[k]) : 0.0f;
        }
    }
};
#endif

constexpr int DOT_ROWS = REGISTERS == 32 ? 8 : 6;                         // rows of x of a tile
constexpr int64_t DOT_BLOCK = 48;                                         // output features of a task
constexpr int64_t DOT_BYTES = (REGISTERS == 32 ? 32 : 24) * 1024;         // of x that are used over and over

// Inputs k .. k + depth of NR weights and MR rows; adds to out. The first tile that reads some weights asks for
// those that come next: the tiles after it find theirs in the cache, and meanwhile memory would have nothing to do.
template <class Dots, int MR, bool ahead>
static inline void dot_tile(const typename Dots::Weight* w, int64_t K, int64_t depth, const typename Dots::Input* x,
                            int64_t padded, float* out, int64_t out_stride) {
    constexpr int STEP = Dots::STEP, NR = Dots::OUTPUTS;
    F acc[MR][NR];
    for (int m = 0; m < MR; ++m)
        for (int n = 0; n < NR; ++n) acc[m][n] = zero();
    int64_t k = 0;
    for (; k + STEP <= depth; k += STEP) {
        typename Dots::Loaded loaded[NR];
        for (int n = 0; n < NR; ++n) loaded[n] = Dots::weights(w + n * K + k);
        if (ahead)
            for (int n = 0; n < NR; ++n) __builtin_prefetch(w + (Dots::AHEAD + n) * K + k, 0, 2);
        for (int m = 0; m < MR; ++m)
            for (int n = 0; n < NR; ++n) acc[m][n] = Dots::dot(acc[m][n], loaded[n], x + m * padded + k);
    }
    if (k < depth) {  // never read past the weight: what lies there may be no memory, or no number
        for (int n = 0; n < NR; ++n) {
            typename Dots::Weight rest[STEP] = {};
            __builtin_memcpy(rest, w + n * K + k, (depth - k) * sizeof(typename Dots::Weight));
            const auto loaded = Dots::weights(rest);
            for (int m = 0; m < MR; ++m) acc[m][n] = Dots::dot(acc[m][n], loaded, x + m * padded + k);
        }
    }
    for (int m = 0; m < MR; ++m) {
        F four[4] = {zero(), zero(), zero(), zero()};
        for (int n = 0; n < NR; ++n) four[n] = acc[m][n];
        add_sums(four, out + m * out_stride);
    }
}

template <class Dots, int MR, bool ahead>
static inline void dot_rest(int64_t rows, const typename Dots::Weight* w, int64_t K, int64_t depth,
                            const typename Dots::Input* x, int64_t padded, float* out, int64_t out_stride) {
    if (rows == MR) return dot_tile<Dots, MR, ahead>(w, K, depth, x, padded, out, out_stride);
    if constexpr (MR > 1) dot_rest<Dots, MR - 1, ahead>(rows, w, K, depth, x, padded, out, out_stride);
}

template <class Dots>
static inline void dot_rows(const typename Dots::Weight* w, int64_t K, int64_t depth, const typename Dots::Input* x,
                            int64_t padded, int64_t M, float* out, int64_t out_stride) {
    const int64_t passes = blocks(M, DOT_ROWS);
    for (int64_t pass = 0, m = 0; pass < passes; ++pass) {
        const int64_t rows = blocks(M - m, passes - pass);  // 10 rows go as 5 + 5, not as 8 + 2
        const auto* inputs = x + m * padded;
        float* to = out + m * out_stride;
        if (m == 0 && M > 1)
            dot_rest<Dots, DOT_ROWS, true>(rows, w, K, depth, inputs, padded, to, out_stride);
        else
            dot_rest<Dots, DOT_ROWS, false>(rows, w, K, depth, inputs, padded, to, out_stride);
        m += rows;
    }
}

// One weight and one row of x, from end to end. A single row waits for memory, which is read fastest in one stream;
// so are the output features left over where a weight's rows do not divide by those of a tile.
template <class Dots>
static inline float dot_stream(const typename Dots::Weight* w, int64_t K, const typename Dots::Input* x) {
    constexpr int STEP = Dots::STEP, CHAINS = 4;
    F acc[CHAINS];
    for (int i = 0; i < CHAINS; ++i) acc[i] = zero();
    int64_t k = 0;
    for (; k + CHAINS * STEP <= K; k += CHAINS * STEP)
        for (int i = 0; i < CHAINS; ++i) acc[i] = Dots::dot(acc[i], Dots::weights(w + k + i * STEP), x + k + i * STEP);
    for (; k + STEP <= K; k += STEP) acc[0] = Dots::dot(acc[0], Dots::weights(w + k), x + k);
    if (k < K) {
        typename Dots::Weight rest[STEP] = {};
        __builtin_memcpy(rest, w + k, (K - k) * sizeof(typename Dots::Weight));
        acc[0] = Dots::dot(acc[0], Dots::weights(rest), x + k);
    }
    return sum(add(add(acc[0], acc[1]), add(acc[2], acc[3])));
}

// How much of K is taken at a time, so that the inputs stay in the nearest cache while a block of weights goes by.
template <class Dots>
static inline int64_t dot_depth(int64_t K, int64_t M) {
    const int64_t fits = DOT_BYTES / (M * static_cast<int64_t>(sizeof(typename Dots::Input)));
    int64_t depth = 256;
    while (2 * depth <= fits) depth *= 2;
    return M == 1 || depth >= K ? K : depth;
}

template <class Dots, class T>
static void few_rows_of(const Product& p) {
    const int64_t K = p.K, M = p.M, padded = rounded_up(K, Dots::STEP), depth = dot_depth<Dots>(K, M);
    const auto* x = static_cast<const T*>(p.x);
    const auto* weight = static_cast<const typename Dots::Weight*>(p.weight);
    const auto* bias = static_cast<const T*>(p.bias);
    auto* y = static_cast<T*>(p.y);
    using Input = typename Dots::Input;
    auto* inputs = static_cast<Input*>(scratch(0, M * padded * static_cast<int64_t>(sizeof(Input))));
    for (int64_t m = 0; m < M; ++m) Dots::prepare(inputs + m * padded, x + m * p.stride, K);
    parallel_for(blocks(p.N, DOT_BLOCK), p.threads, [&](int64_t task) {
        const int64_t first = task * DOT_BLOCK, count = smaller(DOT_BLOCK, p.N - first);
        const int64_t whole = M == 1 ? 0 : count / Dots::OUTPUTS * Dots::OUTPUTS;
        auto* out = static_cast<float*>(scratch(1, (M * DOT_BLOCK + 4) * 4));
        __builtin_memset(out, 0, M * DOT_BLOCK * 4);
        for (int64_t k = 0; k < K; k += depth)
            for (int64_t n = 0; n < whole; n += Dots::OUTPUTS)
                dot_rows<Dots>(weight + (first + n) * K + k, K, smaller(depth, K - k), inputs + k, padded, M, out + n,
                               DOT_BLOCK);
        for (int64_t n = whole; n < count; ++n)
            for (int64_t m = 0; m < M; ++m)
                out[m * DOT_BLOCK + n] = dot_stream<Dots>(weight + (first + n) * K, K, inputs + m * padded);
        for (int64_t m = 0; m < M; ++m)
            write_row(y + m * p.N + first, out + m * DOT_BLOCK, bias ? bias + first : nullptr, count);
    });
}

static void few_rows(const Product& p) {
    if (p.dtype == FLOAT32) return few_rows_of<WidenedDots<float>, float>(p);
    few_rows_of<BFloatDots, uint16_t>(p);
}
