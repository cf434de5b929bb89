#include "../system.h"
#include "../kernels.h"
#include "../parallel.h"
#include "../processor.h"

namespace qvl::avx512 {
#include "../simd/avx512.h"

#include "../set.h"
}  // namespace qvl::avx512

namespace qvl {
extern const Kernels avx512_kernels;
const Kernels avx512_kernels = avx512::table("avx512", [] { return has_avx512(); });
}  // namespace qvl
