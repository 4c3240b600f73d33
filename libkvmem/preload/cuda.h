// The calls of the CUDA driver that kvmem stands before, as the resolvers need them.
#pragma once

#include <cuda.h>

#include <atomic>
#include <cstddef>

#include "cuda/driver.h"

namespace kvmem::preload {

// The driver's function, looked up at the first call.
class Real {
 public:
  constexpr explicit Real(const char* symbol) : symbol_(symbol) {}
  template <class... Args>
  CUresult operator()(Args... args) {
    void* found = found_.load(std::memory_order_relaxed);
    if (found == nullptr) {
      found = kvmem::cuda::exported(symbol_);
      if (found == nullptr) return CUDA_ERROR_NOT_INITIALIZED;
      found_.store(found, std::memory_order_relaxed);
    }
    return reinterpret_cast<CUresult (*)(Args...)>(found)(args...);
  }

 private:
  const char* symbol_;
  std::atomic<void*> found_{nullptr};
};

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
// Whether the stream is being captured; `own`: zero is the calling thread's own stream.
bool is_captured(CUstream stream, bool own);
// What an engine gets for a name of the driver's for which the loader has found `found`.
void* stand_before(const char* name, void* found);
Hooks copy_hooks();
Hooks shape_hooks();
Hooks share_hooks();
Hooks work_hooks();

}  // namespace kvmem::preload

// Names and types of parameters, from their types alone.
#define KVMEM_PARAMETERS_1(A) A a
#define KVMEM_PARAMETERS_2(A, B) A a, B b
#define KVMEM_PARAMETERS_3(A, B, C) KVMEM_PARAMETERS_2(A, B), C c
#define KVMEM_PARAMETERS_4(A, B, C, D) KVMEM_PARAMETERS_3(A, B, C), D d
#define KVMEM_PARAMETERS_5(A, B, C, D, E) KVMEM_PARAMETERS_4(A, B, C, D), E e
#define KVMEM_PARAMETERS_6(A, B, C, D, E, F) KVMEM_PARAMETERS_5(A, B, C, D, E), F f
#define KVMEM_PARAMETERS_7(A, B, C, D, E, F, G) KVMEM_PARAMETERS_6(A, B, C, D, E, F), G g
#define KVMEM_PARAMETERS_8(A, B, C, D, E, F, G, H) KVMEM_PARAMETERS_7(A, B, C, D, E, F, G), H h
#define KVMEM_PARAMETERS_9(A, B, C, D, E, F, G, H, I) \
  KVMEM_PARAMETERS_8(A, B, C, D, E, F, G, H), I i
#define KVMEM_PARAMETERS_10(A, B, C, D, E, F, G, H, I, J) \
  KVMEM_PARAMETERS_9(A, B, C, D, E, F, G, H, I), J j
#define KVMEM_PARAMETERS_11(A, B, C, D, E, F, G, H, I, J, K) \
  KVMEM_PARAMETERS_10(A, B, C, D, E, F, G, H, I, J), K k
#define KVMEM_ARGUMENTS_1 a
#define KVMEM_ARGUMENTS_2 a, b
#define KVMEM_ARGUMENTS_3 a, b, c
#define KVMEM_ARGUMENTS_4 a, b, c, d
#define KVMEM_ARGUMENTS_5 a, b, c, d, e
#define KVMEM_ARGUMENTS_6 a, b, c, d, e, f
#define KVMEM_ARGUMENTS_7 a, b, c, d, e, f, g
#define KVMEM_ARGUMENTS_8 a, b, c, d, e, f, g, h
#define KVMEM_ARGUMENTS_9 a, b, c, d, e, f, g, h, i
#define KVMEM_ARGUMENTS_10 a, b, c, d, e, f, g, h, i, j
#define KVMEM_ARGUMENTS_11 a, b, c, d, e, f, g, h, i, j, k

// The head of a function that the driver exports as `symbol`; its parameters are a, b, c, ...
#define KVMEM_EXPORTED_CALL(id, symbol, count, ...)                   \
  extern "C" __attribute__((visibility("default")))                   \
  CUresult id(KVMEM_PARAMETERS_##count(__VA_ARGS__)) __asm__(symbol); \
  CUresult id(KVMEM_PARAMETERS_##count(__VA_ARGS__))

// A call in its two forms, and its two lines in a table of hooks. A table is written once, as
//   #define KVMEM_SOME(X) X(KIND, documented name, version, its exported name, that of each
//   thread's own, ...)
// and KIND(id, symbol, ...) defines one function.
#define KVMEM_BOTH(KIND, name, version, legacy, own, ...) \
  KIND(kvmem_##name##_##version, legacy, __VA_ARGS__)     \
  KIND(kvmem_own_##name##_##version, own, __VA_ARGS__)
#define KVMEM_LIST(KIND, name, version, legacy, own, ...)                           \
  {#name, legacy, reinterpret_cast<void*>(&kvmem_##name##_##version), version,      \
   ::kvmem::preload::Hook::Streams::kLegacy},                                       \
      {#name, own, reinterpret_cast<void*>(&kvmem_own_##name##_##version), version, \
       ::kvmem::preload::Hook::Streams::kPerThread},
