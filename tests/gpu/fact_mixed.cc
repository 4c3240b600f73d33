// 1: memory of the device and of the host, page by page in one reservation.
//
// usage: gpu_facts mixed kernels | atomics | copy {to|from} {device|pinned|pageable} | memset
// {8|32}
#include <algorithm>
#include <iterator>
#include <vector>

#include "gpu.h"
#include "pattern.h"

namespace gpu {
namespace {

constexpr std::uint32_t kSeed = 0x5eed;

std::string of(std::uint64_t wrong, std::uint64_t words) {
  return std::to_string(wrong) + " of " + std::to_string(words) + " words wrong";
}

void kernels(const Device& device, std::size_t pages) {
  const Range range(device, pages, {Place::kDevice, Place::kHost});
  const std::uint64_t words = range.page_words();
  ask(Kind::kCheck, "kernels write and read pages of both places");
  device.fill(range.at(), range.words(), kSeed);
  const std::uint64_t wrong = device.wrong(range.at(), range.words(), kSeed);
  settle(wrong == 0, of(wrong, range.words()));

  CUdeviceptr plain = 0;
  CU(cuMemAlloc(&plain, range.bytes()));
  ask(Kind::kCheck, "a kernel copies from both into ordinary memory");
  device.copy(plain, range.at(), range.words());
  const std::uint64_t lost = device.wrong(plain, range.words(), kSeed);
  settle(lost == 0, of(lost, range.words()));
  CU(cuMemFree(plain));

  std::uint64_t unseen = 0;
  std::uint64_t unread = 0;
  for (std::size_t page = 1; page < pages; page += 2) {
    auto* at = reinterpret_cast<std::uint32_t*>(range.at(page));
    for (std::uint64_t i = 0; i < words; ++i) {
      unseen += at[i] != pattern(kSeed, page * words + i);
      at[i] = pattern(kSeed + 1, i);
    }
    unread += device.wrong(range.at(page), words, kSeed + 1);
  }
  check("the processor reads what kernels wrote to host pages, at the same address", unseen == 0,
        of(unseen, range.words() / 2));
  check("kernels read what the processor wrote there", unread == 0, of(unread, range.words() / 2));
}

void atomics(const Device& device, std::size_t pages) {
  // As the last parameter of gpu_count has them. The last is for work with the processor, which
  // needs a link that carries atomics.
  static constexpr const char* kHow[] = {"32-bit add", "64-bit add", "32-bit compare-and-swap",
                                         "64-bit add of system scope"};
  constexpr std::uint64_t kSlotsPerPage = 4;
  constexpr std::uint64_t kTimes = 256;  // each slot
  const Range range(device, pages, {Place::kDevice, Place::kHost});
  const std::uint64_t slots = pages * kSlotsPerPage;
  const std::uint64_t stride = device.page_bytes() / kSlotsPerPage;
  for (std::uint32_t how = 0; how < std::size(kHow); ++how) {
    for (std::size_t i = 0; i < pages; ++i) CU(cuMemsetD8(range.at(i), 0, device.page_bytes()));
    ask(how < 3 ? Kind::kCheck : Kind::kAnswer, std::string("atomics from kernels: ") + kHow[how]);
    device.count(range.at(), slots, stride, slots * kTimes, how);
    std::uint64_t lost[2] = {};
    for (std::uint64_t slot = 0; slot < slots; ++slot) {
      std::uint64_t counted = 0;
      CU(cuMemcpyDtoH(&counted, range.at() + slot * stride, sizeof counted));
      lost[static_cast<int>(range.place(slot / kSlotsPerPage))] += counted != kTimes;
    }
    settle(lost[0] + lost[1] == 0, std::to_string(lost[0]) + " and " + std::to_string(lost[1]) +
                                       " of " + std::to_string(slots / 2) +
                                       " counters wrong, in device and in host pages");
  }
}

// What a copy has at its other end.
class Outside {
 public:
  Outside(const std::string& kind, std::size_t bytes) : bytes_(bytes) {
    if (kind == "device") {
      CU(cuMemAlloc(&at_, bytes));
    } else if (kind == "pinned") {
      void* pinned = nullptr;
      CU(cuMemHostAlloc(&pinned, bytes, 0));
      host_ = static_cast<std::uint32_t*>(pinned);
    } else if (kind == "pageable") {
      pageable_.resize(bytes / 4);
      host_ = pageable_.data();
    } else {
      usage("mixed copy {to|from} {device|pinned|pageable}");
    }
  }

