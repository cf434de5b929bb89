// Work spread over the threads that torch keeps already.
//
// A second pool would fight torch's for the cores: its idle threads spin for a while before they sleep. So the
// library starts no threads. The caller hands over the address of `GOMP_parallel` of the OpenMP runtime that
// torch has loaded (libgomp, and libomp answers to the same name); without one, work runs on the calling thread.
#pragma once

#include <atomic>
#include <cstdint>

namespace qvl {

using Body = void (*)(void*);

void set_parallel_region(void* gomp_parallel);
bool has_parallel_region();
void parallel_region(Body body, void* data, int threads);

constexpr int MOST_RANGES = 64;

// The tasks as one range for each thread.
struct Ranges {
    struct alignas(64) Range {  // a line of its own: threads count in theirs without waiting for each other
        std::atomic<int64_t> next;
        int64_t end;
    } range[MOST_RANGES];
    int count;
    std::atomic<int> joined{0};

    Ranges(int64_t tasks, int threads) : count(threads < MOST_RANGES ? threads : MOST_RANGES) {
        for (int i = 0; i < count; ++i) {
            range[i].next = tasks * i / count;
            range[i].end = tasks * (i + 1) / count;
        }
    }
};

// Calls job(i) for i in 0 .. tasks - 1, each once, on up to `threads` threads. Every thread goes through a range of
// its own, so that what it reads lies in one piece: two threads that take turns at blocks of a weight reach four
// fifths of the bandwidth of memory, two that read a half each reach all of it. Who is done helps the others, so a
// thread that is held up elsewhere does not hold up the rest.
template <class Job>
void parallel_for(int64_t tasks, int threads, const Job& job) {
    if (threads > tasks) threads = static_cast<int>(tasks);
    if (threads <= 1 || !has_parallel_region()) {
        for (int64_t i = 0; i < tasks; ++i) job(i);
        return;
    }
    struct Shared {
        Ranges ranges;
        const Job* job;
    } shared{{tasks, threads}, &job};
    parallel_region(
        [](void* data) {
            auto* s = static_cast<Shared*>(data);
            const int count = s->ranges.count, first = s->ranges.joined.fetch_add(1);
            for (int i = 0; i < count; ++i) {
                auto& range = s->ranges.range[(first + i) % count];
                for (int64_t n = range.next.fetch_add(1); n < range.end; n = range.next.fetch_add(1)) (*s->job)(n);
            }
        },
        &shared, threads);
}

}  // namespace qvl
