// Vectors of AVX-512: 16 floats, 32 registers. See simd/vocabulary.md for what each name means.
constexpr int W = 16;
constexpr int REGISTERS = 32;

using F = __m512;
using I = __m512i;
using Bytes = __m512i;  // 4 bytes for each float of a vector

static inline F zero() { return _mm512_setzero_ps(); }
static inline F set1(float x) { return _mm512_set1_ps(x); }
static inline F load(const float* p) { return _mm512_loadu_ps(p); }
static inline void store(float* p, F x) { _mm512_storeu_ps(p, x); }
static inline F add(F a, F b) { return _mm512_add_ps(a, b); }
static inline F sub(F a, F b) { return _mm512_sub_ps(a, b); }
static inline F mul(F a, F b) { return _mm512_mul_ps(a, b); }
static inline F div(F a, F b) { return _mm512_div_ps(a, b); }
static inline F maximum(F a, F b) { return _mm512_max_ps(a, b); }
static inline F minimum(F a, F b) { return _mm512_min_ps(a, b); }
static inline F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
static inline F absolute(F a) { return _mm512_abs_ps(a); }
static inline F round_even(F a) { return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
static inline float sum(F a) { return _mm512_reduce_add_ps(a); }
// Adds the sum of each of four vectors to out[0 .. 3].
static inline void add_sums(const F (&a)[4], float* out) {
    const F first = _mm512_add_ps(_mm512_unpacklo_ps(a[0], a[1]), _mm512_unpackhi_ps(a[0], a[1]));
    const F second = _mm512_add_ps(_mm512_unpacklo_ps(a[2], a[3]), _mm512_unpackhi_ps(a[2], a[3]));
    const F lanes = _mm512_add_ps(_mm512_shuffle_ps(first, second, 0x44), _mm512_shuffle_ps(first, second, 0xee));
    const __m256 half = _mm256_add_ps(_mm512_castps512_ps256(lanes), _mm512_extractf32x8_ps(lanes, 1));
    const __m128 sums = _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
    _mm_storeu_ps(out, _mm_add_ps(_mm_loadu_ps(out), sums));
}
static inline float largest(F a) { return _mm512_reduce_max_ps(a); }
// 2 ** n for whole numbers n in -126 .. 127.
static inline F power_of_two(F n) {
    return _mm512_castsi512_ps(
        _mm512_slli_epi32(_mm512_add_epi32(_mm512_cvtps_epi32(n), _mm512_set1_epi32(127)), 23));
}

// W vectors as a square, turned on its side.
static inline void transpose(F (&a)[W]) {
    F b[W];
    for (int i = 0; i < 16; i += 2) {
        b[i] = _mm512_unpacklo_ps(a[i], a[i + 1]);
        b[i + 1] = _mm512_unpackhi_ps(a[i], a[i + 1]);
    }
    const auto low = [](F x, F y) {
        return _mm512_castpd_ps(_mm512_unpacklo_pd(_mm512_castps_pd(x), _mm512_castps_pd(y)));
    };
    const auto high = [](F x, F y) {
        return _mm512_castpd_ps(_mm512_unpackhi_pd(_mm512_castps_pd(x), _mm512_castps_pd(y)));
    };
    for (int i = 0; i < 16; i += 4) {  // a[i + j]: column j of each lane, of rows i .. i + 3
        a[i] = low(b[i], b[i + 2]);
        a[i + 1] = high(b[i], b[i + 2]);
        a[i + 2] = low(b[i + 1], b[i + 3]);
        a[i + 3] = high(b[i + 1], b[i + 3]);
    }
    for (int j = 0; j < 4; ++j) {  // lanes change places: even and odd ones, then halves
        b[j] = _mm512_shuffle_f32x4(a[j], a[4 + j], 0x88);
        b[4 + j] = _mm512_shuffle_f32x4(a[j], a[4 + j], 0xdd);
        b[8 + j] = _mm512_shuffle_f32x4(a[8 + j], a[12 + j], 0x88);
        b[12 + j] = _mm512_shuffle_f32x4(a[8 + j], a[12 + j], 0xdd);
    }
    for (int j = 0; j < 4; ++j) {
        a[j] = _mm512_shuffle_f32x4(b[j], b[8 + j], 0x88);
        a[8 + j] = _mm512_shuffle_f32x4(b[j], b[8 + j], 0xdd);
        a[4 + j] = _mm512_shuffle_f32x4(b[4 + j], b[12 + j], 0x88);
        a[12 + j] = _mm512_shuffle_f32x4(b[4 + j], b[12 + j], 0xdd);
    }
}

static inline F load_bf16(const uint16_t* p) {
    return _mm512_castsi512_ps(
        _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))), 16));
}
static inline void store_bf16(uint16_t* p, F x) {
    const __m512i bits = _mm512_castps_si512(x);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    const __mmask16 nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
    rounded = _mm512_mask_mov_epi32(rounded, nan, _mm512_set1_epi32(0x7fc00000));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded, 16)));
}
static inline F load_f16(const uint16_t* p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
static inline F load_u8(const uint8_t* p) {
    return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
}
static inline F load_s8(const int8_t* p) {
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
}
static inline void store_s8(int8_t* p, F whole) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtsepi32_epi8(_mm512_cvtps_epi32(whole)));
}
// 2 W values of bf16: those at even and those at odd places.
static inline void split_bf16(const uint16_t* p, F& even, F& odd) {
    const __m512i both = _mm512_loadu_si512(p);
    even = _mm512_castsi512_ps(_mm512_slli_epi32(both, 16));
    odd = _mm512_castsi512_ps(_mm512_and_si512(both, _mm512_set1_epi32(static_cast<int>(0xffff0000))));
}

