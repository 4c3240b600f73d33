// kvmemctl run: an engine with kvmem in front of its allocations, and a daemon for it.
//
// The daemon is the one that answers, or a private one that lives as long as the engine. A private
// daemon that dies is started again over the same runtime folder, where the engine's library finds
// it and carries on:
//
//   off       -> starting   spawned; kvmemd writes to its --ready-fd when it serves
//   starting  -> serving    ready within kReadyTimeoutMs
//   starting  -> waiting    died or took too long (the first time: -> off, the engine runs without)
//   serving   -> starting   died: again at once
//   waiting   -> starting   after a pause that doubles up to kPauseMaxMs
//   waiting   -> given_up   kQuickDeathsMax deaths in a row before or just after serving
//
// Three processes stand beside the engine: kvmemctl, which the engine is a child of and whose
// signals it gets; kvmemd; and a sweeper, which does nothing until kvmemctl is killed, and then
// waits for the engine's end, stops the daemon and removes what the run made. The engine stays in
// kvmemctl's process group, so a terminal's signals reach it directly; only signals that a process
// sent to kvmemctl are passed on.
#pragma once

#include <string>
#include <vector>

namespace kvmem::cli {

struct RunOptions {
  std::string dram;         // size or share; empty: the configuration's
  std::string cxl;          // likewise, of the memory of nodes without CPUs
  std::string store;        // file, device or folder; "none"; empty: chosen
  std::string store_size;   // empty: by the free space
  std::string config;       // a file for a private daemon
  std::string socket;       // empty: where kvmemctl always looks
  std::string json_report;  // file for the daemon's status at the engine's end
  std::string kvmemd;       // the daemon's program; empty: found
  std::string library;      // libkvmem.so; empty: found
  bool private_daemon = false;
  bool keep = false;  // leave runtime folder, log and store where they are
  bool verbose = false;
  std::vector<std::string> engine;
};

// Returns kvmemctl's exit status: see exit_code.h.
int run(const RunOptions& options);

}  // namespace kvmem::cli
