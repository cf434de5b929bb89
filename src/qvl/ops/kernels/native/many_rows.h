// Many rows (prompts, the vision tower): a block of the weight is unpacked to floats, input by input for 16 outputs
// at a time, and multiplied with a block of rows at the full rate. Included inside the namespace of one set.
//
// Every format of weights only brings its way of unpacking. The blocks are sized for the caches: a panel of
// DEPTH x 16 floats and the inputs of a tile in the first, PANEL_BLOCK panels and ROW_BLOCK rows in the second.

constexpr int PANEL = 16;               // output features side by side
constexpr int VECTORS = PANEL / W;      // vectors of one panel
constexpr int64_t DEPTH = 256;          // input features of a block; a multiple of every group of scales
constexpr int64_t PANEL_BLOCK = 8;      // panels of a task
constexpr int64_t ROW_BLOCK = 240;      // rows of a task: a multiple of TILE_ROWS
constexpr int TILE_PANELS = W == 16 ? 2 : 1;
constexpr int TILE_ROWS = W == 16 ? 12 : (REGISTERS == 32 ? 5 : 6);

// The weights of the block that comes next. Multiplying leaves memory idle and unpacking would wait for it, so every
// tile asks for a share of them, line by line, while it goes.
struct Ahead {
    const char* first = nullptr;            // null: nothing comes next
    int64_t row_bytes = 0, rows = 0;        // of the block
    int64_t step = 0;                       // bytes from one row to the next

    // Of `shares` tiles, what tile number `share` asks for: some rows of the block.
    Ahead share(int64_t share, int64_t shares) const {
        const int64_t start = rows * share / shares;
        return {first + start * step, row_bytes, first ? rows * (share + 1) / shares - start : 0, step};
    }
    inline void ask(int64_t line) const {
        if (line * 64 >= row_bytes) return;
        for (int64_t row = 0; row < rows; ++row) __builtin_prefetch(first + row * step + line * 64, 0, 2);
    }
};

template <int MR>
static inline void multiply_tile(const float* x, int64_t stride, const float* panels, int64_t depth, float* out,
                                 int64_t out_stride, bool fresh, const Ahead& next) {
    constexpr int NV = TILE_PANELS * VECTORS;
    F acc[MR][NV];
    for (int m = 0; m < MR; ++m)
        for (int v = 0; v < NV; ++v) acc[m][v] = fresh ? zero() : load(out + m * out_stride + v * W);
    for (int64_t k = 0; k < depth; ++k) {
        if (k % 16 == 0) next.ask(k / 16);
        F w[NV];
        for (int v = 0; v < NV; ++v) w[v] = load(panels + v / VECTORS * DEPTH * PANEL + k * PANEL + v % VECTORS * W);
        for (int m = 0; m < MR; ++m) {
            const F input = set1(x[m * stride + k]);
            for (int v = 0; v < NV; ++v) acc[m][v] = fma(input, w[v], acc[m][v]);
        }
    }
    for (int m = 0; m < MR; ++m)
        for (int v = 0; v < NV; ++v) store(out + m * out_stride + v * W, acc[m][v]);
}

template <int MR>
static inline void multiply_rest(int64_t rows, const float* x, int64_t stride, const float* panels, int64_t depth,
                                 float* out, int64_t out_stride, bool fresh, const Ahead& next = {}) {
    if (rows == MR) return multiply_tile<MR>(x, stride, panels, depth, out, out_stride, fresh, next);
    if constexpr (MR > 1) multiply_rest<MR - 1>(rows, x, stride, panels, depth, out, out_stride, fresh, next);
}

// Plain weights: rows of the checkpoint, turned on their side W x W values at a time.
template <class T>
struct PlainPanels {
    const T* weight;
    int64_t N, K;
    // The block that follows: further along K, or at the start of the next rows.
    Ahead ahead(int64_t panel, int64_t panels, int64_t first) const {
        if (first >= K) {
            panel += panels;
            first = 0;
        }
        const int64_t n = panel * PANEL, size = sizeof(T);
        if (n >= N) return {};
        return {reinterpret_cast<const char*>(weight + n * K + first), smaller(DEPTH, K - first) * size,
                smaller(panels * PANEL, N - n), K * size};
    }
    void unpack(int64_t panel, int64_t first, int64_t depth, float* out) const {
        for (int64_t o = 0; o < PANEL; o += W) {
            const int64_t n = panel * PANEL + o, whole = n + W <= N ? depth / W * W : 0;
            const T* rows = weight + n * K + first;
            for (int64_t k = 0; k < whole; k += W) {
                F square[W];
                for (int i = 0; i < W; ++i) square[i] = load_as_float(rows + i * K + k);
                transpose(square);
                for (int i = 0; i < W; ++i) store(out + (k + i) * PANEL + o, square[i]);
            }
            for (int64_t k = whole; k < depth; ++k)
                for (int64_t i = 0; i < W; ++i) out[k * PANEL + o + i] = n + i < N ? value(rows[i * K + k]) : 0.0f;
        }
    }
};

