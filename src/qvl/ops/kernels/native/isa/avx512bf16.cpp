#include "../system.h"
#include "../kernels.h"
#include "../parallel.h"
#include "../processor.h"

namespace qvl::avx512bf16 {
#include "../simd/avx512.h"

#include "../set.h"
}  // namespace qvl::avx512bf16

namespace qvl {
extern const Kernels avx512bf16_kernels;
const Kernels avx512bf16_kernels = avx512bf16::table("avx512bf16", [] { return has_avx512() && has_avx512vnni() && has_avx512bf16(); });
}  // namespace qvl
