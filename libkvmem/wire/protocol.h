// What engine, daemon and kvmemctl say to each other: fixed-size messages on a SOCK_SEQPACKET Unix
// socket, descriptors beside them (SCM_RIGHTS), identity by SO_PEERCRED.
//
// Two conversations use it:
//   session   engine -> daemon requests, each answered once, in order, by a Reply.
//   agent     daemon -> engine commands on a second socket that the engine hands over; the engine's
//             agent thread carries them out and answers each with an AgentReply.
//
// Opening a session:
//   engine: Hello                         -> Reply{session_id} + [userfaultfd device][, lease]
//   engine: Arm + [userfaultfd, agent]    -> Reply
// The lease comes last, and not with kResume; the device comes first, where the daemon has it.
//
// The daemon lends /dev/userfaultfd to engines that may not open it: the descriptor is the
// permission, USERFAULTFD_IOC_NEW works on the caller's own memory only. The lease is an open file
// description that carries a lock: as long as any process holds it the daemon, also a restarted
// one, keeps the session's stored pages.
//
// Making a region:
//   engine: RegionCreate (+ [file] for an origin region)
//                                         -> Reply{region_id, backing, page_count} + [memfd, table]
//   engine maps the memfd, registers the range with its userfaultfd, then
//   engine: RegionMapped{address}         -> Reply
// From here the daemon answers the range's faults.
//
// Pages at more than one address (regions without an origin):
//   engine: RegionAlias{region_id, address, first_page, page_count, origin_offset}
//                                         -> Reply; then the engine maps and registers them.
// At the addresses of pages [first_page, first_page + page_count) of the region that is mapped at
// `address` lie those at origin_offset; their own again, where that is their own offset.
//
// Where the kernel has no huge page for an absent page, unless the region has an origin:
//   daemon: AgentCommand{kMoveAside, runs}
//   engine: RegionAside{region_id, address} -> Reply + [memfd]: the ordinary one; once
//   engine: RegionAside{region_id, address, first_page, page_count 1}
//                                         -> Reply: the page is in that memfd, resident; -EAGAIN:
//                                            not now, the daemon commands again if need be
//   engine maps it wherever the page lies, registers that, then
//   engine: RegionAside{kDone, region_id, address, first_page, page_count 1}
//                                         -> Reply; with kFailed: nothing is mapped there
// Nothing else is asked between the last two. Pages of an origin region the engine gives back to
// the file itself, and tells so by Discard.
//
// After a daemon's restart the engine opens a session with Hello{kResume, session_id} + [lease],
// arms it with the same userfaultfd, and gives each region back with RegionResume + [memfd, table,
// file] or [memfd, table][, ordinary memfd].
// One with aliases it gives back with kAliased, then them, then RegionMapped: nobody's fault may be
// answered before they are known.
//
// Forking (regions without an origin; others are mapped from their file by the child):
//   parent: ForkBegin                     -> Reply{fork_token}; from here no write to a region
//                                            completes until ForkEnd
//   parent: ForkEnd{fork_token, child_pid}-> Reply
//   child:  Hello, Arm, then for each region of the parent
//           ForkClaim{fork_token, region_id} -> as RegionCreate; then RegionMapped at the same
//           address
//
// Sharing a GPU, after Arm, by its UUID:
//   engine: GpuClaim{gpu, size_bytes, hbm_bytes}
//                                         -> Reply{size_bytes}: of the GPU's memory (size_bytes, as
//                                            the driver says) the engine may hold so much in all;
//                                            it has asked for hbm_bytes. Less: others are asked,
//                                            and it may ask again, if others_asked. The claim is
//                                            its until it says another figure, or its session ends.
//   engine: GpuRegion{...}                -> Reply; for kvmemctl alone, size_bytes 0: it is gone
//
// ForkBegin{region_id} holds that region alone and leaves nothing to claim: the engine takes pages
// back into its own memory.
#pragma once

