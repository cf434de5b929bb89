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
    thread_local Buffer buffers[8];
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
