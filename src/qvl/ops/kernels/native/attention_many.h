// Attention for many rows: blocks of keys and values are unpacked into panels, as weights are for many rows
// (many_rows.h), and multiplied at the full rate. Included by attention.h.

// Keys as panels: 16 keys side by side, D deep.
template <class T>
static inline void key_panels(const T* keys, int64_t row, int64_t count, int64_t D, float* out) {
    for (int64_t o = 0; o < count; o += W) {
        float* to = out + o / PANEL * DEPTH * PANEL + o % PANEL;
        const int64_t here = smaller(W, count - o), whole = here == W ? D / W * W : 0;
        for (int64_t d = 0; d < whole; d += W) {
            F square[W];
            for (int i = 0; i < W; ++i) square[i] = load_as_float(keys + (o + i) * row + d);
            transpose(square);
            for (int i = 0; i < W; ++i) store(to + (d + i) * PANEL, square[i]);
        }
        for (int64_t d = whole; d < D; ++d)
            for (int64_t i = 0; i < W; ++i) to[d * PANEL + i] = i < here ? value(keys[(o + i) * row + d]) : 0.0f;
    }
}

// Values as panels: 16 places of D side by side, `count` keys deep.
template <class T>
static inline void value_panels(const T* values, int64_t row, int64_t count, int64_t D, float* out) {
    for (int64_t d = 0; d < D; d += W) {
        float* to = out + d / PANEL * DEPTH * PANEL + d % PANEL;
        const int64_t here = smaller(W, D - d);
        for (int64_t k = 0; k < count; ++k) {
            if (here == W) store(to + k * PANEL, load_as_float(values + k * row + d));
            else
                for (int64_t i = 0; i < W; ++i) to[k * PANEL + i] = i < here ? value(values[k * row + d + i]) : 0.0f;
        }
    }
}

// out (rows, columns) = x (rows, depth) times panels; adds to out unless fresh.
static inline void multiply_panels(const float* x, int64_t stride, int64_t rows, const float* panels, int64_t columns,
                                   int64_t depth, float* out, int64_t out_stride, bool fresh) {
    for (int64_t m = 0; m < rows; m += TILE_ROWS)
        for (int64_t p = 0; p * PANEL < columns; p += TILE_PANELS)
            multiply_rest<TILE_ROWS>(smaller(TILE_ROWS, rows - m), x + m * stride, stride, panels + p * DEPTH * PANEL,
                                     depth, out + m * out_stride + p * PANEL, out_stride, fresh);
}

template <class Source>
static void attend_many(const Attention& a, const Piece& piece) {
    const Head head = head_of(a, piece.sequence, piece.head);
    const int64_t D = a.D, rows = piece.rows, width = padded_width(D);
    auto* queries = static_cast<float*>(scratch(11, rows * D * 4));
    auto* scores = static_cast<float*>(scratch(12, rows * MANY_KEYS * 4));
    // Deep enough for both: D deep and MANY_KEYS wide, or the other way round.
    auto* panels = static_cast<float*>(scratch(13, (MANY_KEYS + MOST_WIDTH) * DEPTH * 4));
    widen_queries(a, piece, queries, D);
    const Running r = fresh_running(rows, width);
    for (int64_t key = piece.low; key < piece.high; key += MANY_KEYS) {
        const int64_t count = smaller(MANY_KEYS, piece.high - key);
        int64_t row;
        const auto* keys = Source::block(head, false, key, count, D, row);
        key_panels(keys, row, count, D, panels);
        multiply_panels(queries, D, rows, panels, count, D, scores, MANY_KEYS, true);
        weigh_rows(a, piece, head, scores, MANY_KEYS, key, count, r);
        const auto* values = Source::block(head, true, key, count, D, row);
        value_panels(values, row, count, D, panels);
        multiply_panels(scores, MANY_KEYS, rows, panels, D, count, r.out, width, false);
    }
    write_results(a, piece, r);
}
