// Entry points: modules, functions, launches, graphs.

#include <cstring>

#include "tests/softgpu/calls.h"
#include "tests/softgpu/state.h"

using namespace softgpu;  // NOLINT(google-build-using-namespace)

namespace {

Function* as_function(CUfunction handle) { return reinterpret_cast<Function*>(handle); }

// The bytes of the parameters, from either form. Empty and false: neither was understood.
bool gather(const Function& function, void** params, void** extra,
            std::vector<unsigned char>* out) {
  out->assign(function.offsets.back() + 16, 0);
  if (params != nullptr) {
    for (std::size_t i = 0; i < function.kernel->param_count; ++i) {
      std::memcpy(out->data() + function.offsets[i], params[i], function.kernel->param_bytes[i]);
    }
    return true;
  }
  const void* buffer = nullptr;
  std::size_t bytes = 0;
  for (; extra != nullptr && extra[0] != CU_LAUNCH_PARAM_END; extra += 2) {
    if (extra[0] == CU_LAUNCH_PARAM_BUFFER_POINTER) buffer = extra[1];
    if (extra[0] == CU_LAUNCH_PARAM_BUFFER_SIZE) bytes = *static_cast<std::size_t*>(extra[1]);
  }
  if (buffer == nullptr) return function.kernel->param_count == 0;
  if (bytes < function.offsets.back()) return false;
  std::memcpy(out->data(), buffer, function.offsets.back());
  return true;
}

CUresult launch_run(const softgpu_launch& launch, CUfunction handle, void** params, void** extra,
                    std::function<void()>* run) {
  Function* function = as_function(handle);
  if (function == nullptr) return CUDA_ERROR_INVALID_HANDLE;
  for (int i = 0; i < 3; ++i) {
    if (launch.grid[i] == 0 || launch.block[i] == 0) return CUDA_ERROR_INVALID_VALUE;
  }
  if (launch.block[0] * launch.block[1] * launch.block[2] > 1024) return CUDA_ERROR_INVALID_VALUE;
  std::vector<unsigned char> bytes;
  if (!gather(*function, params, extra, &bytes)) return CUDA_ERROR_INVALID_VALUE;
  *run = [launch, function, bytes = std::move(bytes)]() mutable {
    std::vector<void*> pointers;
    for (std::size_t i = 0; i < function->kernel->param_count; ++i) {
      pointers.push_back(bytes.data() + function->offsets[i]);
    }
    function->kernel->body(&launch, pointers.data());
  };
  return CUDA_SUCCESS;
}

CUresult launch(const softgpu_launch& what, CUstream stream, bool per_thread, CUfunction function,
                void** params, void** extra) {
  Context* context = nullptr;
  if (const CUresult bad = current(&context); bad != CUDA_SUCCESS) return bad;
  std::function<void()> run;
  if (const CUresult bad = launch_run(what, function, params, extra, &run); bad != CUDA_SUCCESS) {
    return bad;
  }
  return enqueue(*context, stream, per_thread, CU_GRAPH_NODE_TYPE_KERNEL, std::move(run));
}

CUresult launch_graph(CUgraphExec handle, CUstream stream_handle, bool per_thread) {
  Context* context = nullptr;
  if (const CUresult bad = current(&context); bad != CUDA_SUCCESS) return bad;
  auto* exec = reinterpret_cast<GraphExec*>(handle);
  OpRef first;
  {
    const std::lock_guard lock(state_mu);
    if (graph_execs.count(exec) == 0) return CUDA_ERROR_INVALID_HANDLE;
    if (Stream* stream = stream_of(*context, stream_handle, per_thread);
        stream != nullptr && stream->capture != nullptr) {
      return CUDA_ERROR_NOT_SUPPORTED;  // child graphs
    }
  }
  if (const CUresult queued =
          enqueue(*context, stream_handle, per_thread, CU_GRAPH_NODE_TYPE_EMPTY, nullptr, &first);
      queued != CUDA_SUCCESS) {
    return queued;
  }
  const std::lock_guard lock(state_mu);
  std::vector<OpRef> ops;
  for (const GraphExec::Step& step : exec->steps) {
    auto op = std::make_shared<Op>();
    op->run = step.run;
    op->host_function = step.type == CU_GRAPH_NODE_TYPE_HOST;
    op->after = {first};
    for (const std::size_t before : step.after) op->after.push_back(ops[before]);
    ops.push_back(std::move(op));
  }
  auto last = std::make_shared<Op>();
  last->after = ops;
  std::vector<std::function<void()>> memory;  // the launch's own hold on it
  for (const GraphExec::Step& step : exec->steps) {
    if (step.type == CU_GRAPH_NODE_TYPE_MEM_ALLOC) memory.push_back(step.run);
  }
  if (!memory.empty()) last->run = [memory = std::move(memory)] {};
  last->after.push_back(first);
  if (Stream* stream = stream_of(*context, stream_handle, per_thread); stream != nullptr) {
    if (stream->tail != first) last->after.push_back(stream->tail);
    stream->tail = last;
  }
  for (const OpRef& op : ops) submit(op);
  submit(last);
  return CUDA_SUCCESS;
}

CUresult load(CUmodule* out, const void* image) {
  Context* context = nullptr;
  if (const CUresult bad = current(&context); bad != CUDA_SUCCESS) return bad;
  if (out == nullptr || image == nullptr) return CUDA_ERROR_INVALID_VALUE;
  auto* made = new Module;
  const std::lock_guard lock(state_mu);
  context->modules.insert(made);
  *out = reinterpret_cast<CUmodule>(made);
  return CUDA_SUCCESS;
}

}  // namespace

