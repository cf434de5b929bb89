#include "../system.h"
#include "../kernels.h"
#include "../parallel.h"
#include "../processor.h"

namespace qvl::avx512vnni {
#include "../simd/avx512.h"

#include "../set.h"
}  // namespace qvl::avx512vnni

namespace qvl {
extern const Kernels avx512vnni_kernels;
const Kernels avx512vnni_kernels = avx512vnni::table("avx512vnni", [] { return has_avx512() && has_avx512vnni(); });
}  // namespace qvl
