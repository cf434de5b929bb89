/* What this processor can do at most: reading memory, and multiply-adds in fp32, bf16 and int8.
 *
 * Compiled at run time by limits.py, for the instruction set that is asked for, and loaded as a shared library.
 * Every function returns bytes or operations (two for a multiply-add) per second, and 0 where this processor, or
 * this instruction set, has no instruction for them.
 */

#define _GNU_SOURCE
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

#if defined(__AVX512F__)
#define WIDTH 64
#elif defined(__AVX2__)
#define WIDTH 32
#else
#define WIDTH 16
#endif

typedef float floats __attribute__((vector_size(WIDTH)));
typedef uint64_t words __attribute__((vector_size(WIDTH)));

#define MOST_THREADS 64
#define LANES 12   /* independent chains: latency times units of the processors known, and they fit the registers */
#define STEPS 4096 /* between two looks at the clock */
#define EACH_LANE _Pragma("GCC unroll 16") for (int i = 0; i < LANES; i++)

typedef struct {
  char *start;
  size_t bytes;
  double seconds, done; /* how long to work; bytes or operations in that time */
  double taken;
  uint64_t sink; /* results end here, so that no work can be left out */
  pthread_barrier_t *together;
} Share;

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void *touch(void *argument) {
  Share *share = argument;
  memset(share->start, 1, share->bytes);
  return NULL;
}

static void *read_once(void *argument) {
  Share *share = argument;
  words sum[LANES] = {0};
  const char *end = share->start + share->bytes / (LANES * WIDTH) * (LANES * WIDTH);
  pthread_barrier_wait(share->together);
  double start = now();
  for (const char *at = share->start; at < end; at += LANES * WIDTH) {
    EACH_LANE sum[i] += *(const words *)(at + (size_t)i * WIDTH);
  }
  share->taken = now() - start;
  share->done = (double)(end - share->start);
  for (size_t j = 0; j < sizeof sum; j++) share->sink += (uint64_t)((char *)sum)[j];
  return NULL;
}

/* One worker: STATEMENT for every lane i of sum[i], a and b being two values that the compiler must take as new. */
#define WORKER(NAME, TYPE, SOURCE, ZERO, FILL, OPERATIONS, CONSTRAINT, STATEMENT)                        \
  static void *NAME(void *argument) {                                                                   \
    Share *share = argument;                                                                            \
    TYPE sum[LANES];                                                                                    \
    SOURCE a = FILL, b = FILL;                                                                          \
    EACH_LANE sum[i] = ZERO;                                                                            \
    pthread_barrier_wait(share->together);                                                              \
    double start = now();                                                                               \
    do {                                                                                                \
      for (int step = 0; step < STEPS; step++) {                                                        \
        __asm__ volatile("" : "+" CONSTRAINT(a), "+" CONSTRAINT(b));                                    \
        EACH_LANE STATEMENT;                                                                            \
      }                                                                                                 \
      share->done += (double)STEPS * LANES * (OPERATIONS);                                              \
      share->taken = now() - start;                                                                     \
    } while (share->taken < share->seconds);                                                            \
    for (size_t j = 0; j < sizeof sum; j++) share->sink += (uint64_t)((char *)sum)[j];                  \
    return NULL;                                                                                        \
  }

#if defined(__x86_64__)
#define REGISTER "v"
#else
#define REGISTER "w"
#endif
#if defined(__x86_64__) && !defined(__AVX512F__)
#undef REGISTER
#define REGISTER "x"
#endif

WORKER(work_fp32, floats, floats, (floats){0}, ((floats){0} + 1e-9f), 2.0 * WIDTH / 4, REGISTER,
       sum[i] = sum[i] * a + b)

#if defined(__AVX512BF16__)
#define HAS_BF16 1
WORKER(work_bf16, __m512, __m512i, _mm512_setzero_ps(), _mm512_set1_epi16(0x3000), 64.0, REGISTER,
       sum[i] = _mm512_dpbf16_ps(sum[i], (__m512bh)a, (__m512bh)b))
