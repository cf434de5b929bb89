#include "parallel.h"

namespace qvl {

namespace {
using Region = void (*)(Body, void*, unsigned, unsigned);
Region region = nullptr;
}  // namespace

void set_parallel_region(void* gomp_parallel) { region = reinterpret_cast<Region>(gomp_parallel); }

bool has_parallel_region() { return region != nullptr; }

void parallel_region(Body body, void* data, int threads) {
    region(body, data, static_cast<unsigned>(threads), 0);
}

}  // namespace qvl
