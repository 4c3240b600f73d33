// Session: one engine's connection, and everything the daemon holds for it.
//
//   accepted -> open    Hello answered; whoever only asks (kvmemctl) stays accepted, its id 0
//   open -> armed       userfaultfd and agent socket handed over
//   any -> ending          the engine hung up, broke the protocol, or the daemon stops: its views
//                          are gone, its watches are stopping
//   ending -> gone      the kernel has let go of every watch
//
// Nothing an engine sends is used before it is checked. Loop only.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "base/unique_handle.h"
#include "migrate/region.h"
#include "os/fault_reader.h"
#include "os/socket.h"
#include "os/watch.h"
#include "wire/protocol.h"

namespace kvmem::server {

class Server;
struct CacheConnection;

using GpuUuid = std::array<std::uint64_t, 2>;

// What an engine says of memory that it has on a GPU; for kvmemctl.
struct GpuRegion {
  GpuUuid gpu{};
  std::uint64_t size_bytes = 0;
  std::uint64_t hbm_bytes = 0;
  std::uint64_t host_bytes = 0;
  std::uint64_t stored_bytes = 0;
  std::string tag;
  std::string why;
};

struct Session {
  Server* server = nullptr;
  std::uint64_t id = 0;  // 0 until Hello
  os::Peer peer;
  std::int32_t pid = 0;  // as the engine sees itself; differs from peer.pid across pid namespaces
  std::string tag;
  bool resuming = false;  // gives back the regions of an earlier daemon
  bool ending = false;
  std::uint64_t fault_count = 0;  // since it connected

  UniqueFd socket;
  UniqueFd userfault;
  UniqueFd agent;
  os::Watch socket_watch;
  os::FaultReader faults;
  os::Watch agent_watch;

  std::map<std::uint64_t, migrate::View*> views;    // by address
  std::map<std::uint64_t, migrate::View*> aliases;  // likewise; they lie over views
  // Created, not mapped yet: RegionMapped makes the view.
  struct Pending {
    migrate::Region* region = nullptr;
    std::uint32_t first_page = 0;
    std::uint32_t page_count = 0;
  };
  std::map<std::uint64_t, Pending> pending;        // by region id
  std::map<std::uint64_t, GpuRegion> gpu_regions;  // by address
  std::uint64_t asked_ns = 0;                      // to give back memory of a GPU, the last time
  std::uint64_t fork_token = 0;                    // between ForkBegin and ForkEnd
  bool moves_aside = false;                        // between RegionAside and its kDone
  wire::AgentCommand samples;                      // runs gathered for the agent
  wire::AgentCommand asides;                       // likewise
  // Where the connection is one to a block cache, and then no session (its id stays 0).
  std::unique_ptr<CacheConnection> cache;

  Session();
  ~Session();
  Session(const Session&) = delete;
  Session& operator=(const Session&) = delete;

  migrate::View* view_at(std::uint64_t address) const {
    migrate::View* const alias = at(aliases, address);
    return alias != nullptr ? alias : at(views, address);
  }
  static migrate::View* at(const std::map<std::uint64_t, migrate::View*>& views,
                           std::uint64_t address) {
    auto after = views.upper_bound(address);
    if (after == views.begin()) return nullptr;
    migrate::View* view = std::prev(after)->second;
    return address < view->end_address() ? view : nullptr;
  }
};

// What a fork left for its child to claim.
struct Fork {
  std::uint32_t uid = 0;
  std::uint64_t parent_session = 0;
  std::uint64_t expires_ns = 0;
  std::map<std::uint64_t, migrate::Region*> children;  // parent's region id -> copy
};

}  // namespace kvmem::server
