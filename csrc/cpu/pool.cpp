#include "pool.h"

#include <pthread.h>
#include <unistd.h>
#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <exception>
#include <memory>
#include <mutex>
#include <thread>

namespace hsb::cpu {
namespace {

class Pool {
public:
    void run(int threads, std::int64_t items, const std::function<void(std::int64_t, int)> &body) {
        std::lock_guard turn(turn_);
        threads = static_cast<int>(std::min<std::int64_t>(std::max(threads, 1), std::max<std::int64_t>(items, 1)));
        for (; workers_ < threads - 1; ++workers_) std::thread([this, index = workers_ + 1] { work(index); }).detach();
        {
            std::lock_guard lock(mutex_);
            body_ = &body;
            items_ = items;
            next_.store(0, std::memory_order_relaxed);
            threads_ = threads;
            running_ = threads - 1;
            error_ = nullptr;
            ++generation_;
        }
        if (threads > 1) wake_.notify_all();
        take_items(0);
        std::unique_lock lock(mutex_);
        done_.wait(lock, [this] { return running_ == 0; });
        body_ = nullptr;
        if (error_) std::rethrow_exception(error_);
    }

private:
    void take_items(int thread) {
        try {
            for (std::int64_t item; (item = next_.fetch_add(1, std::memory_order_relaxed)) < items_;)
                (*body_)(item, thread);
        } catch (...) {
            next_.store(items_, std::memory_order_relaxed);
            std::lock_guard lock(mutex_);
            if (!error_) error_ = std::current_exception();
        }
    }

    void work(int index) {
        std::uint64_t seen = 0;
        std::unique_lock lock(mutex_);
        while (true) {
            wake_.wait(lock, [&] { return generation_ != seen && index < threads_; });
            seen = generation_;
            lock.unlock();
            take_items(index);
            lock.lock();
            if (--running_ == 0) done_.notify_one();
        }
    }

    std::mutex turn_;   // one parallel_for at a time
    std::mutex mutex_;  // guards all below
    std::condition_variable wake_, done_;
    int workers_ = 0;
    const std::function<void(std::int64_t, int)> *body_ = nullptr;
    std::int64_t items_ = 0;
    std::atomic<std::int64_t> next_{0};
    int threads_ = 0;
    int running_ = 0;
    std::uint64_t generation_ = 0;
    std::exception_ptr error_;
};

// Never destroyed: its workers sleep until the process ends. A forked child inherits the object but not the threads, and
// perhaps a lock that one of them held, so it forgets this one and makes its own. Nothing on the way to it is a lock,
// which a fork might leave held: hence no mutex and no local static here.
std::atomic<Pool *> pool{nullptr};
[[maybe_unused]] const int at_fork = pthread_atfork(nullptr, nullptr, [] { pool.store(nullptr); });

}  // namespace

void parallel_for(int threads, std::int64_t items, const std::function<void(std::int64_t, int)> &body) {
    Pool *mine = pool.load(std::memory_order_acquire);
    if (mine == nullptr) {
        auto fresh = std::make_unique<Pool>();
        if (pool.compare_exchange_strong(mine, fresh.get())) mine = fresh.release();  // else another thread was first
    }
    mine->run(threads, items, body);
}

}  // namespace hsb::cpu
