// Weights of 8 and 4 bits. Included inside the namespace of one instruction set.
//
// `quantized`: the inputs are quantized too, per row and group of 32, and multiplied as bytes; the sums of a group
// are exact integers. `exact`: the inputs stay floats, the weights widen in registers. The layout (panels of 16
// outputs, 4 inputs of an output side by side) lets one load feed a byte product of every instruction set; it is
// described in qvl/ops/quantized.py.

constexpr int64_t GROUP = 32;  // inputs that share a scale

// Rows of x as bytes. For each group: its scale, and the sum of its bytes (for zeros and offsets).
struct Inputs {
    int8_t* bytes;
    float* scales;
    int32_t* sums;
    int64_t padded;
    int64_t groups() const { return padded / GROUP; }
};

// What 32 numbers are divided by to fit a byte. NaN if one of them is no number or infinite: those would be lost among
// the bytes, the scale keeps them.
static inline float byte_step(const float* x) {
    F most = zero(), broken = zero();
    for (int64_t k = 0; k < GROUP; k += W) {
        most = maximum(most, absolute(load(x + k)));
        broken = fma(load(x + k), zero(), broken);
    }
    return (largest(most) + sum(broken)) / 127.0f;
}

static void quantize_group(const float* x, int8_t* bytes, float* scale, int32_t* total) {
    const float step = *scale = byte_step(x);
    const F by = set1(step > 0.0f ? step : 1.0f), end = set1(127.0f);
    for (int64_t k = 0; k < GROUP; k += W)
        store_s8(bytes + k, maximum(minimum(round_even(div(load(x + k), by)), end), sub(zero(), end)));
    int32_t count = 0;
    for (int64_t k = 0; k < GROUP; ++k) count += bytes[k];
    *total = count;
}

template <class T>
static Inputs quantized_inputs(const T* x, int64_t stride, int64_t M, int64_t K, int64_t padded, int threads) {
    Inputs to{static_cast<int8_t*>(scratch(0, M * padded)), static_cast<float*>(scratch(4, M * padded / GROUP * 4)),
              static_cast<int32_t*>(scratch(5, M * padded / GROUP * 4)), padded};
    const int64_t groups = to.groups();
    parallel_for(M, M > 4 ? threads : 1, [&](int64_t m) {
        float row[GROUP];
        for (int64_t g = 0; g < groups; ++g) {
            const int64_t first = g * GROUP;
            widen_row(row, x + m * stride + first, first < K ? smaller(GROUP, K - first) : 0, GROUP);
            quantize_group(row, to.bytes + m * padded + first, to.scales + m * groups + g, to.sums + m * groups + g);
        }
    });
    return to;
}

// As many rows and vectors of outputs at once as the registers hold, integer and float sums: 6 x 2 and 6 x 2 where a
// panel is a vector, so that two panels share what is read of x; one vector at a time where registers are few.
constexpr int BYTE_PANELS = W == 16 ? 2 : 1;
constexpr int BYTE_VECTORS = REGISTERS == 32 ? VECTORS : 1;
constexpr int BYTE_ROWS = W == 16 ? 6 : (REGISTERS == 32 ? 2 : 4);
// Up to 8 rows of 8-bit weights go together all the same: the integer sums of a group only for half of them at a time,
// and the second half finds the group's weights in the nearest cache.
constexpr int MOST_ROWS = W == 16 ? 8 : BYTE_ROWS;

static inline int64_t rows_at_once(const QuantizedProduct& p) {
    return p.bits == 8 && p.M <= MOST_ROWS ? MOST_ROWS : BYTE_ROWS;
}

// Where a tile's NV vectors of outputs lie: in one panel from vector `first` on, or in panels side by side.
struct Place {
    int64_t panel_bytes;   // of weights, from one panel to the next
    int64_t panel_scales;  // scales (and zeros)
    int64_t bytes(int v) const { return v / VECTORS * panel_bytes + v % VECTORS * W * 4; }
    int64_t scales(int v) const { return v / VECTORS * panel_scales + v % VECTORS * W; }
    // Asks memory for what the tile after the next would wait for: the same place in the panels that follow.
    void ask(const uint8_t* weight, int v) const { __builtin_prefetch(weight + bytes(v) + BYTE_PANELS * panel_bytes, 0, 2); }
};

// What a group of inputs is multiplied with: 8 steps of 4 inputs, NV vectors of outputs, MR rows.
template <int MR, int NV, bool ahead>
static inline void count8(const uint8_t* weight, const Place& place, const Inputs& in, const int8_t* bytes,
                          I (&count)[MR][NV]) {
    for (int64_t s = 0; s < GROUP / 4; ++s) {
        Weights8 w[NV];
        for (int v = 0; v < NV; ++v) w[v] = weights8(load_bytes(weight + place.bytes(v) + s * PANEL * 4));
        if (ahead)
            for (int v = 0; v < NV; ++v) place.ask(weight + s * PANEL * 4, v);
        for (int m = 0; m < MR; ++m) {
            const I x = four_inputs(bytes + m * in.padded + s * 4);
            for (int v = 0; v < NV; ++v) count[m][v] = dot8(count[m][v], w[v], x);
        }
    }
}

