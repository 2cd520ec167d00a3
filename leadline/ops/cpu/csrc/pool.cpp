#include "pool.h"

#include <algorithm>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace leadline {
namespace {

constexpr int kSpins = 4000;   // about 60 microseconds, the time between two passes of a small model
constexpr int kYields = 64;    // of the caller, before it lets the kernel decide who runs
constexpr uint64_t kMask = (1u << 20) - 1;

inline void pause() {
#if defined(__x86_64__)
    _mm_pause();
#elif defined(__aarch64__)
    asm volatile("isb" ::: "memory");  // some ten nanoseconds; its YIELD takes no time at all
#else
    std::this_thread::yield();
#endif
}

inline uint64_t packed(uint64_t number, uint64_t first, uint64_t end) {
    return number << 40 | first << 20 | end;
}

}  // namespace

Pool::Pool(int threads) : shares_(static_cast<size_t>(std::max(1, threads))) {
    for (int i = 1; i < threads; ++i) workers_.emplace_back([this, i] { serve(i); });
}

Pool::~Pool() {
    stop_.store(true);
    posted_.fetch_add(1);
    posted_.notify_all();
    for (std::thread& each : workers_) each.join();
}

// From the front of its own share, from the back of another's.
bool Pool::take(int thread, uint64_t& number, int& item) {
    const int count = threads();
    for (int step = 0; step < count; ++step) {
        std::atomic<uint64_t>& range = shares_[static_cast<size_t>((thread + step) % count)].range;
        uint64_t seen = range.load(std::memory_order_acquire);
        for (;;) {
            const uint64_t first = seen >> 20 & kMask, end = seen & kMask;
            if (first >= end) break;
            const uint64_t rest = step ? packed(seen >> 40, first, end - 1) : packed(seen >> 40, first + 1, end);
            if (range.compare_exchange_weak(seen, rest, std::memory_order_acq_rel)) {
                number = seen >> 40;
                item = static_cast<int>(step ? end - 1 : first);
                return true;
            }
        }
    }
    return false;
}

bool Pool::work_on(int thread) {
    uint64_t number;
    int item;
    if (!take(thread, number, item)) return false;
    const Region& region = regions_[number % 4];  // stands until the item is counted as done
    region.call(region.self, item);
    if (left_.fetch_sub(1, std::memory_order_acq_rel) == 1) left_.notify_all();
    return true;
}

void Pool::run(int items, Call call, const void* self) {
    const int count = threads();
    number_ = (number_ + 1) & ((1u << 24) - 1);
    regions_[number_ % 4] = {call, self};
    left_.store(items, std::memory_order_relaxed);
    for (int i = 0; i < count; ++i) {
        const uint64_t first = static_cast<uint64_t>(items) * i / count, end = static_cast<uint64_t>(items) * (i + 1) / count;
        shares_[static_cast<size_t>(i)].range.store(packed(number_, first, end), std::memory_order_release);
    }
    posted_.fetch_add(1);
    if (sleeping_.load()) posted_.notify_all();
    while (work_on(0)) {
    }
    for (int spins = 0; spins < kSpins; ++spins) {
        if (left_.load(std::memory_order_acquire) == 0) return;
        pause();
    }
    for (int yields = 0; yields < kYields; ++yields) {
        if (left_.load(std::memory_order_acquire) == 0) return;
        std::this_thread::yield();
    }
    for (int left; (left = left_.load(std::memory_order_acquire)) != 0;) left_.wait(left);
}

void Pool::serve(int thread) {
    uint32_t seen = posted_.load();
    while (!stop_.load(std::memory_order_relaxed)) {
        if (work_on(thread)) continue;
        bool posted = false;
        for (int spins = 0; spins < kSpins && !posted; ++spins) {
            posted = posted_.load(std::memory_order_acquire) != seen;
            if (!posted) pause();
        }
        if (!posted) {
            sleeping_.fetch_add(1);
            posted_.wait(seen);
            sleeping_.fetch_sub(1);
        }
        seen = posted_.load(std::memory_order_acquire);
    }
}

}  // namespace leadline
