// Owned<T> and Array<T>: what new and std::vector are elsewhere, for code that runs in foreign
// processes. They use malloc and say so when there is no memory: new and std::vector throw, and
// what throws drags in symbols newer than the oldest glibc we run on.
#pragma once

#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <type_traits>
#include <utility>

namespace kvmem {

struct HeapDelete {
  template <class T>
  void operator()(T* object) const noexcept {
    object->~T();
    std::free(object);
  }
};
template <class T>
using Owned = std::unique_ptr<T, HeapDelete>;
// Room for a T, to be constructed in place and owned; null: no memory.
template <class T>
void* heap_room() {
  static_assert(alignof(T) <= alignof(std::max_align_t));
  return std::malloc(sizeof(T));
}

template <class T>
class Array {
  static_assert(std::is_trivially_copyable_v<T>);

 public:
  Array() = default;
  Array(Array&& o) noexcept
      : data_(std::exchange(o.data_, nullptr)),
        size_(std::exchange(o.size_, 0)),
        capacity_(std::exchange(o.capacity_, 0)) {}
  Array& operator=(Array&&) = delete;
  Array(const Array&) = delete;
  Array& operator=(const Array&) = delete;
  ~Array() { std::free(data_); }

  std::size_t size() const { return size_; }
  bool empty() const { return size_ == 0; }
  T* data() { return data_; }
  T& operator[](std::size_t i) { return data_[i]; }
  const T& operator[](std::size_t i) const { return data_[i]; }
  T* begin() { return data_; }
  T* end() { return data_ + size_; }
  const T* begin() const { return data_; }
  const T* end() const { return data_ + size_; }

  // False, and nothing changed, where there is no memory. New elements are all zero bytes.
  [[nodiscard]] bool resize(std::size_t size) {
    if (size > capacity_) {
      const std::size_t capacity = size > 2 * capacity_ ? size : 2 * capacity_;
      void* grown = std::realloc(data_, capacity * kEach);
      if (grown == nullptr) return false;
      data_ = static_cast<T*>(grown);
      capacity_ = capacity;
    }
    if (size > size_) std::memset(static_cast<void*>(data_ + size_), 0, (size - size_) * kEach);
    size_ = size;
    return true;
  }
  void swap(Array& o) noexcept {
    std::swap(data_, o.data_);
    std::swap(size_, o.size_);
    std::swap(capacity_, o.capacity_);
  }
  void shrink(std::size_t size) { size_ = size < size_ ? size : size_; }

 private:
  static constexpr std::size_t kEach = sizeof(T);  // NOLINT(bugprone-sizeof-expression): a pointer

  T* data_ = nullptr;
  std::size_t size_ = 0;
  std::size_t capacity_ = 0;
};

}  // namespace kvmem
