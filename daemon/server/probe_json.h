// What the probes have found, as the JSON that kvmemctl shows. null or empty where a probe is off.
#pragma once

#include <sys/types.h>

#include <nlohmann/json.hpp>

#include "os/socket.h"
#include "server/server.h"

namespace kvmem::server {

// Use of the store's disk in the last seconds.
nlohmann::json disk_json(Server& server);
// What the kernel's memory management cost a process.
nlohmann::json stalls_json(Server& server, pid_t pid);
// OS pages that the kernel moved, by its reasons.
nlohmann::json migrations_json(Server& server);
// Processes that hold memory of a GPU, kvmem's engines or not. Others' are their owners' business.
nlohmann::json gpu_processes_json(Server& server, const os::Peer& peer);
// Where the daemon's knowledge comes from: name, what it tells, whether it is on, and why not.
nlohmann::json sources_json(Server& server);

}  // namespace kvmem::server
