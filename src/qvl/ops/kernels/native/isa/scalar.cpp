#include "../system.h"
#include "../kernels.h"
#include "../parallel.h"
#include "../processor.h"

namespace qvl::scalar {
#include "../simd/scalar.h"

#include "../set.h"
}  // namespace qvl::scalar

namespace qvl {
extern const Kernels scalar_kernels;
const Kernels scalar_kernels = scalar::table("scalar", [] { return true; });
}  // namespace qvl
