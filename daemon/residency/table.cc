#include "residency/table.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include <new>

namespace kvmem::residency {
namespace {

constexpr int kSeals = F_SEAL_SHRINK | F_SEAL_GROW;

// The entry a new daemon starts from, given what the old one left.
Residency settled(Residency entry) {
  switch (entry.state) {
    case PageState::kWriting:
      return {PageState::kResident, PageState::kFresh,
              static_cast<std::uint8_t>(entry.flags & (Residency::kPinned | Residency::kAside)),
              entry.generation, 0};
    case PageState::kFilling:
      return {entry.source, PageState::kFresh, entry.flags, entry.generation, entry.slot};
    default:
      return entry;
  }
}

bool plausible(Residency entry) {
  const auto known = [](PageState state) { return state <= PageState::kLost; };
  if (!known(entry.state) || !known(entry.source)) return false;
  if (entry.state != PageState::kFilling) return true;
  return entry.source == PageState::kFresh || entry.source == PageState::kResident ||
         entry.source == PageState::kStored || entry.source == PageState::kOrigin;
}

}  // namespace

Result<ResidencyTable> ResidencyTable::create(std::uint64_t region_id, std::uint32_t page_count,
                                              os::MemoryKind kind, PageState initial) {
  const std::size_t size = wire::residency_table_bytes(page_count);
  ResidencyTable table;
  table.fd_ = UniqueFd(::memfd_create("kvmem-residency", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  if (!table.fd_) return Status::from_errno("memfd_create");
  if (::fchmod(table.fd_.get(), 0400) != 0) return Status::from_errno("fchmod");
  if (::ftruncate(table.fd_.get(), static_cast<off_t>(size)) != 0)
    return Status::from_errno("ftruncate");
  if (::fcntl(table.fd_.get(), F_ADD_SEALS, kSeals | F_SEAL_SEAL) != 0)
    return Status::from_errno("F_ADD_SEALS");
  void* address = ::mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED, table.fd_.get(), 0);
  if (address == MAP_FAILED) return Status::from_errno("mmap: residency table");
  table.mapping_ = UniqueMapping({address, size});
  table.page_count_ = page_count;
  auto* header = new (address) wire::ResidencyHeader;
  header->page_shift = kPageShift;
  header->backing = static_cast<wire::Backing>(kind);
  header->region_id = region_id;
  header->page_count = page_count;
  if (initial != PageState::kFresh) {  // an all-zero table is fresh already
    for (std::uint32_t page = 0; page < page_count; ++page) table.publish(page, {.state = initial});
  }
  return table;
}

Result<ResidencyTable> ResidencyTable::adopt(UniqueFd fd, std::uint64_t region_id,
                                             std::uint32_t page_count, std::uint32_t owner_uid) {
  const std::size_t size = wire::residency_table_bytes(page_count);
  struct stat st {};
  if (::fstat(fd.get(), &st) != 0) return Status::from_errno("fstat");
  const int seals = ::fcntl(fd.get(), F_GET_SEALS);
  if (seals < 0 || (seals & kSeals) != kSeals)
    return Status(Code::kInvalid, "not a residency table");
  if (static_cast<std::uint64_t>(st.st_size) != size || st.st_uid != owner_uid) {
    return Status(Code::kInvalid, "residency table of another size or owner");
  }
  ResidencyTable table;
  KV_ASSIGN_OR_RETURN(table.fd_, os::reopen(fd.get(), O_RDWR));
  void* address = ::mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED, table.fd_.get(), 0);
  if (address == MAP_FAILED) return Status::from_errno("mmap: residency table");
  table.mapping_ = UniqueMapping({address, size});
  table.page_count_ = page_count;
  const wire::ResidencyHeader& header = *table.header();
  if (header.magic != wire::ResidencyHeader::kMagic || header.page_shift != kPageShift ||
      header.region_id != region_id || header.page_count != page_count ||
      header.backing < wire::Backing::kHugeTlb || header.backing > wire::Backing::kShmem) {
    return Status(Code::kInvalid, "residency table of another region or version");
  }
  for (std::uint32_t page = 0; page < page_count; ++page) {
    const Residency entry = table.read(page);
    if (!plausible(entry))
      return Status(Code::kInvalid, "residency table with an impossible entry");
    table.used_count_ += entry.state != PageState::kFresh;
    if (const Residency start = settled(entry); !(start == entry)) table.publish(page, start);
  }
  return table;
}

os::MemoryKind ResidencyTable::kind() const {
  return static_cast<os::MemoryKind>(header()->backing);
}

Result<UniqueFd> ResidencyTable::read_only_fd() const { return os::reopen(fd_.get(), O_RDONLY); }

}  // namespace kvmem::residency
