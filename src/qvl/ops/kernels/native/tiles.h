// The products inside attention, scores (queries times keys) and mixes (weights times values): register tiles on
// blocks of floats that lie in the nearest caches. Included inside the namespace of one instruction set.

constexpr int64_t KEY_BLOCK = 128;                // keys that are copied and met at a time
constexpr int64_t SCORE_STRIDE = KEY_BLOCK + 16;  // no power of two: its rows would share places in the cache

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