#elif defined(__ARM_FEATURE_BF16_VECTOR_ARITHMETIC)
#define HAS_BF16 1
WORKER(work_bf16, float32x4_t, uint16x8_t, vdupq_n_f32(0), vdupq_n_u16(0x3000), 16.0, REGISTER,
       sum[i] = vbfdotq_f32(sum[i], vreinterpretq_bf16_u16(a), vreinterpretq_bf16_u16(b)))
#endif

#if defined(__AVX512VNNI__)
#define HAS_INT8 1
WORKER(work_int8, __m512i, __m512i, _mm512_setzero_si512(), _mm512_set1_epi8(3), 128.0, REGISTER,
       sum[i] = _mm512_dpbusd_epi32(sum[i], a, b))
#elif defined(__AVXVNNI__)
#define HAS_INT8 1
WORKER(work_int8, __m256i, __m256i, _mm256_setzero_si256(), _mm256_set1_epi8(3), 64.0, REGISTER,
       sum[i] = _mm256_dpbusd_avx_epi32(sum[i], a, b))
#elif defined(__AVX2__) /* without the dot product: pairs to 16 bits, pairs to 32, add */
#define HAS_INT8 1
WORKER(work_int8, __m256i, __m256i, _mm256_setzero_si256(), _mm256_set1_epi8(3), 64.0, REGISTER, {
  __m256i pairs = _mm256_maddubs_epi16(a, b);
  __asm__ volatile("" : "+x"(pairs)); /* the same every time, which the compiler must not see */
  sum[i] = _mm256_add_epi32(sum[i], _mm256_madd_epi16(pairs, a));
})
#elif defined(__ARM_FEATURE_DOTPROD)
#define HAS_INT8 1
WORKER(work_int8, int32x4_t, int8x16_t, vdupq_n_s32(0), vdupq_n_s8(3), 32.0, REGISTER,
       sum[i] = vdotq_s32(sum[i], a, b))
#endif

/* Run ``work`` in every thread at once; all that was done, by the slowest thread's clock. */
static double together(void *(*work)(void *), Share *shares, int threads) {
  pthread_t ids[MOST_THREADS];
  pthread_barrier_t barrier;
  double done = 0, taken = 0;
  pthread_barrier_init(&barrier, NULL, (unsigned)threads);
  for (int t = 0; t < threads; t++) {
    shares[t].together = &barrier;
    pthread_create(&ids[t], NULL, work, &shares[t]);
  }
  for (int t = 0; t < threads; t++) {
    pthread_join(ids[t], NULL);
    done += shares[t].done;
    taken = shares[t].taken > taken ? shares[t].taken : taken;
  }
  pthread_barrier_destroy(&barrier);
  return taken > 0 ? done / taken : 0;
}

static double peak(void *(*work)(void *), int threads, double seconds) {
  Share shares[MOST_THREADS] = {0};
  for (int t = 0; t < threads; t++) shares[t].seconds = seconds;
  return together(work, shares, threads);
}

/* Bytes per second of reading ``bytes`` of memory, the best of ``passes``. */
double read_bandwidth(size_t bytes, int threads, int passes) {
  Share shares[MOST_THREADS] = {0};
  double best = 0;
  size_t part = bytes / (size_t)threads / 4096 * 4096;
  char *buffer = aligned_alloc(4096, part * (size_t)threads);
  if (!buffer) return 0;
  for (int t = 0; t < threads; t++) {
    shares[t].start = buffer + part * (size_t)t;
    shares[t].bytes = part;
  }
  together(touch, shares, threads);
  for (int pass = 0; pass < passes; pass++) {
    double speed = together(read_once, shares, threads);
    best = speed > best ? speed : best;
  }
  free(buffer);
  return best;
}

double peak_fp32(int threads, double seconds) { return peak(work_fp32, threads, seconds); }

double peak_bf16(int threads, double seconds) {
#if defined(HAS_BF16)
  return peak(work_bf16, threads, seconds);
#else
  return (void)threads, (void)seconds, 0;
#endif
}

double peak_int8(int threads, double seconds) {
#if defined(HAS_INT8)
  return peak(work_int8, threads, seconds);
#else
  return (void)threads, (void)seconds, 0;
#endif
}
