// Vectors of NEON with dot products: 4 floats, 32 registers. See simd/vocabulary.md for what each name means.
constexpr int W = 4;
constexpr int REGISTERS = 32;

using F = float32x4_t;
using I = int32x4_t;
using Bytes = uint8x16_t;  // 4 bytes for each float of a vector

static inline F zero() { return vdupq_n_f32(0); }
static inline F set1(float x) { return vdupq_n_f32(x); }
static inline F load(const float* p) { return vld1q_f32(p); }
static inline void store(float* p, F x) { vst1q_f32(p, x); }
static inline F add(F a, F b) { return vaddq_f32(a, b); }
static inline F sub(F a, F b) { return vsubq_f32(a, b); }
static inline F mul(F a, F b) { return vmulq_f32(a, b); }
static inline F div(F a, F b) { return vdivq_f32(a, b); }
static inline F maximum(F a, F b) { return vmaxq_f32(a, b); }
static inline F minimum(F a, F b) { return vminq_f32(a, b); }
static inline F fma(F a, F b, F c) { return vfmaq_f32(c, a, b); }
static inline F absolute(F a) { return vabsq_f32(a); }
static inline F round_even(F a) { return vrndnq_f32(a); }
static inline float sum(F a) { return vaddvq_f32(a); }
// Adds the sum of each of four vectors to out[0 .. 3].
static inline void add_sums(const F (&a)[4], float* out) {
    const F sums = vpaddq_f32(vpaddq_f32(a[0], a[1]), vpaddq_f32(a[2], a[3]));
    vst1q_f32(out, vaddq_f32(vld1q_f32(out), sums));
}
static inline float largest(F a) { return vmaxvq_f32(a); }
static inline F power_of_two(F n) {
    return vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(vcvtnq_s32_f32(n), vdupq_n_s32(127)), 23));
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
    return vreinterpretq_f32_u32(vshlq_n_u32(vmovl_u16(vld1_u16(p)), 16));
}
static inline void store_bf16(uint16_t* p, F x) {
    const uint32x4_t bits = vreinterpretq_u32_f32(x);
    const uint32x4_t odd = vandq_u32(vshrq_n_u32(bits, 16), vdupq_n_u32(1));
    uint32x4_t rounded = vaddq_u32(bits, vaddq_u32(odd, vdupq_n_u32(0x7fff)));
    rounded = vbslq_u32(vceqq_f32(x, x), rounded, vdupq_n_u32(0x7fc00000));
    vst1_u16(p, vshrn_n_u32(rounded, 16));
}
static inline F load_f16(const uint16_t* p) { return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p))); }
static inline F load_u8(const uint8_t* p) {
    const float four[4] = {static_cast<float>(p[0]), static_cast<float>(p[1]), static_cast<float>(p[2]),
                           static_cast<float>(p[3])};
    return vld1q_f32(four);
}
static inline F load_s8(const int8_t* p) {
    const float four[4] = {static_cast<float>(p[0]), static_cast<float>(p[1]), static_cast<float>(p[2]),
                           static_cast<float>(p[3])};
    return vld1q_f32(four);
}
static inline void store_s8(int8_t* p, F whole) {
    const int16x4_t narrow = vqmovn_s32(vcvtnq_s32_f32(whole));
    const int8x8_t bytes = vqmovn_s16(vcombine_s16(narrow, narrow));
    vst1_lane_s32(reinterpret_cast<int32_t*>(p), vreinterpret_s32_s8(bytes), 0);
}
static inline void split_bf16(const uint16_t* p, F& even, F& odd) {
    const uint32x4_t both = vreinterpretq_u32_u16(vld1q_u16(p));
    even = vreinterpretq_f32_u32(vshlq_n_u32(both, 16));
    odd = vreinterpretq_f32_u32(vandq_u32(both, vdupq_n_u32(0xffff0000u)));
}

static inline Bytes load_bytes(const uint8_t* p) { return vld1q_u8(p); }
static inline Bytes low_nibbles(Bytes b) { return vandq_u8(b, vdupq_n_u8(15)); }
static inline Bytes high_nibbles(Bytes b) { return vshrq_n_u8(b, 4); }
template <int j>
static inline F widen(Bytes b) {
    const uint32x4_t four = vreinterpretq_u32_u8(b);
    const uint32x4_t moved = vshlq_u32(four, vdupq_n_s32(-8 * j));
    return vcvtq_f32_u32(vandq_u32(moved, vdupq_n_u32(255)));
}
template <int j>
static inline F widen_offset(Bytes b) {
    return sub(widen<j>(b), set1(128.0f));
}

static inline I all_counts(int32_t n) { return vdupq_n_s32(n); }
static inline F to_float(I a) { return vcvtq_f32_s32(a); }
static inline I four_inputs(const int8_t* x) {
    int32_t packed;
    __builtin_memcpy(&packed, x, 4);
    return vdupq_n_s32(packed);
}

constexpr int OFFSET = 0;  // signed times signed: nothing is counted too much
struct Weights8 {
    int8x16_t is_signed;
};
static inline Weights8 weights8(Bytes b) {
    return {vreinterpretq_s8_u8(veorq_u8(b, vdupq_n_u8(128)))};
}
static inline I dot8(I acc, Weights8 w, I x) { return vdotq_s32(acc, w.is_signed, vreinterpretq_s8_s32(x)); }
static inline I dot4(I acc, Bytes w, I x) {
    return vdotq_s32(acc, vreinterpretq_s8_u8(w), vreinterpretq_s8_s32(x));
}
static inline I settle4(I acc) { return acc; }
