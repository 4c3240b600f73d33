// Server: the socket, its sessions, and what they may ask for.
//
// Serves engines (session requests) and kvmemctl (control requests) on one listening socket. Who
// may do what: a session acts on its own regions; model files are shared between sessions of one
// uid; control requests see and move what their uid owns, root and the daemon's own uid everything.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/status.h"
#include "config/config.h"
#include "loop/loop.h"
#include "os/timer.h"
#include "policy/ledger.h"
#include "probe/probes.h"
#include "server/caches.h"
#include "server/lease.h"
#include "server/session.h"

namespace kvmem::server {

struct ServerTotals {
  std::uint64_t sessions = 0;
  std::uint64_t refused = 0;  // requests answered with an error, messages not understood
  std::uint64_t resumed = 0;  // sessions that outlived a daemon
};

class Server final : private loop::EngineHand, private Caches::Owner {
 public:
  // `listener` is a listening SOCK_SEQPACKET socket; `runtime_dir` exists and is the daemon's own.
  Server(loop::Loop& loop, UniqueFd listener, std::string runtime_dir, config::Config config,
         std::unique_ptr<probe::Probes> probes);
  ~Server() override;
  Server(const Server&) = delete;
  Server& operator=(const Server&) = delete;

  Status start();
  // Ends every session and waits (bounded) for the kernel to let go.
  void stop();
  void apply(const config::Config& config);
  void add_warning(std::string text) { warnings_.push_back(std::move(text)); }
  // Once a second: leases of dead engines, forks nobody claimed.
  void housekeep(std::uint64_t now_ns);

  // For control.cc.
  const loop::Loop& loop() const { return loop_; }
  loop::Loop& loop() { return loop_; }
  const config::Config& config() const { return config_; }
  const std::map<std::uint64_t, std::unique_ptr<Session>>& sessions() const { return sessions_; }
  const std::vector<std::string>& warnings() const { return warnings_; }
  const ServerTotals& totals() const { return totals_; }
  struct GpuLedger {
    std::uint64_t total_bytes = 0;  // as the first engine there said
    policy::Ledger claims;          // by session id
  };
  const std::map<GpuUuid, GpuLedger>& gpus() const { return gpus_; }
  const std::vector<std::uint64_t>& orphans() const { return orphans_; }
  const Caches& caches() const { return caches_; }
  probe::Probes& probes() { return *probes_; }
  // Has the engines that `request` means, by `pid` or `tag`, park or wake, of those that `peer` may
  // act on. How many were told.
  std::uint32_t tell_engines(const os::Peer& peer, const wire::Request& request);
  std::uint64_t started_ns() const { return started_ns_; }

 private:
  void on_accept();
  void on_request(Session& session);
  void on_fault(Session& session, std::span<const os::Fault> faults);
  void on_agent(Session& session);
  void end(Session& session, const char* why);
  void maybe_forget(Session& session);

  void handle(Session& session, const wire::Request& request, os::Received& received);
  wire::Reply hello(Session& session, const wire::Request& request, os::Received& received,
                    std::vector<UniqueFd>& fds);
  wire::Reply arm(Session& session, os::Received& received);
  wire::Reply region_create(Session& session, const wire::Request& request, os::Received& received,
                            std::vector<UniqueFd>& fds);
  wire::Reply region_mapped(Session& session, const wire::Request& request);
  wire::Reply region_destroy(Session& session, const wire::Request& request);
  wire::Reply region_resume(Session& session, const wire::Request& request, os::Received& received);
  bool discard(Session& session, const wire::Request& request, wire::Reply& reply);
  wire::Reply region_alias(Session& session, const wire::Request& request);
  void add_alias(Session& session, const migrate::View& alias);
  void cut_aliases(Session& session, std::uint64_t begin, std::uint64_t end);
  bool region_aside(Session& session, const wire::Request& request, wire::Reply& reply,
                    std::vector<UniqueFd>& fds);
  wire::Reply advise(Session& session, const wire::Request& request);
  wire::Reply fork_begin(Session& session, const wire::Request& request);
  wire::Reply fork_end(Session& session, const wire::Request& request);
  void release(Session& session);
  wire::Reply fork_claim(Session& session, const wire::Request& request,
                         std::vector<UniqueFd>& fds);
  wire::Reply gpu_claim(Session& session, const wire::Request& request);
  wire::Reply gpu_region(Session& session, const wire::Request& request);
  std::uint64_t gpu_budget(std::uint64_t total_bytes) const;
  std::map<GpuUuid, GpuLedger>::iterator add_gpu(const GpuUuid& uuid, std::uint64_t total_bytes);
  std::vector<GpuGrant> grants_of(std::uint64_t session_id) const;
  void forget_claims(std::uint64_t session_id);
  void find_orphans();
  wire::Reply control(Session& session, const wire::Request& request, std::vector<UniqueFd>& fds);

  Result<migrate::View*> checked_range(Session& session, const wire::Request& request);
  void wait_for_mapping(Session& session, migrate::Region& region, std::uint32_t first_page,
                        std::uint32_t page_count);
  wire::Reply offer(Session& session, migrate::Region& region, std::uint32_t first_page,
                    std::uint32_t page_count, std::vector<UniqueFd>& fds);
  void reply(Session& session, wire::Reply reply, const std::vector<UniqueFd>& fds = {});
  void drop_fork(std::uint64_t token);
  std::uint64_t regions_of(std::uint32_t uid) const;
  static std::uint32_t pages_max_of(const wire::Request& request);

  void unmap(migrate::View& view, std::uint32_t page) override;
  void flush() override;
  void move_aside(migrate::View& view, std::uint32_t page) override;
  void poison(migrate::View& view, std::uint32_t page) override;
  void answer(Session& session, const wire::Reply& reply) override;
  void cache_ended(Session& session) override;
  void dram_changed() override;
  void send_runs(Session& session, wire::AgentCommand& command);
  void gather(migrate::View& view, std::uint32_t page, wire::AgentCommand Session::*command);

  loop::Loop& loop_;
  UniqueFd listener_;
  os::Watch accept_watch_;
  UniqueFd userfault_device_;
  const Leases leases_;
  config::Config config_;
  const std::unique_ptr<probe::Probes> probes_;  // never null
  Caches caches_;
  std::map<std::uint64_t, std::unique_ptr<Session>> sessions_;  // by connection number
  std::uint64_t next_connection_ = 1;
  std::map<std::uint64_t, Fork> forks_;  // by token
  std::vector<std::uint64_t> orphans_;   // sessions of an earlier daemon, not back yet
  std::vector<Session*> gathered_;       // have runs to send
  std::map<GpuUuid, GpuLedger> gpus_;    // on which somebody holds something
  std::vector<std::string> warnings_;
  ServerTotals totals_;
  std::uint64_t started_ns_ = 0;
  bool stopping_ = false;
};

// control.cc: the JSON that answers a control request, or an error for `reply`.
std::string control_json(Server& server, const os::Peer& peer, const wire::Request& request,
                         wire::Reply& reply);

// Whether `peer` may see and steer what belongs to `uid`.
bool may_see(const os::Peer& peer, std::uint32_t uid);

wire::Reply refuse(int error, const char* message);
wire::Reply refuse_status(const Status& status);

}  // namespace kvmem::server
