// Attention for few rows: every key and value is read from memory once. Included by attention.h.

constexpr int WEIGH_ROWS = REGISTERS == 32 ? 8 : 6;
constexpr int WEIGH_VECTORS = 2;

// Adds to MR rows of out NV vectors of the values, each times its weight.
template <class T, int MR, int NV>
static inline void value_tile(const float* weights, const T* values, int64_t row, int64_t count, float* out, int64_t width) {
    F acc[MR][NV];
    for (int m = 0; m < MR; ++m)
        for (int v = 0; v < NV; ++v) acc[m][v] = load(out + m * width + v * W);
    for (int64_t k = 0; k < count; ++k) {
        F loaded[NV];
        for (int v = 0; v < NV; ++v) loaded[v] = load_as_float(values + k * row + v * W);
        for (int m = 0; m < MR; ++m) {
            const F weight = set1(weights[m * SCORES + k]);
            for (int v = 0; v < NV; ++v) acc[m][v] = fma(weight, loaded[v], acc[m][v]);
        }
    }
    for (int m = 0; m < MR; ++m)
        for (int v = 0; v < NV; ++v) store(out + m * width + v * W, acc[m][v]);
}

template <class T, int MR>
static inline void value_rows(int64_t rows, const float* weights, const T* values, int64_t row, int64_t count,
                              int64_t D, float* out, int64_t width) {
    if (rows != MR) {
        if constexpr (MR > 1) value_rows<T, MR - 1>(rows, weights, values, row, count, D, out, width);
        return;
    }
    int64_t d = 0;
    for (; d + WEIGH_VECTORS * W <= D; d += WEIGH_VECTORS * W)
        value_tile<T, MR, WEIGH_VECTORS>(weights, values + d, row, count, out + d, width);
    for (; d + W <= D; d += W) value_tile<T, MR, 1>(weights, values + d, row, count, out + d, width);
    for (; d < D; ++d)  // never read past the values
        for (int m = 0; m < MR; ++m)
            for (int64_t k = 0; k < count; ++k) out[m * width + d] += weights[m * SCORES + k] * value(values[k * row + d]);
}

template <class Dots>
static void score_few(const typename Dots::Weight* keys, int64_t row, int64_t count, int64_t D,
                      const typename Dots::Input* queries, int64_t padded, int64_t rows, float* scores,
                      const char* values, int64_t value_bytes) {
    __builtin_memset(scores, 0, rows * SCORES * 4);
    int64_t k = 0;
    for (; k + Dots::OUTPUTS <= count; k += Dots::OUTPUTS) {
        // The values come next, in strips that no processor foresees.
        for (int64_t b = k * value_bytes; b < (k + Dots::OUTPUTS) * value_bytes; b += 64) __builtin_prefetch(values + b);
        dot_rows<Dots>(keys + k * row, row, D, queries, padded, rows, scores + k, SCORES);
    }
    for (; k < count; ++k)
        for (int64_t i = 0; i < rows; ++i)
            scores[i * SCORES + k] = dot_stream<Dots>(keys + k * row, D, queries + i * padded);
}

// The queries as the dot products want them.
template <class Dots>
static inline void prepare_queries(const Attention& a, const Piece& piece, typename Dots::Input* to, int64_t padded) {
    if constexpr (Dots::STEP == W) widen_queries(a, piece, to, padded);
    else
        for (int64_t i = 0; i < piece.rows; ++i) Dots::prepare(to + i * padded, query<uint16_t>(a, piece, i), a.D);
}

template <class Source, class Dots>
static void attend_few(const Attention& a, const Piece& piece) {
    using Input = typename Dots::Input;
    const Head head = head_of(a, piece.sequence, piece.head);
    const int64_t padded = rounded_up(a.D, Dots::STEP), rows = piece.rows;
    auto* queries = static_cast<Input*>(scratch(11, rows * padded * static_cast<int64_t>(sizeof(Input))));
    auto* scores = static_cast<float*>(scratch(12, rows * SCORES * 4));
    prepare_queries<Dots>(a, piece, queries, padded);
    const Running r = fresh_running(rows, padded_width(a.D));
    for (int64_t key = piece.low; key < piece.high; key += FEW_KEYS) {
        const int64_t count = smaller(FEW_KEYS, piece.high - key);
        int64_t row;
        const auto* keys = Source::block(head, false, key, count, a.D, row);
        const char* coming = head.values + key * a.D * static_cast<int64_t>(sizeof(typename Source::Kept));
        const int64_t wide = row == a.D ? a.D : padded;  // widened rows end in zeros
        score_few<Dots>(keys, row, count, wide, queries, padded, rows, scores, coming,
                        a.D * static_cast<int64_t>(sizeof(typename Source::Kept)));
        weigh_rows(a, piece, head, scores, SCORES, key, count, r);
        const auto* values = Source::block(head, true, key, count, a.D, row);
        for (int64_t i = 0; i < rows; i += WEIGH_ROWS)
            value_rows<typename Source::Read, WEIGH_ROWS>(smaller(WEIGH_ROWS, rows - i), scores + i * SCORES, values,
                                                             row, count, row, r.out + i * r.width, r.width);
    }
    write_results(a, piece, r);
}