extern "C" {

// Whatever the image holds: functions are found by name in the program.
CUresult cuModuleLoadData(CUmodule* out, const void* image) {
  SOFTGPU_ENTRY(cuModuleLoadData);
  return load(out, image);
}

CUresult cuModuleLoadDataEx(CUmodule* out, const void* image, unsigned, CUjit_option*, void**) {
  SOFTGPU_ENTRY(cuModuleLoadDataEx);
  return load(out, image);
}

CUresult cuModuleLoadFatBinary(CUmodule* out, const void* image) {
  SOFTGPU_ENTRY(cuModuleLoadFatBinary);
  return load(out, image);
}

CUresult cuModuleUnload(CUmodule handle) {
  SOFTGPU_ENTRY(cuModuleUnload);
  Context* context = nullptr;
  if (const CUresult bad = current(&context); bad != CUDA_SUCCESS) return bad;
  if (const CUresult error = synchronize(*context); error != CUDA_SUCCESS) return error;
  const std::lock_guard lock(state_mu);
  auto* module = reinterpret_cast<Module*>(handle);
  if (context->modules.erase(module) == 0) return CUDA_ERROR_INVALID_HANDLE;
  delete module;
  return CUDA_SUCCESS;
}

CUresult cuModuleGetFunction(CUfunction* out, CUmodule handle, const char* name) {
  SOFTGPU_ENTRY(cuModuleGetFunction);
  Context* context = nullptr;
  if (const CUresult bad = current(&context); bad != CUDA_SUCCESS) return bad;
  const std::lock_guard lock(state_mu);
  auto* module = reinterpret_cast<Module*>(handle);
  if (context->modules.count(module) == 0) return CUDA_ERROR_INVALID_HANDLE;
  if (out == nullptr || name == nullptr) return CUDA_ERROR_INVALID_VALUE;
  Function* found = find_function(*module, name);
  if (found == nullptr) return CUDA_ERROR_NOT_FOUND;
  *out = reinterpret_cast<CUfunction>(found);
  return CUDA_SUCCESS;
}

CUresult cuFuncGetParamInfo(CUfunction handle, std::size_t index, std::size_t* offset,
                            std::size_t* bytes) {
  SOFTGPU_ENTRY(cuFuncGetParamInfo);
  const Function* function = as_function(handle);
  if (function == nullptr || offset == nullptr) return CUDA_ERROR_INVALID_VALUE;
  if (index >= function->kernel->param_count) return CUDA_ERROR_INVALID_VALUE;
  *offset = function->offsets[index];
  if (bytes != nullptr) *bytes = function->kernel->param_bytes[index];
  return CUDA_SUCCESS;
}

CUresult cuFuncGetName(const char** name, CUfunction handle) {
  SOFTGPU_ENTRY(cuFuncGetName);
  if (name == nullptr || handle == nullptr) return CUDA_ERROR_INVALID_VALUE;
  *name = as_function(handle)->name.c_str();
  return CUDA_SUCCESS;
}

CUresult cuFuncGetAttribute(int* value, CUfunction_attribute attribute, CUfunction handle) {
  SOFTGPU_ENTRY(cuFuncGetAttribute);
  if (value == nullptr || handle == nullptr) return CUDA_ERROR_INVALID_VALUE;
  const auto& attributes = as_function(handle)->attributes;
  const auto found = attributes.find(attribute);
  *value = found != attributes.end()                              ? found->second
           : attribute == CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK ? 1024
                                                                  : 0;
  return CUDA_SUCCESS;
}

CUresult cuFuncSetAttribute(CUfunction handle, CUfunction_attribute attribute, int value) {
  SOFTGPU_ENTRY(cuFuncSetAttribute);
  if (handle == nullptr) return CUDA_ERROR_INVALID_HANDLE;
  as_function(handle)->attributes[attribute] = value;
  return CUDA_SUCCESS;
}

#define SOFTGPU_LAUNCHES(suffix, per_thread)                                                      \
  CUresult cuLaunchKernel##suffix(CUfunction f, unsigned gx, unsigned gy, unsigned gz,            \
                                  unsigned bx, unsigned by, unsigned bz, unsigned shared,         \
                                  CUstream stream, void** params, void** extra) {                 \
    SOFTGPU_ENTRY(cuLaunchKernel);                                                                \
    return launch({{gx, gy, gz}, {bx, by, bz}, shared}, stream, per_thread, f, params, extra);    \
  }                                                                                               \
  CUresult cuLaunchCooperativeKernel##suffix(CUfunction f, unsigned gx, unsigned gy, unsigned gz, \
                                             unsigned bx, unsigned by, unsigned bz,               \
                                             unsigned shared, CUstream stream, void** params) {   \
    SOFTGPU_ENTRY(cuLaunchCooperativeKernel);                                                     \
    return launch({{gx, gy, gz}, {bx, by, bz}, shared}, stream, per_thread, f, params, nullptr);  \
  }                                                                                               \
  CUresult cuLaunchKernelEx##suffix(const CUlaunchConfig* c, CUfunction f, void** params,         \
                                    void** extra) {                                               \
    SOFTGPU_ENTRY(cuLaunchKernelEx);                                                              \
    if (c == nullptr) return CUDA_ERROR_INVALID_VALUE;                                            \
    return launch({{c->gridDimX, c->gridDimY, c->gridDimZ},                                       \
                   {c->blockDimX, c->blockDimY, c->blockDimZ},                                    \
                   c->sharedMemBytes},                                                            \
                  c->hStream, per_thread, f, params, extra);                                      \
  }                                                                                               \
  CUresult cuLaunchHostFunc##suffix(CUstream stream, CUhostFn fn, void* data) {                   \
    SOFTGPU_ENTRY(cuLaunchHostFunc);                                                              \
    Context* context = nullptr;                                                                   \
    if (const CUresult bad = current(&context); bad != CUDA_SUCCESS) return bad;                  \
    if (fn == nullptr) return CUDA_ERROR_INVALID_VALUE;                                           \
    return enqueue(*context, stream, per_thread, CU_GRAPH_NODE_TYPE_HOST,                         \
                   [fn, data] { fn(data); });                                                     \
  }                                                                                               \
  CUresult cuGraphLaunch##suffix(CUgraphExec exec, CUstream stream) {                             \
    SOFTGPU_ENTRY(cuGraphLaunch);                                                                 \
    return launch_graph(exec, stream, per_thread);                                                \
  }

