#!/usr/bin/env bash
# What policies for KV blocks make of a trace: the prefix hit rate of each, at each capacity.
#
#   tests/sim/policy.sh TRACE --capacities 1000,5859 --policies kvmem,lru,lfu-da,arc,s3fifo,min [--json]
#   tests/sim/policy.sh --generate SEED        a made-up trace of conversations
#   tests/sim/policy.sh TRACE --policies kvmem,lru --write-budget 0,100,50
#
# TRACE has one JSON object a line (the Mooncake format; tests/sim/trace.h). Requests are served one by
# one: first it is counted how many blocks from the start of its path are resident, then they are
# touched, the last one first. `min` knows the future. --half and --share leave out part of the trace.
# --write-budget: so many blocks may become resident for each 1,000 asked for (policy/write_budget.h),
# and how many did; 0: all that the policy wants. The others than kvmem write what comes first.
# Builds what it needs (release). With --json, one object a line:
#   {"policy":…,"capacity":…,"prefix_hit_pct":…,"references":…,"references_per_s":…}
# and under a budget "write_budget" and "writes_per_1000".
exec "$(dirname "$0")/run_built.sh" sim_policy "$@"
