#include <cstdint>
#include <cstring>

#include "kernels/kernels.h"

namespace {

// As a compiler may not: what is written is what was hashed, also while somebody writes to `from`.
template <class Step>
std::uint64_t hash_words(const void* page, std::size_t page_bytes, Step step) {
  const auto* words = static_cast<const volatile std::uint64_t*>(page);
  std::uint64_t sum = 0;
  for (std::size_t i = 0; i < page_bytes / sizeof *words; ++i) {
    const std::uint64_t word = words[i];
    step(i, word);
    sum += kvmem_hash_word(word, i);
  }
  return sum;
}

const void* from(const kvmem_batch* batch, std::uint64_t i) {
  return reinterpret_cast<const void*>(batch->from[i]);
}
std::uint64_t* to(const kvmem_batch* batch, std::uint64_t i) {
  return reinterpret_cast<std::uint64_t*>(batch->to[i]);
}

}  // namespace

extern "C" {

std::uint64_t kvmem_twin_hash(const void* page, std::size_t page_bytes) {
  return hash_words(page, page_bytes, [](std::size_t, std::uint64_t) {});
}

std::uint64_t kvmem_twin_copy_page(void* to, const void* from, std::size_t page_bytes) {
  auto* words = static_cast<std::uint64_t*>(to);
  return hash_words(from, page_bytes,
                    [words](std::size_t at, std::uint64_t word) { words[at] = word; });
}

void kvmem_twin_copy(const kvmem_batch* batch) {
  for (std::uint64_t i = 0; i < batch->count; ++i) {
    std::memcpy(to(batch, i), from(batch, i), batch->page_bytes);
  }
}

void kvmem_twin_fill(const kvmem_batch* batch, std::uint64_t value) {
  for (std::uint64_t i = 0; i < batch->count; ++i) {
    for (std::size_t word = 0; word < batch->page_bytes / sizeof value; ++word) {
      to(batch, i)[word] = value;
    }
  }
}

}  // extern "C"
