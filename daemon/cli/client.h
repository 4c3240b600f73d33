// One question to kvmemd and its answer, over its socket.
//
// Every wait is bounded by the timeout. What comes back is checked before use, like everything that
// crosses the socket: sizes, version, and the JSON itself.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>

#include "base/unique_handle.h"
#include "wire/protocol.h"

namespace kvmem::cli {

inline constexpr std::uint64_t kJsonMaxBytes = std::uint64_t{256} << 20;

struct Target {
  std::uint64_t region_id = 0;
  std::uint64_t first_page = 0;
  std::uint64_t page_count = 0;  // 0: to the end of the region
};

struct Question {
  wire::ControlOp op = wire::ControlOp::kStatus;
  Target target;
  std::string tag;       // kDrain: the tier; kPark, kWake: whose memory, where `pid` is 0
  std::int32_t pid = 0;  // kPark, kWake
};

// NOLINTNEXTLINE(bugprone-exception-escape): moving JSON only checks an invariant
struct Answer {
  int exit_code = 0;    // kExitOk, or one of kExit*; then `error` says what and what to do
  std::string error;    // one line
  nlohmann::json json;  // an object when exit_code is kExitOk

  bool ok() const { return exit_code == 0; }
};

// --socket, else KVMEM_SOCKET, else a daemon of this user's, else the system's: as libkvmem does.
std::string socket_path(const std::string& option);

inline constexpr unsigned kAnswerTimeoutMs = 10'000;
Answer ask(const std::string& socket, const Question& question,
           unsigned timeout_ms = kAnswerTimeoutMs);

// A question on its way, for those that have other things to wait for meanwhile: fd() can be read
// when finish() would not wait.
class Asking {
 public:
  Asking(std::string socket, const Question& question, unsigned timeout_ms = kAnswerTimeoutMs);

  int fd() const { return fd_.get(); }  // -1: it could not be asked, finish() says why
  Answer finish();                      // once

 private:
  std::string socket_;
  UniqueFd fd_;
  Answer failure_;
};

// "REGION", "REGION:PAGE" or "REGION:FIRST-LAST" (LAST included). False when `text` is neither.
bool parse_target(const std::string& text, Target* out);

}  // namespace kvmem::cli
