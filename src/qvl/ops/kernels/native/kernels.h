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

struct Kernels {
    const char* name;
    bool (*runs_here)();
    void (*product)(const Product&, Way);
    void (*quantized)(const QuantizedProduct&);   // x is quantized in groups of 32
    void (*exact)(const QuantizedProduct&, Way);  // x as it is
};

// At least `bytes` of memory, aligned to 64, that belongs to the calling thread until it asks again with the same
// slot. Allocated on first use and kept.
void* scratch(int slot, int64_t bytes);

}  // namespace qvl
