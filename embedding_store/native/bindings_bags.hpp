// Bags of ids from Python: checked, and cut to their first ids.
#pragma once

#include <optional>

#include "bindings_arrays.hpp"
#include "core/pooling.hpp"

namespace freshrank {

class IdBagsInput {
  public:
    IdBagsInput(const AnyArray& ids, const AnyArray& offsets, const std::string& mode,
                std::int64_t first_n)
        : ids_("ids", ids), offsets_("offsets", offsets) {
        const auto values = offsets_.span();
        bool is_rising = !values.empty() && values[0] == 0;
        for (std::size_t i = 1; i < values.size(); ++i) {
            is_rising &= values[i - 1] <= values[i];
        }
        require(is_rising && values.back() == static_cast<std::int64_t>(ids_.size()),
                "offsets must start at 0, never fall and end at the number of ids, " +
                    std::to_string(ids_.size()));
        const IdBags all{.ids = ids_.span(), .offsets = values, .pooling = pooling_named(mode)};
        first_.emplace(all, not_negative("first_n", first_n));
    }

    const IdBags& bags() const { return first_->bags(); }

  private:
    IdsInput ids_;
    Input<std::int64_t> offsets_;
    std::optional<FirstOfBags> first_;
};

}  // namespace freshrank
