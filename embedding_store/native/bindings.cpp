// The module. Only the files named bindings* know Python: they check arrays, release the
// interpreter lock and call the core.
#include "bindings.hpp"

#include "core/errors.hpp"
#include "core/table.hpp"

NB_MODULE(_native, m) {
    m.attr("FORMAT_VERSION") = freshrank::format_version;
    // The handler releases no lock and takes none: C++ exceptions cross only this border.
    nanobind::exception<freshrank::StoreError>(m, "StoreError");
    freshrank::bind_hashes(m);
    freshrank::bind_budget(m);
    freshrank::bind_table(m);
    freshrank::bind_serving_table(m);
}