template <int MR, int NV, bool ahead>
static inline void count4(const uint8_t* weight, const Place& place, const Inputs& in, const int8_t* bytes,
                          I (&count)[MR][NV]) {
    for (int64_t s = 0; s < GROUP / 8; ++s) {
        Bytes low[NV], high[NV];
        for (int v = 0; v < NV; ++v) {
            const Bytes both = load_bytes(weight + place.bytes(v) + s * PANEL * 4);
            low[v] = low_nibbles(both);
            high[v] = high_nibbles(both);
            if (ahead) place.ask(weight + s * PANEL * 4, v);
        }
        for (int m = 0; m < MR; ++m) {
            const int8_t* x = bytes + m * in.padded + s * 8;
            const I first = four_inputs(x), second = four_inputs(x + 4);
            for (int v = 0; v < NV; ++v) count[m][v] = dot4(dot4(count[m][v], low[v], first), high[v], second);
        }
    }
    for (int m = 0; m < MR; ++m)
        for (int v = 0; v < NV; ++v) count[m][v] = settle4(count[m][v]);
}

// One group of 8-bit weights times rows FROM .. FROM + MR, added to acc. `g` is the group's number in `in`.
template <int FROM, int MR, int ROWS, int NV, bool ahead>
static inline void add_counts8(const uint8_t* weight, const F (&scale)[NV], const Place& place, const Inputs& in,
                               int64_t row, int64_t g, F (&acc)[ROWS][NV]) {
    const float* turns = in.scales + (row + FROM) * in.groups() + g;
    const int32_t* sums = in.sums + (row + FROM) * in.groups() + g;
    I count[MR][NV];
    for (int m = 0; m < MR; ++m)
        for (int v = 0; v < NV; ++v) count[m][v] = all_counts(-OFFSET * sums[m * in.groups()]);
    count8<MR, NV, ahead>(weight, place, in, in.bytes + (row + FROM) * in.padded + g * GROUP, count);
    for (int m = 0; m < MR; ++m) {
        const F turn = set1(turns[m * in.groups()]);
        for (int v = 0; v < NV; ++v)
            acc[FROM + m][v] = fma(to_float(count[m][v]), mul(scale[v], turn), acc[FROM + m][v]);
    }
}

template <int MR, int NV, bool ahead>
static inline void add_group8(const uint8_t* weight, const uint16_t* scales, const Place& place, const Inputs& in,
                              int64_t row, int64_t g, F (&acc)[MR][NV]) {
    constexpr int FIRST = MR > BYTE_ROWS ? (MR + 1) / 2 : MR;
    F scale[NV];
    for (int v = 0; v < NV; ++v) scale[v] = load_f16(scales + place.scales(v));
    add_counts8<0, FIRST, MR, NV, ahead>(weight, scale, place, in, row, g, acc);
    if constexpr (FIRST < MR) add_counts8<FIRST, MR - FIRST, MR, NV, false>(weight, scale, place, in, row, g, acc);
}

// The same for 4-bit weights: a group of `size` inputs has size / 32 scales of inputs.
template <int MR, int NV, bool ahead>
static inline void add_group4(const uint8_t* weight, const uint16_t* scales, const uint8_t* zeros, int64_t size,
                              const Place& place, const Inputs& in, int64_t row, int64_t g, F (&acc)[MR][NV]) {
    F scale[NV];
    for (int v = 0; v < NV; ++v) scale[v] = load_f16(scales + place.scales(v));
    float shift[MR] = {};
    for (int64_t part = 0; part < size / GROUP; ++part) {
        const float* turns = in.scales + row * in.groups() + g + part;
        const int32_t* sums = in.sums + row * in.groups() + g + part;
        I count[MR][NV];
        for (int m = 0; m < MR; ++m)
            for (int v = 0; v < NV; ++v) count[m][v] = all_counts(0);
        count4<MR, NV, ahead>(weight + part * GROUP / 8 * PANEL * 4, place, in,
                              in.bytes + row * in.padded + (g + part) * GROUP, count);
        for (int m = 0; m < MR; ++m) {
            const F turn = set1(turns[m * in.groups()]);
            shift[m] -= turns[m * in.groups()] * static_cast<float>(sums[m * in.groups()]);
            for (int v = 0; v < NV; ++v) acc[m][v] = fma(to_float(count[m][v]), mul(scale[v], turn), acc[m][v]);
        }
    }
    for (int v = 0; v < NV; ++v) {
        const F offset = mul(scale[v], load_u8(zeros + place.scales(v)));
        for (int m = 0; m < MR; ++m) acc[m][v] = fma(offset, set1(shift[m]), acc[m][v]);
    }
}