#ifdef __AVX512BF16__
#define QVL_BF16_DOT 1
using Pairs = __m512bh;
static inline Pairs load_pairs(const uint16_t* p) { return (__m512bh)_mm512_loadu_si512(p); }
static inline F dot_bf16(F acc, Pairs a, Pairs b) { return _mm512_dpbf16_ps(acc, a, b); }
#endif

static inline Bytes load_bytes(const uint8_t* p) { return _mm512_loadu_si512(p); }
static inline Bytes low_nibbles(Bytes b) { return _mm512_and_si512(b, _mm512_set1_epi8(15)); }
static inline Bytes high_nibbles(Bytes b) {
    return _mm512_and_si512(_mm512_srli_epi16(b, 4), _mm512_set1_epi8(15));
}
// Byte j of every four, as floats: unsigned, or with 128 taken off.
template <int j>
static inline F widen(Bytes b) {
    return _mm512_cvtepi32_ps(_mm512_and_si512(_mm512_srli_epi32(b, 8 * j), _mm512_set1_epi32(255)));
}
template <int j>
static inline F widen_offset(Bytes b) {
    const __m512i is_signed = _mm512_xor_si512(b, _mm512_set1_epi8(-128));
    return _mm512_cvtepi32_ps(_mm512_srai_epi32(_mm512_slli_epi32(is_signed, 24 - 8 * j), 24));
}

static inline I all_counts(int32_t n) { return _mm512_set1_epi32(n); }
static inline F to_float(I a) { return _mm512_cvtepi32_ps(a); }
static inline I four_inputs(const int8_t* x) {
    int32_t packed;
    __builtin_memcpy(&packed, x, 4);
    return _mm512_set1_epi32(packed);
}

#ifdef __AVX512VNNI__
constexpr int OFFSET = 128;  // what the products of 8-bit weights count too much, per unit of x
struct Weights8 {
    __m512i bytes;
};
static inline Weights8 weights8(Bytes b) { return {b}; }
static inline I dot8(I acc, Weights8 w, I x) { return _mm512_dpbusd_epi32(acc, w.bytes, x); }
static inline I dot4(I acc, Bytes w, I x) { return _mm512_dpbusd_epi32(acc, w, x); }
static inline I settle4(I acc) { return acc; }
#else
constexpr int OFFSET = 0;
// There is no byte product of two signed numbers: the sign of the weight goes to the input.
struct Weights8 {
    __m512i size;
    __mmask64 negative;
};
static inline Weights8 weights8(Bytes b) {
    const __m512i is_signed = _mm512_xor_si512(b, _mm512_set1_epi8(-128));
    return {_mm512_abs_epi8(is_signed), _mm512_movepi8_mask(is_signed)};
}
static inline I dot8(I acc, Weights8 w, I x) {
    const __m512i turned = _mm512_mask_sub_epi8(x, w.negative, _mm512_setzero_si512(), x);
    const __m512i pairs = _mm512_maddubs_epi16(w.size, turned);
    return _mm512_add_epi32(acc, _mm512_madd_epi16(pairs, _mm512_set1_epi16(1)));
}
// Sums of 16 bits: a group of 32 inputs adds up to at most 8 * 2 * 15 * 127 = 30,480.
static inline I dot4(I acc, Bytes w, I x) { return _mm512_add_epi16(acc, _mm512_maddubs_epi16(w, x)); }
static inline I settle4(I acc) { return _mm512_madd_epi16(acc, _mm512_set1_epi16(1)); }
#endif
