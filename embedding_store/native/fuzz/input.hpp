// An input of the fuzzer, read as small decisions.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace freshrank::fuzz {

class Input {
  public:
    Input(const std::uint8_t* data, std::size_t n_bytes) : at_(data), end_(data + n_bytes) {}

    bool is_empty() const { return at_ == end_; }
    // 0 behind the end.
    std::uint8_t byte() { return is_empty() ? 0 : *at_++; }
    std::uint64_t word(unsigned n_bytes = 8) {
        std::uint64_t value = 0;
        for (unsigned i = 0; i < n_bytes; ++i) {
            value |= std::uint64_t{byte()} << (8 * i);
        }
        return value;
    }
    // n is at most 2^16.
    std::uint32_t below(std::uint32_t n) {
        return static_cast<std::uint32_t>(word(n > 256 ? 2 : 1)) % n;
    }
    template <class T, std::size_t n>
    T one_of(const T (&choices)[n]) {
        return choices[below(n)];
    }

    // Few ids, so that they meet again, the extremes among them; now and then any at all.
    std::uint64_t id() {
        const std::uint8_t choice = byte();
        return choice >= 240     ? word()
               : choice % 8 == 7 ? ~std::uint64_t{0} - choice / 8
               : choice % 8 == 6 ? std::uint64_t{choice} << 56
                                 : choice % 32;
    }
    // Some ids, or a run of up to n_run.
    std::vector<std::uint64_t> ids(std::uint32_t n_run) {
        std::vector<std::uint64_t> ids(byte());
        if (ids.size() < 224) {
            ids.resize(ids.size() % 9);
            for (auto& one : ids) {
                one = id();
            }
            return ids;
        }
        const std::uint64_t first = id() << 20;
        ids.resize(below(n_run));
        for (std::size_t i = 0; i < ids.size(); ++i) {
            ids[i] = first + i;
        }
        return ids;
    }

  private:
    const std::uint8_t* at_;
    const std::uint8_t* end_;
};

}  // namespace freshrank::fuzz
