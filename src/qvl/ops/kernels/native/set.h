// Everything that one instruction set offers, compiled by its own source file (isa/*.cpp), which has set the compiler's
// flags, included the vectors and opened its namespace. No templates of the standard library in here: the linker
// keeps one copy of each, and that copy may be compiled for a newer processor than the one it runs on.
#include "common.h"
#include "few_rows.h"
#include "many_rows.h"
#include "quantized.h"
#include "exact.h"
#include "functions.h"
#include "elementwise.h"
#include "tiles.h"
#include "attention.h"
#include "packed_attention.h"

// Up to so many rows the way for few is the faster one (benchmarks/kernels.py).
#ifdef QVL_BF16_DOT
constexpr int64_t FEW_BFLOAT16 = 32;
#else
constexpr int64_t FEW_BFLOAT16 = 12;
#endif
constexpr int64_t FEW_FLOAT32 = W == 16 ? 8 : 12;
constexpr int64_t FEW_EXACT = W == 16 ? 32 : 8;

static inline bool goes_few(Way way, int64_t rows, int64_t most) { return way == FEW || (way == BY_COUNT && rows <= most); }

static void product(const Product& p, Way way) {
    (goes_few(way, p.M, p.dtype == FLOAT32 ? FEW_FLOAT32 : FEW_BFLOAT16) ? few_rows : many_rows)(p);
}

static void exact(const QuantizedProduct& p, Way way) {
    (goes_few(way, p.M, FEW_EXACT) ? exact_few_rows : exact_many_rows)(p);
}

static constexpr Kernels table(const char* name, bool (*runs_here)()) {
    return {name,      runs_here,        product,  quantized, exact,
            attention, packed_attention, rms_norm, rotary,    silu_product};
}
