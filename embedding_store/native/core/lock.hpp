// Many readers or one writer. std::shared_mutex alone may let overlapping readers starve a writer
// for good (glibc does); here a waiting writer holds the gate, so that new readers queue behind it.
#pragma once

#include <mutex>
#include <shared_mutex>
#include <string>

#include "errors.hpp"

#if defined(__unix__) || defined(__APPLE__)
#include <unistd.h>
#endif

namespace freshrank {

// Where an object was made. A forked child inherits locks as they happened to be held, and none of
// the threads that would let go of them: waiting there would be for ever.
class Process {
  public:
    bool is_this() const { return id_ == current(); }
    void check() const {
        require(is_this(), "this table was made in process " + std::to_string(id_) +
                               ", and a fork of it has neither its threads nor the state of its "
                               "locks: use it where it was made, or restore a snapshot here");
    }

  private:
    static long current() {
#if defined(__unix__) || defined(__APPLE__)
        return getpid();
#else
        return 0;  // no fork there
#endif
    }
    long id_ = current();
};

class FairSharedMutex {
  public:
    // Both raise StoreError in a forked child.
    void lock() {
        process_.check();
        const std::lock_guard gate(gate_);
        mutex_.lock();
    }
    void unlock() { mutex_.unlock(); }
    void lock_shared() {
        process_.check();
        const std::lock_guard gate(gate_);
        mutex_.lock_shared();
    }
    void unlock_shared() { mutex_.unlock_shared(); }

  private:
    Process process_;
    std::mutex gate_;
    std::shared_mutex mutex_;
};

}  // namespace freshrank
