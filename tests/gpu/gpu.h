// What the facts share: the device and its kernels, memory whose pages are here or there, and what
// is said on standard output, one JSON object a line:
//
//   check   something that kvmem stands on: if it does not hold, the fact fails
//   answer  a question that kvmem can do with either answer to
//   figure  a cell of a table: median, 99th percentile, number of samples
//   row     a line of a table
//
// A driver call that fails (CU) ends the process: it is the answer to what was asked last, else a
// check of its own. Facts and their cases run in processes of their own: a device that is lost is
// lost to one of them.
#pragma once

#include <cuda.h>

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <string>
#include <utility>
#include <vector>

namespace gpu {

inline constexpr std::size_t kMiB = std::size_t{1} << 20;
inline constexpr std::size_t kGiB = std::size_t{1} << 30;
// Of the device's memory, never taken.
inline constexpr std::size_t kSpareBytes = 2 * kGiB;

struct Options {
  std::vector<std::string> words;  // after the fact's name
  bool quick = false;              // enough to have been everywhere, nothing to measure by
  std::string scratch = ".";       // a folder for files

  bool is(std::size_t i, const char* word) const { return words.size() > i && words[i] == word; }
};

// Ends the process: a call failed, an option is unknown, or it cannot be asked here.
[[noreturn]] void die(const char* call, CUresult result);
[[noreturn]] void usage(const std::string& what);
[[noreturn]] void skip(const std::string& why);

#define CU(call)                                                                                  \
  do {                                                                                            \
    if (const CUresult cu_result = (call); cu_result != CUDA_SUCCESS) gpu::die(#call, cu_result); \
  } while (0)

std::string name_of(CUresult result);
std::string text_of(std::size_t bytes);  // "2 MiB"

// From ask() to settle() a call that fails settles it: it does not hold. So does, for report.py, a
// process that is killed meanwhile. One at a time.
enum class Kind : std::uint8_t { kCheck, kAnswer };
void ask(Kind kind, const std::string& name);
void settle(bool holds, const std::string& text);
void check(const std::string& name, bool holds, const std::string& text);
void answer(const std::string& name, bool is_yes, const std::string& text);
void row(std::initializer_list<std::pair<const char*, std::string>> cells);
void figure(const std::string& row, const std::string& column, const char* unit,
            std::vector<double> samples);
// GB/s of `bytes` in each of these times; the 99th percentile is the time's.
void figure_rate(const std::string& row, const std::string& column, std::size_t bytes,
                 std::vector<double> times_ns);

inline double now_ns() {
  return static_cast<double>(std::chrono::duration_cast<std::chrono::nanoseconds>(
                                 std::chrono::steady_clock::now().time_since_epoch())
                                 .count());
}
// True for `seconds` from its making.
class Until {
 public:
  explicit Until(double seconds) : end_ns_(now_ns() + 1e9 * seconds) {}
  bool goes_on() const { return now_ns() < end_ns_; }

 private:
  double end_ns_;
};

enum class Place : std::uint8_t { kDevice, kHost };
inline Place other(Place place) { return place == Place::kDevice ? Place::kHost : Place::kDevice; }

// The first GPU, with its primary context current on this thread. One a process.
class Device {
 public:
  // Exits 77 where there is none.
  Device();
  Device(const Device&) = delete;
  Device& operator=(const Device&) = delete;

  CUdevice id() const { return id_; }
  CUcontext context() const { return context_; }
  // What kvmem would take host memory from.
  int node() const { return node_; }
  int attribute(CUdevice_attribute which) const;
  std::size_t free_bytes() const;
  // Of a page in either place.
  std::size_t page_bytes() const { return page_bytes_; }
  // As kvmem asks for a page there.
  CUmemAllocationProp as_kvmem_asks(Place place) const;
  // That, or the plainest where it is refused.
  const CUmemAllocationProp& properties(Place place) const {
    return props_[static_cast<int>(place)];
  }
  // Reading and writing: for the device, and in host memory for the processor.
  void give_access(CUdeviceptr at, std::size_t bytes, Place place) const;

  // Kernels: see kernels.cu. On the legacy stream unless one is given.
  void empty(CUstream stream = nullptr) const;
  void fill(CUdeviceptr at, std::uint64_t words, std::uint32_t seed,
            CUstream stream = nullptr) const;
  void add(CUdeviceptr at, std::uint64_t words, std::uint32_t value,
           CUstream stream = nullptr) const;
  void copy(CUdeviceptr to, CUdeviceptr from, std::uint64_t words, CUstream stream = nullptr) const;
  void touch(CUdeviceptr at, std::uint64_t words, std::uint64_t stride) const;
  void count(CUdeviceptr at, std::uint64_t slots, std::uint64_t stride, std::uint64_t times,
             std::uint32_t how) const;
  void start_hash(CUdeviceptr at, std::uint64_t words, CUstream stream = nullptr) const;
  // These wait.
  std::uint64_t wrong(CUdeviceptr at, std::uint64_t words, std::uint32_t seed,
                      std::uint32_t value = 0) const;
  std::uint64_t hash(CUdeviceptr at, std::uint64_t words) const;

 private:
  template <class... Params>
  void launch(CUfunction function, std::uint64_t threads, CUstream stream, Params... params) const;
  std::uint64_t sum() const;
  bool gives_page(const CUmemAllocationProp& prop) const;

  CUdevice id_ = 0;
  CUcontext context_ = nullptr;
  int node_ = 0;
  std::size_t page_bytes_ = 0;
  CUmemAllocationProp props_[2]{};  // by place
  CUmodule module_ = nullptr;
  CUfunction empty_ = nullptr, fill_ = nullptr, add_ = nullptr, wrong_ = nullptr, hash_ = nullptr,
             copy_ = nullptr, touch_ = nullptr, count_ = nullptr;
  CUdeviceptr sum_ = 0;
};

// Addresses of which each page has memory of one place, and gets it of the other.
class Range {
 public:
  // Page i is in places[i % their number].
  Range(const Device& device, std::size_t pages, std::initializer_list<Place> places);
  ~Range();
  Range(const Range&) = delete;
  Range& operator=(const Range&) = delete;

  CUdeviceptr at(std::size_t page = 0) const { return at_ + page * device_.page_bytes(); }
  std::size_t pages() const { return pages_.size(); }
  std::size_t bytes() const { return pages_.size() * device_.page_bytes(); }
  std::uint64_t words() const { return bytes() / 4; }
  Place place(std::size_t page) const { return pages_[page].place; }
  std::uint64_t page_words() const { return device_.page_bytes() / 4; }

  // [first, first + count) goes to `place`, with what is in it: copied on a stream of its own,
  // unmapped in one call, mapped page by page, one call for access. Nothing else is waited for.
  void move(std::size_t first, std::size_t count, Place place);

 private:
  struct Page {
    CUmemGenericAllocationHandle memory;
    Place place;
  };
  const Device& device_;
  std::vector<Page> pages_;
  CUdeviceptr at_ = 0;
  CUstream stream_ = nullptr;
};

// The facts, by the name that main() knows them by.
void fact_device(const Options& options);  // not a fact: what there is
void fact_mixed(const Options& options);   // 1
void fact_remap(const Options& options);   // 2
void fact_places(const Options& options);  // 3
void fact_calls(const Options& options);   // 4
void fact_direct(const Options& options);  // 5
void fact_copies(const Options& options);  // 6
void fact_launch(const Options& options);  // 7
void fact_graph(const Options& options);   // 8
void fact_advise(const Options& options);  // 10; 9 is model.py

}  // namespace gpu
