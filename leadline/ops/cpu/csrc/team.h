// PyTorch's own threads, for kernels that run between PyTorch's: threads of our own would share the cores with those,
// which spin for a moment after each of their regions.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>
#include <vector>

namespace leadline {

using Region = void (*)(void*);
// Calls region(data) once in each of `threads` threads; in this thread alone where OpenMP is not loaded.
void in_each_thread(Region region, void* data, int threads);

// Calls work(item) for every item in [0, items), each thread taking the next that is left.
template <class Work>
void team_each(int threads, int items, const Work& work) {
    if (items <= 0) return;
    struct Shared {
        const Work& work;
        std::atomic<int> next;
        int items;
    } shared{work, {0}, items};
    const auto region = [](void* data) {
        Shared& s = *static_cast<Shared*>(data);
        for (int item; (item = s.next.fetch_add(1, std::memory_order_relaxed)) < s.items;) s.work(item);
    };
    in_each_thread(region, &shared, std::min(threads, items));
}

// A thread's scratch memory: taken piece by piece, all given back at once, and kept for the next time.
class Room {
  public:
    // This thread's, with everything that was taken before given back.
    static Room& open() {
        thread_local Room room;
        room.reset();
        return room;
    }
    template <class T>
    T* take(size_t count) {
        const size_t bytes = (count * sizeof(T) + 63) / 64 * 64;
        if (used_ + bytes > size_) grow(std::max(bytes, size_));
        char* piece = blocks_.back().get() + used_;
        used_ += bytes, taken_ += bytes;
        return reinterpret_cast<T*>(piece);
    }

  private:
    struct Free {
        void operator()(char* p) const { std::free(p); }
    };
    void grow(size_t bytes) {
        blocks_.emplace_back(static_cast<char*>(std::aligned_alloc(64, bytes)));
        if (!blocks_.back()) throw std::bad_alloc();
        size_ = bytes, used_ = 0;
    }
    void reset() {
        if (blocks_.size() > 1) {  // one block from now on
            blocks_.clear();
            grow(taken_);
        }
        used_ = taken_ = 0;
    }

    std::vector<std::unique_ptr<char, Free>> blocks_;
    size_t size_ = 0, used_ = 0, taken_ = 0;  // of the last block; of all
};

}  // namespace leadline
