// 5: the kernel's own copies: O_DIRECT reads into host pages of a GPU's address space, and writes
// from there, by the processor's pointer.
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "gpu.h"
#include "pattern.h"

namespace gpu {
namespace {

constexpr std::uint32_t kSeed = 0x5eed;

class File {
 public:
  File(const std::string& folder, std::size_t bytes) : path_(folder + "/gpu_facts.XXXXXX") {
    fd_ = ::mkstemp(path_.data());
    if (fd_ < 0) skip("no file can be made in " + folder + ": " + std::strerror(errno));
    std::vector<std::uint32_t> words(bytes / 4);
    for (std::uint64_t i = 0; i < words.size(); ++i) words[i] = pattern(kSeed, i);
    const bool written =
        ::pwrite(fd_, words.data(), bytes, 0) == static_cast<ssize_t>(bytes) && ::fsync(fd_) == 0;
    ::close(fd_);
    fd_ = written ? ::open(path_.c_str(), O_RDWR | O_DIRECT) : -1;
    const int error = errno;
    ::unlink(path_.c_str());
    if (fd_ < 0) skip("no O_DIRECT in " + folder + ": " + std::strerror(error));
  }
  ~File() { ::close(fd_); }
  File(const File&) = delete;
  File& operator=(const File&) = delete;
  int fd() const { return fd_; }

 private:
  std::string path_;
  int fd_ = -1;
};

std::string told(ssize_t done, std::uint64_t wrong) {
  if (done < 0) return std::strerror(errno);
  return std::to_string(done >> 20) + " MiB, " + std::to_string(wrong) + " words wrong";
}

}  // namespace

void fact_direct(const Options& options) {
  const Device device;
  const std::size_t bytes = 4 * device.page_bytes();
  const std::uint64_t words = bytes / 4;
  const File file(options.scratch, bytes);
  void* const ordinary =
      ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  const auto full = static_cast<ssize_t>(bytes);
  if (ordinary == MAP_FAILED || ::pread(file.fd(), ordinary, bytes, 0) != full) {
    skip(std::string("O_DIRECT fails even into ordinary memory: ") + std::strerror(errno));
  }

  const Range range(device, 4, {Place::kHost});
  auto* const at = reinterpret_cast<std::uint32_t*>(range.at());
  const auto wrong_here = [&] {
    std::uint64_t wrong = 0;
    for (std::uint64_t i = 0; i < words; ++i) wrong += at[i] != pattern(kSeed, i);
    return wrong;
  };
  for (const bool positioned : {false, true}) {
    device.fill(range.at(), words, kSeed + 1);
    CU(cuCtxSynchronize());
    (void)::lseek(file.fd(), 0, SEEK_SET);
    const ssize_t done =
        positioned ? ::pread(file.fd(), at, bytes, 0) : ::read(file.fd(), at, bytes);
    const std::uint64_t wrong = wrong_here() + device.wrong(range.at(), words, kSeed);
    answer(std::string(positioned ? "pread" : "read") + ", O_DIRECT, into host pages",
           done == full && wrong == 0, told(done, wrong));
  }
  device.fill(range.at(), words, kSeed + 2);
  CU(cuCtxSynchronize());
  const ssize_t done = ::pwrite(file.fd(), at, bytes, 0);
  const std::string text = told(done, 0);
  const bool back = ::pread(file.fd(), ordinary, bytes, 0) == full;
  const bool same = back && std::memcmp(ordinary, at, bytes) == 0;
  answer("pwrite, O_DIRECT, from host pages", done == full && same,
         same || done < 0 ? text : "other bytes in the file");
}

}  // namespace gpu
