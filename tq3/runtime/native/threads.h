// One piece of work for several threads: torch's own, where it lends them.
//
// A pool of ours would fight torch's for the processors: OpenMP's threads spin for milliseconds
// after each operation, which is longer than a layer takes.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <thread>

namespace tq3 {

// torch_parallel_for of torch's stable interface (torch 2.10 and later).
using ParallelFor = std::int32_t (*)(std::int64_t begin, std::int64_t end, std::int64_t grain,
                                     void (*)(std::int64_t, std::int64_t, void*), void*);

struct Threads {
    ParallelFor torch;  // or null: threads are started for each call
    std::size_t count;
};

// Calls work(block) for all blocks. A thread takes the next block when it is free: processors are
// rarely equally busy. `work` throws nothing.
template <class Work>
void for_each_block(const Threads& threads, std::size_t blocks, const Work& work) {
    struct Job {
        const Work& work;
        std::size_t blocks;
        std::atomic<std::size_t> next{0};

        void run() {
            for (std::size_t block; (block = next.fetch_add(1)) < blocks;) work(block);
        }
    };
    Job job{work, blocks};
    const std::size_t count = threads.count < blocks ? threads.count : blocks;
    if (count > 1 && threads.torch) {
        const auto run = [](std::int64_t, std::int64_t, void* job) {
            static_cast<Job*>(job)->run();
        };
        threads.torch(0, static_cast<std::int64_t>(count), 1, run, &job);
    } else if (count > 1) {
        const auto others = std::make_unique<std::thread[]>(count - 1);
        std::size_t started = 0;
        try {
            for (; started < count - 1; ++started)
                others[started] = std::thread([&] { job.run(); });
        } catch (const std::system_error&) {  // no more threads to be had: fewer do it too
        }
        job.run();
        for (std::size_t i = 0; i < started; ++i) others[i].join();
    }
    job.run();  // all of it where one thread is enough; nothing is left otherwise
}

}  // namespace tq3
