#include "tests/softgpu/state.h"

#include <dlfcn.h>

#include <algorithm>
#include <atomic>
#include <utility>

namespace softgpu {

std::mutex state_mu;
// Never destroyed, like all the driver's state: an engine's threads may be inside it when the
// process ends.
std::unordered_set<Graph*>& graphs = *new std::unordered_set<Graph*>;
std::unordered_set<GraphExec*>& graph_execs = *new std::unordered_set<GraphExec*>;
std::unordered_set<Context*>& contexts = *new std::unordered_set<Context*>;

namespace {

std::atomic<bool> is_initialized{false};
std::uint64_t next_stream_id = 3;
thread_local CUstreamCaptureMode capture_mode = CU_STREAM_CAPTURE_MODE_GLOBAL;

// Streams that are captured now.
std::vector<Stream*> capturing_streams() {
  std::vector<Stream*> out;
  for (Context* context : contexts) {
    for (Stream* stream : context->streams) {
      if (stream->capture != nullptr) out.push_back(stream);
    }
    for (auto& [id, stream] : context->per_thread) {
      if (stream->capture != nullptr) out.push_back(stream.get());
    }
  }
  return out;
}

// Parameters lie one after another, each aligned to its size, at most to 16.
std::vector<std::size_t> offsets_of(const softgpu_kernel& kernel) {
  std::vector<std::size_t> offsets;
  std::size_t at = 0;
  for (std::size_t i = 0; i < kernel.param_count; ++i) {
    std::size_t alignment = 1;
    while (alignment < 16 && alignment * 2 <= kernel.param_bytes[i] &&
           kernel.param_bytes[i] % (alignment * 2) == 0) {
      alignment *= 2;
    }
    at = (at + alignment - 1) / alignment * alignment;
    offsets.push_back(at);
    at += kernel.param_bytes[i];
  }
  offsets.push_back(at);  // of the buffer as a whole
  return offsets;
}

}  // namespace

bool initialized() { return is_initialized.load(std::memory_order_acquire); }
void initialize() { is_initialized.store(true, std::memory_order_release); }

std::vector<Context*>& context_stack() {
  thread_local std::vector<Context*> stack;
  return stack;
}

CUresult current(Context** out) {
  if (!initialized()) return CUDA_ERROR_NOT_INITIALIZED;
  if (on_device_thread()) return CUDA_ERROR_NOT_PERMITTED;
  if (const CUresult error = device_error(); error != CUDA_SUCCESS) return error;
  if (context_stack().empty()) return CUDA_ERROR_INVALID_CONTEXT;
  Context* context = context_stack().back();
  const std::lock_guard lock(state_mu);
  if (contexts.count(context) == 0) return CUDA_ERROR_CONTEXT_IS_DESTROYED;
  if (context->primary && context->references == 0) return CUDA_ERROR_CONTEXT_IS_DESTROYED;
  *out = context;
  return CUDA_SUCCESS;
}

Stream* stream_of(Context& context, CUstream handle, bool per_thread_default) {
  if (handle == CU_STREAM_LEGACY || (handle == nullptr && !per_thread_default)) {
    context.legacy.legacy = true;
    context.legacy.id = 1;
    return &context.legacy;
  }
  if (handle == CU_STREAM_PER_THREAD || handle == nullptr) {
    auto& stream = context.per_thread[std::this_thread::get_id()];
    if (stream == nullptr) {
      stream = std::make_unique<Stream>();
      stream->id = next_stream_id++;
    }
    return stream.get();
  }
  auto* stream = reinterpret_cast<Stream*>(handle);
  if (context.streams.count(stream) == 0) return nullptr;
  if (stream->id == 0) stream->id = next_stream_id++;
  return stream;
}

CUresult enqueue(Context& context, CUstream handle, bool per_thread_default, CUgraphNodeType type,
                 std::function<void()> run, OpRef* out) {
  const std::lock_guard lock(state_mu);
  Stream* stream = stream_of(context, handle, per_thread_default);
  if (stream == nullptr) return CUDA_ERROR_INVALID_HANDLE;
  if (stream->capture != nullptr) {
    if (stream->capture->invalid) return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
    auto& nodes = stream->capture->graph->nodes;
    nodes.push_back(std::make_unique<Node>(Node{type, std::move(run), stream->leaves}));
    stream->leaves = {nodes.back().get()};
    return CUDA_SUCCESS;
  }
  // What joins the legacy stream joins all that are captured and do not stand aside from it.
  const auto joins_legacy = [](const Stream& s) { return (s.flags & CU_STREAM_NON_BLOCKING) == 0; };
  if (stream->legacy) {
    for (Stream* other : capturing_streams()) {
      if (joins_legacy(*other)) {
        other->capture->invalid = true;
        return CUDA_ERROR_STREAM_CAPTURE_IMPLICIT;
      }
    }
  }
  auto op = std::make_shared<Op>();
  op->run = std::move(run);
  op->host_function = type == CU_GRAPH_NODE_TYPE_HOST;
  const auto after = [&op](const OpRef& other) {
    if (!is_done(other)) op->after.push_back(other);
  };
  after(stream->tail);
  if (stream->legacy) {
    for (Stream* other : context.streams) {
      if (joins_legacy(*other)) after(other->tail);
    }
    for (auto& [id, other] : context.per_thread) after(other->tail);
  } else if (joins_legacy(*stream)) {
    after(context.legacy.tail);
  }
  stream->tail = op;
  submit(op);
  if (out != nullptr) *out = std::move(op);
  return CUDA_SUCCESS;
}

CUresult refuse_capture() {
  if (capture_mode == CU_STREAM_CAPTURE_MODE_RELAXED) return CUDA_SUCCESS;
  const std::lock_guard lock(state_mu);
  for (Stream* stream : capturing_streams()) {
    Capture& capture = *stream->capture;
    if (capture.mode == CU_STREAM_CAPTURE_MODE_RELAXED) continue;
    const bool own = capture.thread == std::this_thread::get_id();
    if (!own && (capture.mode != CU_STREAM_CAPTURE_MODE_GLOBAL ||
                 capture_mode != CU_STREAM_CAPTURE_MODE_GLOBAL)) {
      continue;
    }
    capture.invalid = true;
    return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
  }
  return CUDA_SUCCESS;
}

CUstreamCaptureMode exchange_capture_mode(CUstreamCaptureMode mode) {
  return std::exchange(capture_mode, mode);
}

CUresult synchronize(Context& context) {
  std::vector<OpRef> tails;
  {
    const std::lock_guard lock(state_mu);
    for (Stream* stream : context.streams) tails.push_back(stream->tail);
    for (auto& [id, stream] : context.per_thread) tails.push_back(stream->tail);
    tails.push_back(context.legacy.tail);
  }
  for (const OpRef& tail : tails) {
    if (!is_done(tail)) wait(tail);
  }
  return device_error();
}

Function* find_function(Module& module, const char* name) {
  auto& slot = module.functions[name];
  if (slot == nullptr) {
    auto made = std::make_unique<Function>();
    made->name = name;
    made->kernel = static_cast<const softgpu_kernel*>(
        ::dlsym(RTLD_DEFAULT, (made->name + "_softgpu").c_str()));
    if (made->kernel == nullptr) {
      module.functions.erase(name);
      return nullptr;
    }
    made->offsets = offsets_of(*made->kernel);
    made->module = &module;
    slot = std::move(made);
  }
  return slot.get();
}

std::uint64_t live(softgpu_kind kind) {
  const std::lock_guard lock(state_mu);
  std::uint64_t count = 0;
  switch (kind) {
    case SOFTGPU_STREAMS:
      for (Context* context : contexts) count += context->streams.size();
      return count;
    case SOFTGPU_EVENTS:
      for (Context* context : contexts) count += context->events.size();
      return count;
    default:
      return graphs.size() + graph_execs.size();
  }
}

}  // namespace softgpu
