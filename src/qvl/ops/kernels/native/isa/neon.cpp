#include "../system.h"
#include "../kernels.h"
#include "../parallel.h"
#include "../processor.h"

namespace qvl::neon {
#include "../simd/neon.h"

#include "../set.h"
}  // namespace qvl::neon

namespace qvl {
extern const Kernels neon_kernels;
const Kernels neon_kernels = neon::table("neon", [] { return has_dot_product(); });
}  // namespace qvl