  void fill(const Device& device, std::uint32_t seed) {
    if (host_ == nullptr) {
      device.fill(at_, bytes_ / 4, seed);
      return;
    }
    for (std::uint64_t i = 0; i < bytes_ / 4; ++i) host_[i] = pattern(seed, i);
  }
  std::uint64_t wrong(const Device& device, std::uint32_t seed) const {
    if (host_ == nullptr) return device.wrong(at_, bytes_ / 4, seed);
    std::uint64_t wrong = 0;
    for (std::uint64_t i = 0; i < bytes_ / 4; ++i) wrong += host_[i] != pattern(seed, i);
    return wrong;
  }
  CUresult copy(CUdeviceptr range, bool to_range) const {
    if (host_ == nullptr) {
      return cuMemcpyDtoDAsync(to_range ? range : at_, to_range ? at_ : range, bytes_, nullptr);
    }
    return to_range ? cuMemcpyHtoDAsync(range, host_, bytes_, nullptr)
                    : cuMemcpyDtoHAsync(host_, range, bytes_, nullptr);
  }

 private:
  const std::size_t bytes_;
  CUdeviceptr at_ = 0;
  std::vector<std::uint32_t> pageable_;
  std::uint32_t* host_ = nullptr;  // null: the device's
};

// One copy of a page's size: inside a host page, which is what kvmem makes of it, and across the
// border, which it need not.
void copies(const Device& device, bool to_range, const std::string& with) {
  const Range range(device, 2, {Place::kDevice, Place::kHost});
  const std::size_t bytes = device.page_bytes();
  const std::uint64_t words = bytes / 4;
  Outside outside(with, bytes);
  for (const bool across : {false, true}) {
    const CUdeviceptr at = across ? range.at() + bytes / 2 : range.at(1);
    device.fill(at, words, to_range ? kSeed + 1 : kSeed);
    outside.fill(device, to_range ? kSeed : kSeed + 1);
    CU(cuCtxSynchronize());
    ask(across ? Kind::kAnswer : Kind::kCheck,
        std::string("one copy ") + (across ? "across the border, " : "inside a host page, ") +
            (to_range ? "from " : "to ") + with + " memory");
    CU(outside.copy(at, to_range));
    CU(cuCtxSynchronize());
    const std::uint64_t wrong =
        to_range ? device.wrong(at, words, kSeed) : outside.wrong(device, kSeed);
    settle(wrong == 0, of(wrong, words));
  }
}

void memsets(const Device& device, bool is_wide) {
  constexpr std::uint32_t kValue = 0x5a5a5a5a;
  const Range range(device, 2, {Place::kDevice, Place::kHost});
  const std::size_t bytes = device.page_bytes();
  for (const bool across : {false, true}) {
    const CUdeviceptr at = across ? range.at() + bytes / 2 : range.at(1);
    device.fill(at, bytes / 4, kSeed);
    CU(cuCtxSynchronize());
    ask(across ? Kind::kAnswer : Kind::kCheck,
        std::string("one ") + (is_wide ? "cuMemsetD32 " : "cuMemsetD8 ") +
            (across ? "across the border" : "inside a host page"));
    if (is_wide) {
      CU(cuMemsetD32Async(at, kValue, bytes / 4, nullptr));
    } else {
      CU(cuMemsetD8Async(at, kValue & 0xff, bytes, nullptr));
    }
    CU(cuCtxSynchronize());
    std::vector<std::uint32_t> words(bytes / 4);
    CU(cuMemcpyDtoH(words.data(), at, bytes / 2));
    CU(cuMemcpyDtoH(words.data() + words.size() / 2, at + bytes / 2, bytes / 2));
    const auto right = static_cast<std::size_t>(std::count(words.begin(), words.end(), kValue));
    settle(right == words.size(), of(words.size() - right, words.size()));
  }
}

}  // namespace

void fact_mixed(const Options& options) {
  const Device device;
  const std::size_t pages = options.quick ? 8 : 256;
  if (options.is(0, "kernels")) {
    kernels(device, pages);
  } else if (options.is(0, "atomics")) {
    atomics(device, std::min<std::size_t>(pages, 16));
  } else if (options.is(0, "copy") && options.words.size() == 3) {
    copies(device, options.is(1, "to"), options.words[2]);
  } else if (options.is(0, "memset")) {
    memsets(device, options.is(1, "32"));
  } else {
    usage("mixed kernels | atomics | copy {to|from} {device|pinned|pageable} | memset {8|32}");
  }
}

}  // namespace gpu
