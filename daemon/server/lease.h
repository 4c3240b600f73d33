// Lease: a file for each session, which the engine keeps locked for as long as it lives. It proves
// to a daemon that comes later that an engine is the one it says it is, and tells that daemon what
// the engine may hold of its GPUs until it is back to say so itself: nobody else is granted that
// meanwhile.
//
// Written only by the daemon, in its own folder. What is in one is believed as far as it makes
// sense: an engine under the daemon's own user could have written it. Loop only.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/status.h"
#include "base/unique_handle.h"
#include "server/session.h"

namespace kvmem::server {

// What a session may hold of a GPU.
struct GpuGrant {
  GpuUuid gpu{};
  std::uint64_t total_bytes = 0;  // that the GPU has
  std::uint64_t claimed_bytes = 0;
};

class Leases {
 public:
  explicit Leases(std::string folder) : folder_(std::move(folder)) {}

  Status create_folder() const;
  // A new session's, locked for whoever holds the descriptor.
  Result<UniqueFd> make(std::uint64_t session_id) const;
  // Whether `fd` is the session's lease.
  bool is_lease(std::uint64_t session_id, int fd) const;
  // When in doubt: an engine lives.
  bool is_held(std::uint64_t session_id) const;
  void remove(std::uint64_t session_id) const;
  // Sessions that have one, held or not.
  std::vector<std::uint64_t> sessions() const;

  // At most kGpusOfSessionMax; what fails is as if nothing had been noted.
  void note(std::uint64_t session_id, const std::vector<GpuGrant>& grants) const;
  std::vector<GpuGrant> noted(std::uint64_t session_id) const;

 private:
  std::string path(std::uint64_t session_id) const;

  const std::string folder_;
};

inline constexpr std::size_t kGpusOfSessionMax = 64;

}  // namespace kvmem::server
