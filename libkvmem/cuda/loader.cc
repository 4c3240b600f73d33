#include "cuda/loader.h"

#include <elf.h>
#include <link.h>
#include <string.h>

#include <atomic>
#include <cstdint>

namespace kvmem::cuda {
namespace {

// An object's table of dynamic symbols, by the GNU hash of their names.
struct Symbols {
  const char* names = nullptr;
  const ElfW(Sym) * symbols = nullptr;
  const std::uint32_t* hash = nullptr;

  explicit Symbols(const dl_phdr_info& object) {
    const ElfW(Dyn)* entry = nullptr;
    for (int i = 0; i < object.dlpi_phnum; ++i) {
      if (object.dlpi_phdr[i].p_type != PT_DYNAMIC) continue;
      entry = reinterpret_cast<const ElfW(Dyn)*>(object.dlpi_addr + object.dlpi_phdr[i].p_vaddr);
    }
    for (; entry != nullptr && entry->d_tag != DT_NULL; ++entry) {
      // The loader has made addresses of them.
      const auto at = entry->d_un.d_ptr;
      if (entry->d_tag == DT_STRTAB) names = reinterpret_cast<const char*>(at);
      if (entry->d_tag == DT_SYMTAB) symbols = reinterpret_cast<const ElfW(Sym)*>(at);
      if (entry->d_tag == DT_GNU_HASH) hash = reinterpret_cast<const std::uint32_t*>(at);
    }
  }

  const ElfW(Sym) * find(const char* name) const {
    if (names == nullptr || symbols == nullptr || hash == nullptr) return nullptr;
    std::uint32_t wanted = 5381;
    for (const char* c = name; *c != 0; ++c) wanted = wanted * 33 + static_cast<unsigned char>(*c);
    const std::uint32_t bucket_count = hash[0];
    const std::uint32_t first = hash[1];
    const std::uint32_t* buckets = hash + 4 + hash[2] * (sizeof(ElfW(Addr)) / 4);
    const std::uint32_t* chain = buckets + bucket_count;
    std::uint32_t i = buckets[wanted % bucket_count];
    if (i < first) return nullptr;
    for (;; ++i) {
      const std::uint32_t seen = chain[i - first];
      if ((seen | 1) == (wanted | 1) && symbols[i].st_shndx != SHN_UNDEF &&
          strcmp(names + symbols[i].st_name, name) == 0) {
        return &symbols[i];
      }
      if ((seen & 1) != 0) return nullptr;
    }
  }
};

int find_in_libc(dl_phdr_info* object, std::size_t /*size*/, void* out) {
  if (object->dlpi_name == nullptr) return 0;
  const char* slash = strrchr(object->dlpi_name, '/');
  if (strcmp(slash != nullptr ? slash + 1 : object->dlpi_name, "libc.so.6") != 0) return 0;
  const ElfW(Sym)* found = Symbols(*object).find("dlvsym");
  if (found == nullptr) return 0;
  *static_cast<void**>(out) = reinterpret_cast<void*>(object->dlpi_addr + found->st_value);
  return 1;
}

struct Order {
  std::uintptr_t other;
  bool is_before;
};

bool holds(const dl_phdr_info& object, std::uintptr_t at) {
  for (int i = 0; i < object.dlpi_phnum; ++i) {
    const ElfW(Phdr)& part = object.dlpi_phdr[i];
    if (part.p_type == PT_LOAD && at - object.dlpi_addr - part.p_vaddr < part.p_memsz) return true;
  }
  return false;
}

// Objects come in the order of lookups.
int see_which_is_first(dl_phdr_info* object, std::size_t /*size*/, void* argument) {
  auto* order = static_cast<Order*>(argument);
  if (holds(*object, reinterpret_cast<std::uintptr_t>(&see_which_is_first))) return 1;
  order->is_before = holds(*object, order->other);
  return order->is_before ? 1 : 0;
}

// By no lock: resolving may allocate, which may ask again.
template <class Find>
void* once(std::atomic<void*>& kept, Find find) {
  void* found = kept.load(std::memory_order_relaxed);
  if (found == nullptr) {
    found = find();
    kept.store(found, std::memory_order_relaxed);
  }
  return found;
}

void* next(std::atomic<void*>& kept, const char* name) {
  return once(kept, [name] { return real_dlvsym()(RTLD_NEXT, name, "GLIBC_2.34"); });
}

constinit std::atomic<void*> kept_dlsym{nullptr};
constinit std::atomic<void*> kept_dlvsym{nullptr};
constinit std::atomic<void*> kept_dlopen{nullptr};
constinit std::atomic<void*> kept_dlmopen{nullptr};

}  // namespace

DlVsym real_dlvsym() {
  return reinterpret_cast<DlVsym>(once(kept_dlvsym, [] {
    void* libc = nullptr;
    ::dl_iterate_phdr(find_in_libc, static_cast<void*>(&libc));
    return libc;
  }));
}
DlSym real_dlsym() { return reinterpret_cast<DlSym>(next(kept_dlsym, "dlsym")); }
DlOpen real_dlopen() { return reinterpret_cast<DlOpen>(next(kept_dlopen, "dlopen")); }
DlMopen real_dlmopen() { return reinterpret_cast<DlMopen>(next(kept_dlmopen, "dlmopen")); }

bool is_before_us(const void* code) {
  Order order{reinterpret_cast<std::uintptr_t>(code), false};
  ::dl_iterate_phdr(see_which_is_first, &order);
  return order.is_before;
}

}  // namespace kvmem::cuda
