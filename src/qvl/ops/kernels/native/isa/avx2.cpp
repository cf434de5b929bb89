#include "../system.h"
#include "../kernels.h"
#include "../parallel.h"
#include "../processor.h"

namespace qvl::avx2 {
#include "../simd/avx2.h"

#include "../set.h"
}  // namespace qvl::avx2

namespace qvl {
extern const Kernels avx2_kernels;
const Kernels avx2_kernels = avx2::table("avx2", [] { return has_avx2(); });
}  // namespace qvl
