// What engines touch: operations for EngineModel, in pages.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numeric>
#include <random>
#include <vector>

#include "tests/sim/engine_model.h"

namespace kvmem::sim {

// A tensor is an operation: each thread takes a consecutive share of its pages, then they meet.
inline Op tensor_op(model::RegionSlot region, std::uint32_t first, std::uint32_t pages,
                    unsigned threads, bool write = false) {
  Op op(threads);
  for (std::uint32_t i = 0; i < pages; ++i) {
    op[i * threads / pages].push_back({{region, first + i}, write});
  }
  return op;
}

// Pages [0, pages) of a region in tensors of `tensor_pages`.
class DenseModel {
 public:
  DenseModel(model::RegionSlot region, std::uint32_t pages, std::uint32_t tensor_pages,
             unsigned threads)
      : region_(region), pages_(pages), tensor_pages_(tensor_pages), threads_(threads) {
    for (std::uint32_t p = 0; p < pages; p += tensor_pages) tensors_.push_back(p);
  }
  // The order of computing differs from the order in the file.
  void shuffle(std::uint64_t seed) {
    std::mt19937_64 random(seed);
    std::shuffle(tensors_.begin(), tensors_.end(), random);
  }
  void load(EngineModel& engine, bool write) const {
    for (std::uint32_t p = 0; p < pages_; p += tensor_pages_) {
      engine.run(tensor_op(region_, p, std::min(tensor_pages_, pages_ - p), 1, write));
    }
  }
  void token(EngineModel& engine) const {
    for (const std::uint32_t p : tensors_) {
      engine.run(tensor_op(region_, p, std::min(tensor_pages_, pages_ - p), threads_));
    }
  }
  std::uint32_t pages() const { return pages_; }

 private:
  model::RegionSlot region_;
  std::uint32_t pages_;
  std::uint32_t tensor_pages_;
  unsigned threads_;
  std::vector<std::uint32_t> tensors_;
};

struct MoeShape {
  std::uint32_t layers = 16;
  std::uint32_t dense_pages = 4;  // a layer's attention and norms
  std::uint32_t experts = 32;
  std::uint32_t used = 4;          // per token
  std::uint32_t tensors = 3;       // gate, up, down
  std::uint32_t expert_pages = 1;  // per tensor
  double skew = 1.0;               // Zipf exponent of the routing
};

// A layer's experts lie one after another in each of its tensors; those that a token is routed to
// are used in ascending order.
class MoeModel {
 public:
  MoeModel(model::RegionSlot region, const MoeShape& shape, unsigned threads, std::uint64_t seed)
      : region_(region), shape_(shape), threads_(threads), random_(seed) {
    weights_.resize(shape.experts);
    for (std::uint32_t e = 0; e < shape.experts; ++e) {
      weights_[e] = 1 / std::pow(e + 1.0, shape.skew);
    }
    rank_.resize(shape.layers);
    for (auto& rank : rank_) {
      rank.resize(shape.experts);
      std::iota(rank.begin(), rank.end(), 0U);
      std::shuffle(rank.begin(), rank.end(), random_);
    }
  }
  std::uint32_t layer_pages() const {
    return shape_.dense_pages + shape_.tensors * shape_.experts * shape_.expert_pages;
  }
  std::uint32_t pages() const { return shape_.layers * layer_pages(); }

  // `tokens` in one batch: an expert is used once for all that are routed to it.
  void step(EngineModel& engine, std::uint32_t tokens) {
    for (std::uint32_t layer = 0; layer < shape_.layers; ++layer) {
      const std::uint32_t base = layer * layer_pages();
      engine.run(tensor_op(region_, base, shape_.dense_pages, threads_));
      std::vector<std::uint32_t> chosen;
      for (std::uint32_t t = 0; t < tokens; ++t) {
        std::vector<double> weights = weights_;
        for (std::uint32_t k = 0; k < shape_.used; ++k) {
          std::discrete_distribution<std::uint32_t> draw(weights.begin(), weights.end());
          const std::uint32_t e = draw(random_);
          weights[e] = 0;
          chosen.push_back(rank_[layer][e]);
        }
      }
      std::sort(chosen.begin(), chosen.end());
      chosen.erase(std::unique(chosen.begin(), chosen.end()), chosen.end());
      for (std::uint32_t tensor = 0; tensor < shape_.tensors; ++tensor) {
        for (const std::uint32_t e : chosen) {
          const std::uint32_t first =
              base + shape_.dense_pages + (tensor * shape_.experts + e) * shape_.expert_pages;
          // One page is shared by the threads; more are split.
          engine.run(tensor_op(region_, first, shape_.expert_pages,
                               std::min(threads_, shape_.expert_pages)));
        }
      }
    }
  }

 private:
  model::RegionSlot region_;
  MoeShape shape_;
  unsigned threads_;
  std::mt19937_64 random_;
  std::vector<double> weights_;
  std::vector<std::vector<std::uint32_t>> rank_;  // per layer: popularity -> expert
};

}  // namespace kvmem::sim
