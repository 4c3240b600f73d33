// Status and Result<T>: errors as values.
//
// A Status is 16 bytes and never allocates: `what` must have static storage, so that reporting
// out-of-memory needs no memory. Result<T> is a T or the Status that says why there is none.
#pragma once

#include <cassert>
#include <cerrno>
#include <cstdint>
#include <type_traits>
#include <utility>
#include <variant>

namespace kvmem {

enum class Code : int {
  kOk = 0,
  kInvalid,      // the caller's argument or the peer's message is wrong
  kNoMemory,     // a budget, quota or the machine is exhausted
  kNoSpace,      // the store or its disk is full
  kBusy,         // try later
  kNotFound,     // no such region, page, record
  kUnsupported,  // the kernel, device or build cannot
  kCorrupt,      // bytes that came back are not the bytes that left
  kErrno,        // a system call failed; detail() is errno
  kCancelled,    // given up on request; nothing changed
  kPeerGone,     // the other process closed or died
};

class [[nodiscard]] Status {
 public:
  constexpr Status() = default;
  constexpr Status(Code code, const char* what, int detail = 0)
      : what_(what), code_(code), detail_(detail) {
    assert(code != Code::kOk);
  }
  // The failure of the system call just made; `what` names the call.
  static Status from_errno(const char* what, int error = errno) {
    return {Code::kErrno, what, error};
  }

  constexpr bool ok() const { return code_ == Code::kOk; }
  constexpr Code code() const { return code_; }
  // errno for kErrno, else a value that `what` explains.
  constexpr int detail() const { return detail_; }
  constexpr const char* what() const { return what_; }

 private:
  const char* what_ = "";
  Code code_ = Code::kOk;
  int detail_ = 0;
};
static_assert(sizeof(Status) == 16);

template <class T>
class [[nodiscard]] Result {
 public:
  // NOLINTNEXTLINE(google-explicit-constructor): `return value;` and `return status;` are the point
  Result(T value) : v_(std::in_place_index<1>, std::move(value)) {}
  // NOLINTNEXTLINE(google-explicit-constructor)
  Result(Status status) : v_(std::in_place_index<0>, status) { assert(!status.ok()); }
  bool ok() const { return v_.index() == 1; }
  Status status() const { return ok() ? Status{} : *std::get_if<0>(&v_); }
  T& operator*() & {
    assert(ok());
    return *std::get_if<1>(&v_);
  }
  T&& operator*() && {
    assert(ok());
    return std::move(*std::get_if<1>(&v_));
  }
  T* operator->() {
    assert(ok());
    return std::get_if<1>(&v_);
  }

 private:
  std::variant<Status, T> v_;
};

}  // namespace kvmem

#define KV_CONCAT_INNER(a, b) a##b
#define KV_CONCAT(a, b) KV_CONCAT_INNER(a, b)
// Returns the Status of `expr` from the calling function unless it is ok.
#define KV_TRY(expr)                                                           \
  do {                                                                         \
    if (::kvmem::Status kv_status = (expr); !kv_status.ok()) return kv_status; \
  } while (0)
// Assigns the value of a Result, or returns its Status.
#define KV_ASSIGN_OR_RETURN(lhs, expr) KV_ASSIGN_INNER(KV_CONCAT(kv_result_, __LINE__), lhs, expr)
// NOLINTBEGIN(bugprone-macro-parentheses): `r` is declared, and `lhs` may be a declaration.
#define KV_ASSIGN_INNER(r, lhs, expr) \
  auto r = (expr);                    \
  if (!r.ok()) return r.status();     \
  lhs = *std::move(r)
// NOLINTEND(bugprone-macro-parentheses)