#include <cstdint>

namespace kvmem::wire {

inline constexpr std::uint32_t kProtocolVersion = 1;
inline constexpr unsigned kFdsMax = 4;             // descriptors beside one message
inline constexpr std::uint32_t kMessageMax = 256;  // bytes
inline constexpr std::uint64_t kRegionPagesMax = std::uint64_t{1} << 24;  // 32 TiB

enum class Op : std::uint16_t {
  kHello = 1,
  kArm = 2,
  kRegionCreate = 3,
  kRegionMapped = 4,
  kRegionDestroy = 5,  // region_id
  kRegionResume = 6,
  kDiscard = 7,  // region_id, range: the pages read as zeroes from now on (or from their origin)
  kAdvise = 8,
  kForkBegin = 9,
  kForkEnd = 10,
  kForkClaim = 11,
  kControl = 12,    // kvmemctl
  kGpuClaim = 13,   // gpu, size_bytes, hbm_bytes, hbm_wanted_bytes
  kGpuRegion = 14,  // gpu, address, size_bytes, hbm_bytes, host_bytes, stored_bytes, tag, why
  // The block cache, see wire/cache.h.
  kCacheOpen = 15,      // identity, size_bytes: of a block
  kCacheContains = 16,  // page_count: names
  kCacheBegin = 17,     // page_count: names; input_tokens, output_tokens, time_us
  kCacheEnd = 18,       // region_id: as Begin's reply says
  kCachePut = 19,
  kCacheWait = 20,      // region_id: as Begin's reply says
  kCacheComputed = 21,  // first_page, page_count: blocks of a prompt; time_us: what they took

  kRegionAlias = 22,
  kRegionAside = 23,
};

enum class RegionKind : std::uint32_t { kAnonymous = 0, kOrigin = 1 };

enum class Advice : std::uint32_t {
  kNormal = 0,
  kHot = 1,
  kCold = 2,
  kSequential = 3,
  kPin = 4,
  kUnpin = 5,
  kPrefetch = 6,
};

enum class ControlOp : std::uint32_t {
  kStatus = 1,   // whole state
  kRegions = 2,  // every region
  kPages = 3,    // one region's pages
  kExplain = 4,  // one page
  kPromote = 5,
  kDemote = 6,
  kPin = 7,
  kUnpin = 8,
  kDrain = 9,  // demote everything that may move off `tier`
  kTiers = 10,
  kPark = 11,  // engines by `pid`, or GPU regions by `tag`
  kWake = 12,
};

// One request. Fields that an op does not name are zero; a request of another size or version is
// refused. All integers are host-endian: both ends share a kernel.
struct Request {
  std::uint32_t version = kProtocolVersion;
  Op op = Op::kHello;
  std::uint16_t flags = 0;
  static constexpr std::uint16_t kResume = 1;    // Hello: carry on session_id
  static constexpr std::uint16_t kReadOnly = 2;  // RegionCreate: mapped without write permission
  static constexpr std::uint16_t kExists = 4;    // GpuClaim: it holds that much, whoever knew of it
  static constexpr std::uint16_t kPartial = 8;   // CacheBegin: the last block is not full
  static constexpr std::uint16_t kMayCompute = 16;  // CacheBegin: stored blocks, if that is sooner,
  static constexpr std::uint16_t kOverlaps = 32;    // and while others are read
  static constexpr std::uint16_t kAliased = 64;     // RegionResume: RegionMapped follows
  static constexpr std::uint16_t kDone = 128;       // RegionAside: it is mapped,
  static constexpr std::uint16_t kFailed = 256;     // or could not be

