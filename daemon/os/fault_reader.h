// FaultReader: hands an engine's faults to the loop as they come. The read itself is the ring's:
// the engine shares the descriptor's flags, so a read of ours could be made to block, and the
// ring's cannot.
//
//   idle -> reading       start()
//   reading -> stopping   stop(): cancelled, no further `ready`
//   stopping -> idle      the kernel has let go; `stopped` runs, the owner may be destroyed
#pragma once

#include <array>
#include <cstdint>
#include <span>

#include "base/check.h"
#include "os/ring.h"
#include "os/userfault.h"

namespace kvmem::os {

class FaultReader : private Completion {
 public:
  using Ready = void (*)(void* owner, std::span<const Fault> faults);
  using Stopped = void (*)(void* owner);

  FaultReader() { run = &FaultReader::on_readable; }
  FaultReader(const FaultReader&) = delete;
  FaultReader& operator=(const FaultReader&) = delete;
  ~FaultReader() { KV_CHECK(state_ == State::kIdle); }

  // REQUIRES: idle; fd, owner and this outlive the reading.
  void start(Ring& ring, int fd, void* owner, Ready ready, Stopped stopped);
  void stop();
  bool idle() const { return state_ == State::kIdle; }

 private:
  enum class State : std::uint8_t { kIdle, kReading, kStopping };
  static constexpr std::size_t kBatch = 16;

  void arm();
  // Faults read, 0 for none now, -1 when this descriptor will never give one again.
  int read_batch(std::array<Fault, kBatch>& faults);
  static void on_readable(Completion* self, int result, std::uint32_t flags);

  Ring* ring_ = nullptr;
  void* owner_ = nullptr;
  Ready ready_ = nullptr;
  Stopped stopped_ = nullptr;
  int fd_ = -1;
  __kernel_timespec never_{1 << 30, 0};
  bool dead_ = false;
  State state_ = State::kIdle;
};

}  // namespace kvmem::os
