// Holds one instruction set of the kernels against the scalar reference, without Python: for processors that are
// only emulated (scripts/check-arm). Usage: compare NAME. Prints what it compared; the exit status says whether all
// agree.

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <vector>

#include "kernels.h"

extern "C" const qvl::Kernels* qvl_kernels(const char* name);

namespace {

std::mt19937 random_bits(0);

float number() { return std::uniform_real_distribution<float>(-1, 1)(random_bits); }

uint16_t bf16(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    return static_cast<uint16_t>(bits >> 16);
}

float widened(uint16_t x) {
    const uint32_t bits = static_cast<uint32_t>(x) << 16;
    float wide;
    std::memcpy(&wide, &bits, 4);
    return wide;
}

template <class T>
T as(float x);
template <>
float as<float>(float x) { return x; }
template <>
uint16_t as<uint16_t>(float x) { return bf16(x); }
float floats(float x) { return x; }
float floats(uint16_t x) { return widened(x); }

template <class T>
std::vector<T> numbers(int64_t count) {
    std::vector<T> v(count);
    for (auto& x : v) x = as<T>(number());
    return v;
}

template <class T>
bool same(const char* what, const std::vector<T>& got, const std::vector<T>& want, float tolerance) {
    float most = 0, off = 0;
    for (size_t i = 0; i < got.size(); ++i) {
        most = std::fmax(most, std::fabs(floats(want[i])));
        const float here = std::fabs(floats(got[i]) - floats(want[i]));
        off = here <= off ? off : here;  // NaN counts
    }
    const bool good = off <= tolerance * most;
    if (!good) std::printf("%s: off by %g of %g\n", what, off, most);
    return good;
}

template <class T>
bool compare(const qvl::Kernels& set, const qvl::Kernels& reference, int64_t M, int64_t N, int64_t K) {
    const qvl::DType dtype = sizeof(T) == 4 ? qvl::FLOAT32 : qvl::BFLOAT16;
    const float tolerance = sizeof(T) == 4 ? 1e-5f : 1e-2f;
    const auto x = numbers<T>(M * K), weight = numbers<T>(N * K), bias = numbers<T>(N);
    std::vector<T> got(M * N), want(M * N);
    bool good = true;
    for (const auto way : {qvl::FEW, qvl::MANY}) {
        qvl::Product p{dtype, x.data(), weight.data(), bias.data(), got.data(), M, N, K, K, 1};
        set.product(p, way);
        p.y = want.data();
        reference.product(p, way);
        good &= same("product", got, want, tolerance);
    }
    for (const auto& [bits, group] : {std::pair{8, 32}, {4, 32}, {4, 128}}) {
        const int64_t panels = (N + 15) / 16, groups = (K + group - 1) / group;
        std::vector<uint8_t> packed(panels * groups * group * 16 * bits / 8), zeros(panels * groups * 16);
        std::vector<uint16_t> scales(panels * groups * 16);
        for (auto& b : packed) b = static_cast<uint8_t>(bits == 8 ? 1 + random_bits() % 255 : random_bits());
        for (auto& z : zeros) z = random_bits() % 16;
        for (auto& s : scales) s = 0x2000 + random_bits() % 0x800;  // float16 of 0.008 to 0.03
        qvl::QuantizedProduct p{dtype, x.data(), bits, group, packed.data(), scales.data(), zeros.data(), bias.data(),
                                got.data(), M, N, K, K, 1};
        const auto run = [&](const qvl::Kernels& k, std::vector<T>& y, int way) {
            p.y = y.data();
            way ? k.exact(p, static_cast<qvl::Way>(way)) : k.quantized(p);
        };
        for (const int way : {0, 1, 2}) {
            run(set, got, way);
            run(reference, want, way);
            good &= same(way ? "exact product" : "quantized product", got, want, tolerance);
        }
    }
    return good;
}

// Two sequences with caches of every kind: one decodes behind `past` keys, the other brings a prompt.
template <class T>
bool compare_attention(const qvl::Kernels& set, const qvl::Kernels& reference, int64_t past, int64_t prompt, int64_t D,
                       int64_t window) {
    constexpr int64_t H = 4, G = 2;
    const int64_t new_tokens = 1 + prompt, capacity = past + prompt + 1, groups = (D + 31) / 32;
    const auto q = numbers<T>(new_tokens * H * D), k = numbers<T>(new_tokens * G * D), v = numbers<T>(new_tokens * G * D);
    const int64_t lengths[] = {past, 1, 1, 0, prompt, prompt};
    bool good = true;
    for (const auto storage : {qvl::STORED_FLOAT32, qvl::STORED_BFLOAT16, qvl::STORED_INT8}) {
        std::vector<T> answers[2];
        for (const int which : {0, 1}) {
            // The past is written by the kernels too: a step that brings all of it.
            std::vector<float> cells(4 * G * capacity * D);
            std::vector<uint16_t> scales(4 * G * capacity * groups);
            std::vector<int64_t> table;
            for (int64_t n = 0; n < 2; ++n) {
                for (int64_t i = 0; i < 2; ++i)
                    table.push_back(reinterpret_cast<int64_t>(cells.data() + (2 * n + i) * G * capacity * D));
                for (int64_t i = 0; i < 2; ++i)
                    table.push_back(reinterpret_cast<int64_t>(scales.data() + (2 * n + i) * G * capacity * groups));
                table.push_back(capacity * D);
            }
            const auto& kernels = which ? reference : set;
            std::mt19937 same_past(7);
            std::vector<T> before(past * H * D), out(past * H * D);
            for (auto& x : before) x = as<T>(std::uniform_real_distribution<float>(-1, 1)(same_past));
            const int64_t first[] = {0, past, past};
            const float scale = 1 / std::sqrt(static_cast<float>(D));
            const qvl::DType dtype = sizeof(T) == 4 ? qvl::FLOAT32 : qvl::BFLOAT16;
            kernels.attention({dtype, storage, before.data(), before.data(), before.data(), out.data(), table.data(), first,
                               1, H, G, D, H * D, H * D, H * D, 0, scale, 1, nullptr});
            answers[which].resize(new_tokens * H * D);
            kernels.attention({dtype, storage, q.data(), k.data(), v.data(), answers[which].data(), table.data(), lengths, 2,
                               H, G, D, H * D, G * D, G * D, window, scale, 1, nullptr});
        }
        good &= same("attention", answers[0], answers[1], sizeof(T) == 4 ? 1e-5f : 1e-2f);
    }
    return good;
}

}  // namespace

int main(int count, char** arguments) {
    const qvl::Kernels *set = count == 2 ? qvl_kernels(arguments[1]) : nullptr, *reference = qvl_kernels("scalar");
    if (!set) {
        std::printf("usage: compare NAME, an instruction set that runs here\n");
        return 2;
    }
    bool good = true;
    const int64_t sizes[][3] = {{1, 1, 1}, {2, 16, 32}, {3, 17, 33}, {9, 50, 100}, {13, 100, 259}, {31, 49, 700}};
    for (const auto& [M, N, K] : sizes) {
        good &= compare<float>(*set, *reference, M, N, K);
        good &= compare<uint16_t>(*set, *reference, M, N, K);
    }
    const int64_t shapes[][4] = {{1, 1, 16, 0}, {50, 3, 24, 0}, {130, 40, 13, 0}, {60, 70, 80, 0}, {300, 90, 32, 17}};
    for (const auto& [past, prompt, D, window] : shapes) {
        good &= compare_attention<float>(*set, *reference, past, prompt, D, window);
        good &= compare_attention<uint16_t>(*set, *reference, past, prompt, D, window);
    }
    std::printf("%s %s\n", set->name, good ? "agrees with scalar" : "DIFFERS from scalar");
    return !good;
}
