// What one instruction set offers: a table of functions, filled once for each (isa/*.cpp).
//
// Names of sizes: M rows of x, N output features, K input features. Rows of x are `stride` elements apart.
#pragma once

#include <cstdint>

namespace qvl {

enum DType : int { FLOAT32 = 0, BFLOAT16 = 1 };

// Few rows are bound by reading the weight, many by multiplying: each has a way of its own. BY_COUNT takes the one
// that was measured faster for that many.
enum Way : int { BY_COUNT = 0, FEW = 1, MANY = 2 };

// y (M, N) = x (M, K) times the transpose of a plain weight (N, K), plus bias (N) or null. All of one dtype.
struct Product {
    DType dtype;
    const void* x;
    const void* weight;
    const void* bias;
    void* y;
    int64_t M, N, K, stride;
    int threads;
};

// A weight of 8 or 4 bits in panels of 16 outputs; layout in qvl/ops/quantized.py. x and y are of `dtype`.
struct QuantizedProduct {
    DType dtype;
    const void* x;
    int bits, group;
    const uint8_t* weight;
    const uint16_t* scales;  // float16
    const uint8_t* zeros;    // 4 bits only
    const void* bias;
    void* y;
    int64_t M, N, K, stride;
    int threads;
};

// How a cache keeps keys and values. 8 bits: in groups of 32 along D, each with a scale (bfloat16).
enum Storage : int { STORED_FLOAT32 = 0, STORED_BFLOAT16 = 1, STORED_INT8 = 2 };

// out (T, H, D) = attention of the queries of N sequences that lie end to end, to the keys of their own.
// Names of sizes: T queries, H query heads, G key heads, D width of a head.
struct Attention {
    DType dtype;      // of q, k, v and out
    Storage storage;  // of the buffers
    const void *q, *k, *v;  // of the new tokens; keys and values are written into the buffers
    void* out;
    const int64_t* buffers;  // N x 5: addresses of keys, values, key scales, value scales; elements from head to head
    const int64_t* lengths;  // N x 3: keys that were there before, new tokens, and how many of these, from the end, ask
    int64_t N, H, G, D, q_stride, k_stride, v_stride;
    int64_t window;  // keys that a token sees at most, itself included; 0: all
    float scale;
    int threads;
    const int64_t* starts;  // N: the first query of each sequence; filled in by the kernel
};

// y (rows, width) = weight x / sqrt(mean(x^2) + eps), row by row; rows of x are `stride` elements apart.
struct Norm {
    DType dtype;
    const void *x, *weight;
    void* y;
    int64_t rows, width, stride;
    float eps;
    int threads;
};

// y (tokens, heads, 2 half): each pair (i, half + i) of x turned by the angle i of its token, (tokens, half).
struct Rotary {
    DType dtype, angles;  // of x and y; of cosines and sines: the same, or float32
    const void *x, *cosines, *sines;
    void* y;
    int64_t tokens, heads, half, token_stride, head_stride;
    int threads;
};

// y = silu(gate) up, value by value.
struct Gate {
    DType dtype;
    const void *gate, *up;
    void* y;
    int64_t count;
    int threads;
};

// out (tokens, heads, width) = attention inside sequences that lie end to end. `shared`: query heads that read one key
// head. Strides in elements; queries stand at the end of their keys, which matters where they are causal.
struct PackedAttention {
    DType dtype;
    const void *q, *k, *v;
    void* out;
    const int64_t *q_lengths, *k_lengths;
    int64_t sequences, heads, shared, width;
    int64_t q_token, q_head, k_token, k_head, v_token, v_head;
    bool causal;
    int64_t window;  // keys that a query sees at most, itself included; 0: all
    float scale;
    int threads;
};

struct Kernels {
    const char* name;
    bool (*runs_here)();
    void (*product)(const Product&, Way);
    void (*quantized)(const QuantizedProduct&);   // x is quantized in groups of 32
    void (*exact)(const QuantizedProduct&, Way);  // x as it is
    void (*attention)(const Attention&);
    void (*packed_attention)(const PackedAttention&);
    void (*rms_norm)(const Norm&);
    void (*rotary)(const Rotary&);
    void (*silu_product)(const Gate&);
};

// At least `bytes` of memory, aligned to 64, that belongs to the calling thread until it asks again with the same
// slot. Allocated on first use and kept.
void* scratch(int slot, int64_t bytes);

}  // namespace qvl
