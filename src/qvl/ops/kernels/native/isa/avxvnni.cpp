#include "../system.h"
#include "../kernels.h"
#include "../parallel.h"
#include "../processor.h"

namespace qvl::avxvnni {
#include "../simd/avx2.h"

#include "../set.h"
}  // namespace qvl::avxvnni

namespace qvl {
extern const Kernels avxvnni_kernels;
const Kernels avxvnni_kernels = avxvnni::table("avxvnni", [] { return has_avx2() && has_avxvnni(); });
}  // namespace qvl
