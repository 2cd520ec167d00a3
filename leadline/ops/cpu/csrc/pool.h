// Threads that share one pass's work: the caller and, beside it, up to `threads - 1` workers.
//
// Work is a list of items. Each thread begins with a stretch of its own, so that it reads memory front to back, and
// takes from the ends of the others' when it is done. A region is over when its items are done, not when its threads
// arrive: a worker that another program holds up delays nobody unless it is in the middle of an item. Workers spin for a
// moment after a region, since the next one is microseconds away within a pass, and then sleep until there is work.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

namespace leadline {

class Pool {
  public:
    explicit Pool(int threads);
    ~Pool();
    Pool(const Pool&) = delete;
    Pool& operator=(const Pool&) = delete;

    int threads() const { return static_cast<int>(shares_.size()); }

    // Calls work(item) for every item in [0, items); returns when all are done. One caller at a time.
    template <class Work>
    void each(int items, const Work& work) {
        if (items <= 0) return;
        if (items == 1 || threads() == 1) {
            for (int item = 0; item < items; ++item) work(item);
            return;
        }
        run(items, [](const void* self, int item) { (*static_cast<const Work*>(self))(item); }, &work);
    }

    // The same, `grain` neighbouring items at a time: for items so small that handing them out would cost more.
    template <class Work>
    void each(int items, int64_t grain, const Work& work) {
        if (grain >= items) {
            for (int item = 0; item < items; ++item) work(item);
            return;
        }
        const int step = static_cast<int>(grain < 1 ? 1 : grain);
        each((items + step - 1) / step, [&](int block) {
            const int end = block * step + step < items ? block * step + step : items;
            for (int item = block * step; item < end; ++item) work(item);
        });
    }

  private:
    using Call = void (*)(const void*, int);
    // One thread's stretch of the region: its number (24 bits), first and end (20 bits each), changed in one step.
    struct alignas(64) Share {
        std::atomic<uint64_t> range{0};
    };
    struct Region {
        Call call = nullptr;
        const void* self = nullptr;
    };

    void run(int items, Call call, const void* self);
    bool take(int thread, uint64_t& number, int& item);
    bool work_on(int thread);
    void serve(int thread);

    std::vector<Share> shares_;
    std::vector<std::thread> workers_;
    Region regions_[4];
    uint64_t number_ = 0;
    alignas(64) std::atomic<int> left_{0};
    alignas(64) std::atomic<uint32_t> posted_{0};
    std::atomic<int> sleeping_{0};
    std::atomic<bool> stop_{false};
};

}  // namespace leadline
