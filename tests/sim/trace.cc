#include "tests/sim/trace.h"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <queue>
#include <random>

namespace kvmem::sim {
namespace {

using json = nlohmann::json;

constexpr std::size_t kLineBytesMax = std::size_t{64} << 20;
constexpr std::size_t kPathMax = 1'000'000;

// Null: `value` holds what is there.
const char* number(const json& object, const char* name, std::uint64_t max, std::uint64_t* value) {
  const auto it = object.find(name);
  if (it == object.end()) return "is missing";
  if (!it->is_number_unsigned()) return "is not a whole number, or negative";
  *value = it->get<std::uint64_t>();
  return *value <= max ? nullptr : "is too large";
}

std::string parse(const std::string& line, std::uint64_t last_ms, TraceRequest* request) {
  if (line.size() > kLineBytesMax) return "is longer than 64 MiB";
  const json object = json::parse(line, nullptr, false);
  if (!object.is_object()) return "is not a JSON object";
  std::uint64_t input = 0;
  std::uint64_t output = 0;
  const struct {
    const char* name;
    std::uint64_t max;
    std::uint64_t* value;
  } fields[] = {{"timestamp", UINT64_MAX, &request->time_ms},
                {"input_length", UINT32_MAX, &input},
                {"output_length", UINT32_MAX, &output}};
  for (const auto& field : fields) {
    if (const char* wrong = number(object, field.name, field.max, field.value)) {
      return std::string(": \"") + field.name + "\" " + wrong;
    }
  }
  request->input_tokens = static_cast<std::uint32_t>(input);
  request->output_tokens = static_cast<std::uint32_t>(output);
  if (request->time_ms < last_ms) return ": \"timestamp\" is before the last line's";
  const auto path = object.find("hash_ids");
  if (path == object.end() || !path->is_array()) return ": \"hash_ids\" is missing or no list";
  if (path->size() > kPathMax) return ": \"hash_ids\" has more than a million blocks";
  for (const json& id : *path) {
    if (!id.is_number_unsigned()) return ": \"hash_ids\" has what is not a whole number";
    request->path.push_back(id.get<std::uint64_t>());
  }
  return {};
}

}  // namespace

bool read_trace(std::istream& in, Trace* trace, std::string* error) {
  std::string line;
  for (std::uint64_t n = 1; std::getline(in, line); ++n) {
    if (line.find_first_not_of(" \t\r") == std::string::npos) continue;
    TraceRequest request;
    if (std::string wrong = parse(line, trace->empty() ? 0 : trace->back().time_ms, &request);
        !wrong.empty()) {
      *error = "line " + std::to_string(n) + (wrong[0] == ':' ? "" : " ") + wrong;
      return false;
    }
    trace->push_back(std::move(request));
  }
  return true;
}

Trace generate_trace(std::uint64_t seed, std::size_t requests) {
  constexpr double kHourMs = 3'600'000;
  constexpr unsigned kPrompts = 24;
  std::mt19937_64 random(seed);
  // The library's distributions differ between libraries; these do not.
  const auto uniform = [&] { return static_cast<double>(random() >> 11) * 0x1p-53; };
  const auto exponential = [&](double mean) { return -mean * std::log1p(-uniform()); };
  const auto log_normal = [&](double median, double sigma) {
    const double angle = 6.283185307179586 * uniform();
    const double normal = std::sqrt(-2 * std::log1p(-uniform())) * std::cos(angle);
    return median * std::exp(sigma * normal);
  };
  struct Talk {
    double next_ms = 0;
    std::vector<policy::BlockKey> full;  // blocks
    std::uint32_t tokens = 0;            // of all so far
    double goes_on = 0;                  // the chance of another turn
    bool operator>(const Talk& other) const { return next_ms > other.next_ms; }
  };
  policy::BlockKey next_block = 1;
  std::vector<std::vector<policy::BlockKey>> prompts(kPrompts);
  for (auto& prompt : prompts) {
    const auto blocks = 1 + static_cast<std::size_t>(exponential(3));
    for (std::size_t i = 0; i < blocks; ++i) prompt.push_back(next_block++);
  }
  std::priority_queue<Talk, std::vector<Talk>, std::greater<>> talks;
  const double gap_ms =
      kHourMs / static_cast<double>(requests) * 2.2;  // a talk has 2.2 turns or so
  double begin_ms = 0;
  Trace trace;
  while (trace.size() < requests) {
    if (talks.empty() || talks.top().next_ms > begin_ms) {
      Talk talk;
      talk.next_ms = begin_ms;
      begin_ms += exponential(gap_ms);
      if (uniform() < 0.6) {  // some prompts are far more common than others
        const double rank = std::pow(kPrompts + 1.0, uniform()) - 1;
        talk.full = prompts[static_cast<std::size_t>(rank)];
        talk.tokens = static_cast<std::uint32_t>(talk.full.size()) * kTokensPerBlock;
      }
      talk.goes_on = uniform() < 0.5 ? 0.2 : 0.8;  // questions, and conversations
      talks.push(std::move(talk));
      continue;
    }
    Talk talk = talks.top();
    talks.pop();
    const auto asked = static_cast<std::uint32_t>(std::min(log_normal(1500, 1.4), 100'000.0)) + 1;
    const auto answered = static_cast<std::uint32_t>(std::min(log_normal(250, 0.8), 4'000.0)) + 1;
    talk.tokens += asked;
    while (talk.full.size() < talk.tokens / kTokensPerBlock) talk.full.push_back(next_block++);
    TraceRequest request;
    request.time_ms = static_cast<std::uint64_t>(talk.next_ms);
    request.input_tokens = talk.tokens;
    request.output_tokens = answered;
    request.path = talk.full;
    if (talk.tokens % kTokensPerBlock != 0) request.path.push_back(next_block++);
    trace.push_back(std::move(request));
    if (uniform() >= talk.goes_on) continue;
    talk.tokens += answered;
    talk.next_ms += 1000 + log_normal(40'000, 1.3);
    talks.push(std::move(talk));
  }
  return trace;
}

Trace subset_of(const Trace& trace, std::uint64_t seed, double share) {
  Trace out;
  for (const TraceRequest& request : trace) {
    std::uint64_t word = seed * 0x9e3779b97f4a7c15;
    for (std::size_t i = 0; i < std::min<std::size_t>(2, request.path.size()); ++i) {
      word = (word ^ request.path[i]) * 0xbf58476d1ce4e5b9;
      word ^= word >> 29;
    }
    word *= 0x94d049bb133111eb;
    if (static_cast<double>(word >> 11) * 0x1p-53 < share) out.push_back(request);
  }
  return out;
}

}  // namespace kvmem::sim
