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

// Infinity and NaN make the scale NaN, so that they are not lost among the bytes.
static void quantize_group(const float* x, int8_t* bytes, float* scale, int32_t* total) {
    F most = zero(), poison = zero();
    for (int64_t k = 0; k < GROUP; k += W) {
        most = maximum(most, absolute(load(x + k)));
        poison = fma(load(x + k), zero(), poison);
    }
    const float step = largest(most) / 127.0f;
    *scale = step + sum(poison);
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

// One group of 8-bit weights, NV vectors of outputs from `first` on, times MR rows: floats added to acc.
template <int MR, int NV>
static inline void add_group8(const uint8_t* weight, const uint16_t* scales, const Inputs& in, const int8_t* bytes,
                              const float* in_scales, const int32_t* sums, F (&acc)[MR][NV]) {
    I count[MR][NV];
    for (int m = 0; m < MR; ++m)
        for (int v = 0; v < NV; ++v) count[m][v] = no_count();
    for (int64_t s = 0; s < GROUP / 4; ++s) {
        Weights8 w[NV];
        for (int v = 0; v < NV; ++v)
            w[v] = weights8(load_bytes(weight + s * PANEL * 4 + v * W * 4));
        for (int m = 0; m < MR; ++m) {
            const I x = four_inputs(bytes + m * in.padded + s * 4);
            for (int v = 0; v < NV; ++v) count[m][v] = dot8(count[m][v], w[v], x);
        }
    }
    F scale[NV];
    for (int v = 0; v < NV; ++v) scale[v] = load_f16(scales + v * W);
    const int64_t groups = in.groups();
    for (int m = 0; m < MR; ++m) {
        const F turn = set1(in_scales[m * groups]);
        const F excess = set1(static_cast<float>(OFFSET * sums[m * groups]));
        for (int v = 0; v < NV; ++v) {
            const F product = OFFSET ? sub(to_float(count[m][v]), excess) : to_float(count[m][v]);
            acc[m][v] = fma(product, mul(scale[v], turn), acc[m][v]);
        }
    }
}

// The same for 4-bit weights: a group of `size` inputs has size / 32 scales of inputs.
template <int MR, int NV>
static inline void add_group4(const uint8_t* weight, const uint16_t* scales, const uint8_t* zeros, int64_t size,
                              const Inputs& in, const int8_t* bytes, const float* in_scales, const int32_t* sums,
                              F (&acc)[MR][NV]) {
    const int64_t groups = in.groups();
    F scale[NV], offset[NV];
    for (int v = 0; v < NV; ++v) {
        scale[v] = load_f16(scales + v * W);
        offset[v] = mul(scale[v], load_u8(zeros + v * W));
    }
    for (int64_t part = 0; part < size / GROUP; ++part) {
        I count[MR][NV];
        for (int m = 0; m < MR; ++m)
            for (int v = 0; v < NV; ++v) count[m][v] = no_count();
        for (int64_t s = 0; s < GROUP / 8; ++s) {
            Bytes both[NV];
            for (int v = 0; v < NV; ++v)
                both[v] = load_bytes(weight + (part * GROUP / 8 + s) * PANEL * 4 + v * W * 4);
            for (int m = 0; m < MR; ++m) {
                const int8_t* x = bytes + m * in.padded + part * GROUP + s * 8;
                const I low = four_inputs(x), high = four_inputs(x + 4);
                for (int v = 0; v < NV; ++v) {
                    count[m][v] = dot4(count[m][v], low_nibbles(both[v]), low);
                    count[m][v] = dot4(count[m][v], high_nibbles(both[v]), high);
                }
            }
        }
        for (int m = 0; m < MR; ++m) {
            const float turn = in_scales[m * groups + part];
            const F shift = set1(-turn * static_cast<float>(sums[m * groups + part])), by = set1(turn);
            for (int v = 0; v < NV; ++v) {
                acc[m][v] = fma(to_float(settle4(count[m][v])), mul(scale[v], by), acc[m][v]);
                acc[m][v] = fma(offset[v], shift, acc[m][v]);
            }
        }
    }
}

// MR rows times NV vectors of outputs of one panel, over all of K, into out (rows PANEL apart).
template <int MR, int NV>
static inline void quantized_tile(const QuantizedProduct& p, int64_t panel, int v, const Inputs& in, int64_t m,
                                  float* out) {
    const int64_t size = p.group, count = in.padded / size, block = size * PANEL * p.bits / 8;
    const int64_t groups = in.groups();
    F acc[MR][NV];
    for (int i = 0; i < MR; ++i)
        for (int j = 0; j < NV; ++j) acc[i][j] = zero();
    const uint8_t* weight = p.weight + panel * count * block + v * W * 4;
    const uint16_t* scales = p.scales + panel * count * PANEL + v * W;
    const int8_t* bytes = in.bytes + m * in.padded;
    if (p.bits == 8) {
        for (int64_t g = 0; g < count; ++g)
            add_group8<MR, NV>(weight + g * block, scales + g * PANEL, in, bytes + g * GROUP,
                               in.scales + m * groups + g, in.sums + m * groups + g, acc);
    } else {
        const uint8_t* zeros = p.zeros + panel * count * PANEL + v * W;
        for (int64_t g = 0; g < count; ++g)
            add_group4<MR, NV>(weight + g * block, scales + g * PANEL, zeros + g * PANEL, size, in, bytes + g * size,
                               in.scales + m * groups + g * (size / GROUP), in.sums + m * groups + g * (size / GROUP),
                               acc);
    }
    for (int i = 0; i < MR; ++i)
        for (int j = 0; j < NV; ++j) store(out + i * PANEL + j * W, acc[i][j]);
}

// As many rows at once as the registers hold: 16 integer and 16 float sums, or 4 and 4 where there are half as many
// registers (then one vector of outputs at a time, except for a single row).
constexpr int BYTE_VECTORS = REGISTERS == 32 ? VECTORS : 1;
constexpr int BYTE_ROWS = W == 16 ? 8 : (REGISTERS == 32 ? 2 : 4);

template <int MR>
static inline void quantized_rows(const QuantizedProduct& p, int64_t panel, const Inputs& in, int64_t m,
                                  int64_t rows, float* out) {
    if (rows == MR) {
        if (MR == 1) return quantized_tile<1, VECTORS>(p, panel, 0, in, m, out);
        for (int v = 0; v < VECTORS; v += BYTE_VECTORS)
            quantized_tile<MR, BYTE_VECTORS>(p, panel, v, in, m, out + v * W);
        return;
    }
    if constexpr (MR > 1) quantized_rows<MR - 1>(p, panel, in, m, rows, out);
}

template <class T>
static void quantized_of(const QuantizedProduct& p) {
    const int64_t padded = rounded_up(p.K, p.group), panels = blocks(p.N, PANEL);
    const Inputs in = quantized_inputs(static_cast<const T*>(p.x), p.stride, p.M, p.K, padded, p.threads);
    const auto* bias = static_cast<const T*>(p.bias);
    auto* y = static_cast<T*>(p.y);
    const int64_t together = 4;  // panels of a task
    parallel_for(blocks(panels, together), p.threads, [&](int64_t task) {
        float out[BYTE_ROWS * PANEL];
        for (int64_t panel = task * together; panel < smaller(panels, (task + 1) * together); ++panel) {
            const int64_t first = panel * PANEL, columns = smaller(PANEL, p.N - first);
            for (int64_t m = 0; m < p.M; m += BYTE_ROWS) {
                const int64_t rows = smaller(BYTE_ROWS, p.M - m);
                quantized_rows<BYTE_ROWS>(p, panel, in, m, rows, out);
                for (int64_t i = 0; i < rows; ++i)
                    write_row(y + (m + i) * p.N + first, out + i * PANEL, bias ? bias + first : nullptr, columns);
            }
        }
    });
}

static void quantized(const QuantizedProduct& p) {
    if (p.dtype == FLOAT32) return quantized_of<float>(p);
    quantized_of<uint16_t>(p);
}
