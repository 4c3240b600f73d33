// UniqueHandle<Traits>: move-only owner of one OS or driver handle.
//
// Traits supplies `using Value`, `static constexpr Value kNone` and
// `static void close(Value) noexcept`. The destructor never throws and reports nothing; a close
// whose failure matters has a function of its own.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <utility>

namespace kvmem {

template <class Traits>
class UniqueHandle {
 public:
  using Value = typename Traits::Value;
  UniqueHandle() = default;
  explicit UniqueHandle(Value v) : v_(v) {}
  UniqueHandle(UniqueHandle&& o) noexcept : v_(o.release()) {}
  UniqueHandle& operator=(UniqueHandle&& o) noexcept {
    reset(o.release());
    return *this;
  }
  UniqueHandle(const UniqueHandle&) = delete;
  UniqueHandle& operator=(const UniqueHandle&) = delete;
  ~UniqueHandle() { reset(); }

  Value get() const { return v_; }
  explicit operator bool() const { return !(v_ == Traits::kNone); }
  Value release() { return std::exchange(v_, Traits::kNone); }
  void reset(Value v = Traits::kNone) {
    if (Value old = std::exchange(v_, v); !(old == Traits::kNone)) Traits::close(old);
  }

 private:
  Value v_ = Traits::kNone;
};

struct FdTraits {
  using Value = int;
  static constexpr int kNone = -1;
  static void close(int fd) noexcept { ::close(fd); }
};
using UniqueFd = UniqueHandle<FdTraits>;

// An mmap'ed range, unmapped on destruction.
struct MappedRange {
  void* address = nullptr;
  std::size_t size_bytes = 0;
  bool operator==(const MappedRange&) const = default;
};
struct MappingTraits {
  using Value = MappedRange;
  static constexpr MappedRange kNone{};
  static void close(MappedRange m) noexcept { ::munmap(m.address, m.size_bytes); }
};
using UniqueMapping = UniqueHandle<MappingTraits>;

}  // namespace kvmem
