// "Vectors" of 4 floats in plain C++: the reference for the instruction sets, and what runs where none of them
// does. See simd/vocabulary.md for what each name means.
constexpr int W = 4;
constexpr int REGISTERS = 16;

struct F {
    float v[W];
};
struct I {
    int32_t v[W];
};
struct Bytes {
    uint8_t v[4 * W];
};

template <class Op>
static inline F each(Op op) {
    F r;
    for (int i = 0; i < W; ++i) r.v[i] = op(i);
    return r;
}
static inline float bits_to_float(uint32_t bits) {
    float x;
    std::memcpy(&x, &bits, 4);
    return x;
}
static inline uint32_t float_to_bits(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    return bits;
}
static inline float half_to_float(uint16_t half) {
    const uint32_t sign = static_cast<uint32_t>(half & 0x8000) << 16;
    const uint32_t exponent = (half >> 10) & 31, fraction = half & 1023;
    if (exponent == 31) return bits_to_float(sign | 0x7f800000 | (fraction << 13));
    if (exponent == 0) return std::ldexp(static_cast<float>(fraction), -24) * (sign ? -1.0f : 1.0f);
    return bits_to_float(sign | ((exponent + 112) << 23) | (fraction << 13));
}

static inline F set1(float x) { return each([&](int) { return x; }); }
static inline F zero() { return set1(0); }
static inline F load(const float* p) { return each([&](int i) { return p[i]; }); }
static inline void store(float* p, F x) { std::memcpy(p, x.v, sizeof x.v); }
static inline F add(F a, F b) { return each([&](int i) { return a.v[i] + b.v[i]; }); }
static inline F sub(F a, F b) { return each([&](int i) { return a.v[i] - b.v[i]; }); }
static inline F mul(F a, F b) { return each([&](int i) { return a.v[i] * b.v[i]; }); }
static inline F div(F a, F b) { return each([&](int i) { return a.v[i] / b.v[i]; }); }
static inline F maximum(F a, F b) { return each([&](int i) { return a.v[i] > b.v[i] ? a.v[i] : b.v[i]; }); }
static inline F minimum(F a, F b) { return each([&](int i) { return a.v[i] < b.v[i] ? a.v[i] : b.v[i]; }); }
static inline F fma(F a, F b, F c) { return each([&](int i) { return a.v[i] * b.v[i] + c.v[i]; }); }
static inline F absolute(F a) { return each([&](int i) { return std::fabs(a.v[i]); }); }
static inline F round_even(F a) { return each([&](int i) { return std::nearbyint(a.v[i]); }); }
static inline float sum(F a) { return (a.v[0] + a.v[2]) + (a.v[1] + a.v[3]); }
// Adds the sum of each of four vectors to out[0 .. 3].
static inline void add_sums(const F (&a)[4], float* out) {
    for (int i = 0; i < 4; ++i) out[i] += sum(a[i]);
}
static inline float largest(F a) {
    float most = a.v[0];
    for (int i = 1; i < W; ++i) most = a.v[i] > most ? a.v[i] : most;
    return most;
}
static inline F power_of_two(F n) {
    return each([&](int i) { return bits_to_float(static_cast<uint32_t>(static_cast<int>(n.v[i]) + 127) << 23); });
}

// W vectors as a square, turned on its side.
static inline void transpose(F (&a)[W]) {
    float cells[W][W];
    for (int i = 0; i < W; ++i) store(cells[i], a[i]);
    for (int i = 0; i < W; ++i) {
        float column[W];
        for (int j = 0; j < W; ++j) column[j] = cells[j][i];
        a[i] = load(column);
    }
}

static inline F load_bf16(const uint16_t* p) {
    return each([&](int i) { return bits_to_float(static_cast<uint32_t>(p[i]) << 16); });
}
static inline void store_bf16(uint16_t* p, F x) {
    for (int i = 0; i < W; ++i) {
        const uint32_t bits = float_to_bits(x.v[i]);
        const bool nan = x.v[i] != x.v[i];
        p[i] = nan ? 0x7fc0 : static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
    }
}
static inline F load_f16(const uint16_t* p) { return each([&](int i) { return half_to_float(p[i]); }); }
static inline F load_u8(const uint8_t* p) { return each([&](int i) { return static_cast<float>(p[i]); }); }
static inline F load_s8(const int8_t* p) { return each([&](int i) { return static_cast<float>(p[i]); }); }
static inline void store_s8(int8_t* p, F whole) {
    for (int i = 0; i < W; ++i) p[i] = static_cast<int8_t>(std::nearbyint(whole.v[i]));
}
static inline void split_bf16(const uint16_t* p, F& even, F& odd) {
    even = each([&](int i) { return bits_to_float(static_cast<uint32_t>(p[2 * i]) << 16); });
    odd = each([&](int i) { return bits_to_float(static_cast<uint32_t>(p[2 * i + 1]) << 16); });
}

static inline Bytes load_bytes(const uint8_t* p) {
    Bytes b;
    std::memcpy(b.v, p, sizeof b.v);
    return b;
}
static inline Bytes low_nibbles(Bytes b) {
    for (auto& x : b.v) x &= 15;
    return b;
}
static inline Bytes high_nibbles(Bytes b) {
    for (auto& x : b.v) x >>= 4;
    return b;
}
template <int j>
static inline F widen(Bytes b) {
    return each([&](int i) { return static_cast<float>(b.v[4 * i + j]); });
}
template <int j>
static inline F widen_offset(Bytes b) {
    return each([&](int i) { return static_cast<float>(b.v[4 * i + j]) - 128.0f; });
}

static inline I all_counts(int32_t n) {
    I r;
    for (auto& v : r.v) v = n;
    return r;
}
static inline F to_float(I a) { return each([&](int i) { return static_cast<float>(a.v[i]); }); }
static inline I four_inputs(const int8_t* x) {
    int32_t packed;
    std::memcpy(&packed, x, 4);
    I r;
    for (auto& v : r.v) v = packed;
    return r;
}

constexpr int OFFSET = 0;  // signed times signed: nothing is counted too much
struct Weights8 {
    int8_t v[4 * W];
};
static inline Weights8 weights8(Bytes b) {
    Weights8 w;
    for (int i = 0; i < 4 * W; ++i) w.v[i] = static_cast<int8_t>(b.v[i] - 128);
    return w;
}
template <class T>
static inline I dot_bytes(I acc, const T* w, I x) {
    const auto* inputs = reinterpret_cast<const int8_t*>(x.v);
    for (int i = 0; i < 4 * W; ++i) acc.v[i / 4] += static_cast<int>(w[i]) * inputs[i];
    return acc;
}
static inline I dot8(I acc, Weights8 w, I x) { return dot_bytes(acc, w.v, x); }
static inline I dot4(I acc, Bytes w, I x) { return dot_bytes(acc, w.v, x); }
static inline I settle4(I acc) { return acc; }
