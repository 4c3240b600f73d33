#!/usr/bin/env bash
# What policies for KV blocks make of a trace: the prefix hit rate of each, at each capacity.
#
#   tests/sim/policy.sh TRACE --capacities 1000,5859 --policies kvmem,lru,lfu-da,arc,s3fifo,min [--json]
#   tests/sim/policy.sh --generate SEED        a made-up trace of conversations
#
# TRACE has one JSON object a line (the Mooncake format; tests/sim/trace.h). Requests are served one by
# one: first it is counted how many blocks from the start of its path are resident, then they are
# touched, the last one first. `min` knows the future. --half and --share leave out part of the trace.
# Builds what it needs (release). With --json, one object a line:
#   {"policy":…,"capacity":…,"prefix_hit_pct":…,"references":…,"references_per_s":…}
exec "$(dirname "$0")/run_built.sh" sim_policy "$@"
