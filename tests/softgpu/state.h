// State: contexts, streams, events, graphs and functions, behind the driver's opaque handles. One
// lock for all of it, `state_mu`; nothing waits for the device while holding it.
#pragma once

#include <cuda.h>

#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "tests/softgpu/softgpu.h"
#include "tests/softgpu/work.h"

namespace softgpu {

// What one operation does, so that it can be run once, or again and again in a graph.
struct Node {
  CUgraphNodeType type = CU_GRAPH_NODE_TYPE_EMPTY;
  std::function<void()> run;
  std::vector<Node*> after;
};

struct Graph {
  std::vector<std::unique_ptr<Node>> nodes;
};

struct GraphExec {
  struct Step {
    CUgraphNodeType type;
    std::function<void()> run;
    std::vector<std::size_t> after;
  };
  std::vector<Step> steps;
};

struct Capture {
  std::uint64_t id = 0;
  CUstreamCaptureMode mode = CU_STREAM_CAPTURE_MODE_GLOBAL;
  std::thread::id thread;
  std::unique_ptr<Graph> graph;
  bool invalid = false;
};

struct Stream {
  unsigned flags = CU_STREAM_DEFAULT;
  bool legacy = false;
  OpRef tail;
  std::uint64_t id = 0;
  // While it is being captured: what its next node comes after.
  std::shared_ptr<Capture> capture;
  bool capture_origin = false;
  std::vector<Node*> leaves;
};

struct Event {
  unsigned flags = CU_EVENT_DEFAULT;
  OpRef recorded;
  std::shared_ptr<Capture> capture;
  std::vector<Node*> leaves;
};

struct Function {
  std::string name;
  const softgpu_kernel* kernel = nullptr;  // the program's
  std::vector<std::size_t> offsets;
  struct Module* module = nullptr;
  std::map<int, int> attributes;
};

struct Module {
  std::map<std::string, std::unique_ptr<Function>> functions;
};

struct Context {
  bool primary = false;
  unsigned references = 0;  // of a primary one
  unsigned flags = 0;
  std::unordered_set<Stream*> streams;
  Stream legacy;
  std::map<std::thread::id, std::unique_ptr<Stream>> per_thread;
  std::unordered_set<Event*> events;
  std::unordered_set<Module*> modules;
};

extern std::mutex state_mu;
extern std::unordered_set<Graph*>& graphs;
extern std::unordered_set<GraphExec*>& graph_execs;
extern std::unordered_set<Context*>& contexts;

bool initialized();
void initialize();

// The calling thread's contexts, the last one current.
std::vector<Context*>& context_stack();
// The current context; CUDA_SUCCESS, or why there is none or it cannot be used.
CUresult current(Context** out);

// The stream behind a handle, special ones too. Under state_mu. Null: no such stream.
Stream* stream_of(Context& context, CUstream handle, bool per_thread_default);

// An operation at the end of a stream: runs late, or becomes a node of the graph that captures the
// stream. `out` may be null.
CUresult enqueue(Context& context, CUstream stream, bool per_thread_default, CUgraphNodeType type,
                 std::function<void()> run, OpRef* out = nullptr);
// For calls that are forbidden while a stream is captured: CUDA_SUCCESS where none is, as far as it
// concerns the calling thread.
CUresult refuse_capture();
CUstreamCaptureMode exchange_capture_mode(CUstreamCaptureMode mode);

// The function of a module, found in the program; null: the program has none of that name. Under
// state_mu.
Function* find_function(Module& module, const char* name);

// What is alive of a kind that stands here, as softgpu_live().
std::uint64_t live(softgpu_kind kind);

// All the context's work done; the device's error.
CUresult synchronize(Context& context);

}  // namespace softgpu
