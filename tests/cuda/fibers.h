// The threads of a block as fibers of a processor; blocks run one after another.
//
// Threads change only where they wait, at barriers and operations of a warp, in the order asked
// for: what depends on the order differs. What CUDA leaves undefined (a barrier that some threads
// never reach, lanes in different operations) is an error here. Asynchronous copies come as late as
// they may, when their thread waits for them, or in the order "early" at once.
//
// Not seen: races that none of the orders shows, reads of shared memory that an earlier block
// wrote.
#pragma once

#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <deque>
#include <functional>
#include <random>
#include <string>
#include <vector>

namespace emulation {

constexpr unsigned kLanes = 32;
constexpr unsigned kMostWords = 6;
constexpr std::size_t kStackBytes = 64 << 10;

enum Order { kForward, kReverse, kRandom, kEarly };

struct Index {
    unsigned x = 0, y = 0, z = 0;
};

// Threads that wait for each other; `passed` counts how often all of them had come.
struct Meeting {
    unsigned members = 0, arrived = 0, passed = 0;
};

using Words = std::array<std::uint32_t, kMostWords>;
using WarpWords = std::array<Words, kLanes>;

struct Warp {
    Meeting meeting;
    const char* operation = nullptr;
    // Two: a lane may bring words to the next operation before the others have read those of this
    // one.
    WarpWords words[2];
};

// Bytes that a thread has asked for.
struct Copy {
    void* to;
    const void* from;
    std::size_t size;
};

// A thread starts in its context, and is left and gone on with by jumps, which take a tenth of the
// time of changes of context: these ask the system for signals.
struct Thread {
    ucontext_t context;
    jmp_buf place;
    bool has_started = false;
    std::vector<char> stack = std::vector<char>(kStackBytes);
    unsigned index = 0;
    bool done = false;
    const Meeting* waits_for = nullptr;
    unsigned passed_before = 0;
    // Batches of copies that have not come yet, the last one still open.
    std::deque<std::vector<Copy>> copies;
    bool is_after_previous = false;