template <class Panels>
static void multiply_block(const Panels& source, const float* x, int64_t stride, int64_t K, int64_t rows,
                           int64_t panel, int64_t panels, float* unpacked, float* out) {
    const int64_t width = PANEL_BLOCK * PANEL;
    for (int64_t first = 0; first < K; first += DEPTH) {
        const int64_t depth = smaller(DEPTH, K - first);
        const int64_t whole = rounded_up(panels, TILE_PANELS);
        for (int64_t i = 0; i < whole; ++i) {
            float* to = unpacked + i * DEPTH * PANEL;
            if (i < panels) source.unpack(panel + i, first, depth, to);
        }
        const int64_t tiles = blocks(rows, TILE_ROWS), across = whole / TILE_PANELS;
        const Ahead ahead = source.ahead(panel, panels, first + DEPTH);
        int64_t m = 0;
        for (int64_t tile = 0; tile < tiles; ++tile) {
            const int64_t here = blocks(rows - m, tiles - tile);  // 64 rows go as 11 + 11 + ..., not as 12 + ... + 4
            for (int64_t i = 0; i < across; ++i) {
                const Ahead next = ahead.share(tile * across + i, tiles * across);
                multiply_rest<TILE_ROWS>(here, x + m * stride + first, stride,
                                         unpacked + i * TILE_PANELS * DEPTH * PANEL, depth,
                                         out + m * width + i * TILE_PANELS * PANEL, width, first == 0, next);
            }
            m += here;
        }
    }
}

// x: floats; y and bias: of type T.
template <class Panels, class T>
static void multiply(const Panels& source, const float* x, int64_t stride, const T* bias, T* y, int64_t M, int64_t N,
                     int64_t K, int threads) {
    const int64_t all = blocks(N, PANEL), across = blocks(all, PANEL_BLOCK), down = blocks(M, ROW_BLOCK);
    parallel_for(across * down, threads, [&](int64_t task) {
        const int64_t panel = task % across * PANEL_BLOCK, row = task / across * ROW_BLOCK;
        const int64_t panels = smaller(PANEL_BLOCK, all - panel), rows = smaller(ROW_BLOCK, M - row);
        const int64_t width = PANEL_BLOCK * PANEL, columns = smaller(panels * PANEL, N - panel * PANEL);
        auto* unpacked = static_cast<float*>(scratch(2, PANEL_BLOCK * PANEL * DEPTH * 4));
        auto* out = static_cast<float*>(scratch(3, ROW_BLOCK * width * 4));
        multiply_block(source, x + row * stride, stride, K, rows, panel, panels, unpacked, out);
        for (int64_t m = 0; m < rows; ++m)
            write_row(y + (row + m) * N + panel * PANEL, out + m * width, bias ? bias + panel * PANEL : nullptr,
                      columns);
    });
}

// Rows of x as floats, in memory of the calling thread.
template <class T>
static const float* widened(const T* x, int64_t stride, int64_t M, int64_t K, int64_t padded, int threads) {
    auto* wide = static_cast<float*>(scratch(0, M * padded * 4));
    parallel_for(M, threads, [&](int64_t m) { widen_row(wide + m * padded, x + m * stride, K, padded); });
    return wide;
}

static void many_rows(const Product& p) {
    if (p.dtype == FLOAT32) {
        const PlainPanels<float> source{static_cast<const float*>(p.weight), p.N, p.K};
        return multiply(source, static_cast<const float*>(p.x), p.stride, static_cast<const float*>(p.bias),
                        static_cast<float*>(p.y), p.M, p.N, p.K, p.threads);
    }
    const PlainPanels<uint16_t> source{static_cast<const uint16_t*>(p.weight), p.N, p.K};
    const float* x = widened(static_cast<const uint16_t*>(p.x), p.stride, p.M, p.K, p.K, p.threads);
    multiply(source, x, p.K, static_cast<const uint16_t*>(p.bias), static_cast<uint16_t*>(p.y), p.M, p.N, p.K,
             p.threads);
}
