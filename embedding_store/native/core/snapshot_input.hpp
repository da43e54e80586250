// The bytes of a snapshot as they come, checked against the checksum behind them.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <vector>

#include "errors.hpp"
#include "hash.hpp"
#include "snapshot_layout.hpp"
#include "table.hpp"

namespace freshrank {

class SnapshotInput {
  public:
    explicit SnapshotInput(const SnapshotSource& source) : source_(source) {}

    template <class T>
    T take() {
        T value;
        take_bytes(&value, sizeof value);
        return value;
    }
    // n records in pieces, so that memory is taken for what is there, not for what is promised.
    template <class T>
    std::vector<T> take(std::uint64_t n) {
        constexpr std::uint64_t piece = 1 << 16;
        std::vector<T> records;
        while (records.size() < n) {
            const std::size_t first = records.size();
            records.resize(static_cast<std::size_t>(std::min(n, first + piece)));
            take_bytes(records.data() + first, (records.size() - first) * sizeof(T));
        }
        return records;
    }
    void take_bytes(void* to, std::size_t n_bytes) {
        copy(to, n_bytes);
        checksum_.add(to, n_bytes);
    }

    // Takes what is last, the checksum: the id of what was read.
    std::uint64_t finish() {
        const std::uint64_t expected = checksum_.value();
        const auto stored = take<std::uint64_t>();
        require(stored == expected, damaged());
        require(!fill(), "snapshot is damaged: it goes on behind its checksum");
        is_verified_ = true;
        return stored;
    }
    // After something in it was refused: says whether it was damaged on its way here.
    bool is_whole() {
        if (is_verified_) {
            return true;
        }
        SipHasher rest = checksum_;
        std::vector<std::uint8_t> last;  // these may be the checksum
        while (!is_truncated_ && fill()) {
            last.insert(last.end(), bytes_.begin(), bytes_.end());
            bytes_ = {};
            const std::size_t n = std::max(last.size(), checksum_bytes) - checksum_bytes;
            rest.add(last.data(), n);
            last.erase(last.begin(), last.begin() + static_cast<std::ptrdiff_t>(n));
        }
        const std::uint64_t expected = rest.value();
        return is_truncated_ || (last.size() == checksum_bytes &&
                                 std::memcmp(last.data(), &expected, checksum_bytes) == 0);
    }
    static const char* damaged() {
        return "snapshot is damaged: its checksum does not match its bytes; take an older one";
    }

  private:
    bool fill() {
        if (bytes_.empty()) {
            bytes_ = source_();
        }
        return !bytes_.empty();
    }
    void copy(void* to, std::size_t n_bytes) {
        auto* at = static_cast<std::uint8_t*>(to);
        while (n_bytes > 0) {
            is_truncated_ = !fill();
            if (is_truncated_) {
                throw StoreError("snapshot is truncated: it ends after " +
                                 std::to_string(n_copied_) + " bytes, in the middle");
            }
            const std::size_t n = std::min(n_bytes, bytes_.size());
            std::memcpy(at, bytes_.data(), n);
            bytes_ = bytes_.subspan(n);
            at += n;
            n_bytes -= n;
            n_copied_ += n;
        }
    }

    const SnapshotSource& source_;
    std::span<const std::uint8_t> bytes_;
    SipHasher checksum_{checksum_key};
    std::uint64_t n_copied_ = 0;
    bool is_truncated_ = false;
    bool is_verified_ = false;
};

}  // namespace freshrank
