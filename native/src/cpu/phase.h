// One step of work that several threads share, in parts; whoever runs it goes on when all parts are
// done. It counts parts, not threads, so it does not matter how many threads come, or when.
#pragma once

#include <atomic>
#include <cstdint>
#include <thread>

#include "pause.h"

class Phase {
 public:
    template <class Work>
    void run(int64_t parts, Work work) {
        for (;;) {
            const int64_t part = next_.fetch_add(1, std::memory_order_relaxed);
            if (part >= parts) break;
            work(part);
            done_.fetch_add(1, std::memory_order_release);
        }
        for (int spins = 0; done_.load(std::memory_order_acquire) < parts; spins++)
            if (spins < kSpins)
                pause_thread();
            else
                std::this_thread::yield();  // the thread that has the last part may need this core
    }

 private:
    static constexpr int kSpins = 4000;

    alignas(64) std::atomic<int64_t> next_{0};
    alignas(64) std::atomic<int64_t> done_{0};
};
