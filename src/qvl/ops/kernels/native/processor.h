// What the processor can do, asked at run time.
#pragma once

#if defined(__x86_64__)
#include <cpuid.h>
#elif defined(__linux__)
#include <sys/auxv.h>
#endif

namespace qvl {

#if defined(__x86_64__)
static inline bool has_avx2() {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2");
}
static inline bool has_avx512() {
    return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}
static inline bool has_avx512vnni() { return __builtin_cpu_supports("avx512vnni"); }
// Bits of CPUID leaf 7, subleaf 1, in eax: compilers learned their names late.
static inline bool leaf_seven_bit(int bit) {
    unsigned a = 0, b = 0, c = 0, d = 0;
    return __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a >> bit & 1);
}
static inline bool has_avxvnni() { return leaf_seven_bit(4); }
static inline bool has_avx512bf16() { return leaf_seven_bit(5); }
#elif defined(__linux__) && defined(__aarch64__)
static inline bool has_dot_product() { return getauxval(AT_HWCAP) & (1ul << 20); }
#else
static inline bool has_dot_product() { return true; }  // every Apple processor that runs arm64 has it
#endif

}  // namespace qvl
