// Trace: requests for KV blocks, from a file or made up.
//
// A file has one JSON object a line (the Mooncake format, FAST 2025):
//   {"timestamp": ms, "input_length": tokens, "output_length": tokens, "hash_ids": [block, ...]}
// where a block is named by the hash of everything up to its end, and the last one of a request may
// be partial. Times never go back.
#pragma once

#include <cstdint>
#include <istream>
#include <string>
#include <vector>

#include "policy/block_policy.h"

namespace kvmem::sim {

struct TraceRequest {
  std::uint64_t time_ms = 0;
  std::uint32_t input_tokens = 0;
  std::uint32_t output_tokens = 0;
  std::vector<policy::BlockKey> path;
};
using Trace = std::vector<TraceRequest>;

inline constexpr std::uint32_t kTokensPerBlock = 512;

// False, and `error` says which line and what is wrong with it. What can be refused: what is no
// JSON object, a number that is missing, negative, or no integer, a time before the last one, more
// than a million blocks in a request, lines beyond 64 MiB.
bool read_trace(std::istream& in, Trace* trace, std::string* error);

// Conversations of several turns: they begin at random, some share a first prompt, each turn adds a
// question and the answer before it, the pauses between turns are log-normal. An hour of them, for
// as many requests as asked for. The same seed, the same trace.
Trace generate_trace(std::uint64_t seed, std::size_t requests);

// Requests of a random share of the conversations: those that begin with the same two blocks go or
// stay together.
Trace subset_of(const Trace& trace, std::uint64_t seed, double share);

}  // namespace kvmem::sim
