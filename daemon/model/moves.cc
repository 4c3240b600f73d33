#include "model/moves.h"

namespace kvmem::model {
namespace {

struct Words {
  std::string_view name;
  std::string_view text;
};

constexpr std::array<Words, kReasonCount> kWords = {{
    {"none", "never moved"},
    {"demand", "the engine waited for it"},
    {"fresh", "first touch of an empty page"},
    {"prefetch_order", "fetched ahead: it followed the page touched before it the last time"},
    {"prefetch_run", "fetched ahead: the rest of a run whose first page was demanded"},
    {"prefetch_sequential", "fetched ahead: next in address order in a first scan"},
    {"prefetch_advice", "fetched ahead: asked for"},
    {"evict_farthest", "demoted: its next use was expected farthest away"},
    {"evict_unused", "demoted: fetched ahead, passed by and not used"},
    {"evict_cold", "demoted: sampled, and not used for longer than its interval"},
    {"evict_advice", "demoted: asked for"},
    {"evict_pressure", "demoted: over capacity and nothing better was found"},
    {"sample_due", "unmapped to learn whether it is still used"},
    {"sample_spread", "unmapped because a neighbour turned out unused"},
    {"place_up", "from CXL memory to DRAM: used more than a page there, or there was room"},
    {"place_down", "from DRAM to CXL memory: used less than a page there"},
}};

}  // namespace

std::string_view reason_name(Reason reason) {
  const auto i = static_cast<std::size_t>(reason);
  return i < kReasonCount ? kWords[i].name : "unknown";
}

std::string_view reason_text(Reason reason) {
  const auto i = static_cast<std::size_t>(reason);
  return i < kReasonCount ? kWords[i].text : "unknown";
}

}  // namespace kvmem::model
