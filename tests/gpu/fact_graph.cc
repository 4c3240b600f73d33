// 8: a graph is launched again after memory that its nodes use has moved, while nothing ran.
//
// usage: gpu_facts graph kernel | memset | copy {reads|writes}
#include <random>

#include "gpu.h"

namespace gpu {
namespace {

constexpr std::uint32_t kSeed = 0x5eed;

// What `record` puts on a stream, as a graph.
template <class Record>
CUgraphExec capture(CUstream stream, Record record) {
  CUgraph graph = nullptr;
  CUgraphExec exec = nullptr;
  CU(cuStreamBeginCapture(stream, CU_STREAM_CAPTURE_MODE_THREAD_LOCAL));
  record();
  CU(cuStreamEndCapture(stream, &graph));
  CU(cuGraphInstantiate(&exec, graph, 0));
  CU(cuGraphDestroy(graph));
  return exec;
}

void kernel_node(const Device& device, const Options& options, CUstream stream) {
  Range range(device, options.quick ? 8 : 64, {Place::kDevice});
  device.fill(range.at(), range.words(), kSeed);
  device.add(range.at(), range.words(), 0);  // loaded now, not while it is captured
  CUgraphExec exec = capture(stream, [&] { device.add(range.at(), range.words(), 1, stream); });
  CU(cuCtxSynchronize());
  std::mt19937 random(3);
  std::uint32_t launches = 0;
  std::uint64_t moves = 0;
  ask(Kind::kCheck, "a kernel node, launched after its memory has moved");
  for (const Until until(options.quick ? 0.3 : 3); until.goes_on(); ++moves) {
    const std::size_t first = random() % range.pages();
    const std::size_t count = 1 + random() % (range.pages() - first);
    range.move(first, count, other(range.place(first)));
    for (int i = 0; i < 3; ++i, ++launches) CU(cuGraphLaunch(exec, stream));
    CU(cuStreamSynchronize(stream));
  }
  const std::uint64_t wrong = device.wrong(range.at(), range.words(), kSeed, launches);
  settle(wrong == 0, std::to_string(moves) + " moves, " + std::to_string(launches) + " launches, " +
                         std::to_string(wrong) + " words wrong");
}

// Page 0 is what the node writes, page 1 what a copy reads; recorded with both on the device.
void memory_node(const Device& device, bool is_copy, std::size_t moved, CUstream stream) {
  constexpr std::uint32_t kValue = 77;
  Range range(device, 2, {Place::kDevice});
  const std::uint64_t words = range.page_words();
  CUgraphExec exec = capture(stream, [&] {
    if (is_copy) {
      CU(cuMemcpyDtoDAsync(range.at(0), range.at(1), words * 4, stream));
    } else {
      CU(cuMemsetD32Async(range.at(0), kValue, words, stream));
    }
  });
  device.fill(range.at(1), words, kSeed);
  CU(cuCtxSynchronize());
  range.move(moved, 1, Place::kHost);
  ask(Kind::kAnswer, std::string(is_copy ? "a copy node" : "a memset node") +
                         ", launched after what it " + (moved == 0 ? "writes" : "reads") +
                         " has moved");
  CU(cuGraphLaunch(exec, stream));
  CU(cuStreamSynchronize(stream));
  std::uint64_t wrong = 0;
  if (is_copy) {
    wrong = device.wrong(range.at(0), words, kSeed);
  } else {
    std::vector<std::uint32_t> host(words);
    CU(cuMemcpyDtoH(host.data(), range.at(0), words * 4));
    for (const std::uint32_t word : host) wrong += word != kValue;
  }
  settle(wrong == 0, std::to_string(wrong) + " of " + std::to_string(words) + " words wrong");
}

}  // namespace

void fact_graph(const Options& options) {
  const Device device;
  CUstream stream = nullptr;
  CU(cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING));
  if (options.is(0, "kernel")) {
    kernel_node(device, options, stream);
  } else if (options.is(0, "memset") || options.is(0, "copy")) {
    memory_node(device, options.is(0, "copy"), options.is(1, "reads") ? 1 : 0, stream);
  } else {
    usage("graph kernel | memset | copy {reads|writes}");
  }
}

}  // namespace gpu
