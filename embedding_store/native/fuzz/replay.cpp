// Runs a fuzzing harness without a fuzzer: over the files given and over mutations of them that
// follow from the seed alone, so that a compiler without libFuzzer proves a sample.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <random>
#include <string>
#include <vector>

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t n_bytes);

namespace {

using Bytes = std::vector<std::uint8_t>;
constexpr std::size_t max_bytes = 1 << 16;

std::vector<Bytes> read_all(const std::string& directory) {
    std::vector<std::filesystem::path> paths;
    for (const auto& entry : std::filesystem::directory_iterator(directory)) {
        paths.push_back(entry.path());
    }
    std::sort(paths.begin(), paths.end());
    std::vector<Bytes> all;
    for (const auto& path : paths) {
        std::ifstream file(path, std::ios::binary);
        all.emplace_back(std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>());
    }
    return all;
}

// One to eight edits: a bit, an odd value, a piece gone, a piece of another input put in.
Bytes mutated(const std::vector<Bytes>& seeds, std::mt19937_64& random) {
    constexpr std::uint64_t odd_values[] = {0, 1, 0xff, 0x7fffffff, 0xffffffff, ~0ULL, 1ULL << 63};
    Bytes bytes = seeds[random() % seeds.size()];
    for (auto n_edits = 1 + random() % 8; n_edits > 0; --n_edits) {
        const std::size_t at = bytes.empty() ? 0 : random() % bytes.size();
        const auto here = bytes.begin() + static_cast<std::ptrdiff_t>(at);
        const auto n = std::min<std::size_t>(1 + random() % 8, bytes.size() - at);
        const auto there = here + static_cast<std::ptrdiff_t>(n);
        switch (random() % 5) {
            case 0:
                bytes.erase(here, there);
                break;
            case 1: {
                const Bytes& other = seeds[random() % seeds.size()];
                const std::size_t from = other.empty() ? 0 : random() % other.size();
                const auto first = other.begin() + static_cast<std::ptrdiff_t>(from);
                const auto length = std::min<std::size_t>(random() % 64, other.size() - from);
                bytes.insert(here, first, first + static_cast<std::ptrdiff_t>(length));
                break;
            }
            case 2:
                std::for_each(here, there, [value = odd_values[random() % 7]](auto& byte) mutable {
                    byte = static_cast<std::uint8_t>(value);
                    value >>= 8;
                });
                break;
            default:
                if (n > 0) {
                    *here ^= static_cast<std::uint8_t>(1U << random() % 8);
                }
        }
    }
    bytes.resize(std::min(bytes.size(), max_bytes));
    return bytes;
}

void run(const Bytes& bytes, const std::string& last) {
    // Kept, so that what crashed can be run again.
    std::ofstream(last, std::ios::binary)
        .write(reinterpret_cast<const char*>(bytes.data()),
               static_cast<std::streamsize>(bytes.size()));
    LLVMFuzzerTestOneInput(bytes.data(), bytes.size());
}

}  // namespace

int main(int n_arguments, char** arguments) {
    if (n_arguments != 5) {
        std::fprintf(stderr, "usage: %s INPUTS MUTATIONS SEED LAST_INPUT\n", arguments[0]);
        return 2;
    }
    const auto inputs = read_all(arguments[1]);
    const auto n_mutations = std::strtoull(arguments[2], nullptr, 10);
    std::mt19937_64 random(std::strtoull(arguments[3], nullptr, 10));
    for (const Bytes& bytes : inputs) {
        run(bytes, arguments[4]);
    }
    for (std::uint64_t n = 0; n < n_mutations && !inputs.empty(); ++n) {
        run(mutated(inputs, random), arguments[4]);
    }
    std::printf("%zu inputs, %llu mutations\n", inputs.size(), n_mutations);
    return 0;
}
