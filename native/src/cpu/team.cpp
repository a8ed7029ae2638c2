// A pool that waits by spinning for a moment, for the next product of a model comes microseconds
// after the last, and then sleeps. One call at a time has the pool; a second one runs on its own
// thread alone.
#include "team.h"

#include <atomic>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <new>
#include <thread>
#include <vector>

#if !defined(_WIN32)
#include <pthread.h>
#endif

#include "pause.h"

namespace {

constexpr int kSpins = 4000;  // of a pause instruction: some 50 to 150 microseconds

using Work = void (*)(void *);

class Pool {
 public:
    void run(int threads, Work work, void *data) {
        std::unique_lock<std::mutex> turn(turn_, std::try_to_lock);
        if (!turn.owns_lock()) return work(data);
        grow(threads - 1);
        work_ = work;
        data_ = data;
        wanted_ = threads - 1;
        busy_.store(int(workers_.size()), std::memory_order_relaxed);
        {
            std::lock_guard<std::mutex> lock(sleep_);
            round_.fetch_add(1, std::memory_order_release);
        }
        wake_.notify_all();
        work(data);
        while (busy_.load(std::memory_order_acquire)) pause_thread();
    }

 private:
    // Once the system has refused a thread it is not asked again: those that there are do the work.
    void grow(int wanted) {
        try {
            while (!refused_ && int(workers_.size()) < wanted) {
                const int number = int(workers_.size());
                const unsigned seen = round_.load(std::memory_order_relaxed);
                workers_.emplace_back([this, number, seen] { serve(number, seen); });
            }
        } catch (const std::exception &) {  // std::system_error, std::bad_alloc
            refused_ = true;
        }
    }

    // seen: the last round before the worker was made.
    [[noreturn]] void serve(int number, unsigned seen) {
        for (;;) {
            unsigned round = round_.load(std::memory_order_acquire);
            for (int i = 0; round == seen && i < kSpins; i++) {
                pause_thread();
                round = round_.load(std::memory_order_acquire);
            }
            if (round == seen) {
                std::unique_lock<std::mutex> lock(sleep_);
                wake_.wait(lock, [&] { return round_.load(std::memory_order_acquire) != seen; });
                round = round_.load(std::memory_order_acquire);
            }
            seen = round;
            if (number < wanted_) work_(data_);
            busy_.fetch_sub(1, std::memory_order_release);
        }
    }

    std::mutex turn_, sleep_;
    std::condition_variable wake_;
    std::vector<std::thread> workers_;
    std::atomic<unsigned> round_{0};
    std::atomic<int> busy_{0};
    Work work_ = nullptr;
    void *data_ = nullptr;
    int wanted_ = 0;
    bool refused_ = false;
};

// Never destroyed: its threads run until the process ends.
std::atomic<Pool *> pool{nullptr};

// Null where there is no memory for one.
Pool *the_pool() {
    Pool *now = pool.load(std::memory_order_acquire);
    if (now) return now;
    Pool *made = new (std::nothrow) Pool;
    if (!made) return nullptr;
    if (pool.compare_exchange_strong(now, made)) {
#if !defined(_WIN32)
        // Threads do not survive a fork: the child makes a pool of its own.
        static const int registered = pthread_atfork(nullptr, nullptr, [] { pool.store(nullptr); });
        (void)registered;
#endif
        return made;
    }
    delete made;
    return now;
}

using GompParallel = void (*)(Work, void *, unsigned threads, unsigned flags);
std::atomic<GompParallel> openmp{nullptr};

}  // namespace

void use_openmp(void *gomp_parallel) {
    openmp.store(reinterpret_cast<GompParallel>(gomp_parallel));
}

void run_team(int threads, Work work, void *data) {
    if (threads <= 1) return work(data);
    if (const GompParallel parallel = openmp.load())
        return parallel(work, data, unsigned(threads), 0);
    if (Pool *workers = the_pool()) return workers->run(threads, work, data);
    work(data);
}
