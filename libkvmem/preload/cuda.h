// The calls of the CUDA driver that kvmem stands before, as the resolvers need them.
#pragma once

#include <cstddef>

namespace kvmem::preload {

struct Hook {
  const char* name;    // as the driver documents it
  const char* symbol;  // as it exports the form that ours has
  void* function;
  int version;  // from which on the name stands for that form
  enum class Streams : unsigned char { kAny, kLegacy, kPerThread } streams = Streams::kAny;
};
struct Hooks {
  const Hook* first;
  std::size_t count;
};
Hooks copy_hooks();

}  // namespace kvmem::preload