SOFTGPU_LAUNCHES(, false)
SOFTGPU_LAUNCHES(_ptsz, true)

CUresult cuGraphCreate(CUgraph* out, unsigned flags) {
  SOFTGPU_ENTRY(cuGraphCreate);
  if (out == nullptr || flags != 0) return CUDA_ERROR_INVALID_VALUE;
  auto* made = new Graph;
  const std::lock_guard lock(state_mu);
  graphs.insert(made);
  *out = reinterpret_cast<CUgraph>(made);
  return CUDA_SUCCESS;
}

CUresult cuGraphDestroy(CUgraph handle) {
  SOFTGPU_ENTRY(cuGraphDestroy);
  const std::lock_guard lock(state_mu);
  auto* graph = reinterpret_cast<Graph*>(handle);
  if (graphs.erase(graph) == 0) return CUDA_ERROR_INVALID_VALUE;
  delete graph;
  return CUDA_SUCCESS;
}

CUresult cuGraphGetNodes(CUgraph handle, CUgraphNode* nodes, std::size_t* count) {
  SOFTGPU_ENTRY(cuGraphGetNodes);
  const std::lock_guard lock(state_mu);
  auto* graph = reinterpret_cast<Graph*>(handle);
  if (graphs.count(graph) == 0 || count == nullptr) return CUDA_ERROR_INVALID_VALUE;
  if (nodes != nullptr) {
    for (std::size_t i = 0; i < *count; ++i) {
      nodes[i] =
          i < graph->nodes.size() ? reinterpret_cast<CUgraphNode>(graph->nodes[i].get()) : nullptr;
    }
  }
  *count = graph->nodes.size();
  return CUDA_SUCCESS;
}

