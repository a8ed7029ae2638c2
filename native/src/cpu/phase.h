// Work that several threads do together: phases, one after the other, each in parts that any thread
// takes. Whoever runs a phase goes on when all of its parts are done. Parts are counted, not
// threads, so it does not matter how many threads come, or when: one that is late finds the parts
// of the phases before taken and goes past them.
#pragma once

#include <atomic>
#include <cstdint>
#include <thread>

#include "pause.h"

// What the threads share: parts of all phases are numbered through.
struct PhaseCounters {
    alignas(64) std::atomic<int64_t> next{0};
    alignas(64) std::atomic<int64_t> done{0};
};

// One thread's way through the phases; all threads run the same ones with as many parts. What a
// thread reads outside of a part may be of a later phase already.
class Phases {
 public:
    explicit Phases(PhaseCounters &counters) : counters_(counters) {}

    template <class Work>
    void run(int64_t parts, Work work) {
        const int64_t begin = end_;
        end_ += parts;
        for (int64_t part; (part = take()) < end_;) {
            work(part - begin);
            counters_.done.fetch_add(1, std::memory_order_release);
        }
        for (int spins = 0; counters_.done.load(std::memory_order_acquire) < end_; spins++)
            if (spins < kSpins)
                pause_thread();
            else
                std::this_thread::yield();  // the thread that has the last part may need this core
    }

 private:
    static constexpr int kSpins = 4000;

    // The next part, or the end of this phase or a number beyond where all are taken.
    int64_t take() {
        int64_t part = counters_.next.load(std::memory_order_relaxed);
        while (part < end_ &&
               !counters_.next.compare_exchange_weak(part, part + 1, std::memory_order_relaxed)) {
        }
        return part;
    }

    PhaseCounters &counters_;
    int64_t end_ = 0;
};
