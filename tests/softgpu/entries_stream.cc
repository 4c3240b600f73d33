// Entry points: streams, events, capture.

#include <algorithm>

#include "tests/softgpu/calls.h"
#include "tests/softgpu/state.h"

using namespace softgpu;  // NOLINT(google-build-using-namespace)

namespace {

std::uint64_t next_capture = 1;

Stream* as_stream(CUstream handle) { return reinterpret_cast<Stream*>(handle); }
Event* as_event(CUevent handle) { return reinterpret_cast<Event*>(handle); }

CUresult create_stream(CUstream* out, unsigned flags) {
  Context* context = nullptr;
  if (const CUresult bad = current(&context); bad != CUDA_SUCCESS) return bad;
  if (out == nullptr || (flags & ~CU_STREAM_NON_BLOCKING) != 0) return CUDA_ERROR_INVALID_VALUE;
  auto* made = new Stream;
  made->flags = flags;
  const std::lock_guard lock(state_mu);
  context->streams.insert(made);
  *out = reinterpret_cast<CUstream>(made);
  return CUDA_SUCCESS;
}

// A stream of the current context, under the lock for as long as this lives.
struct Held {
  Context* context = nullptr;
  std::unique_lock<std::mutex> lock;
  Stream* stream = nullptr;
};

CUresult hold(CUstream handle, bool per_thread, Held* out) {
  if (const CUresult bad = current(&out->context); bad != CUDA_SUCCESS) return bad;
  out->lock = std::unique_lock(state_mu);
  out->stream = stream_of(*out->context, handle, per_thread);
  return out->stream != nullptr ? CUDA_SUCCESS : CUDA_ERROR_INVALID_HANDLE;
}

// The stream's last operation; an error if it is captured.
CUresult tail_of(CUstream handle, bool per_thread, OpRef* tail) {
  Held held;
  if (const CUresult bad = hold(handle, per_thread, &held); bad != CUDA_SUCCESS) return bad;
  Stream* stream = held.stream;
  if (stream->capture != nullptr) {
    stream->capture->invalid = true;
    return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
  }
  *tail = stream->tail;
  return CUDA_SUCCESS;
}

CUresult record(CUevent handle, CUstream stream_handle, bool per_thread) {
  Context* context = nullptr;
  {
    Held held;
    if (const CUresult bad = hold(stream_handle, per_thread, &held); bad != CUDA_SUCCESS)
      return bad;
    context = held.context;
    if (context->events.count(as_event(handle)) == 0) return CUDA_ERROR_INVALID_HANDLE;
    Stream* stream = held.stream;
    Event& event = *as_event(handle);
    event.capture = stream->capture;
    if (stream->capture != nullptr) {
      event.leaves = stream->leaves;
      return CUDA_SUCCESS;
    }
  }
  OpRef op;
  const CUresult queued =
      enqueue(*context, stream_handle, per_thread, CU_GRAPH_NODE_TYPE_EVENT_RECORD, nullptr, &op);
  const std::lock_guard lock(state_mu);
  if (queued == CUDA_SUCCESS) as_event(handle)->recorded = op;
  return queued;
}

CUresult wait_event(CUstream stream_handle, CUevent handle, bool per_thread) {
  Held held;
  if (const CUresult bad = hold(stream_handle, per_thread, &held); bad != CUDA_SUCCESS) return bad;
  Stream* stream = held.stream;
  if (held.context->events.count(as_event(handle)) == 0) return CUDA_ERROR_INVALID_HANDLE;
  Event& event = *as_event(handle);
  if (event.capture != nullptr && event.capture->graph != nullptr) {
    // Joins the capture the event was recorded in.
    if (stream->capture == nullptr) {
      if (stream->legacy) return CUDA_ERROR_STREAM_CAPTURE_IMPLICIT;
      stream->capture = event.capture;
    } else if (stream->capture != event.capture) {
      return CUDA_ERROR_STREAM_CAPTURE_MERGE;
    }
    for (Node* leaf : event.leaves) {
      if (std::find(stream->leaves.begin(), stream->leaves.end(), leaf) == stream->leaves.end()) {
        stream->leaves.push_back(leaf);
      }
    }
    return CUDA_SUCCESS;
  }
  if (stream->capture != nullptr) return CUDA_ERROR_STREAM_CAPTURE_ISOLATION;
  if (is_done(event.recorded)) return CUDA_SUCCESS;
  auto op = std::make_shared<Op>();
  op->after = {event.recorded};
  if (!is_done(stream->tail)) op->after.push_back(stream->tail);
  stream->tail = op;
  submit(op);
  return CUDA_SUCCESS;
}

CUresult begin_capture(CUstream handle, CUstreamCaptureMode mode, bool per_thread) {
  Held held;
  if (const CUresult bad = hold(handle, per_thread, &held); bad != CUDA_SUCCESS) return bad;
  Stream* stream = held.stream;
  if (stream->legacy) return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
  if (stream->capture != nullptr) return CUDA_ERROR_ILLEGAL_STATE;
  stream->capture = std::make_shared<Capture>();
  stream->capture->id = next_capture++;
  stream->capture->mode = mode;
  stream->capture->thread = std::this_thread::get_id();
  stream->capture->graph = std::make_unique<Graph>();
  stream->capture_origin = true;
  stream->leaves.clear();
  return CUDA_SUCCESS;
}

CUresult end_capture(CUstream handle, CUgraph* out, bool per_thread) {
  Held held;
  if (const CUresult bad = hold(handle, per_thread, &held); bad != CUDA_SUCCESS) return bad;
  Context* context = held.context;
  Stream* stream = held.stream;
  if (stream->capture == nullptr) return CUDA_ERROR_ILLEGAL_STATE;
  if (!stream->capture_origin) return CUDA_ERROR_STREAM_CAPTURE_UNMATCHED;
  const std::shared_ptr<Capture> capture = stream->capture;
  if (capture->mode != CU_STREAM_CAPTURE_MODE_RELAXED &&
      capture->thread != std::this_thread::get_id()) {
    return CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD;
  }
  // What other streams added must have come back to this one.
  bool unjoined = false;
  const auto reaches = [&](Node* leaf) {
    std::vector<Node*> todo = stream->leaves;
    for (std::size_t i = 0; i < todo.size(); ++i) {
      if (todo[i] == leaf) return true;
      for (Node* before : todo[i]->after) {
        if (std::find(todo.begin(), todo.end(), before) == todo.end()) todo.push_back(before);
      }
    }
    return false;
  };
  const auto leave = [&](Stream& other) {
    if (other.capture != capture) return;
    for (Node* leaf : other.leaves) unjoined |= !reaches(leaf);
    if (&other == stream) return;
    other.capture = nullptr;
    other.leaves.clear();
  };
  for (Stream* other : context->streams) leave(*other);
  for (auto& [id, other] : context->per_thread) leave(*other);
  stream->capture = nullptr;
  stream->capture_origin = false;
  stream->leaves.clear();
  *out = nullptr;
  if (capture->invalid) return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
  if (unjoined) return CUDA_ERROR_STREAM_CAPTURE_UNJOINED;
  Graph* graph = capture->graph.release();
  graphs.insert(graph);
  *out = reinterpret_cast<CUgraph>(graph);
  return CUDA_SUCCESS;
}

CUresult capture_status(CUstream handle, bool per_thread, CUstreamCaptureStatus* status,
                        std::shared_ptr<Capture>* capture) {
  Context* context = nullptr;
  if (const CUresult bad = current(&context); bad != CUDA_SUCCESS) return bad;
  const std::lock_guard lock(state_mu);
  Stream* stream = stream_of(*context, handle, per_thread);
  if (stream == nullptr || status == nullptr) return CUDA_ERROR_INVALID_VALUE;
  *capture = stream->capture;
  *status = stream->capture == nullptr ? CU_STREAM_CAPTURE_STATUS_NONE
            : stream->capture->invalid ? CU_STREAM_CAPTURE_STATUS_INVALIDATED
                                       : CU_STREAM_CAPTURE_STATUS_ACTIVE;
  return CUDA_SUCCESS;
}

}  // namespace