    bool can_run() const {
        return !done && (waits_for == nullptr || waits_for->passed != passed_before);
    }
};

// Memory that a launch asks for, with a guard behind it.
struct alignas(16) Sixteen {
    unsigned char bytes[16];
};
constexpr std::size_t kGuard = 16;
constexpr unsigned char kPoison = 0xab;

struct Block {
    Order order = kForward;
    std::vector<Sixteen> shared;
    Index grid, size, index;
    std::function<void()> body;
    std::vector<Thread> threads;
    std::vector<Warp> warps;
    Meeting barrier;
    jmp_buf scheduler;
    std::string failure;
};

inline Block* block = nullptr;
inline Thread* self = nullptr;

inline void leave() {
    if (_setjmp(self->place) == 0) _longjmp(block->scheduler, 1);
}

inline void go_on_with(Thread& thread) {
    self = &thread;
    if (_setjmp(block->scheduler)) return;
    if (thread.has_started) _longjmp(thread.place, 1);
    thread.has_started = true;
    setcontext(&thread.context);
}

// The launch ends: this thread does not run again.
inline void fail(const std::string& what) {
    block->failure = what + ", thread " + std::to_string(self->index);
    leave();
}

inline void meet(Meeting& meeting) {
    self->waits_for = &meeting;
    self->passed_before = meeting.passed;
    if (++meeting.arrived == meeting.members) {
        meeting.arrived = 0;
        ++meeting.passed;
    }
    leave();
    self->waits_for = nullptr;
}

// Each lane of the warp brings words; all see what all brought.
inline const WarpWords& exchange(const char* operation, const Words& mine) {
    Warp& warp = block->warps[self->index / kLanes];
    WarpWords& words = warp.words[warp.meeting.passed & 1];
    if (warp.meeting.arrived == 0) warp.operation = operation;
    if (std::strcmp(warp.operation, operation) != 0)
        fail(std::string(operation) + " while other lanes of the warp are in " + warp.operation);
    words[self->index % kLanes] = mine;
    meet(warp.meeting);
    return words;
}

inline void copy_later(void* to, const void* from, std::size_t size) {
    if (block->order == kEarly)
        std::memcpy(to, from, size);
    else
        self->copies.back().push_back({to, from, size});
}

// All batches come but the newest `may_lack` and the open one.
inline void let_copies_come(std::size_t may_lack) {
    for (; self->copies.size() > may_lack + 1; self->copies.pop_front())
        for (const Copy& copy : self->copies.front()) std::memcpy(copy.to, copy.from, copy.size);
}

inline void run_thread() {
    block->body();
    for (const auto& batch : self->copies)
        if (!batch.empty()) fail("ends before its copies have come");
    self->done = true;
    leave();
}

inline void start_threads() {
    const auto n = static_cast<unsigned>(block->threads.size());
    std::memset(block->shared.data(), kPoison, block->shared.size() * 16);
    block->barrier = {n, 0, 0};
    block->warps.assign((n + kLanes - 1) / kLanes, Warp{});
    for (unsigned w = 0; w < block->warps.size(); ++w)
        block->warps[w].meeting.members = std::min(kLanes, n - w * kLanes);
    for (unsigned i = 0; i < n; ++i) {
        Thread& thread = block->threads[i];
        thread.index = i;
        thread.done = thread.has_started = false;
        thread.waits_for = nullptr;
        thread.copies.assign(1, {});
        thread.is_after_previous = false;
        getcontext(&thread.context);
        thread.context.uc_stack.ss_sp = thread.stack.data();
        thread.context.uc_stack.ss_size = thread.stack.size();
        thread.context.uc_link = nullptr;
        makecontext(&thread.context, run_thread, 0);
    }
}

// In each round every thread that can run does so until it waits.
inline void run_block(std::mt19937& random) {
    start_threads();
    const Order order = block->order;
    std::vector<Thread*> turns;
    for (Thread& thread : block->threads) turns.push_back(&thread);
    if (order == kReverse) std::reverse(turns.begin(), turns.end());
    for (bool ran = true; ran && block->failure.empty();) {
        if (order == kRandom || order == kEarly) std::shuffle(turns.begin(), turns.end(), random);
        ran = false;
        for (Thread* thread : turns) {
            if (!thread->can_run() || !block->failure.empty()) continue;
            ran = true;
            go_on_with(*thread);
        }
    }
    for (const Thread& thread : block->threads)
        if (!thread.done && block->failure.empty())
            block->failure =
                "waits for threads that never come, thread " + std::to_string(thread.index);
    for (std::size_t i = block->shared.size() - kGuard; i < block->shared.size(); ++i)
        for (const unsigned char byte : block->shared[i].bytes)
            if (byte != kPoison) block->failure = "writes beyond its shared memory";
}

// Run a kernel with a grid of blocks of `threads`, each with `shared` bytes beside what it
// declares; `body` calls it. Returns what went wrong, "" if nothing did.
inline std::string launch(Index grid, unsigned threads, Order order, std::function<void()> body,
                          unsigned shared = 0) {
    Block memory;
    block = &memory;
    memory.order = order;
    memory.grid = grid;
    memory.size.x = threads;
    memory.body = std::move(body);
    memory.threads = std::vector<Thread>(threads);
    memory.shared.resize((shared + 15) / 16 + kGuard);
    const unsigned blocks = grid.x * grid.y * grid.z;
    std::mt19937 random(blocks * 1000 + threads);
    for (unsigned i = 0; i < blocks && memory.failure.empty(); ++i) {
        memory.index = {i % grid.x, i / grid.x % grid.y, i / grid.x / grid.y};
        run_block(random);
    }
    return memory.failure;
}

}  // namespace emulation
