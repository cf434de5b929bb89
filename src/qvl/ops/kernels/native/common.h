// Small things that every kernel uses. Included inside the namespace of one instruction set.

static inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }
static inline int64_t blocks(int64_t total, int64_t size) { return (total + size - 1) / size; }
static inline int64_t rounded_up(int64_t n, int64_t unit) { return blocks(n, unit) * unit; }

template <class T>
static inline F load_as_float(const T* p);
template <>
inline F load_as_float<float>(const float* p) { return load(p); }
template <>
inline F load_as_float<uint16_t>(const uint16_t* p) { return load_bf16(p); }
template <>
inline F load_as_float<int8_t>(const int8_t* p) { return load_s8(p); }

static inline float bf16_value(uint16_t bits) {
    const uint32_t wide = static_cast<uint32_t>(bits) << 16;
    float x;
    __builtin_memcpy(&x, &wide, 4);
    return x;
}
static inline float value(float x) { return x; }
static inline float value(uint16_t x) { return bf16_value(x); }
static inline float value(int8_t x) { return x; }
static inline void assign(float& place, float x) { place = x; }
static inline void assign(uint16_t& place, float x) {
    uint16_t out[W];
    store_bf16(out, set1(x));
    place = out[0];
}

template <class T>
static inline void store_as(T* p, F x);
template <>
inline void store_as<float>(float* p, F x) { store(p, x); }
template <>
inline void store_as<uint16_t>(uint16_t* p, F x) { store_bf16(p, x); }

// `count` floats into y, whatever its type; bias may be null.
template <class T>
static inline void write_row(T* y, const float* values, const T* bias, int64_t count) {
    int64_t i = 0;
    for (; i + W <= count; i += W) {
        F x = load(values + i);
        if (bias) x = add(x, load_as_float(bias + i));
        store_as(y + i, x);
    }
    for (; i < count; ++i) assign(y[i], values[i] + (bias ? value(bias[i]) : 0.0f));
}

// A row of x as floats, padded with zeros to `padded`.
template <class T>
static inline void widen_row(float* to, const T* from, int64_t count, int64_t padded) {
    int64_t i = 0;
    for (; i + W <= count; i += W) store(to + i, load_as_float(from + i));
    for (; i < count; ++i) to[i] = value(from[i]);
    for (; i < padded; ++i) to[i] = 0.0f;
}
