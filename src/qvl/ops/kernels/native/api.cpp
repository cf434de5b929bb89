// The C interface of the library, called from qvl/ops/kernels/__init__.py.

#include <cstdlib>
#include <cstring>

#include "kernels.h"
#include "parallel.h"

namespace qvl {

extern const Kernels scalar_kernels, avx2_kernels, avxvnni_kernels, avx512_kernels, avx512vnni_kernels,
    avx512bf16_kernels, neon_kernels;

namespace {

// The best first.
const Kernels* const offered[] = {
#ifdef QVL_HAS_AVX512BF16
    &avx512bf16_kernels,
#endif
#ifdef QVL_HAS_AVX512VNNI
    &avx512vnni_kernels,
#endif
#ifdef QVL_HAS_AVX512
    &avx512_kernels,
#endif
#ifdef QVL_HAS_AVXVNNI
    &avxvnni_kernels,
#endif
#ifdef QVL_HAS_AVX2
    &avx2_kernels,
#endif
#ifdef QVL_HAS_NEON
    &neon_kernels,
#endif
    &scalar_kernels,
};

struct Buffer {
    void* memory = nullptr;
    int64_t size = 0;
    ~Buffer() { std::free(memory); }
};

}  // namespace

void* scratch(int slot, int64_t bytes) {
    thread_local Buffer buffers[16];
    Buffer& buffer = buffers[slot];
    if (buffer.size < bytes) {
        std::free(buffer.memory);
        buffer.size = (bytes + 63) / 64 * 64;
        buffer.memory = std::aligned_alloc(64, static_cast<size_t>(buffer.size));
        if (!buffer.memory) std::abort();  // torch's allocator would have failed long before
    }
    return buffer.memory;
}

}  // namespace qvl

// One thread for what is over in less time than a second one takes to wake up (some 20 microseconds).
static int threads_for(int64_t M, int64_t N, int64_t K, int threads) {
    return N * K * (8 + M) < (int64_t{9} << 18) ? 1 : threads;
}

#define QVL_API extern "C" __attribute__((visibility("default")))

using qvl::Kernels;

QVL_API void qvl_use_threads_of(void* gomp_parallel) { qvl::set_parallel_region(gomp_parallel); }

// The set of kernels of that name, or the best that runs here where the name is empty; null if there is none.
QVL_API const Kernels* qvl_kernels(const char* name) {
    for (const Kernels* kernels : qvl::offered)
        if ((!*name || !std::strcmp(name, kernels->name)) && kernels->runs_here()) return kernels;
    return nullptr;
}

QVL_API const char* qvl_name(const Kernels* kernels) { return kernels->name; }

QVL_API void qvl_product(const Kernels* kernels, int way, int dtype, const void* x, const void* weight,
                         const void* bias, void* y, int64_t M, int64_t N, int64_t K, int64_t stride, int threads) {
    const qvl::Product p{static_cast<qvl::DType>(dtype), x, weight, bias, y, M, N, K, stride,
                         threads_for(M, N, K, threads)};
    kernels->product(p, static_cast<qvl::Way>(way));
}

// exact: x is kept as it is; otherwise it is quantized, and the way has no say.
QVL_API void qvl_quantized_product(const Kernels* kernels, int exact, int way, int dtype, const void* x, int bits, int group,
                                   const uint8_t* weight, const uint16_t* scales, const uint8_t* zeros,
                                   const void* bias, void* y, int64_t M, int64_t N, int64_t K, int64_t stride,
                                   int threads) {
    const qvl::QuantizedProduct p{static_cast<qvl::DType>(dtype),
                                  x, bits, group, weight, scales, zeros, bias, y, M, N, K, stride,
                                  threads_for(M, N, K, threads)};
    if (exact) return kernels->exact(p, static_cast<qvl::Way>(way));
    kernels->quantized(p);
}

QVL_API void qvl_attention(const Kernels* kernels, const qvl::Attention* attention) { kernels->attention(*attention); }

QVL_API void qvl_packed_attention(const Kernels* kernels, const qvl::PackedAttention* attention) {
    kernels->packed_attention(*attention);
}

QVL_API void qvl_rms_norm(const Kernels* kernels, int dtype, const void* x, const void* weight, void* y, int64_t rows,
                          int64_t width, int64_t stride, float eps, int threads) {
    kernels->rms_norm({static_cast<qvl::DType>(dtype), x, weight, y, rows, width, stride, eps, threads});
}

QVL_API void qvl_rotary(const Kernels* kernels, int dtype, int angles, const void* x, const void* cosines,
                        const void* sines, void* y, int64_t tokens, int64_t heads, int64_t half, int64_t token_stride,
                        int64_t head_stride, int threads) {
    kernels->rotary({static_cast<qvl::DType>(dtype), static_cast<qvl::DType>(angles), x, cosines, sines, y, tokens,
                     heads, half, token_stride, head_stride, threads});
}

QVL_API void qvl_silu_product(const Kernels* kernels, int dtype, const void* gate, const void* up, void* y,
                              int64_t count, int threads) {
    kernels->silu_product({static_cast<qvl::DType>(dtype), gate, up, y, count, threads});
}
