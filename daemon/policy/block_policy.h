// BlockPolicy: which blocks of KV cache stay. Requests in, residency out; no clock, no I/O, no
// bytes: the daemon's block cache, the simulator and the replay run the same code.
//
// A request is a path of blocks from the start of its prompt. A block's key stands for all blocks
// before it too (chained hashes), so a block is of use only while its prefix is resident. What is
// counted is the *prefix hit*: the leading run of the path that is resident.
//
// Keys are 64 bits of the block's 128: two blocks that share them would be judged as one, and
// nothing worse.
//
// One thread. Memory is bounded by the capacity (`state_blocks_max`).
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string_view>
#include <vector>

namespace kvmem::policy {

using BlockKey = std::uint64_t;

// Asked before a block becomes resident that was not, where that costs something.
class Admission {
 public:
  virtual ~Admission() = default;
  // `chance` that it is asked for again, 0..1; less than 0: the policy cannot tell. False: it does
  // not become resident, nor does what follows it in the path.
  virtual bool admits(double chance) = 0;

 protected:
  Admission() = default;
  Admission(const Admission&) = default;
  Admission& operator=(const Admission&) = default;
};

struct BlockRequest {
  std::uint64_t time_ms = 0;  // never less than the request's before it
  std::span<const BlockKey> path;
  // The last block is not full: when its sequence grows, another block stands in its place.
  bool tail_is_partial = true;
  std::uint32_t input_tokens = 0;
  std::uint32_t output_tokens = 0;  // 0: not known yet
  Admission* admission = nullptr;   // null: all is admitted
  std::size_t free_blocks = 0;      // of the path's start, that it need not be asked about
};

class BlockPolicy {
 public:
  virtual ~BlockPolicy() = default;

  // How many blocks of the path's start are resident.
  virtual std::size_t resident_run(std::span<const BlockKey> path) const = 0;
  // The request has been served: its blocks are resident from now on, except those that are not
  // worth it. Blocks that are resident no longer, or were not admitted, are appended to `gone`.
  virtual void serve(const BlockRequest& request, std::vector<BlockKey>* gone) = 0;
  // As if by more requests, blocks beyond the new capacity are appended to `gone`.
  virtual void set_capacity(std::size_t blocks, std::vector<BlockKey>* gone) = 0;

  // The logarithm of the rate of returns, a second, expected at `time_ms` of the block that would
  // go next: what a block less of capacity would cost. 0: the policy cannot tell, all are alike;
  // infinite: there is none.
  virtual double next_to_go(std::uint64_t time_ms);

  virtual std::size_t resident_blocks() const = 0;  // <= the capacity
  virtual std::size_t known_blocks() const = 0;     // resident, or remembered
  // Throws nothing and stops the process (KV_CHECK) where the structures contradict each other.
  virtual void validate() const = 0;

 protected:
  BlockPolicy() = default;
  BlockPolicy(const BlockPolicy&) = default;
  BlockPolicy& operator=(const BlockPolicy&) = default;
};

// By name: "kvmem", "lru", "lfu-da", "arc", "s3fifo". Null: there is none of that name.
std::unique_ptr<BlockPolicy> make_block_policy(std::string_view name, std::size_t capacity_blocks);
// For messages: the names, separated by commas.
std::string_view block_policy_names();

}  // namespace kvmem::policy
