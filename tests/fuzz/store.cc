// A page store whose disk was tampered with, checksums made to fit where the input says so: it
// opens or refuses, and what it hands out is what the record's own checksum says.
//
// Input: edits of the disk, one after another: block (2 bytes), offset in it (2), how many bytes
// (1; the high bit: seal the block when all is done), the bytes.
#include "tier/store.h"

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <set>

#include "tests/unit/sim_disk.h"
#include "tier/store_format.h"

namespace {

using kvmem::test::SimDisk;
using kvmem::test::SimLoop;
using kvmem::test::SimMedia;
namespace tier = kvmem::tier;

constexpr std::uint64_t kPage = 4096;

tier::StoreOptions options() {
  tier::StoreOptions o;
  o.page_bytes = kPage;
  o.slots_per_segment = 4;
  o.capacity_bytes = tier::format::Geometry{kPage, 4}.segment_offset(6);
  o.boot_id[0] = 1;
  return o;
}

struct Page {
  Page() : bytes(static_cast<std::uint8_t*>(std::aligned_alloc(kPage, kPage))) {}
  ~Page() { std::free(bytes); }
  Page(const Page&) = delete;
  Page& operator=(const Page&) = delete;
  std::uint8_t* bytes;
};

void settle(SimLoop& loop) {
  while (loop.step()) {
  }
}

void write(tier::Store& store, SimLoop& loop, std::uint64_t n, bool persistent) {
  Page page;
  std::memset(page.bytes, static_cast<int>(n), kPage);
  tier::WriteOp op;
  op.key = {n, n};
  op.generation = n;
  op.kind = persistent ? tier::RecordKind::kPersistent : tier::RecordKind::kEphemeral;
  op.page = page.bytes;
  op.done = [](tier::WriteOp*, kvmem::Status) {};
  if (store.write(&op).ok()) settle(loop);
}

// A store with records of both kinds, a sealed segment, and one that was released.
const std::vector<std::uint8_t>& image() {
  static const std::vector<std::uint8_t> made = [] {
    SimMedia media(1, 0, true);
    SimLoop loop(media);
    auto store = tier::Store::open(std::make_unique<SimDisk>(media, loop), loop, options());
    if (!store.ok()) std::abort();
    for (std::uint64_t n = 1; n <= 14; ++n) write(**store, loop, n, n <= 9);
    tier::SyncOp sync;
    sync.done = [](tier::SyncOp*, kvmem::Status) {};
    (*store)->sync(&sync);
    settle(loop);
    store->reset();
    media.kill();
    return media.view();
  }();
  return made;
}

struct Read : tier::ReadOp {
  kvmem::Status status;
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  SimMedia media(7, image().size(), true);
  media.view() = image();
  std::set<std::size_t> sealed;
  while (size >= 5) {
    const std::size_t block = (data[0] | data[1] << 8) % (image().size() / kPage);
    const std::size_t offset = (data[2] | data[3] << 8) % kPage;
    const std::size_t count = std::min<std::size_t>({data[4] & 127U, size - 5, kPage - offset});
    if ((data[4] & 128) != 0) sealed.insert(block);
    std::memcpy(media.view().data() + block * kPage + offset, data + 5, count);
    data += 5 + count;
    size -= 5 + count;
  }
  Page buffer;
  for (const std::size_t block : sealed) {
    std::memcpy(buffer.bytes, media.view().data() + block * kPage, kPage);
    tier::format::finish_block(buffer.bytes);
    std::memcpy(media.view().data() + block * kPage, buffer.bytes, kPage);
  }
  SimLoop loop(media);
  auto opened = tier::Store::open(std::make_unique<SimDisk>(media, loop), loop, options());
  if (!opened.ok()) return 0;
  tier::Store& store = **opened;
  store.validate();
  for (const tier::Record& record : store.records()) {
    Read read;
    read.key = record.key;
    read.generation = record.generation;
    read.locator = record.locator;
    read.page = buffer.bytes;
    read.done = [](tier::ReadOp* op, kvmem::Status status) {
      static_cast<Read*>(op)->status = status;
    };
    if (!store.read(&read).ok()) continue;
    settle(loop);
    if (!read.status.ok()) continue;
    // The header on the disk names these bytes.
    const std::uint64_t at = tier::format::Geometry{kPage, 4}.slot_offset(record.locator - 1);
    const auto* header =
        reinterpret_cast<const tier::format::RecordHeader*>(media.view().data() + at);
    const auto sum = tier::format::checksum_page(buffer.bytes, kPage);
    if (!(header->key == record.key) || header->generation != record.generation ||
        !(header->checksum == sum)) {
      std::abort();
    }
    if (record.generation % 2 == 0) {
      (void)store.release(record.key, record.generation, record.locator);
    }
  }
  store.validate();
  for (std::uint64_t n = 100; n < 106; ++n) write(store, loop, n, n % 2 == 0);
  store.validate();
  return 0;
}
