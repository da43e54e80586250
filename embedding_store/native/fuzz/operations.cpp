// Any sequence of calls leaves a table as its rules say.
#include <cstddef>
#include <cstdint>

#include "fuzz/session.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t n_bytes) {
    freshrank::n_secrets = 0;
    freshrank::fuzz::Input input(data, n_bytes);
    freshrank::fuzz::Session session(input);
    for (int n_steps = 0; n_steps < 200 && !input.is_empty(); ++n_steps) {
        session.step();
    }
    session.compare_all();
    return 0;
}
