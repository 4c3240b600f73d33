// Agent: the library's one thread. It owns everything that needs a descriptor (session,
// userfaultfd, memfds) and every table of regions; engine threads hand it calls and wait.
//
// It has a descriptor table of its own: an engine that closes all descriptors, runs into
// RLIMIT_NOFILE or forks sees and inherits nothing of kvmem's but one socket end that wakes the
// agent. Where the kernel refuses that (before 5.9, or a seccomp profile), it shares the engine's.
//
// The agent never touches managed memory: it is the one that brings a lost daemon back, so it must
// not wait for a fault.
//
//   absent -> running    the first call; stays until exec or exit
//   running -> absent    fork, in the child
#pragma once

#include "client/lock.h"
#include "client/session.h"

namespace kvmem {

// What the region layer does on the agent's thread.
struct AgentHandlers {
  // Carries out one command; 0 or -errno for the reply.
  int (*on_command)(const wire::AgentCommand& command);
  // Whether something would be lost if the interrupted session were not resumed.
  bool (*needs_session)();
  // The session was resumed: give the regions back. -EPIPE: interrupted again.
  int (*on_resumed)();
  // The daemon refused to resume (`why`): go on without it.
  void (*on_refused)(const Status& why);
};

// Serialises the callers; whoever holds it may use run_on_agent. Held across fork.
extern Lock g_agent_lock;

// Runs function(context) on the agent, which it starts if need be, and returns its result.
// -EAGAIN: no thread can be had.
int run_on_agent(int (*function)(void*), void* context) REQUIRES(g_agent_lock);

bool is_agent_running() REQUIRES(g_agent_lock);

// Before the first call.
void set_agent_handlers(const AgentHandlers& handlers);

// Agent thread only.
Session& session();
// Tries once to get a lost daemon back, which then gets the regions back. False: try again later.
// True: the session is open, or refused for good and ended. REQUIRES: it is interrupted.
bool try_resume();
// While a fork copies the tables nothing may change them: the agent carries out calls only, and
// leaves commands and a lost daemon for later.
void set_calls_only(bool is_on);

// In a child of fork: the parent's agent and session are not ours. True: descriptors that the
// agent held are in the child's table too and must be closed by their owners.
bool forget_agent() REQUIRES(g_agent_lock);

}  // namespace kvmem