extern "C" {

CUresult cuStreamCreate(CUstream* out, unsigned flags) {
  SOFTGPU_ENTRY(cuStreamCreate);
  return create_stream(out, flags);
}

CUresult cuStreamCreateWithPriority(CUstream* out, unsigned flags, int) {
  SOFTGPU_ENTRY(cuStreamCreateWithPriority);
  return create_stream(out, flags);
}

CUresult cuStreamDestroy_v2(CUstream handle) {
  SOFTGPU_ENTRY(cuStreamDestroy);
  Context* context = nullptr;
  if (const CUresult bad = current(&context); bad != CUDA_SUCCESS) return bad;
  // Its work goes on; later legacy work must still come after it.
  const std::lock_guard lock(state_mu);
  Stream* stream = as_stream(handle);
  if (context->streams.erase(stream) == 0) return CUDA_ERROR_INVALID_HANDLE;
  if (!is_done(stream->tail) && (stream->flags & CU_STREAM_NON_BLOCKING) == 0) {
    auto op = std::make_shared<Op>();
    op->after = {stream->tail};
    if (!is_done(context->legacy.tail)) op->after.push_back(context->legacy.tail);
    context->legacy.tail = op;
    submit(op);
  }
  delete stream;
  return CUDA_SUCCESS;
}

CUresult cuEventCreate(CUevent* out, unsigned flags) {
  SOFTGPU_ENTRY(cuEventCreate);
  Context* context = nullptr;
  if (const CUresult bad = current(&context); bad != CUDA_SUCCESS) return bad;
  auto* made = new Event;
  made->flags = flags;
  const std::lock_guard lock(state_mu);
  context->events.insert(made);
  *out = reinterpret_cast<CUevent>(made);
  return CUDA_SUCCESS;
}

CUresult cuEventDestroy_v2(CUevent handle) {
  SOFTGPU_ENTRY(cuEventDestroy);
  Context* context = nullptr;
  if (const CUresult bad = current(&context); bad != CUDA_SUCCESS) return bad;
  const std::lock_guard lock(state_mu);
  if (context->events.erase(as_event(handle)) == 0) return CUDA_ERROR_INVALID_HANDLE;
  delete as_event(handle);
  return CUDA_SUCCESS;
}

CUresult cuEventQuery(CUevent handle) {
  SOFTGPU_ENTRY(cuEventQuery);
  Context* context = nullptr;
  if (const CUresult bad = current(&context); bad != CUDA_SUCCESS) return bad;
  const std::lock_guard lock(state_mu);
  if (context->events.count(as_event(handle)) == 0) return CUDA_ERROR_INVALID_HANDLE;
  if (as_event(handle)->capture != nullptr) return CUDA_ERROR_CAPTURED_EVENT;
  return is_done(as_event(handle)->recorded) ? CUDA_SUCCESS : CUDA_ERROR_NOT_READY;
}

CUresult cuEventSynchronize(CUevent handle) {
  SOFTGPU_ENTRY(cuEventSynchronize);
  Context* context = nullptr;
  if (const CUresult bad = current(&context); bad != CUDA_SUCCESS) return bad;
  OpRef op;
  {
    const std::lock_guard lock(state_mu);
    if (context->events.count(as_event(handle)) == 0) return CUDA_ERROR_INVALID_HANDLE;
    if (as_event(handle)->capture != nullptr) return CUDA_ERROR_CAPTURED_EVENT;
    op = as_event(handle)->recorded;
  }
  wait(op);
  return device_error();
}

CUresult cuEventElapsedTime_v2(float* milliseconds, CUevent first, CUevent second) {
  SOFTGPU_ENTRY(cuEventElapsedTime);
  Context* context = nullptr;
  if (const CUresult bad = current(&context); bad != CUDA_SUCCESS) return bad;
  const std::lock_guard lock(state_mu);
  if (context->events.count(as_event(first)) == 0 || context->events.count(as_event(second)) == 0) {
    return CUDA_ERROR_INVALID_HANDLE;
  }
  const OpRef& from = as_event(first)->recorded;
  const OpRef& to = as_event(second)->recorded;
  if (from == nullptr || to == nullptr) return CUDA_ERROR_INVALID_HANDLE;
  if (!is_done(from) || !is_done(to)) return CUDA_ERROR_NOT_READY;
  *milliseconds = (static_cast<float>(to->ended_ns) - static_cast<float>(from->ended_ns)) / 1e6F;
  return CUDA_SUCCESS;
}

CUresult cuThreadExchangeStreamCaptureMode(CUstreamCaptureMode* mode) {
  SOFTGPU_ENTRY(cuThreadExchangeStreamCaptureMode);
  if (mode == nullptr) return CUDA_ERROR_INVALID_VALUE;
  *mode = exchange_capture_mode(*mode);
  return CUDA_SUCCESS;
}

#define SOFTGPU_STREAMS(suffix, per_thread)                                                       \
  CUresult cuStreamSynchronize##suffix(CUstream stream) {                                         \
    SOFTGPU_ENTRY(cuStreamSynchronize);                                                           \
    OpRef tail;                                                                                   \
    if (const CUresult bad = tail_of(stream, per_thread, &tail); bad != CUDA_SUCCESS) return bad; \
    wait(tail);                                                                                   \
    return device_error();                                                                        \
  }                                                                                               \
  CUresult cuStreamQuery##suffix(CUstream stream) {                                               \
    SOFTGPU_ENTRY(cuStreamQuery);                                                                 \
    OpRef tail;                                                                                   \
    if (const CUresult bad = tail_of(stream, per_thread, &tail); bad != CUDA_SUCCESS) return bad; \
    return is_done(tail) ? CUDA_SUCCESS : CUDA_ERROR_NOT_READY;                                   \
  }                                                                                               \
  CUresult cuStreamWaitEvent##suffix(CUstream stream, CUevent event, unsigned) {                  \
    SOFTGPU_ENTRY(cuStreamWaitEvent);                                                             \
    return wait_event(stream, event, per_thread);                                                 \
  }                                                                                               \
  CUresult cuEventRecord##suffix(CUevent event, CUstream stream) {                                \
    SOFTGPU_ENTRY(cuEventRecord);                                                                 \
    return record(event, stream, per_thread);                                                     \
  }                                                                                               \
  CUresult cuEventRecordWithFlags##suffix(CUevent event, CUstream stream, unsigned) {             \
    SOFTGPU_ENTRY(cuEventRecordWithFlags);                                                        \
    return record(event, stream, per_thread);                                                     \
  }                                                                                               \
  CUresult cuStreamGetFlags##suffix(CUstream handle, unsigned* flags) {                           \
    SOFTGPU_ENTRY(cuStreamGetFlags);                                                              \
    Held held;                                                                                    \
    if (const CUresult bad = hold(handle, per_thread, &held); bad != CUDA_SUCCESS) return bad;    \
    *flags = held.stream->flags;                                                                  \
    return CUDA_SUCCESS;                                                                          \
  }                                                                                               \
  CUresult cuStreamGetId##suffix(CUstream handle, unsigned long long* id) {                       \
    SOFTGPU_ENTRY(cuStreamGetId);                                                                 \
    Held held;                                                                                    \
    if (const CUresult bad = hold(handle, per_thread, &held); bad != CUDA_SUCCESS) return bad;    \
    *id = held.stream->id;                                                                        \
    return CUDA_SUCCESS;                                                                          \
  }                                                                                               \
  CUresult cuStreamGetCtx##suffix(CUstream, CUcontext* out) {                                     \
    SOFTGPU_ENTRY(cuStreamGetCtx);                                                                \
    return cuCtxGetCurrent(out);                                                                  \
  }                                                                                               \
  CUresult cuStreamBeginCapture_v2##suffix(CUstream stream, CUstreamCaptureMode mode) {           \
    SOFTGPU_ENTRY(cuStreamBeginCapture);                                                          \
    return begin_capture(stream, mode, per_thread);                                               \
  }                                                                                               \
  CUresult cuStreamEndCapture##suffix(CUstream stream, CUgraph* out) {                            \
    SOFTGPU_ENTRY(cuStreamEndCapture);                                                            \
    return end_capture(stream, out, per_thread);                                                  \
  }                                                                                               \
  CUresult cuStreamIsCapturing##suffix(CUstream stream, CUstreamCaptureStatus* status) {          \
    SOFTGPU_ENTRY(cuStreamIsCapturing);                                                           \
    std::shared_ptr<Capture> capture;                                                             \
    return capture_status(stream, per_thread, status, &capture);                                  \
  }                                                                                               \
  CUresult cuStreamGetCaptureInfo_v3##suffix(                                                     \
      CUstream stream, CUstreamCaptureStatus* status, cuuint64_t* id, CUgraph* graph,             \
      const CUgraphNode** nodes, const CUgraphEdgeData** edges, std::size_t* count) {             \
    SOFTGPU_ENTRY(cuStreamGetCaptureInfo);                                                        \
    std::shared_ptr<Capture> capture;                                                             \
    const CUresult known = capture_status(stream, per_thread, status, &capture);                  \
    if (known != CUDA_SUCCESS || capture == nullptr) return known;                                \
    if (graph != nullptr || nodes != nullptr || edges != nullptr || count != nullptr) {           \
      return CUDA_ERROR_NOT_SUPPORTED;                                                            \
    }                                                                                             \
    if (id != nullptr) *id = capture->id;                                                         \
    return CUDA_SUCCESS;                                                                          \
  }

SOFTGPU_STREAMS(, false)
SOFTGPU_STREAMS(_ptsz, true)

}  // extern "C"
