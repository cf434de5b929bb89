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

// Calls job(i) for i in 0 .. tasks - 1, each once, on up to `threads` threads. Threads take the next task when
// they are done with theirs, so one that is held up elsewhere does not hold up the rest.
template <class Job>
void parallel_for(int64_t tasks, int threads, const Job& job) {
    if (threads > tasks) threads = static_cast<int>(tasks);
    if (threads <= 1 || !has_parallel_region()) {
        for (int64_t i = 0; i < tasks; ++i) job(i);
        return;
    }
    struct Shared {
        std::atomic<int64_t> next{0};
        int64_t tasks;
        const Job* job;
    } shared;
    shared.tasks = tasks;
    shared.job = &job;
    parallel_region(
        [](void* data) {
            auto* s = static_cast<Shared*>(data);
            for (int64_t i = s->next.fetch_add(1); i < s->tasks; i = s->next.fetch_add(1)) (*s->job)(i);
        },
        &shared, threads);
}

}  // namespace qvl
