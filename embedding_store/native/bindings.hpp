// What makes up the module: every function adds the names of its file to it.
#pragma once

#include <nanobind/nanobind.h>

namespace freshrank {

class Table;

void bind_batches(nanobind::class_<Table>& type);
void bind_budget(nanobind::module_& m);
void bind_hashes(nanobind::module_& m);
void bind_rows(nanobind::class_<Table>& type);
void bind_serving_table(nanobind::module_& m);
void bind_snapshots(nanobind::module_& m, nanobind::class_<Table>& type);
void bind_table(nanobind::module_& m);

}  // namespace freshrank
