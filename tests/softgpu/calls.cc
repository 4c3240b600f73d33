#include "tests/softgpu/calls.h"

#include <algorithm>
#include <map>
#include <mutex>
#include <string>
#include <string_view>
#include <vector>

#include "tests/softgpu/settings.h"
#include "tests/softgpu/softgpu.h"
#include "tests/softgpu/work.h"

namespace softgpu {

class Calls {
 public:
  struct Failure {
    std::uint64_t in;  // calls from now
    CUresult result;
  };
  std::uint64_t calls = 0;
  bool outlives_device = false;
  std::vector<Failure> failures;
};

namespace {

std::mutex mu;

std::map<std::string, Calls>& table() {
  static auto* const kTable = [] {
    auto* made = new std::map<std::string, Calls>;
    for (const Settings::Failure& f : settings().failures) {
      (*made)[f.entry].failures.push_back({f.nth, static_cast<CUresult>(f.result)});
    }
    return made;
  }();
  return *kTable;
}

// About the driver, the devices, and which context is current: answered as ever.
bool outlives_device(std::string_view entry) {
  for (const std::string_view prefix :
       {"cuInit", "cuDriver", "cuGet", "cuDevice", "cuCtxCreate", "cuCtxDestroy", "cuCtxSetCurrent",
        "cuCtxGetCurrent", "cuCtxPushCurrent", "cuCtxPopCurrent", "cuThread"}) {
    if (entry.starts_with(prefix)) return true;
  }
  return false;
}

}  // namespace

Calls& calls_of(const char* entry) {
  const std::lock_guard lock(mu);
  Calls& calls = table()[entry];
  calls.outlives_device = outlives_device(entry);
  return calls;
}

CUresult count(Calls& calls) {
  const std::lock_guard lock(mu);
  ++calls.calls;
  CUresult result = CUDA_SUCCESS;
  for (Calls::Failure& failure : calls.failures) {
    if (failure.in > 0 && --failure.in == 0) result = failure.result;
  }
  std::erase_if(calls.failures, [](const Calls::Failure& failure) { return failure.in == 0; });
  return result != CUDA_SUCCESS || calls.outlives_device ? result : device_error();
}

}  // namespace softgpu

extern "C" {

std::uint64_t softgpu_calls(const char* entry) {
  const std::lock_guard lock(softgpu::mu);
  return softgpu::table()[entry].calls;
}

void softgpu_reset_calls() {
  const std::lock_guard lock(softgpu::mu);
  for (auto& [name, calls] : softgpu::table()) calls.calls = 0;
}

void softgpu_fail(const char* entry, std::uint64_t n, int result) {
  const std::lock_guard lock(softgpu::mu);
  auto& failures = softgpu::table()[entry].failures;
  if (n == 0) {
    failures.clear();
  } else {
    failures.push_back({n, static_cast<CUresult>(result)});
  }
}

}  // extern "C"
