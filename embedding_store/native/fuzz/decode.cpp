// Any bytes are refused as a snapshot, or give a table that works and can be written again.
//
// The first byte of an input chooses: whether checksums are made to match, so that the rest is read
// at all; whether the table lives under a shared budget; and whether an increment follows, behind a
// base whose length stands in the next four bytes.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <random>
#include <span>
#include <vector>

#include "core/snapshot_layout.hpp"
#include "core/table.hpp"
#include "tests/check.hpp"
#include "tests/files.hpp"

namespace freshrank::fuzz {
namespace {

using testing::Bytes;
using testing::check;
using testing::refusal;

// Makes an increment name its base, and the checksum match; returns it.
std::uint64_t seal(Bytes& file, std::uint64_t base) {
    if (file.size() < sizeof(SnapshotHeader) + checksum_bytes) {
        return 0;
    }
    if (base != 0) {
        std::memcpy(file.data() + offsetof(SnapshotHeader, base), &base, sizeof base);
    }
    const std::size_t n_covered = file.size() - checksum_bytes;
    const std::uint64_t checksum = siphash24(file.data(), n_covered, checksum_key);
    std::memcpy(file.data() + n_covered, &checksum, sizeof checksum);
    return checksum;
}

std::vector<Bytes> chain_of(std::uint8_t choice, std::span<const std::uint8_t> bytes) {
    std::vector<Bytes> chain;
    if ((choice & 4) != 0 && bytes.size() >= 4) {
        std::uint32_t n_base;
        std::memcpy(&n_base, bytes.data(), sizeof n_base);
        const auto base = bytes.subspan(4, std::min<std::size_t>(n_base, bytes.size() - 4));
        chain.emplace_back(base.begin(), base.end());
        bytes = bytes.subspan(4 + base.size());
    }
    chain.emplace_back(bytes.begin(), bytes.end());
    std::uint64_t base = 0;
    for (Bytes& file : chain) {
        base = (choice & 1) != 0 ? seal(file, base) : 0;
    }
    return chain;
}

// Every call once, over ids that the table has and others. Refusals are answers too.
void use(Table& table) {
    std::mt19937_64 random(1);
    const Rows some = table.rows_from(0, 20);
    std::vector<std::uint64_t> ids(some.keys.begin(), some.keys.end());
    for (int i = 0; i < 20; ++i) {
        ids.push_back(random() % 40);
    }
    const std::vector<std::uint32_t> counts(ids.size(), 2);
    std::vector<std::int64_t> offsets{0};
    for (std::size_t i = 2; i <= ids.size(); i += 2) {
        offsets.push_back(static_cast<std::int64_t>(i));
    }
    offsets.back() = static_cast<std::int64_t>(ids.size());
    const std::size_t n_bags = offsets.size() - 1;
    const IdBags of{ids, offsets, Pooling::mean};
    const auto is_counted = std::make_unique<bool[]>(n_bags);
    is_counted[0] = true;
    const Bags bags{of, {is_counted.get(), n_bags}, 0};
    const std::vector<std::uint64_t> requests(n_bags);
    std::vector<float> rows(ids.size() * table.config().width());
    const auto now_s = static_cast<std::uint32_t>(table.statistics().clock_s / 2 + 1000);
    const std::function<void()> calls[] = {
        [&] { table.lookup_or_admit(ids, counts, now_s, rows.data()); },
        [&] { table.apply(ids, rows.data()); },
        [&] { table.read({&bags, 1}, requests, now_s, 1, rows.data()); },
        [&] { table.learn(n_bags, 1, rows.data()); },
        [&] { table.lookup_pooled(of, rows.data()); },
        [&] { table.apply_pooled(of, rows.data()); },
        [&] {
            table.put_rows({some.keys, some.values.data(), some.versions, some.last_seen_s,
                            some.born_s, some.frequency});
        },
        [&] { table.expire(now_s, 100); },
        [&] { table.erase(Ids(ids).first(3)); },
        [&] { table.delta(table.advance() / 2); },
        [&] { table.trim_tombstones(table.version() / 2); },
        [&] { table.inspect(ids[0]); },
        [&] { table.configure(table.policy()); },
    };
    for (const auto& call : calls) {
        refusal(call);
    }
}

}  // namespace
}  // namespace freshrank::fuzz

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t n_bytes) {
    using namespace freshrank;
    n_secrets = 0;
    if (n_bytes == 0) {
        return 0;
    }
    const auto reopened = [&](const std::vector<testing::Bytes>& chain) {
        return testing::restore(chain,
                                (data[0] & 2) != 0 ? std::make_shared<Budget>(32 << 20) : nullptr);
    };
    const auto chain = fuzz::chain_of(data[0], {data + 1, n_bytes - 1});
    std::unique_ptr<Table> opened;
    if (!testing::refusal([&] { opened = reopened(chain); }).empty()) {
        return 0;
    }
    const auto copy = reopened({opened->snapshot()});
    fuzz::use(*opened);
    fuzz::use(*copy);
    const auto written = opened->snapshot();
    testing::check(copy->snapshot() == written, "a copy goes on as the original");
    testing::check(reopened({written})->snapshot() == written, "what is written can be read");
    return 0;
}
