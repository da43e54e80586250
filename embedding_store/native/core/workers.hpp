// Threads that share one call's work. The protocol:
//
// - The calling thread holds the table's lock, shared or alone, from before run() until after it:
//   what the lock promises the call holds for its workers too, and nobody else's calls need know.
// - Within one run() every share writes memory that no other share touches: results and rows have
//   one owner each. What has an order (who is born, which number a row gets) is left to the caller,
//   between two runs. So results do not depend on the number of threads, bit by bit.
// - A run() begins after everything the caller wrote and ends before everything it writes next: the
//   two counters are the only words that threads exchange.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <thread>
#include <type_traits>
#include <vector>

#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>
#endif

namespace freshrank {

inline constexpr unsigned max_threads = 64;

class Workers {
  public:
    explicit Workers(unsigned n_threads) {
        try {
            for (unsigned share = 1; share < n_threads; ++share) {
                threads_.emplace_back([this, share] { work(share); });
            }
        } catch (...) {  // the system has no more threads: those begun must end first
            stop();
            throw;
        }
    }
    ~Workers() { stop(); }
    Workers(const Workers&) = delete;
    Workers& operator=(const Workers&) = delete;

    unsigned n_shares() const { return static_cast<unsigned>(threads_.size()) + 1; }

    // Calls f(share) for every share, which must not throw. A second caller does all of its own.
    template <class F>
    void run(F&& f) {
        const std::unique_lock lock(mutex_, std::try_to_lock);
        if (!lock || threads_.empty()) {
            for (unsigned share = 0; share < n_shares(); ++share) {
                f(share);
            }
            return;
        }
        using Job = std::remove_reference_t<F>;
        call_ = [](void* job, unsigned share) noexcept { (*static_cast<Job*>(job))(share); };
        job_ = &f;
        begin();
        f(0U);
        await([&] { return n_working_.load() == 0; }, n_working_);
    }

    // f(first, end), or f(first, end, share), for equal ranges of n items.
    template <class F>
    void run_ranges(std::size_t n, F&& f) {
        run([&](unsigned share) {
            const std::size_t first = n * share / n_shares(), end = n * (share + 1) / n_shares();
            if constexpr (std::is_invocable_v<F, std::size_t, std::size_t, unsigned>) {
                f(first, end, share);
            } else {
                f(first, end);
            }
        });
    }

  private:
    // About 50 us: one call's phases follow each other faster, and sleeping takes as long.
    static constexpr int n_spins = 1000;

    static void await(auto&& is_done, auto& word) {
        for (int spin = 0; spin < n_spins; ++spin) {
            if (is_done()) {
                return;
            }
#if defined(__x86_64__) && defined(__GNUC__)
            _mm_pause();
#endif
        }
        for (auto value = word.load(); !is_done(); value = word.load()) {
            word.wait(value);
        }
    }

    void stop() {
        call_ = nullptr;
        begin();
        for (auto& thread : threads_) {
            thread.join();
        }
    }

    void begin() {
        n_working_ = static_cast<std::uint32_t>(threads_.size());
        ++n_calls_;
        n_calls_.notify_all();
    }

    void work(unsigned share) {
        for (std::uint32_t n_done = 0;;) {
            await([&] { return n_calls_.load() != n_done; }, n_calls_);
            ++n_done;
            if (call_ == nullptr) {
                return;
            }
            call_(job_, share);
            if (--n_working_ == 0) {
                n_working_.notify_one();
            }
        }
    }

    std::mutex mutex_;
    void (*call_)(void*, unsigned) noexcept = nullptr;
    void* job_ = nullptr;
    std::atomic<std::uint32_t> n_calls_{0};
    std::atomic<std::uint32_t> n_working_{0};
    std::vector<std::thread> threads_;
};

}  // namespace freshrank
