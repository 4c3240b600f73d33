// Entry points: libraries, which are modules of no context, and their kernels. A kernel and its
// function are one thing here, and a launch takes either.

#include <unordered_map>

#include "tests/softgpu/calls.h"
#include "tests/softgpu/state.h"

using namespace softgpu;  // NOLINT(google-build-using-namespace)

namespace {

auto& libraries = *new std::unordered_map<CUlibrary, std::unique_ptr<Module>>;  // under state_mu

CUfunction function_of(CUkernel kernel) { return reinterpret_cast<CUfunction>(kernel); }

}  // namespace

extern "C" {

// Whatever the code holds: kernels are found by name in the program.
CUresult cuLibraryLoadData(CUlibrary* out, const void* code, CUjit_option*, void**, unsigned,
                           CUlibraryOption*, void**, unsigned) {
  SOFTGPU_ENTRY(cuLibraryLoadData);
  if (!initialized()) return CUDA_ERROR_NOT_INITIALIZED;
  if (out == nullptr || code == nullptr) return CUDA_ERROR_INVALID_VALUE;
  auto made = std::make_unique<Module>();
  *out = reinterpret_cast<CUlibrary>(made.get());
  const std::lock_guard lock(state_mu);
  libraries[*out] = std::move(made);
  return CUDA_SUCCESS;
}

CUresult cuLibraryUnload(CUlibrary library) {
  SOFTGPU_ENTRY(cuLibraryUnload);
  drain();
  const std::lock_guard lock(state_mu);
  return libraries.erase(library) != 0 ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

CUresult cuLibraryGetKernel(CUkernel* out, CUlibrary library, const char* name) {
  SOFTGPU_ENTRY(cuLibraryGetKernel);
  if (out == nullptr || name == nullptr) return CUDA_ERROR_INVALID_VALUE;
  const std::lock_guard lock(state_mu);
  const auto found = libraries.find(library);
  if (found == libraries.end()) return CUDA_ERROR_INVALID_HANDLE;
  Function* function = find_function(*found->second, name);
  if (function == nullptr) return CUDA_ERROR_NOT_FOUND;
  *out = reinterpret_cast<CUkernel>(function);
  return CUDA_SUCCESS;
}

CUresult cuKernelGetFunction(CUfunction* out, CUkernel kernel) {
  SOFTGPU_ENTRY(cuKernelGetFunction);
  if (out == nullptr || kernel == nullptr) return CUDA_ERROR_INVALID_VALUE;
  Context* context = nullptr;
  if (const CUresult bad = current(&context); bad != CUDA_SUCCESS) return bad;
  *out = function_of(kernel);
  return CUDA_SUCCESS;
}

CUresult cuKernelGetName(const char** name, CUkernel kernel) {
  SOFTGPU_ENTRY(cuKernelGetName);
  return cuFuncGetName(name, function_of(kernel));
}

CUresult cuKernelGetParamInfo(CUkernel kernel, std::size_t index, std::size_t* offset,
                              std::size_t* bytes) {
  SOFTGPU_ENTRY(cuKernelGetParamInfo);
  return cuFuncGetParamInfo(function_of(kernel), index, offset, bytes);
}

CUresult cuKernelGetAttribute(int* value, CUfunction_attribute attribute, CUkernel kernel,
                              CUdevice device) {
  SOFTGPU_ENTRY(cuKernelGetAttribute);
  if (device != 0) return CUDA_ERROR_INVALID_DEVICE;
  return cuFuncGetAttribute(value, attribute, function_of(kernel));
}

CUresult cuKernelSetAttribute(CUfunction_attribute attribute, int value, CUkernel kernel,
                              CUdevice device) {
  SOFTGPU_ENTRY(cuKernelSetAttribute);
  if (device != 0) return CUDA_ERROR_INVALID_DEVICE;
  return cuFuncSetAttribute(function_of(kernel), attribute, value);
}

}  // extern "C"
