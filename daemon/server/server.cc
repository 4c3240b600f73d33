#include "server/server.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cinttypes>
#include <cstdio>
#include <cstring>
#include <string_view>

#include "base/page.h"
#include "os/clock.h"
#include "os/log.h"
#include "os/userfault.h"

namespace kvmem::server {
namespace {

using migrate::Region;
using migrate::View;
using wire::Reply;
using wire::Request;

constexpr std::uint64_t kForkClaimNs =
    60'000'000'000;  // a child claims in its fork handler, at once
constexpr std::uint64_t kAddressMax = std::uint64_t{1} << 47;
constexpr std::size_t kGpusMax = 4096;
constexpr std::size_t kAliasesMax = 16384;       // of a session
constexpr std::ptrdiff_t kSessionlessMax = 256;  // connections of one user that have no session

std::uint64_t random_nonzero() {
  std::uint64_t word = 0;
  while (word == 0) {
    if (::getrandom(&word, sizeof word, 0) != sizeof word) word = os::now_ns();
  }
  return word;
}

// Beside the store where that is a file, else where the daemon keeps what it needs.
std::string history_prefix(const config::Config& config) {
  struct stat st {};
  const bool is_file = ::stat(config.nvme.path.c_str(), &st) == 0 && S_ISREG(st.st_mode);
  return is_file ? config.nvme.path + ".blocks-" : config.daemon.runtime_dir + "/blocks-";
}

std::string text_of(const char* chars, std::size_t size) {
  std::string text(chars, ::strnlen(chars, size));
  for (char& c : text) {
    const auto code = static_cast<unsigned char>(c);
    if (code < 0x20 || code >= 0x7f) c = '?';  // printed, logged, made JSON of: plain ASCII
  }
  return text;
}

}  // namespace

Reply refuse(int error, const char* message) {
  Reply reply;
  reply.error = -error;
  std::snprintf(reply.message, sizeof reply.message, "%s", message);
  return reply;
}

Reply refuse_status(const Status& status) {
  int error = EIO;
  switch (status.code()) {
    case Code::kInvalid:
      error = EINVAL;
      break;
    case Code::kNoMemory:
      error = ENOMEM;
      break;
    case Code::kNoSpace:
      error = ENOSPC;
      break;
    case Code::kBusy:
      error = EBUSY;
      break;
    case Code::kNotFound:
      error = ENOENT;
      break;
    case Code::kUnsupported:
      error = ENOTSUP;
      break;
    case Code::kErrno:
      error = status.detail();
      break;
    default:
      break;
  }
  return refuse(error, status.what());
}

Session::Session() { asides.op = wire::AgentOp::kMoveAside; }
Session::~Session() = default;

Server::Server(loop::Loop& loop, UniqueFd listener, std::string runtime_dir, config::Config config,
               std::unique_ptr<probe::Probes> probes)
    : loop_(loop),
      listener_(std::move(listener)),
      leases_(std::move(runtime_dir) + "/leases"),
      config_(std::move(config)),
      probes_(std::move(probes)),
      caches_(loop, *this, config_.cache, history_prefix(config_)),
      started_ns_(os::now_ns()) {}

Server::~Server() { stop(); }

void Server::answer(Session& session, const Reply& answer) { reply(session, answer); }

void Server::cache_ended(Session& session) {
  caches_.drop(session);
  maybe_forget(session);
}

void Server::dram_changed() {
  const std::uint64_t budget = config_.dram.budget_pages();
  // (A budget that was lowered since: the regions keep what the cache was to leave them.)
  loop_.set_dram_pages(std::max(budget - std::min(budget, caches_.dram_pages()), budget / 4));
}

Status Server::start() {
  KV_TRY(leases_.create_folder());
  if (auto device = os::open_userfault_device(); device.ok()) {
    userfault_device_ = *std::move(device);
  } else {
    warnings_.emplace_back(
        "/dev/userfaultfd cannot be opened: engines need that permission themselves; install the "
        "udev rule or run "
        "kvmemd as root");
  }
  find_orphans();
  loop_.set_engine_hand(this);
  accept_watch_.start(
      loop_.ring(), listener_.get(), this,
      [](void* self, std::uint32_t) { static_cast<Server*>(self)->on_accept(); }, [](void*) {});
  housekeep(os::now_ns());
  return {};
}

void Server::stop() {
  if (stopping_) return;
  stopping_ = true;
  accept_watch_.stop();
  loop_.detach();
  std::vector<Session*> open;
  for (auto& [number, session] : sessions_) open.push_back(session.get());
  for (Session* session : open) end(*session, nullptr);
  caches_.stop();
  for (int turns = 0;
       turns < 10'000 && (!sessions_.empty() || !accept_watch_.idle() || !caches_.idle());
       ++turns) {
    if (!loop_.run_once().ok()) break;
  }
  loop_.set_engine_hand(nullptr);
}

void Server::on_accept() {
  for (;;) {
    auto accepted = os::accept_from(listener_.get());
    if (!accepted.ok()) {
      if (accepted.status().code() != Code::kBusy) {
        os::log(os::Severity::kWarning, "%s: %s", accepted.status().what(),
                // NOLINTNEXTLINE(concurrency-mt-unsafe): the loop alone asks
                std::strerror(accepted.status().detail()));
      }
      return;
    }
    auto peer = os::peer_of(accepted->get());
    if (!peer.ok() || stopping_) continue;
    // Those without a session ask and go; quota.sessions_max is Hello's business.
    const auto sessionless = std::count_if(sessions_.begin(), sessions_.end(), [&](const auto& s) {
      return s.second->peer.uid == peer->uid && s.second->id == 0;
    });
    if (sessionless >= kSessionlessMax) {
      ++totals_.refused;
      // Busy, not refused: an engine that comes back to its session will ask again.
      const Reply no = refuse(EBUSY, "too many connections of this user without a session");
      (void)os::send(accepted->get(), std::as_bytes(std::span(&no, 1)));
      continue;
    }
    auto session = std::make_unique<Session>();
    session->server = this;
    session->peer = *peer;
    session->pid = peer->pid;
    session->socket = *std::move(accepted);
    session->samples.run_count = 0;
    Session& s = *session;
    sessions_.emplace(next_connection_++, std::move(session));
    s.socket_watch.start(
        loop_.ring(), s.socket.get(), &s,
        [](void* self, std::uint32_t) {
          auto* opened = static_cast<Session*>(self);
          opened->server->on_request(*opened);
        },
        [](void* self) {
          auto* stopped = static_cast<Session*>(self);
          stopped->server->maybe_forget(*stopped);
        });
  }
}

void Server::end(Session& session, const char* why) {
  if (session.ending) return;
  session.ending = true;
  if (why != nullptr) {
    ++totals_.refused;
    os::log(os::Severity::kWarning, "session of pid %d (%s) ended: %s", session.pid,
            session.tag.c_str(), why);
  }
  std::erase(gathered_, &session);
  caches_.drop(session);
  if (std::none_of(sessions_.begin(), sessions_.end(), [&](const auto& s) {
        return s.second->id != 0 && !s.second->ending && s.second->pid == session.pid;
      })) {
    probes_->forget(session.pid);
  }
  if (!stopping_) {  // else the engine carries on with the next daemon, and its pages stay
    if (session.fork_token != 0) drop_fork(session.fork_token);
    for (auto* views : {&session.aliases, &session.views}) {
      for (auto& [address, view] : *views) loop_.remove_view(*view);
      views->clear();
    }
    for (auto& [id, pending] : session.pending) loop_.drop_offer(*pending.region);
    session.pending.clear();
    if (session.id != 0) {
      loop_.release_unclaimed(session.id);
      leases_.remove(session.id);
    }
    forget_claims(session.id);
  }
  session.socket_watch.stop();
  session.faults.stop();
  session.agent_watch.stop();
  maybe_forget(session);
}

void Server::maybe_forget(Session& session) {
  if (!session.ending || !session.socket_watch.idle() || !session.faults.idle() ||
      !session.agent_watch.idle() || (session.cache != nullptr && session.cache->is_busy())) {
    return;
  }
  for (auto it = sessions_.begin(); it != sessions_.end(); ++it) {
    if (it->second.get() == &session) {
      sessions_.erase(it);
      return;
    }
  }
}

void Server::on_request(Session& session) {
  while (!session.ending) {
    std::array<std::byte, wire::kMessageMax> buffer;
    auto received = os::receive(session.socket.get(), buffer);
    if (!received.ok()) {
      if (received.status().code() != Code::kBusy) end(session, received.status().what());
      return;
    }
    if (received->size_bytes == 0) {
      end(session, nullptr);
      return;
    }
    Request request;
    if (received->truncated || received->size_bytes != sizeof request) {
      end(session, "a message of the wrong size; libkvmem and kvmemd are of different versions");
      return;
    }
    std::memcpy(&request, buffer.data(), sizeof request);
    if (request.version != wire::kProtocolVersion) {
      reply(session, refuse(EPROTONOSUPPORT,
                            "libkvmem and kvmemd are of different versions: restart the engine"));
      continue;
    }
    handle(session, request, *received);
  }
}

void Server::handle(Session& session, const Request& request, os::Received& received) {
  std::vector<UniqueFd> fds;
  Reply answer;
  if (request.op == wire::Op::kControl) {
    answer = control(session, request, fds);
  } else if (request.op == wire::Op::kHello) {
    answer = hello(session, request, received, fds);
  } else if (Caches::is_for_caches(request.op) && session.id == 0) {
    if (!caches_.handle(session, request, &answer, &fds)) return;  // answered when it is done
  } else if (session.id == 0) {
    answer = refuse(EPROTO, "say Hello first");
  } else if (request.op == wire::Op::kArm) {
    answer = arm(session, received);
  } else if (!session.userfault) {
    answer = refuse(EPROTO, "send Arm first");
  } else {
    if (session.resuming &&
        (request.op == wire::Op::kRegionCreate || request.op == wire::Op::kForkBegin)) {
      // Whatever it had is back: records that no page refers to are nobody's.
      session.resuming = false;
      loop_.release_unclaimed(session.id);
    }
    switch (request.op) {
      case wire::Op::kRegionCreate:
        answer = region_create(session, request, received, fds);
        break;
      case wire::Op::kRegionMapped:
        answer = region_mapped(session, request);
        break;
      case wire::Op::kRegionDestroy:
        answer = region_destroy(session, request);
        break;
      case wire::Op::kRegionResume:
        answer = region_resume(session, request, received);
        break;
      case wire::Op::kDiscard:
        if (!discard(session, request, answer)) return;  // answered when it is done
        break;
      case wire::Op::kAdvise:
        answer = advise(session, request);
        break;
      case wire::Op::kRegionAlias:
        answer = region_alias(session, request);
        break;
      case wire::Op::kRegionAside:
        if (!region_aside(session, request, answer, fds)) return;  // answered when it is there
        break;
      case wire::Op::kForkBegin:
        answer = fork_begin(session, request);
        break;
      case wire::Op::kForkEnd:
        answer = fork_end(session, request);
        break;
      case wire::Op::kForkClaim:
        answer = fork_claim(session, request, fds);
        break;
      case wire::Op::kGpuClaim:
        answer = gpu_claim(session, request);
        break;
      case wire::Op::kGpuRegion:
        answer = gpu_region(session, request);
        break;
      default:
        answer = refuse(ENOSYS, "unknown request");
    }
  }
  reply(session, answer, fds);
}

void Server::reply(Session& session, Reply answer, const std::vector<UniqueFd>& fds) {
  std::array<int, wire::kFdsMax> raw{};
  answer.fd_count = static_cast<std::uint32_t>(std::min<std::size_t>(fds.size(), raw.size()));
  for (std::size_t i = 0; i < answer.fd_count; ++i) raw[i] = fds[i].get();
  if (answer.error != 0) ++totals_.refused;
  const Status status = os::send(session.socket.get(), std::as_bytes(std::span(&answer, 1)),
                                 std::span<const int>(raw.data(), answer.fd_count));
  if (!status.ok())
    end(session, status.code() == Code::kPeerGone ? nullptr : "it does not read its answers");
}

Reply Server::hello(Session& session, const Request& request, os::Received& received,
                    std::vector<UniqueFd>& fds) {
  if (session.id != 0) return refuse(EALREADY, "this connection has a session");
  if (session.cache != nullptr) return refuse(EPROTO, "this connection has a cache");
  session.pid = session.peer.pid != 0 ? session.peer.pid : request.pid;
  session.tag = text_of(request.tag, sizeof request.tag);
  UniqueFd lease;
  if ((request.flags & Request::kResume) != 0) {
    // The lease proves that this is the session it says it is.
    if (received.fd_count != 1 || !leases_.is_lease(request.session_id, received.fds[0].get())) {
      return refuse(
          ESTALE,
          "this daemon does not know the session: it did not use the same runtime directory");
    }
    for (const auto& [number, other] : sessions_) {
      if (other->id == request.session_id && !other->ending)
        return refuse(EBUSY, "the session is connected already");
    }
    session.id = request.session_id;
    session.resuming = true;
    std::erase(orphans_, session.id);
    ++totals_.resumed;
  } else {
    const auto same_uid = std::count_if(sessions_.begin(), sessions_.end(), [&](const auto& s) {
      return s.second->peer.uid == session.peer.uid && s.second->id != 0 && !s.second->ending;
    });
    if (static_cast<std::uint64_t>(same_uid) >= config_.quota.sessions_max) {
      return refuse(EUSERS, "too many sessions of this user: raise quota.sessions_max");
    }
    session.id = random_nonzero();
    auto made = leases_.make(session.id);
    if (!made.ok()) {
      session.id = 0;
      return refuse_status(made.status());
    }
    lease = *std::move(made);
    ++totals_.sessions;
  }
  if (session.peer.pid != 0) probes_->follow(session.peer.pid);
  Reply answer;
  answer.session_id = session.id;
  if (userfault_device_) fds.emplace_back(::fcntl(userfault_device_.get(), F_DUPFD_CLOEXEC, 0));
  if (lease) fds.push_back(std::move(lease));
  return answer;
}

Reply Server::arm(Session& session, os::Received& received) {
  if (session.userfault) return refuse(EALREADY, "armed already");
  if (received.fd_count != 2)
    return refuse(EINVAL, "Arm carries a userfaultfd and an agent socket");
  char link[64];
  char target[64] = {};
  std::snprintf(link, sizeof link, "/proc/self/fd/%d", received.fds[0].get());
  if (::readlink(link, target, sizeof target - 1) < 0 ||
      std::string_view(target) != "anon_inode:[userfaultfd]") {
    return refuse(EINVAL, "not a userfaultfd");
  }
  struct stat st {};
  if (::fstat(received.fds[1].get(), &st) != 0 || !S_ISSOCK(st.st_mode))
    return refuse(EINVAL, "not a socket");
  session.userfault = std::move(received.fds[0]);
  session.agent = std::move(received.fds[1]);
  const auto stopped = [](void* self) {
    auto* s = static_cast<Session*>(self);
    s->server->maybe_forget(*s);
  };
  session.faults.start(
      loop_.ring(), session.userfault.get(), &session,
      [](void* self, std::span<const os::Fault> faults) {
        auto* s = static_cast<Session*>(self);
        s->server->on_fault(*s, faults);
      },
      stopped);
  session.agent_watch.start(
      loop_.ring(), session.agent.get(), &session,
      [](void* self, std::uint32_t) {
        auto* s = static_cast<Session*>(self);
        s->server->on_agent(*s);
      },
      stopped);
  return {};
}

void Server::on_fault(Session& session, std::span<const os::Fault> faults) {
  const std::uint64_t now = os::now_ns();
  for (const os::Fault& fault : faults) {
    if (session.ending) return;
    if (View* view = session.view_at(fault.address); view != nullptr) {
      ++session.fault_count;
      loop_.fault(*view, fault, now);
    } else {
      // Registered and not (or no longer) known: let it look again; unmapped ranges then fault for
      // the kernel, mapped ones after RegionMapped for us.
      (void)os::wake(session.userfault.get(), align_down(fault.address, kOsPageBytes),
                     kOsPageBytes);
    }
  }
}

void Server::on_agent(Session& session) {
  std::array<std::byte, wire::kMessageMax> buffer;
  while (!session.ending) {
    auto received = os::receive(session.agent.get(), buffer);
    if (!received.ok()) return;
    if (received->size_bytes == 0) {
      session.agent_watch.stop();  // the session's own socket tells whether the engine is gone
      return;
    }
  }
}

// The engine shall map the region next. One it asked for twice is offered once.
void Server::wait_for_mapping(Session& session, Region& region, std::uint32_t first_page,
                              std::uint32_t page_count) {
  if (!session.pending.contains(region.id)) loop_.offer(region);
  session.pending[region.id] = {&region, first_page, page_count};
}

Reply Server::offer(Session& session, Region& region, std::uint32_t first_page,
                    std::uint32_t page_count, std::vector<UniqueFd>& fds) {
  auto table = region.table.read_only_fd();
  if (!table.ok()) return refuse_status(table.status());
  // Shared model pages cannot be written by anyone who maps them.
  auto memory = region.origin != nullptr
                    ? os::reopen(region.memory.fd(), O_RDONLY)
                    : Result<UniqueFd>(UniqueFd(::fcntl(region.memory.fd(), F_DUPFD_CLOEXEC, 0)));
  if (!memory.ok()) return refuse_status(memory.status());
  fds.push_back(*std::move(memory));
  fds.push_back(*std::move(table));
  wait_for_mapping(session, region, first_page, page_count);
  Reply answer;
  answer.region_id = region.id;
  answer.page_count = region.page_count();
  answer.first_page = first_page;
  answer.backing = static_cast<std::uint32_t>(region.memory.kind());
  return answer;
}

// Of a new or resumed region.
std::uint32_t Server::pages_max_of(const Request& request) {
  const std::uint64_t pages = request.host_bytes >> kPageShift;
  return pages == 0 || pages > UINT32_MAX ? UINT32_MAX : static_cast<std::uint32_t>(pages);
}

std::uint64_t Server::regions_of(std::uint32_t uid) const {
  const auto& regions = loop_.regions();
  return static_cast<std::uint64_t>(
      std::count_if(regions.begin(), regions.end(),
                    [&](const Region* r) { return r != nullptr && r->uid == uid; }));
}

Reply Server::region_create(Session& session, const Request& request, os::Received& received,
                            std::vector<UniqueFd>& fds) {
  if (regions_of(session.peer.uid) >= config_.quota.regions_max) {
    return refuse(EDQUOT, "too many regions of this user: raise quota.regions_max");
  }
  const std::uint64_t pages = pages_for(request.size_bytes);
  if (pages == 0 || pages > wire::kRegionPagesMax) return refuse(EINVAL, "region size");
  loop::RegionSpec spec;
  spec.session_id = session.id;
  spec.uid = session.peer.uid;
  spec.pid = session.pid;
  spec.tag = request.tag[0] != 0 ? text_of(request.tag, sizeof request.tag) : session.tag;
  spec.page_count = static_cast<std::uint32_t>(pages);
  spec.pages_max = pages_max_of(request);
  if (request.kind == wire::RegionKind::kAnonymous) {
    // What DRAM and store can never hold is better left to the kernel, which knows overcommit.
    std::uint64_t bytes = std::min<std::uint64_t>(pages, spec.pages_max) << kPageShift;
    for (const Region* r : loop_.regions()) {
      if (r != nullptr && r->origin == nullptr && r->uid == session.peer.uid) {
        bytes += static_cast<std::uint64_t>(r->pages_charged()) << kPageShift;
      }
    }
    // A store may hold less than its configured size, or not be there.
    const tier::Store* store = loop_.store();
    const std::uint64_t stored = store == nullptr ? 0
                                                  : std::min(config_.quota.per_uid_store_bytes,
                                                             store->stats().slots_max * kPageBytes);
    if (bytes > config_.quota.per_uid_dram_bytes + stored) {
      return refuse(EDQUOT,
                    "more than quota.per_uid_dram and quota.per_uid_store hold: raise them, "
                    "dram.budget or nvme.size");
    }
    auto region = loop_.create_region(std::move(spec));
    return region.ok() ? offer(session, **region, 0, static_cast<std::uint32_t>(pages), fds)
                       : refuse_status(region.status());
  }
  if (request.kind != wire::RegionKind::kOrigin || received.fd_count != 1) {
    return refuse(EINVAL, "an origin region comes with its file");
  }
  if (!is_aligned(request.origin_offset, kPageBytes))
    return refuse(EINVAL, "file offset is not a multiple of 2 MiB");
  auto key = tier::Origin::key_of(received.fds[0].get());
  if (!key.ok()) return refuse_status(key.status());
  const std::uint64_t file_pages = pages_for(key->size_bytes);
  const std::uint64_t first = request.origin_offset >> kPageShift;
  if (file_pages == 0 || file_pages > wire::kRegionPagesMax || first >= file_pages ||
      pages > file_pages - first) {
    return refuse(EINVAL, "the mapping reaches beyond the end of the file");
  }
  Region* shared = nullptr;
  for (Region* region : loop_.regions()) {
    if (region != nullptr && region->origin != nullptr && !region->closing &&
        region->uid == session.peer.uid && region->origin->key() == *key) {
      shared = region;
    }
  }
  if (shared == nullptr) {
    auto origin = tier::Origin::open(std::move(received.fds[0]));
    if (!origin.ok()) return refuse_status(origin.status());
    spec.page_count = static_cast<std::uint32_t>(file_pages);
    spec.origin = std::make_unique<tier::Origin>(*std::move(origin));
    auto region = loop_.create_region(std::move(spec));
    if (!region.ok()) return refuse_status(region.status());
    shared = *region;
  }
  return offer(session, *shared, static_cast<std::uint32_t>(first),
               static_cast<std::uint32_t>(pages), fds);
}

Reply Server::region_mapped(Session& session, const Request& request) {
  const auto pending = session.pending.find(request.region_id);
  if (pending == session.pending.end()) return refuse(ENOENT, "no such region waits to be mapped");
  const auto [region, first_page, page_count] = pending->second;
  const std::uint64_t size = static_cast<std::uint64_t>(page_count) << kPageShift;
  if (!is_aligned(request.address, kPageBytes) || request.address == 0 ||
      request.address > kAddressMax - size) {
    return refuse(EINVAL, "address is not that of a region");
  }
  const auto next = session.views.lower_bound(request.address);
  if ((next != session.views.end() && next->first < request.address + size) ||
      Session::at(session.views, request.address) != nullptr) {
    return refuse(EEXIST, "another region is mapped there");
  }
  session.pending.erase(pending);
  View view;
  view.session_id = session.id;
  view.userfault = session.userfault.get();
  view.address = request.address;
  view.first_page = first_page;
  view.page_count = page_count;
  view.owner = &session;
  session.views.emplace(request.address, loop_.add_view(*region, view));
  loop_.drop_offer(*region);
  // Faults from before this answer were told to look again.
  (void)os::wake(session.userfault.get(), request.address, size);
  Reply answer;
  answer.region_id = region->id;
  return answer;
}

Reply Server::region_destroy(Session& session, const Request& request) {
  if (const auto pending = session.pending.find(request.region_id);
      pending != session.pending.end()) {
    Region* region = pending->second.region;
    std::erase_if(session.aliases, [&](const auto& alias) {
      const bool is_its = alias.second->region == region;
      if (is_its) loop_.remove_view(*alias.second);
      return is_its;
    });
    session.pending.erase(pending);
    loop_.drop_offer(*region);
    return {};
  }
  for (auto it = session.views.begin(); it != session.views.end(); ++it) {
    View* view = it->second;
    // An engine may map one file twice: the address tells which.
    if (view->region->id != request.region_id ||
        (request.address != 0 && request.address != view->address))
      continue;
    cut_aliases(session, view->address, view->end_address());
    session.views.erase(it);
    loop_.remove_view(*view);
    return {};
  }
  return refuse(ENOENT, "no such region");
}

// Aliases of [begin, end) are none any more; of one that reaches beyond, the rest stays.
void Server::cut_aliases(Session& session, std::uint64_t begin, std::uint64_t end) {
  auto it = session.aliases.upper_bound(begin);
  if (it != session.aliases.begin() && std::prev(it)->second->end_address() > begin) --it;
  while (it != session.aliases.end() && it->first < end) {
    const View cut = *it->second;
    loop_.remove_view(*it->second);
    it = session.aliases.erase(it);
    if (cut.address < begin) {
      View before = cut;
      before.page_count = static_cast<std::uint32_t>((begin - cut.address) >> kPageShift);
      add_alias(session, before);
    }
    if (cut.end_address() > end) {
      View after = cut;
      after.first_page = cut.page_at(end);
      after.page_count = static_cast<std::uint32_t>((cut.end_address() - end) >> kPageShift);
      after.address = end;
      add_alias(session, after);
    }
    // Whoever waited for a page of it looks again.
    (void)os::wake(cut.userfault, cut.address, cut.end_address() - cut.address);
  }
}

void Server::add_alias(Session& session, const View& alias) {
  session.aliases.emplace(alias.address, loop_.add_view(*alias.region, alias));
}

Reply Server::region_alias(Session& session, const Request& request) {
  Region* region = nullptr;
  if (const auto pending = session.pending.find(request.region_id);
      pending != session.pending.end()) {
    region = pending->second.region;
  } else {
    auto view = checked_range(session, request);
    if (!view.ok()) return refuse_status(view.status());
    region = (*view)->region;
  }
  const std::uint64_t pages = region->page_count();
  const std::uint64_t target = request.origin_offset >> kPageShift;
  if (region->origin != nullptr || request.address == 0 || request.page_count == 0 ||
      request.page_count > pages || request.first_page > pages - request.page_count ||
      target > pages - request.page_count ||
      !is_aligned(request.origin_offset | request.address, kPageBytes) ||
      request.address > kAddressMax - (pages << kPageShift)) {
    return refuse(EINVAL, "pages outside the region");
  }
  // (What makes fewer of them always may; a cut leaves at most one more.)
  if (target != request.first_page && session.aliases.size() >= kAliasesMax) {
    return refuse(ENOSPC, "too many pages lie at more than one address");
  }
  View alias;
  alias.region = region;
  alias.session_id = session.id;
  alias.userfault = session.userfault.get();
  alias.address = request.address + (request.first_page << kPageShift);
  alias.first_page = static_cast<std::uint32_t>(target);
  alias.page_count = static_cast<std::uint32_t>(request.page_count);
  alias.owner = &session;
  cut_aliases(session, alias.address, alias.end_address());
  // Whoever waited for what lay there looks again.
  if (View* below = Session::at(session.views, alias.address); below != nullptr) {
    loop_.migrator().view_removed(*below);
    (void)os::wake(below->userfault, below->address, below->end_address() - below->address);
  }
  if (target != request.first_page) add_alias(session, alias);
  loop_.note_change();
  return {};
}

Reply Server::region_resume(Session& session, const Request& request, os::Received& received) {
  if (!session.resuming) return refuse(EPROTO, "only a resumed session gives regions back");
  const bool is_origin = request.kind == wire::RegionKind::kOrigin;
  const bool has_aside = !is_origin && received.fd_count == 3;
  if (received.fd_count != (is_origin || has_aside ? 3U : 2U))
    return refuse(EINVAL, "descriptors missing");
  if (request.page_count == 0 || request.page_count > wire::kRegionPagesMax)
    return refuse(EINVAL, "region size");
  Region* region = loop_.region_by_id(request.region_id);
  std::uint64_t region_pages = request.page_count;
  if (is_origin) {
    auto key = tier::Origin::key_of(received.fds[2].get());
    if (!key.ok()) return refuse_status(key.status());
    region_pages = pages_for(key->size_bytes);
    // Another engine may have brought the file's region back already: the same memfd, or none.
    if (region != nullptr) {
      if (region->origin == nullptr || !(region->origin->key() == *key)) {
        return refuse(EINVAL, "not the region it says it is");
      }
      region_pages = region->page_count();
      struct stat mine {};
      struct stat theirs {};
      if (::fstat(received.fds[0].get(), &mine) != 0 ||
          ::fstat(region->memory.fd(), &theirs) != 0 || mine.st_ino != theirs.st_ino ||
          mine.st_dev != theirs.st_dev || region->uid != session.peer.uid) {
        return refuse(EINVAL, "not the region it says it is");
      }
    }
  } else if (region != nullptr) {
    return refuse(EEXIST, "the region is here already");
  }
  if (request.first_page >= region_pages ||
      request.page_count > region_pages - request.first_page) {
    return refuse(EINVAL, "the mapping reaches beyond the region");
  }
  if (region == nullptr) {
    loop::RegionSpec spec;
    spec.session_id = session.id;
    spec.uid = session.peer.uid;
    spec.pid = session.pid;
    spec.tag = request.tag[0] != 0 ? text_of(request.tag, sizeof request.tag) : session.tag;
    spec.page_count = static_cast<std::uint32_t>(region_pages);
    spec.pages_max = pages_max_of(request);
    if (is_origin) {
      auto origin = tier::Origin::open(std::move(received.fds[2]));
      if (!origin.ok()) return refuse_status(origin.status());
      spec.origin = std::make_unique<tier::Origin>(*std::move(origin));
    }
    auto adopted = loop_.adopt_region(std::move(spec), request.region_id,
                                      std::move(received.fds[0]), std::move(received.fds[1]),
                                      has_aside ? std::move(received.fds[2]) : UniqueFd());
    if (!adopted.ok()) return refuse_status(adopted.status());
    region = *adopted;
  }
  wait_for_mapping(session, *region, static_cast<std::uint32_t>(request.first_page),
                   static_cast<std::uint32_t>(request.page_count));
  if ((request.flags & Request::kAliased) != 0) return {};
  Reply mapped = region_mapped(session, request);
  if (mapped.error != 0) {
    session.pending.erase(region->id);
    loop_.drop_offer(*region);
  }
  return mapped;
}

Result<View*> Server::checked_range(Session& session, const Request& request) {
  for (const auto& [address, view] : session.views) {
    if (view->region->id != request.region_id ||
        (request.address != 0 && request.address != address))
      continue;
    if (request.page_count == 0 || request.first_page < view->first_page ||
        request.page_count > view->page_count ||
        request.first_page - view->first_page > view->page_count - request.page_count) {
      return Status(Code::kInvalid, "pages outside the region");
    }
    return view;
  }
  return Status(Code::kNotFound, "no such region");
}

// False: the answer follows when the pages are gone.
bool Server::discard(Session& session, const Request& request, Reply& answer) {
  auto view = checked_range(session, request);
  if (!view.ok()) {
    answer = refuse_status(view.status());
    return true;
  }
  Region& region = *(*view)->region;
  if (region.origin != nullptr) {  // its pages read the same whether dropped or not
    loop_.migrator().forget_demands(**view, static_cast<std::uint32_t>(request.first_page),
                                    static_cast<std::uint32_t>(request.page_count));
    return true;
  }
  auto countdown = std::make_shared<migrate::Countdown>();
  countdown->remaining = 1;  // ours
  countdown->done = [this, id = session.id] {
    for (auto& [number, s] : sessions_) {
      if (s->id == id && !s->ending) {
        reply(*s, Reply{});
        return;
      }
    }
  };
  loop_.migrator().discard(region, static_cast<std::uint32_t>(request.first_page),
                           static_cast<std::uint32_t>(request.page_count), countdown);
  loop_.note_change();
  if (--countdown->remaining == 0) countdown->done();
  return false;
}

// False: the answer follows when the page's bytes are there.
bool Server::region_aside(Session& session, const Request& request, Reply& answer,
                          std::vector<UniqueFd>& fds) {
  Request range = request;
  const bool wants_memory = request.page_count == 0;
  if (wants_memory) range.page_count = 1;
  auto view = checked_range(session, range);
  if (!view.ok()) {
    answer = refuse_status(view.status());
    return true;
  }
  Region& region = *(*view)->region;
  const auto page = static_cast<std::uint32_t>(request.first_page);
  if (region.origin != nullptr || region.memory.kind() != os::MemoryKind::kHugeTlb) {
    answer = refuse(EINVAL, "not a region of huge pages");
  } else if (wants_memory) {
    const Status made = region.has_aside() ? Status{} : loop_.make_aside(region);
    UniqueFd memory(made.ok() ? ::fcntl(region.aside.fd(), F_DUPFD_CLOEXEC, 0) : -1);
    answer = !made.ok() ? refuse_status(made)
             : !memory  ? refuse(EMFILE, "too many open files")
                        : Reply{};
    if (memory) fds.push_back(std::move(memory));
  } else if (!region.has_aside() || request.page_count != 1) {
    answer = refuse(EINVAL, "one page, after its memory");
  } else if ((request.flags & Request::kDone) != 0) {
    session.moves_aside = false;
    const Status moved =
        loop_.migrator().moved_aside(region, page, (request.flags & Request::kFailed) == 0);
    if (!moved.ok()) answer = refuse_status(moved);
  } else if (session.moves_aside) {
    answer = refuse(EALREADY, "one page at a time");
  } else {
    session.moves_aside = true;
    auto aside = std::make_shared<migrate::AsideRequest>();
    aside->done = [this, id = session.id, done = aside.get()] {
      const auto asker = std::find_if(sessions_.begin(), sessions_.end(), [&](const auto& s) {
        return s.second->id == id && !s.second->ending;
      });
      if (asker == sessions_.end()) return;
      if (!done->status.ok()) asker->second->moves_aside = false;
      const bool is_later = done->status.code() == Code::kBusy;
      reply(*asker->second, done->status.ok() ? Reply{}
                            : is_later        ? refuse(EAGAIN, done->status.what())
                                              : refuse_status(done->status));
    };
    loop_.migrator().move_aside(region, page, std::move(aside));
    loop_.note_change();
    return false;
  }
  loop_.note_change();
  return true;
}

Reply Server::advise(Session& session, const Request& request) {
  auto view = checked_range(session, request);
  if (!view.ok()) return refuse_status(view.status());
  if (request.advice > wire::Advice::kPrefetch) return refuse(EINVAL, "unknown advice");
  const auto first = static_cast<std::uint32_t>(request.first_page);
  const auto count = static_cast<std::uint32_t>(request.page_count);
  const Status status = loop_.advise(*(*view)->region, first, count, request.advice);
  return status.ok() ? Reply{} : refuse_status(status);
}

Reply Server::fork_begin(Session& session, const Request& request) {
  if (session.fork_token != 0) return refuse(EALREADY, "a fork is under way");
  const std::uint64_t token = random_nonzero();
  Fork fork;
  fork.uid = session.peer.uid;
  fork.parent_session = session.id;
  fork.expires_ns = os::now_ns() + kForkClaimNs;
  const auto prepare = [&](View& view) -> Status {
    KV_TRY(loop_.migrator().hold(view));
    if (request.region_id != 0) return {};  // a hold alone: no child will claim anything
    if (regions_of(session.peer.uid) >= config_.quota.regions_max) {
      return Status(Code::kBusy, "too many forks wait for their child: raise quota.regions_max");
    }
    KV_ASSIGN_OR_RETURN(Region * child, loop_.clone_region(*view.region, 0));
    loop_.offer(*child);  // to whoever claims it
    fork.children.emplace(view.region->id, child);
    return {};
  };
  Status status;
  for (auto& [address, view] : session.views) {
    if (view->region->origin != nullptr) continue;  // the child maps the file itself
    if (request.region_id != 0 && request.region_id != view->region->id) continue;
    status = prepare(*view);
    if (!status.ok()) break;
  }
  for (auto& [address, view] : session.aliases) {
    if (!status.ok() || request.region_id != view->region->id) continue;
    status = loop_.migrator().hold(*view);
  }
  forks_.emplace(token, std::move(fork));
  if (!status.ok()) {
    drop_fork(token);
    release(session);
    return refuse_status(status);
  }
  session.fork_token = token;
  Reply answer;
  answer.fork_token = token;
  return answer;
}

Reply Server::fork_end(Session& session, const Request& request) {
  if (session.fork_token == 0 || request.fork_token != session.fork_token)
    return refuse(EINVAL, "no such fork");
  release(session);
  if (request.pid < 0) drop_fork(session.fork_token);
  session.fork_token = 0;
  return {};
}

// Nothing of it is held any more.
void Server::release(Session& session) {
  for (auto* views : {&session.views, &session.aliases}) {
    for (auto& [address, view] : *views) loop_.migrator().release(*view);
  }
  loop_.note_change();
}

Reply Server::fork_claim(Session& session, const Request& request, std::vector<UniqueFd>& fds) {
  const auto fork = forks_.find(request.fork_token);
  if (fork == forks_.end() || fork->second.uid != session.peer.uid)
    return refuse(ENOENT, "no such fork");
  const auto child = fork->second.children.find(request.region_id);
  if (child == fork->second.children.end()) return refuse(ENOENT, "no such region in the fork");
  Region& region = *child->second;
  fork->second.children.erase(child);
  region.session_id = session.id;
  region.pid = session.pid;
  if (fork->second.children.empty()) forks_.erase(fork);
  Reply answer = offer(session, region, 0, region.page_count(), fds);
  loop_.drop_offer(region);  // the fork's; the session has its own now
  return answer;
}

void Server::drop_fork(std::uint64_t token) {
  const auto fork = forks_.find(token);
  if (fork == forks_.end()) return;
  for (auto& [id, region] : fork->second.children) loop_.drop_offer(*region);
  forks_.erase(fork);
}

std::uint64_t Server::gpu_budget(std::uint64_t total_bytes) const {
  // The rest is for contexts, modules and what is allocated past kvmem.
  return config_.gpu.budget_bytes.value_or(total_bytes / 20 * 19);
}

void Server::apply(const config::Config& config) {
  config_ = config;
  dram_changed();
  caches_.set_write_budget(config_.cache.write_bytes_per_day);
  for (auto& [uuid, gpu] : gpus_) gpu.claims.set_budget(gpu_budget(gpu.total_bytes));
}

std::map<GpuUuid, Server::GpuLedger>::iterator Server::add_gpu(const GpuUuid& uuid,
                                                               std::uint64_t total_bytes) {
  const auto it = gpus_.emplace(uuid, GpuLedger{}).first;
  it->second.total_bytes = total_bytes;
  it->second.claims.set_budget(gpu_budget(total_bytes));
  return it;
}

std::vector<GpuGrant> Server::grants_of(std::uint64_t session_id) const {
  std::vector<GpuGrant> grants;
  for (const auto& [uuid, gpu] : gpus_) {
    const std::uint64_t held = gpu.claims.held_by(session_id);
    if (held != 0) grants.push_back({uuid, gpu.total_bytes, held});
  }
  return grants;
}

void Server::forget_claims(std::uint64_t session_id) {
  for (auto it = gpus_.begin(); it != gpus_.end();) {
    it->second.claims.forget(session_id);
    it = it->second.claims.holders() == 0 ? gpus_.erase(it) : std::next(it);
  }
}

void Server::find_orphans() {
  orphans_ = loop_.recovered_sessions();
  for (const std::uint64_t id : leases_.sessions()) {
    const bool has_records = std::find(orphans_.begin(), orphans_.end(), id) != orphans_.end();
    if (!leases_.is_held(id)) {
      if (!has_records) leases_.remove(id);  // else housekeep() does it
      continue;
    }
    if (!has_records) orphans_.push_back(id);
    for (const GpuGrant& grant : leases_.noted(id)) {
      auto it = gpus_.find(grant.gpu);
      if (it == gpus_.end()) {
        if (gpus_.size() >= kGpusMax || grant.claimed_bytes == 0) continue;
        it = add_gpu(grant.gpu, grant.total_bytes);
      }
      it->second.claims.record(id, grant.claimed_bytes);
    }
  }
}

Reply Server::gpu_claim(Session& session, const Request& request) {
  constexpr std::uint64_t kAskEveryNs = 20'000'000;
  const GpuUuid uuid{request.gpu[0], request.gpu[1]};
  auto it = gpus_.find(uuid);
  if (it == gpus_.end()) {
    if (request.hbm_wanted_bytes == 0) return {};
    if (grants_of(session.id).size() >= kGpusOfSessionMax || gpus_.size() >= kGpusMax) {
      return refuse(EDQUOT, "too many GPUs");
    }
    it = add_gpu(uuid, request.size_bytes);
  }
  GpuLedger& gpu = it->second;
  if (request.size_bytes < gpu.total_bytes) {  // whichever is wrong: the GPU has no less
    gpu.total_bytes = request.size_bytes;
    gpu.claims.set_budget(gpu_budget(gpu.total_bytes));
  }
  const std::uint64_t before = gpu.claims.held_by(session.id);
  if ((request.flags & Request::kExists) != 0) {
    gpu.claims.record(session.id, request.hbm_bytes);
  }
  const policy::Ledger::Answer answer =
      gpu.claims.claim(session.id, request.hbm_bytes, request.hbm_wanted_bytes);
  // Before the engine knows: should this daemon die, nobody is granted it by the next one.
  if (answer.granted_bytes != before) leases_.note(session.id, grants_of(session.id));
  const std::uint64_t now = os::now_ns();
  for (const policy::Ledger::Answer::Asked& asked : answer.asked) {
    for (auto& [number, other] : sessions_) {
      if (other->id != asked.holder || other->ending || !other->agent) continue;
      if (now - other->asked_ns < kAskEveryNs) continue;
      other->asked_ns = now;
      wire::AgentCommand command;
      command.op = wire::AgentOp::kGiveBack;
      command.for_gpu = {};
      std::copy(uuid.begin(), uuid.end(), command.for_gpu.gpu);
      command.for_gpu.hbm_bytes = asked.keeps_bytes;
      command.for_gpu.hbm_idle_bytes = asked.keeps_idle_bytes;
      (void)os::send(other->agent.get(), std::as_bytes(std::span(&command, 1)));
    }
  }
  Reply reply;
  reply.size_bytes = answer.granted_bytes;
  reply.others_asked = answer.entitled ? 1 : 0;
  if (gpu.claims.holders() == 0) gpus_.erase(it);
  return reply;
}

Reply Server::gpu_region(Session& session, const Request& request) {
  if (request.size_bytes == 0) {
    session.gpu_regions.erase(request.address);
    return {};
  }
  if (session.gpu_regions.size() >= config_.quota.regions_max &&
      !session.gpu_regions.contains(request.address)) {
    return refuse(EDQUOT, "too many regions of this user: raise quota.regions_max");
  }
  session.gpu_regions[request.address] = {{request.gpu[0], request.gpu[1]},
                                          request.size_bytes,
                                          request.hbm_bytes,
                                          request.host_bytes,
                                          request.stored_bytes,
                                          text_of(request.tag, sizeof request.tag),
                                          text_of(request.why, sizeof request.why)};
  return {};
}

std::uint32_t Server::tell_engines(const os::Peer& peer, const Request& request) {
  const std::string tag = text_of(request.tag, sizeof request.tag);
  std::uint32_t told = 0;
  for (auto& [number, session] : sessions_) {
    if (session->id == 0 || session->ending || !session->agent || session->gpu_regions.empty() ||
        !may_see(peer, session->peer.uid)) {
      continue;
    }
    const auto& regions = session->gpu_regions;
    const bool is_meant =
        request.pid != 0 ? session->pid == request.pid
                         : std::any_of(regions.begin(), regions.end(), [&](const auto& region) {
                             return region.second.tag == tag;
                           });
    if (!is_meant) continue;
    wire::AgentCommand command;
    command.op =
        request.control == wire::ControlOp::kPark ? wire::AgentOp::kPark : wire::AgentOp::kWake;
    command.for_gpu = {};
    if (request.pid == 0) std::copy(tag.begin(), tag.end(), command.for_gpu.tag);
    told += os::send(session->agent.get(), std::as_bytes(std::span(&command, 1))).ok();
  }
  return told;
}

Reply Server::control(Session& session, const Request& request, std::vector<UniqueFd>& fds) {
  Reply answer;
  const std::string json = control_json(*this, session.peer, request, answer);
  if (answer.error != 0) return answer;
  UniqueFd memory(::memfd_create("kvmem-answer", MFD_CLOEXEC));
  if (!memory) return refuse(errno, "memfd_create");
  for (std::size_t at = 0; at < json.size();) {
    const ssize_t n = ::write(memory.get(), json.data() + at, json.size() - at);
    if (n <= 0) return refuse(errno, "write");
    at += static_cast<std::size_t>(n);
  }
  answer.size_bytes = json.size();
  fds.push_back(std::move(memory));
  return answer;
}

void Server::unmap(View& view, std::uint32_t page) { gather(view, page, &Session::samples); }

void Server::move_aside(View& view, std::uint32_t page) { gather(view, page, &Session::asides); }

void Server::gather(View& view, std::uint32_t page, wire::AgentCommand Session::*command) {
  auto& session = *static_cast<Session*>(view.owner);
  if (!session.agent || session.ending) return;
  wire::AgentCommand& runs = session.*command;
  if (runs.run_count == wire::AgentCommand::kRunsMax) send_runs(session, runs);
  runs.runs[runs.run_count++] = {view.address_of(page), kPageBytes};
  if (std::find(gathered_.begin(), gathered_.end(), &session) == gathered_.end())
    gathered_.push_back(&session);
}

void Server::send_runs(Session& session, wire::AgentCommand& command) {
  // A full socket loses samples, and pages to move aside, of which it is told again.
  if (command.run_count > 0)
    (void)os::send(session.agent.get(), std::as_bytes(std::span(&command, 1)));
  command.run_count = 0;
}

void Server::flush() {
  for (Session* session : gathered_) {
    send_runs(*session, session->samples);
    send_runs(*session, session->asides);
  }
  gathered_.clear();
}

void Server::poison(View& view, std::uint32_t page) {
  const auto& session = *static_cast<Session*>(view.owner);
  wire::AgentCommand command;
  command.op = wire::AgentOp::kPoison;
  command.run_count = 1;
  command.runs[0] = {view.address_of(page), kPageBytes};
  if (session.agent && !session.ending)
    (void)os::send(session.agent.get(), std::as_bytes(std::span(&command, 1)));
}

void Server::housekeep(std::uint64_t now_ns) {
  caches_.tick();
  probes_->tick(now_ns);
  std::vector<std::uint64_t> expired;
  for (const auto& [token, fork] : forks_) {
    if (now_ns > fork.expires_ns) expired.push_back(token);
  }
  for (const std::uint64_t token : expired) drop_fork(token);
  std::erase_if(orphans_, [&](std::uint64_t id) {
    if (leases_.is_held(id)) return false;
    loop_.release_unclaimed(id);
    forget_claims(id);
    leases_.remove(id);
    return true;
  });
}

}  // namespace kvmem::server