// MR rows times NV vectors of outputs, from vector `first` of a panel on, over all of K, into out (rows `OUT` apart).
template <int MR, int NV, bool ahead>
static inline void quantized_tile(const QuantizedProduct& p, int64_t panel, int first, const Inputs& in, int64_t m,
                                  float* out) {
    const int64_t count = in.padded / p.group, block = p.group * PANEL * p.bits / 8;
    const Place place{count * block, count * PANEL};
    const uint8_t* weight = p.weight + panel * count * block + first * W * 4;
    const uint16_t* scales = p.scales + panel * count * PANEL + first * W;
    F acc[MR][NV];
    for (int i = 0; i < MR; ++i)
        for (int j = 0; j < NV; ++j) acc[i][j] = zero();
    if (p.bits == 8) {
        for (int64_t g = 0; g < count; ++g)
            add_group8<MR, NV, ahead>(weight + g * block, scales + g * PANEL, place, in, m, g, acc);
    } else {
        const uint8_t* zeros = p.zeros + panel * count * PANEL + first * W;
        for (int64_t g = 0; g < count; ++g)
            add_group4<MR, NV, ahead>(weight + g * block, scales + g * PANEL, zeros + g * PANEL, p.group, place, in, m,
                               g * (p.group / GROUP), acc);
    }
    for (int i = 0; i < MR; ++i)
        for (int j = 0; j < NV; ++j) store(out + i * BYTE_PANELS * PANEL + j * W, acc[i][j]);
}

template <int MR, int NV, bool ahead>
static inline void quantized_rows(const QuantizedProduct& p, int64_t panel, int first, const Inputs& in, int64_t m,
                                  int64_t rows, float* out) {
    if (rows == MR) return quantized_tile<MR, NV, ahead>(p, panel, first, in, m, out);
    if constexpr (MR > 1) quantized_rows<MR - 1, NV, ahead>(p, panel, first, in, m, rows, out);
}

// `rows` rows times some panels side by side. One or two rows wait for memory, which likes a single stream best.
static void quantized_panels(const QuantizedProduct& p, int64_t panel, int64_t panels, const Inputs& in, int64_t m,
                             int64_t rows, float* out) {
    if (BYTE_PANELS > 1 && panels == BYTE_PANELS && rows > 2)
        return (m ? quantized_rows<MOST_ROWS, BYTE_PANELS * VECTORS, false>
                  : quantized_rows<MOST_ROWS, BYTE_PANELS * VECTORS, true>)(p, panel, 0, in, m, rows, out);
    for (int64_t i = 0; i < panels; ++i, out += PANEL) {
        if (rows == 1)
            quantized_tile<1, VECTORS, false>(p, panel + i, 0, in, m, out);
        else
            for (int v = 0; v < VECTORS; v += BYTE_VECTORS)
                quantized_rows<MOST_ROWS, BYTE_VECTORS, false>(p, panel + i, v, in, m, rows, out + v * W);
    }
}

template <class T>
static void quantized_of(const QuantizedProduct& p) {
    const int64_t padded = rounded_up(p.K, p.group), panels = blocks(p.N, PANEL);
    const Inputs in = quantized_inputs(static_cast<const T*>(p.x), p.stride, p.M, p.K, padded, p.threads);
    const auto* bias = static_cast<const T*>(p.bias);
    auto* y = static_cast<T*>(p.y);
    const int64_t together = 4;  // panels of a task
    parallel_for(blocks(panels, together), p.threads, [&](int64_t task) {
        float out[MOST_ROWS * BYTE_PANELS * PANEL];
        const int64_t end = smaller(panels, (task + 1) * together);
        for (int64_t panel = task * together; panel < end; panel += BYTE_PANELS) {
            const int64_t here = smaller(BYTE_PANELS, end - panel), passes = blocks(p.M, rows_at_once(p));
            const int64_t first = panel * PANEL, columns = smaller(here * PANEL, p.N - first);
            int64_t m = 0;
            for (int64_t pass = 0; pass < passes; ++pass) {
                const int64_t rows = blocks(p.M - m, passes - pass);  // 8 rows go as 4 + 4, not as 6 + 2
                quantized_panels(p, panel, here, in, m, rows, out);
                for (int64_t i = 0; i < rows; ++i)
                    write_row(y + (m + i) * p.N + first, out + i * BYTE_PANELS * PANEL, bias ? bias + first : nullptr,
                              columns);
                m += rows;
            }
        }
    });
}

static void quantized(const QuantizedProduct& p) {
    if (p.dtype == FLOAT32) return quantized_of<float>(p);
    quantized_of<uint16_t>(p);
}
