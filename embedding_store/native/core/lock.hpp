// Many readers or one writer. std::shared_mutex alone may let overlapping readers starve a writer
// for good (glibc does); here a waiting writer holds the gate, so that new readers queue behind it.
#pragma once

#include <mutex>
#include <shared_mutex>

namespace freshrank {

class FairSharedMutex {
  public:
    void lock() {
        const std::lock_guard gate(gate_);
        mutex_.lock();
    }
    void unlock() { mutex_.unlock(); }
    void lock_shared() {
        const std::lock_guard gate(gate_);
        mutex_.lock_shared();
    }
    void unlock_shared() { mutex_.unlock_shared(); }

  private:
    std::mutex gate_;
    std::shared_mutex mutex_;
};

}  // namespace freshrank
