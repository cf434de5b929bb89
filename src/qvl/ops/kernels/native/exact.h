// Weights of 8 and 4 bits times inputs as they are. Included inside the namespace of one instruction set.
//
// Few rows: every weight is widened once in a register and multiplied with each row. Many rows: panels are widened
// to memory and go the way of plain weights.

template <int bits>
static inline F widen_at(int j, Bytes b) {
    switch (j) {
        case 0: return bits == 8 ? widen_offset<0>(b) : widen<0>(b);
        case 1: return bits == 8 ? widen_offset<1>(b) : widen<1>(b);
        case 2: return bits == 8 ? widen_offset<2>(b) : widen<2>(b);
        default: return bits == 8 ? widen_offset<3>(b) : widen<3>(b);
    }
}

// The 4 inputs that `quad` stands for (a count from the start of the group), of vector v of the outputs.
template <int bits>
static inline Bytes quad_at(const uint8_t* weight, int64_t quad, int v) {
    if (bits == 8) return load_bytes(weight + quad * PANEL * 4 + v * W * 4);
    const Bytes both = load_bytes(weight + quad / 2 * PANEL * 4 + v * W * 4);
    return quad % 2 ? high_nibbles(both) : low_nibbles(both);
}

template <int bits, int MR>
static inline void exact_tile(const QuantizedProduct& p, int64_t panel, const float* x, const float* sums,
                              int64_t padded, float* out) {
    const int64_t size = p.group, count = padded / size, block = size * PANEL * bits / 8;
    F acc[MR][VECTORS];
    for (int m = 0; m < MR; ++m)
        for (int v = 0; v < VECTORS; ++v) acc[m][v] = zero();
    for (int64_t g = 0; g < count; ++g) {
        const uint8_t* weight = p.weight + (panel * count + g) * block;
        F part[MR][VECTORS];
        for (int m = 0; m < MR; ++m)
            for (int v = 0; v < VECTORS; ++v) part[m][v] = zero();
        for (int64_t quad = 0; quad < size / 4; ++quad)
            for (int v = 0; v < VECTORS; ++v) {
                const Bytes b = quad_at<bits>(weight, quad, v);
                for (int j = 0; j < 4; ++j) {
                    const F w = widen_at<bits>(j, b);
                    for (int m = 0; m < MR; ++m)
                        part[m][v] = fma(w, set1(x[m * padded + g * size + quad * 4 + j]), part[m][v]);
                }
            }
        const int64_t place = (panel * count + g) * PANEL;
        for (int v = 0; v < VECTORS; ++v) {
            const F scale = load_f16(p.scales + place + v * W);
            const F offset = bits == 4 ? load_u8(p.zeros + place + v * W) : zero();
            for (int m = 0; m < MR; ++m) {
                const F shifted = bits == 4 ? sub(part[m][v], mul(offset, set1(sums[m * count + g]))) : part[m][v];
                acc[m][v] = fma(scale, shifted, acc[m][v]);
            }
        }
    }
    for (int m = 0; m < MR; ++m)
        for (int v = 0; v < VECTORS; ++v) store(out + m * PANEL + v * W, acc[m][v]);
}

constexpr int EXACT_ROWS = W == 16 ? 8 : (REGISTERS == 32 ? 2 : 3);

template <int bits, int MR>
static inline void exact_rows(const QuantizedProduct& p, int64_t panel, const float* x, const float* sums,
                              int64_t padded, int64_t rows, float* out) {
    if (rows == MR) return exact_tile<bits, MR>(p, panel, x, sums, padded, out);
    if constexpr (MR > 1) exact_rows<bits, MR - 1>(p, panel, x, sums, padded, rows, out);
}

