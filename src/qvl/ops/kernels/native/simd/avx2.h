// Vectors of AVX2: 8 floats, 16 registers. See simd/vocabulary.md for what each name means.
constexpr int W = 8;
constexpr int REGISTERS = 16;

using F = __m256;
using I = __m256i;
using Bytes = __m256i;  // 4 bytes for each float of a vector

static inline F zero() { return _mm256_setzero_ps(); }
static inline F set1(float x) { return _mm256_set1_ps(x); }
static inline F load(const float* p) { return _mm256_loadu_ps(p); }
static inline void store(float* p, F x) { _mm256_storeu_ps(p, x); }
static inline F add(F a, F b) { return _mm256_add_ps(a, b); }
static inline F sub(F a, F b) { return _mm256_sub_ps(a, b); }
static inline F mul(F a, F b) { return _mm256_mul_ps(a, b); }
static inline F div(F a, F b) { return _mm256_div_ps(a, b); }
static inline F maximum(F a, F b) { return _mm256_max_ps(a, b); }
static inline F minimum(F a, F b) { return _mm256_min_ps(a, b); }
static inline F fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
static inline F absolute(F a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a); }
static inline F round_even(F a) { return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
static inline float sum(F a) {
    __m128 half = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    half = _mm_add_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_add_ss(half, _mm_movehdup_ps(half)));
}
// Adds the sum of each of four vectors to out[0 .. 3].
static inline void add_sums(const F (&a)[4], float* out) {
    const F lanes = _mm256_hadd_ps(_mm256_hadd_ps(a[0], a[1]), _mm256_hadd_ps(a[2], a[3]));
    const __m128 sums = _mm_add_ps(_mm256_castps256_ps128(lanes), _mm256_extractf128_ps(lanes, 1));
    _mm_storeu_ps(out, _mm_add_ps(_mm_loadu_ps(out), sums));
}
static inline float largest(F a) {
    __m128 half = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    half = _mm_max_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_max_ss(half, _mm_movehdup_ps(half)));
}
static inline F power_of_two(F n) {
    return _mm256_castsi256_ps(
        _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23));
}

// W vectors as a square, turned on its side.
static inline void transpose(F (&a)[W]) {
    F b[W];
    for (int i = 0; i < 8; i += 2) {
        b[i] = _mm256_unpacklo_ps(a[i], a[i + 1]);
        b[i + 1] = _mm256_unpackhi_ps(a[i], a[i + 1]);
    }
    for (int i = 0; i < 8; i += 4) {  // a[i + j]: column j of each half, of rows i .. i + 3
        a[i] = _mm256_shuffle_ps(b[i], b[i + 2], 0x44);
        a[i + 1] = _mm256_shuffle_ps(b[i], b[i + 2], 0xee);
        a[i + 2] = _mm256_shuffle_ps(b[i + 1], b[i + 3], 0x44);
        a[i + 3] = _mm256_shuffle_ps(b[i + 1], b[i + 3], 0xee);
    }
    for (int j = 0; j < 4; ++j) {
        const F first = a[j], second = a[4 + j];
        a[j] = _mm256_permute2f128_ps(first, second, 0x20);
        a[4 + j] = _mm256_permute2f128_ps(first, second, 0x31);
    }
}

static inline F load_bf16(const uint16_t* p) {
    return _mm256_castsi256_ps(
        _mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))), 16));
}
static inline void store_bf16(uint16_t* p, F x) {
    const __m256i bits = _mm256_castps_si256(x);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    __m256i rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    const __m256 nan = _mm256_cmp_ps(x, x, _CMP_UNORD_Q);
    rounded = _mm256_castps_si256(_mm256_blendv_ps(
        _mm256_castsi256_ps(rounded), _mm256_castsi256_ps(_mm256_set1_epi32(0x7fc00000)), nan));
    const __m256i high = _mm256_srli_epi32(rounded, 16);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p),
                     _mm_packus_epi32(_mm256_castsi256_si128(high), _mm256_extracti128_si256(high, 1)));
}
static inline F load_f16(const uint16_t* p) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
static inline F load_u8(const uint8_t* p) {
    return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
}
static inline F load_s8(const int8_t* p) {
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
}
static inline void store_s8(int8_t* p, F whole) {
    const __m256i wide = _mm256_cvtps_epi32(whole);
    const __m128i half = _mm_packs_epi32(_mm256_castsi256_si128(wide), _mm256_extracti128_si256(wide, 1));
    _mm_storel_epi64(reinterpret_cast<__m128i*>(p), _mm_packs_epi16(half, half));
}
static inline void split_bf16(const uint16_t* p, F& even, F& odd) {
    const __m256i both = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    even = _mm256_castsi256_ps(_mm256_slli_epi32(both, 16));
    odd = _mm256_castsi256_ps(_mm256_and_si256(both, _mm256_set1_epi32(static_cast<int>(0xffff0000))));
}

static inline Bytes load_bytes(const uint8_t* p) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
}
static inline Bytes low_nibbles(Bytes b) { return _mm256_and_si256(b, _mm256_set1_epi8(15)); }
static inline Bytes high_nibbles(Bytes b) {
    return _mm256_and_si256(_mm256_srli_epi16(b, 4), _mm256_set1_epi8(15));
}
template <int j>
static inline F widen(Bytes b) {
    return _mm256_cvtepi32_ps(_mm256_and_si256(_mm256_srli_epi32(b, 8 * j), _mm256_set1_epi32(255)));
}
template <int j>
static inline F widen_offset(Bytes b) {
    const __m256i is_signed = _mm256_xor_si256(b, _mm256_set1_epi8(-128));
    return _mm256_cvtepi32_ps(_mm256_srai_epi32(_mm256_slli_epi32(is_signed, 24 - 8 * j), 24));
}

static inline I all_counts(int32_t n) { return _mm256_set1_epi32(n); }
static inline F to_float(I a) { return _mm256_cvtepi32_ps(a); }
static inline I four_inputs(const int8_t* x) {
    int32_t packed;
    __builtin_memcpy(&packed, x, 4);
    return _mm256_set1_epi32(packed);
}

#ifdef __AVXVNNI__
constexpr int OFFSET = 128;  // what the products of 8-bit weights count too much, per unit of x
struct Weights8 {
    __m256i bytes;
};
static inline Weights8 weights8(Bytes b) { return {b}; }
static inline I dot8(I acc, Weights8 w, I x) { return _mm256_dpbusd_avx_epi32(acc, w.bytes, x); }
static inline I dot4(I acc, Bytes w, I x) { return _mm256_dpbusd_avx_epi32(acc, w, x); }
static inline I settle4(I acc) { return acc; }
#else
constexpr int OFFSET = 0;
// There is no byte product of two signed numbers: the sign of the weight goes to the input.
struct Weights8 {
    __m256i is_signed, size;
};
static inline Weights8 weights8(Bytes b) {
    const __m256i is_signed = _mm256_xor_si256(b, _mm256_set1_epi8(-128));
    return {is_signed, _mm256_abs_epi8(is_signed)};
}
static inline I dot8(I acc, Weights8 w, I x) {
    const __m256i pairs = _mm256_maddubs_epi16(w.size, _mm256_sign_epi8(x, w.is_signed));
    return _mm256_add_epi32(acc, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}
// Sums of 16 bits: a group of 32 inputs adds up to at most 8 * 2 * 15 * 127 = 30,480.
static inline I dot4(I acc, Bytes w, I x) { return _mm256_add_epi16(acc, _mm256_maddubs_epi16(w, x)); }
static inline I settle4(I acc) { return _mm256_madd_epi16(acc, _mm256_set1_epi16(1)); }
#endif
