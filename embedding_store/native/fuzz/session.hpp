// Calls on a table, mirrored into the model; and on a copy restored from its snapshot, which must
// answer the same from then on, bit for bit.
#pragma once

#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <optional>
#include <vector>

#include "core/serving.hpp"
#include "core/snapshot.hpp"
#include "core/table.hpp"
#include "fuzz/input.hpp"
#include "fuzz/model.hpp"
#include "tests/check.hpp"
#include "tests/files.hpp"

namespace freshrank::fuzz {

using testing::Bytes;
using testing::check;
using testing::restore;

template <class T>
bool same_bytes(const std::vector<T>& a, const std::vector<T>& b) {
    return a.size() == b.size() &&
           (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0);
}

constexpr auto any = [](const auto&) { return true; };
constexpr std::uint64_t everything = std::uint64_t{1} << 40;
using One = std::vector<std::uint64_t>;  // a single answer, as on_all compares it

class Session {
  public:
    explicit Session(Input& input);
    // One call, which the input chooses.
    void step();
    // Every row, count and time; and that the copies have become one state.
    void compare_all();

  private:
    // Calls the table and its copy, which must agree. None: both refused.
    template <class Call>
    auto on_all(Call&& call) {
        using Answer = std::optional<decltype(call(*tables_[0]))>;
        Answer answer;
        for (const auto& table : tables_) {
            Answer own;
            try {
                own = call(*table);
            } catch (const StoreError&) {
            }
            check(table == tables_[0] || own.has_value() == answer.has_value(), "one refuses");
            check(table == tables_[0] || !own || same_bytes(*own, *answer), "one differs");
            answer = std::move(own);
        }
        return answer;
    }

    void lookup();
    void lookup_or_admit();
    void lookup_pooled();
    void apply();
    void read_and_learn();
    void expire();
    void erase();
    void close_version();
    void delta();
    void replicate();
    void put_rows();
    void configure();
    void inspect();
    void restore_a_copy();
    void begin_snapshot();
    void read_snapshot();

    std::vector<std::uint64_t> some_ids() { return input_.ids(model_.has_limits() ? 9000 : 600); }
    std::vector<float> some_values(std::size_t n);
    std::vector<std::int64_t> some_offsets(std::size_t n_ids);
    std::uint32_t some_time_s() { return input_.below(200); }
    void count(const std::vector<std::uint64_t>& ids, const std::vector<std::uint32_t>& counts,
               std::uint32_t now_s);
    void follow(const std::vector<std::uint64_t>& born, std::uint32_t now_s);
    void compare_rows(const std::vector<std::uint64_t>& ids, const std::vector<float>& rows) const;
    void compare_pooled(const std::vector<std::uint64_t>& ids,
                        const std::vector<std::int64_t>& offsets, const float* pooled,
                        std::size_t stride) const;
    std::vector<float> spread(const float* gradients, const std::vector<std::int64_t>& offsets,
                              std::size_t stride) const;
    std::uint32_t waiting(std::uint64_t id) const;
    void compare_counts() const;

    Input& input_;
    Model model_;
    std::vector<std::unique_ptr<Table>> tables_;
    ServingTable replica_;
    std::uint64_t replicated_ = 0;
    std::vector<Bytes> chain_;            // snapshots of tables_[0]: a whole one and increments
    std::unique_ptr<Snapshot> snapshot_;  // under way, while calls go on
    Bytes expected_;                      // of a whole one at its instant
};

}  // namespace freshrank::fuzz
