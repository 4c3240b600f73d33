// 4: what each call of virtual memory management takes its caller: runs of equal handles in one
// reservation, one cuMemSetAccess and one cuMemUnmap for a run. cuMemCreate, cuMemMap and
// cuMemRelease are called once for each handle of it.
//
// usage: gpu_facts calls {device|host}
#include <sys/sysinfo.h>

#include <algorithm>

#include "gpu.h"

namespace gpu {
namespace {

enum Call { kReserve, kCreate, kMap, kAccess, kUnmap, kRelease, kFree, kCalls };
constexpr const char* kNames[kCalls] = {"cuMemAddressReserve", "cuMemCreate", "cuMemMap",
                                        "cuMemSetAccess",      "cuMemUnmap",  "cuMemRelease",
                                        "cuMemAddressFree"};
using Times = std::vector<double>[kCalls];

template <class Body>
void timed(std::vector<double>& times, Body body) {
  const double begin = now_ns();
  body();
  times.push_back((now_ns() - begin) / 1000);
}

void once(const Device& device, Place place, std::size_t bytes, std::size_t count, Times& us) {
  const CUmemAllocationProp& prop = device.properties(place);
  std::vector<CUmemGenericAllocationHandle> handles(count);
  CUdeviceptr at = 0;
  timed(us[kReserve], [&] { CU(cuMemAddressReserve(&at, count * bytes, 0, 0, 0)); });
  for (auto& handle : handles)
    timed(us[kCreate], [&] { CU(cuMemCreate(&handle, bytes, &prop, 0)); });
  for (std::size_t i = 0; i < count; ++i) {
    timed(us[kMap], [&] { CU(cuMemMap(at + i * bytes, bytes, 0, handles[i], 0)); });
  }
  timed(us[kAccess], [&] { device.give_access(at, count * bytes, place); });
  // So that there is something to forget: an address nobody used is in no table of the device.
  device.touch(at, count * bytes / 4, device.page_bytes() / 4);
  CU(cuCtxSynchronize());
  timed(us[kUnmap], [&] { CU(cuMemUnmap(at, count * bytes)); });
  for (const auto handle : handles) timed(us[kRelease], [&] { CU(cuMemRelease(handle)); });
  timed(us[kFree], [&] { CU(cuMemAddressFree(at, count * bytes)); });
}

std::size_t room(const Device& device, Place place, const Options& options) {
  if (place == Place::kDevice) return device.free_bytes();
  if (options.quick) return SIZE_MAX;  // nobody touches more than a word of a page
  struct sysinfo info {};
  ::sysinfo(&info);
  return info.freeram * info.mem_unit / 2;
}

}  // namespace

void fact_calls(const Options& options) {
  const Device device;
  const Place place = options.is(0, "host") ? Place::kHost : Place::kDevice;
  if (place == Place::kDevice && !options.is(0, "device")) usage("calls {device|host}");
  for (const std::size_t mib : {2, 16, 64}) {
    for (const std::size_t count : {1, 8, 64}) {
      const std::string name =
          options.words[0] + ", " + std::to_string(count) + " × " + text_of(mib * kMiB);
      if (count * mib * kMiB > room(device, place, options)) {
        answer(name, false, "not measured: there is no room");
        continue;
      }
      Times us;
      once(device, place, mib * kMiB, count, us);  // the first is not counted
      for (auto& times : us) times.clear();
      const Until until(options.quick ? 0 : 1.5);
      constexpr std::size_t kRunsMax = 500;
      do {
        once(device, place, mib * kMiB, count, us);
      } while (until.goes_on() && us[kReserve].size() < kRunsMax);
      for (int call = 0; call < kCalls; ++call) figure(name, kNames[call], "us", us[call]);
    }
  }
}

}  // namespace gpu
