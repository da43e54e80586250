// Hash maps from id to row, looked up batch by batch in one thread. See process.py.
//
//     maps libcuckoo|absl|absl_numbers FOLDER N_ROWS N_BATCHES
//
// libcuckoo holds the row as the map's value, as Monolith and TFRA do. absl holds it either way:
// as the value, or the row's number in an array beside, so that growing need not move rows.
#include <absl/container/flat_hash_map.h>

#include <array>
#include <chrono>
#include <cstdint>
#include <cstring>
#include <fstream>
#include <iostream>
#include <libcuckoo/cuckoohash_map.hh>
#include <stdexcept>
#include <string>
#include <vector>

namespace {

constexpr std::size_t batch_ids = 8192;
constexpr std::size_t dim = 16;
using Row = std::array<float, dim>;

// The same function as ids_of in stream.py.
std::uint64_t id_of(std::uint64_t x) {
    x += 0x9e3779b97f4a7c15ULL;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ULL;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebULL;
    return x ^ (x >> 31);
}

Row row_of(std::uint64_t number) {
    Row row;
    row.fill(static_cast<float>(number & 0xffff));
    return row;
}

class Libcuckoo {
  public:
    explicit Libcuckoo(std::size_t n) : rows_(n) {}
    void insert(std::uint64_t id, const Row& row) { rows_.insert(id, row); }
    void find(std::uint64_t id, float* out) const {
        rows_.find_fn(id, [out](const Row& row) { std::memcpy(out, row.data(), sizeof row); });
    }

  private:
    libcuckoo::cuckoohash_map<std::uint64_t, Row> rows_;
};

class Absl {
  public:
    explicit Absl(std::size_t n) { rows_.reserve(n); }
    void insert(std::uint64_t id, const Row& row) { rows_.emplace(id, row); }
    void find(std::uint64_t id, float* out) const {
        if (const auto found = rows_.find(id); found != rows_.end()) {
            std::memcpy(out, found->second.data(), sizeof(Row));
        }
    }

  private:
    absl::flat_hash_map<std::uint64_t, Row> rows_;
};

class AbslNumbers {
  public:
    explicit AbslNumbers(std::size_t n) {
        numbers_.reserve(n);
        rows_.reserve(n);
    }
    void insert(std::uint64_t id, const Row& row) {
        numbers_.emplace(id, static_cast<std::uint32_t>(rows_.size()));
        rows_.push_back(row);
    }
    void find(std::uint64_t id, float* out) const {
        if (const auto found = numbers_.find(id); found != numbers_.end()) {
            std::memcpy(out, rows_[found->second].data(), sizeof(Row));
        }
    }

  private:
    absl::flat_hash_map<std::uint64_t, std::uint32_t> numbers_;
    std::vector<Row> rows_;
};

template <class Map>
void answer(const std::string& folder, std::size_t n_rows, std::size_t n_batches) {
    std::ifstream file(folder + "/ids", std::ios::binary | std::ios::ate);
    std::vector<std::uint64_t> ids(static_cast<std::size_t>(file.tellg()) / sizeof(std::uint64_t));
    file.seekg(0).read(reinterpret_cast<char*>(ids.data()),
                       static_cast<std::streamsize>(ids.size() * sizeof(std::uint64_t)));
    Map map(n_rows);
    for (std::size_t number = 0; number < n_rows; ++number) {
        map.insert(id_of(number), row_of(number));
    }
    std::vector<float> out(batch_ids * dim);
    for (std::size_t number = 0; number < n_rows; number += 997) {
        map.find(id_of(number), out.data());
        if (std::memcmp(out.data(), row_of(number).data(), sizeof(Row)) != 0) {
            throw std::runtime_error("a lookup read a wrong row");
        }
    }
    std::cout << "ready" << std::endl;
    std::size_t round = 0;
    while (std::cin >> round) {
        const std::uint64_t* next = ids.data() + round * n_batches * batch_ids;
        const auto start = std::chrono::steady_clock::now();
        for (std::size_t batch = 0; batch < n_batches; ++batch) {
            for (std::size_t i = 0; i < batch_ids; ++i) {
                map.find(*next++, out.data() + i * dim);
            }
        }
        const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
        std::cout << took.count() << std::endl;
    }
}

}  // namespace

int main(int argc, char** argv) {
    if (argc != 5) {
        return 2;
    }
    const std::string kind = argv[1];
    const auto run = kind == "libcuckoo" ? answer<Libcuckoo>
                     : kind == "absl"    ? answer<Absl>
                                         : answer<AbslNumbers>;
    run(argv[2], std::stoull(argv[3]), std::stoull(argv[4]));
}