template <int bits, class T>
static void exact_few_of(const QuantizedProduct& p) {
    const int64_t padded = rounded_up(p.K, p.group), panels = blocks(p.N, PANEL), groups = padded / p.group;
    const float* x = widened(static_cast<const T*>(p.x), p.stride, p.M, p.K, padded, 1);
    auto* sums = static_cast<float*>(scratch(4, p.M * groups * 4));
    for (int64_t i = 0; i < p.M * groups; ++i) {
        float total = 0.0f;
        for (int64_t k = 0; k < p.group; ++k) total += x[i * p.group + k];
        sums[i] = total;
    }
    const auto* bias = static_cast<const T*>(p.bias);
    auto* y = static_cast<T*>(p.y);
    const int64_t together = 4;  // panels of a task
    parallel_for(blocks(panels, together), p.threads, [&](int64_t task) {
        float out[EXACT_ROWS * PANEL];
        for (int64_t panel = task * together; panel < smaller(panels, (task + 1) * together); ++panel) {
            const int64_t first = panel * PANEL, columns = smaller(PANEL, p.N - first);
            for (int64_t m = 0; m < p.M; m += EXACT_ROWS) {
                const int64_t rows = smaller(EXACT_ROWS, p.M - m);
                exact_rows<bits, EXACT_ROWS>(p, panel, x + m * padded, sums + m * groups, padded, rows, out);
                for (int64_t i = 0; i < rows; ++i)
                    write_row(y + (m + i) * p.N + first, out + i * PANEL, bias ? bias + first : nullptr, columns);
            }
        }
    });
}

static void exact_few_rows(const QuantizedProduct& p) {
    if (p.bits == 8) return p.dtype == FLOAT32 ? exact_few_of<8, float>(p) : exact_few_of<8, uint16_t>(p);
    return p.dtype == FLOAT32 ? exact_few_of<4, float>(p) : exact_few_of<4, uint16_t>(p);
}

template <int bits>
struct PackedPanels {
    const QuantizedProduct& p;
    Ahead ahead(int64_t, int64_t, int64_t) const { return {}; }  // few bytes, they come in time
    void unpack(int64_t panel, int64_t first, int64_t depth, float* out) const {
        const int64_t size = p.group, count = blocks(p.K, size), block = size * PANEL * bits / 8;
        for (int64_t k = 0; k < depth; k += size) {
            const int64_t g = panel * count + (first + k) / size;
            for (int v = 0; v < VECTORS; ++v) {
                const F scale = load_f16(p.scales + g * PANEL + v * W);
                const F zero_point = bits == 4 ? load_u8(p.zeros + g * PANEL + v * W) : zero();
                for (int64_t quad = 0; quad < size / 4; ++quad) {
                    const Bytes b = quad_at<bits>(p.weight + g * block, quad, v);
                    for (int j = 0; j < 4; ++j) {
                        const F w = bits == 4 ? sub(widen_at<bits>(j, b), zero_point) : widen_at<bits>(j, b);
                        store(out + (k + quad * 4 + j) * PANEL + v * W, mul(w, scale));
                    }
                }
            }
        }
    }
};

template <int bits, class T>
static void exact_many_of(const QuantizedProduct& p) {
    const auto* bias = static_cast<const T*>(p.bias);
    const PackedPanels<bits> source{p};
    // Floats need no copy; a panel may be unpacked past K, but is multiplied up to K only.
    const float* x;
    int64_t stride = p.K;
    if constexpr (sizeof(T) == 4) {
        x = static_cast<const float*>(p.x);
        stride = p.stride;
    } else {
        x = widened(static_cast<const T*>(p.x), p.stride, p.M, p.K, p.K, p.threads);
    }
    multiply(source, x, stride, bias, static_cast<T*>(p.y), p.M, p.N, p.K, p.threads);
}

static void exact_many_rows(const QuantizedProduct& p) {
    if (p.bits == 8) return p.dtype == FLOAT32 ? exact_many_of<8, float>(p) : exact_many_of<8, uint16_t>(p);
    return p.dtype == FLOAT32 ? exact_many_of<4, float>(p) : exact_many_of<4, uint16_t>(p);
}
