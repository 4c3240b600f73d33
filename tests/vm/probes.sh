#!/usr/bin/env bash
# In the test machine: the daemon's BPF programs load on this kernel and tell what happened, the store
# being a file on a file system on the NVMe disk.
#
# usage: probes.sh BUILD_DIR
set -euo pipefail

probes=$(cd "$(dirname "$0")/../system" && pwd)/probes.py
disk=$(mktemp -d)
mkfs.ext4 -q /dev/nvme0n1
mount /dev/nvme0n1 "$disk"
for scenario in disk stalls gpu; do python3 "$probes" "$1" $scenario "$disk"; done
echo "ok $(uname -r)"
