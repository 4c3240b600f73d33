#!/usr/bin/env bash
# What layouts of KV cache waste and grow by, for three models, on the lengths of a trace's sequences.
#
#   tests/sim/fragmentation.sh [TRACE] [--sequences N] [--json]
#
# TRACE as for policy.sh; without one, conversations made up. N sequences (default 64) are there at once,
# at their full lengths; waste is what has been allocated and holds no token, `worst` that of the worst N.
# kvmem's rows come from libkvmem/pool/layout.h; the others are their arithmetic: vAttention maps pages
# for each layer's keys and values (ASPLOS 2025), kvcached puts blocks of 16 tokens into such pages and
# shares them between sequences (here at best: only the last page is not full), PagedAttention has blocks
# of 16 tokens of all layers.
# Builds what it needs (release). With --json, one object a line.
exec "$(dirname "$0")/run_built.sh" sim_fragmentation "$@"