CUresult cuGraphNodeGetType(CUgraphNode node, CUgraphNodeType* type) {
  SOFTGPU_ENTRY(cuGraphNodeGetType);
  if (node == nullptr || type == nullptr) return CUDA_ERROR_INVALID_VALUE;
  *type = reinterpret_cast<Node*>(node)->type;
  return CUDA_SUCCESS;
}

CUresult cuGraphAddKernelNode_v2(CUgraphNode* out, CUgraph handle, const CUgraphNode* after,
                                 std::size_t count, const CUDA_KERNEL_NODE_PARAMS* params) {
  SOFTGPU_ENTRY(cuGraphAddKernelNode);
  if (out == nullptr || params == nullptr) return CUDA_ERROR_INVALID_VALUE;
  auto node = std::make_unique<Node>();
  node->type = CU_GRAPH_NODE_TYPE_KERNEL;
  const softgpu_launch what = {{params->gridDimX, params->gridDimY, params->gridDimZ},
                               {params->blockDimX, params->blockDimY, params->blockDimZ},
                               params->sharedMemBytes};
  if (const CUresult bad =
          launch_run(what, params->func, params->kernelParams, params->extra, &node->run);
      bad != CUDA_SUCCESS) {
    return bad;
  }
  for (std::size_t i = 0; i < count; ++i) node->after.push_back(reinterpret_cast<Node*>(after[i]));
  const std::lock_guard lock(state_mu);
  auto* graph = reinterpret_cast<Graph*>(handle);
  if (graphs.count(graph) == 0) return CUDA_ERROR_INVALID_VALUE;
  *out = reinterpret_cast<CUgraphNode>(node.get());
  graph->nodes.push_back(std::move(node));
  return CUDA_SUCCESS;
}

CUresult cuGraphInstantiateWithFlags(CUgraphExec* out, CUgraph handle, unsigned long long) {
  SOFTGPU_ENTRY(cuGraphInstantiate);
  const std::lock_guard lock(state_mu);
  auto* graph = reinterpret_cast<Graph*>(handle);
  if (graphs.count(graph) == 0 || out == nullptr) return CUDA_ERROR_INVALID_VALUE;
  auto* made = new GraphExec;
  // Nodes come after those they depend on: both ways of adding them see to that.
  std::unordered_map<Node*, std::size_t> index;
  for (const auto& node : graph->nodes) {
    GraphExec::Step step{node->type, node->run, {}};
    for (Node* before : node->after) step.after.push_back(index.at(before));
    index[node.get()] = made->steps.size();
    made->steps.push_back(std::move(step));
  }
  graph_execs.insert(made);
  *out = reinterpret_cast<CUgraphExec>(made);
  return CUDA_SUCCESS;
}

CUresult cuGraphExecDestroy(CUgraphExec handle) {
  SOFTGPU_ENTRY(cuGraphExecDestroy);
  const std::lock_guard lock(state_mu);
  auto* exec = reinterpret_cast<GraphExec*>(handle);
  if (graph_execs.erase(exec) == 0) return CUDA_ERROR_INVALID_VALUE;
  delete exec;  // launches under way have their own copies
  return CUDA_SUCCESS;
}

}  // extern "C"
