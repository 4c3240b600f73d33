// What kvmemctl's exit status says. `run` gives the engine's own instead: its status, 128 + N when
// signal N ended it, and as env(1) and timeout(1) do for what went wrong before.
#pragma once

namespace kvmem::cli {

inline constexpr int kExitOk = 0;
inline constexpr int kExitFailed =
    1;  // refused, or a file has problems; the message says what to do
inline constexpr int kExitUsage = 2;       // the command line
inline constexpr int kExitNoDaemon = 3;    // nobody answers at the socket
inline constexpr int kExitPermission = 4;  // this user may not connect
inline constexpr int kExitPartly = 5;      // some pages were refused

inline constexpr int kExitRunFailed = 125;      // run: kvmemctl itself
inline constexpr int kExitCannotExecute = 126;  // run: the engine is there and cannot be executed
inline constexpr int kExitNotFound = 127;       // run: no such engine

}  // namespace kvmem::cli
