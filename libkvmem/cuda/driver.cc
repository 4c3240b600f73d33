#include "cuda/driver.h"

#include <dlfcn.h>
#include <pthread.h>

#include "cuda/loader.h"

namespace kvmem::cuda {
namespace {

Driver table;
Status table_status(Code::kNotFound, "libcuda.so.1");
pthread_once_t once = PTHREAD_ONCE_INIT;
thread_local bool loading = false;

// The form of CUDA 12 and later, or that of 11.3 without the status.
using Lookup = CUresult (*)(const char*, void**, int, cuuint64_t, CUdriverProcAddressQueryResult*);
using OldLookup = CUresult (*)(const char*, void**, int, cuuint64_t);

void* find(void* library, const char* name, int version) {
  void* found = nullptr;
  if (void* lookup = real_dlsym()(library, "cuGetProcAddress_v2"); lookup != nullptr) {
    (void)reinterpret_cast<Lookup>(lookup)(name, &found, version, CU_GET_PROC_ADDRESS_LEGACY_STREAM,
                                           nullptr);
  } else if (void* old = real_dlsym()(library, "cuGetProcAddress"); old != nullptr) {
    (void)reinterpret_cast<OldLookup>(old)(name, &found, version,
                                           CU_GET_PROC_ADDRESS_LEGACY_STREAM);
  }
  return found;
}

void fill_table() {
  // Kept for the life of the process: the engine's own pointers lead into it.
  void* library = ::dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) return;
  bool complete = true;
  // The name as it is written: cuda.h makes macros of some.
#define KV_CUDA_FIND(member, name, version)                                               \
  table.member = reinterpret_cast<decltype(table.member)>(find(library, #name, version)); \
  complete = complete && table.member != nullptr;
  KV_CUDA_ENTRIES(KV_CUDA_FIND)
#undef KV_CUDA_FIND
  if (complete) {
    table_status = Status{};
    return;
  }
  int version = 0;
  if (table.driver_get_version != nullptr) (void)table.driver_get_version(&version);
  table_status = Status(Code::kUnsupported, "the CUDA driver is too old", version);
}

Code code_of(CUresult result) {
  switch (result) {
    case CUDA_ERROR_OUT_OF_MEMORY:
      return Code::kNoMemory;
    case CUDA_ERROR_INVALID_VALUE:
    case CUDA_ERROR_INVALID_HANDLE:
    case CUDA_ERROR_INVALID_DEVICE:
    case CUDA_ERROR_INVALID_CONTEXT:
      return Code::kInvalid;
    case CUDA_ERROR_NOT_READY:
      return Code::kBusy;
    case CUDA_ERROR_NOT_FOUND:
      return Code::kNotFound;
    case CUDA_ERROR_DEINITIALIZED:
    case CUDA_ERROR_CONTEXT_IS_DESTROYED:
      return Code::kPeerGone;
    default:
      return Code::kUnsupported;
  }
}

}  // namespace

Result<const Driver*> load() {
  loading = true;
  ::pthread_once(&once, fill_table);
  loading = false;
  if (!table_status.ok()) return table_status;
  return &table;
}

bool is_loading() { return loading; }
const Driver& driver() { return table; }

void* exported(const char* name) {
  void* library = ::dlopen("libcuda.so.1", RTLD_NOW | RTLD_NOLOAD);
  if (library == nullptr) return nullptr;
  void* found = real_dlsym()(library, name);
  ::dlclose(library);
  return found;
}

Status status_of(CUresult result, const char* what) {
  if (result == CUDA_SUCCESS) return {};
  return {code_of(result), what, static_cast<int>(result)};
}

const char* error_name(const Status& status) {
  const char* name = nullptr;
  if (status.ok() || status.detail() == 0 || table.get_error_name == nullptr) return "";
  if (table.get_error_name(static_cast<CUresult>(status.detail()), &name) != CUDA_SUCCESS)
    return "";
  return name != nullptr ? name : "";
}

}  // namespace kvmem::cuda