  std::uint64_t session_id = 0;
  std::uint64_t region_id = 0;
  std::uint64_t address = 0;     // of page `first_page` in the engine
  std::uint64_t first_page = 0;  // of the range within the region
  std::uint64_t page_count = 0;
  std::uint64_t size_bytes = 0;     // RegionCreate: bytes asked for, before rounding to pages
  std::uint64_t origin_offset = 0;  // RegionCreate: of the mapping in the file; RegionAlias: of the
                                    // pages in the region; whole pages
  std::uint64_t fork_token = 0;
  RegionKind kind = RegionKind::kAnonymous;
  Advice advice = Advice::kNormal;
  ControlOp control = ControlOp::kStatus;
  std::int32_t pid = 0;  // Hello: engine's; ForkEnd: child's, negative when fork failed
  char tag[64] = {};     // Hello: program name; RegionCreate: allocation's tag; UTF-8, 0-ended
  std::uint64_t gpu[2] = {};
  std::uint64_t hbm_bytes = 0;  // in the GPU's own memory
  std::uint64_t hbm_wanted_bytes = 0;
  std::uint64_t host_bytes = 0;  // in host memory at the GPU's addresses; RegionCreate, -Resume: no
                                 // more of it is ever not fresh; 0: all may be
  std::uint64_t stored_bytes = 0;  // in host regions, the GPU cannot reach them
  char why[24] = {};               // GpuRegion: of the last move
  std::uint64_t identity[2] = {};  // CacheOpen: of model, layout and revision
  std::uint64_t time_us = 0;  // CacheBegin: by any clock that does not go back; 0: the daemon's
  std::uint32_t input_tokens = 0;
  std::uint32_t output_tokens = 0;  // 0: not known yet
};
static_assert(sizeof(Request) == 256 && sizeof(Request) <= kMessageMax);

struct Reply {
  std::uint32_t version = kProtocolVersion;
  std::int32_t error = 0;  // 0, or a negative errno; `message` says what to do
  std::uint64_t session_id = 0;
  std::uint64_t region_id = 0;
  std::uint64_t page_count = 0;  // of the region
  std::uint64_t first_page = 0;  // of the mapping; an origin region is the whole file
  std::uint64_t fork_token = 0;
  std::uint64_t size_bytes = 0;  // Control: bytes of JSON in the memfd that comes with the reply
  std::uint32_t backing = 0;     // wire::Backing
  std::uint32_t fd_count = 0;
  char message[128] = {};  // 0-ended; human readable, only with an error or a warning
  std::uint32_t others_asked = 0;
  std::uint32_t reserved[7] = {};
};
static_assert(sizeof(Reply) == 224 && sizeof(Reply) <= kMessageMax);

enum class AgentOp : std::uint32_t {
  kDropMapping = 1,  // madvise(DONTNEED) the runs: the next touch is a minor fault, a heat sample
  kPoison = 2,       // map the runs so that access raises SIGBUS: their pages are lost
  kPark = 3,         // GPU regions of `tag` (empty: all) into host regions, until they are used
  kWake = 4,         // and back
  kGiveBack = 5,     // `gpu`: hold no more than `hbm_bytes` of it, as far as that is possible
  kMoveAside = 6,    // the runs: their pages wait for memory that the kernel has no huge pages of
};

struct AgentCommand {
  std::uint32_t version = kProtocolVersion;
  AgentOp op = AgentOp::kDropMapping;
  std::uint32_t run_count = 0;
  std::uint32_t reserved = 0;
  struct Run {
    std::uint64_t address = 0;
    std::uint64_t size_bytes = 0;
  };
  static constexpr unsigned kRunsMax = 15;
  struct ForGpu {
    char tag[64];
    std::uint64_t gpu[2];
    std::uint64_t hbm_bytes;
    std::uint64_t hbm_idle_bytes;  // likewise, if the engine does nothing
  };
  union {
    Run runs[kRunsMax] = {};  // kDropMapping, kPoison, kMoveAside
    ForGpu for_gpu;           // the others
  };
};
static_assert(sizeof(AgentCommand) == 256);

struct AgentReply {
  std::uint32_t version = kProtocolVersion;
  std::int32_t error = 0;
};

}  // namespace kvmem::wire
