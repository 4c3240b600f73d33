#!/usr/bin/env bash
# Runs a program as root in the test machine: one of Debian's kernels in QEMU, emulated, so that neither
# root nor KVM is needed. It has
#
#   node 0   2 GiB of DRAM and both CPUs
#   node 1   1 GiB of far memory at distance 20, no CPU
#   node 2   256 MiB of CXL memory, with --cxl (kernel 6.12)
#   NVMe     /dev/nvme0n1, 4 GiB
#   files    the host's, read-only below a tmpfs: what was built outside runs inside, from the same path
#            and folder, and what it writes is gone afterwards, but for folders named with --bind
#
# usage: tests/vm/run.sh [OPTION...] KERNEL [OPTION...] -- PROGRAM ARGUMENT...
#   KERNEL                  6.1 or 6.12
#   --bind FOLDER           of the host, written through; may be repeated
#   --disk FILE             backs the NVMe disk and stays, made if it is not there; else a new, empty disk
#   --disk-throttle BYTES   a second, of the disk's reads and writes together
#   --disk-error SECTOR     of 512 bytes, whose reads fail
#   --disk-log FILE         what is written to the disk, and each flush, in the order in which the disk has
#                           done it, as the kernel's dm-log-writes has it (disk_log.py); made anew
#   --cxl                   with CXL memory
#   --power-cut-after S     the machine is killed S seconds after the program started; the disk then has
#                           what was synced, and of 64 KiB first written to since, nothing. QEMU's disk
#                           says that it knows FUA and takes no notice of it: what a file system commits
#                           is synced only behind a loop device, which does not know it
#   --power-cut-when FILE   those seconds begin when it is there, written by the program below a --bind
#   --timeout S             the machine is killed S seconds after its start (default 120)
#
# The program's output comes out as it is written, standard error with it. Exits with the program's
# status; 124 at the timeout, 137 at the power cut, 125 when the machine failed (the end of its console
# is then shown), 77 where its packages cannot be had. User code runs about 6 times slower than outside.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
vm=$(cd "$here/../.." && pwd)/build/vm

usage() { sed -n '2,/^set /{/^#/s/^# \{0,1\}//p}' "$0"; }
refuse() {
  echo "vm/run.sh: $*" >&2
  exit 2
}

kernel='' binds=() disk='' log='' throttle='' error='' cxl='' cut='' cut_when='' timeout=120
while [ $# -gt 0 ] && [ "$1" != -- ]; do
  case $1 in
    -h | --help) usage; exit 0 ;;
    6.1 | 6.12) kernel=$1 ;;
    --cxl) cxl=1 ;;
    --bind | --disk | --disk-log | --disk-throttle | --disk-error | --power-cut-after | --power-cut-when | --timeout)
      [ $# -gt 1 ] || refuse "$1 wants a value"
      case $1 in
        --bind) binds+=("$(realpath -e "$2")") ;;
        --disk) disk=$(realpath "$2") ;;
        --disk-log) log=$(realpath "$2") ;;
        --disk-throttle) throttle=$2 ;;
        --disk-error) error=$2 ;;
        --power-cut-after) cut=$2 ;;
        --power-cut-when) cut_when=$(realpath "$2") ;;
        --timeout) timeout=$2 ;;
      esac
      shift ;;
    *) refuse "what is $1? See --help" ;;
  esac
  shift
done
[ $# -gt 1 ] || refuse "no program; see --help"
shift
[ -n "$kernel" ] || refuse "no kernel; see --help"
[ -z "$cxl" ] || [ "$kernel" != 6.1 ] || refuse "kernel 6.1 makes no memory of CXL"

root=$("$here/packages.sh")
image=$(echo "$root/boot/vmlinuz-$kernel."*)
release=${image##*/vmlinuz-}

work=$(mktemp -d "$vm/run.XXXXXX")
qemu='' clock=''
# shellcheck disable=SC2317  # called by the trap
cleanup() {
  local code=$?
  trap - EXIT INT TERM HUP
  [ -z "$qemu" ] || { kill -9 "$qemu" && wait "$qemu"; } 2>/dev/null || true
  [ -z "$clock" ] || kill "$clock" 2>/dev/null || true
  wait
  rm -rf "$work"
  exit "$code"
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

modules=(virtio_pci virtio_console 9pnet_virtio 9p overlay nvme loop crc32c_generic ext4)
[ "$kernel" = 6.1 ] || modules+=(cxl_acpi cxl_pci cxl_mem cxl_port dax_cxl device_dax kmem)
initrd=$vm/initrd-$release.gz
(
  flock 9
  if ! [ "$initrd" -nt "$here/init" ] || ! [ "$initrd" -nt "$here/initrd.py" ] || ! [ "$initrd" -nt "$0" ]; then
    python3 "$here/initrd.py" "$root" "$release" "$here/init" "$initrd.new" "${modules[@]}"
    mv "$initrd.new" "$initrd"
  fi
) 9>"$vm/lock"

libraries=$root/usr/lib/x86_64-linux-gnu
become() { # PROGRAM ARGUMENT...: of those unpacked, in place of this shell
  LD_LIBRARY_PATH=$libraries:$root/lib/x86_64-linux-gnu QEMU_MODULE_DIR=$libraries/qemu exec "$@"
}

[ -n "$disk" ] || disk=$work/disk
[ -e "$disk" ] || truncate -s 4G "$disk"
printf 'cd %q && exec %s\n' "$PWD" "${*@Q}" >"$work/command"
: >"$work/binds"

options=(
  # Without `hypervisor` the kernel takes CXL memory into use as on hardware.
  -accel "tcg,thread=multi" -cpu "max,hypervisor=off" -smp 2 -m "3G,slots=4,maxmem=8G"
  -nodefaults -no-user-config -display none -no-reboot -nic none
  -kernel "$image" -initrd "$initrd"
  -append "console=ttyS0 quiet panic=-1 memhp_default_state=online_movable"
  -serial "file:$work/console"
  -object "memory-backend-ram,id=dram,size=2G" -object "memory-backend-ram,id=far,size=1G"
  -numa "node,nodeid=0,cpus=0-1,memdev=dram,initiator=0" -numa "node,nodeid=1,memdev=far,initiator=0"
  -numa "dist,src=0,dst=1,val=20"
)
for figures in 0,100,50 1,250,20; do # node, ns, GB/s
  IFS=, read -r node latency bandwidth <<<"$figures"
  lb=hmat-lb,initiator=0,target=$node,hierarchy=memory
  options+=(-numa "$lb,data-type=access-latency,latency=$latency"
    -numa "$lb,data-type=access-bandwidth,bandwidth=${bandwidth}G")
done
# The bus is said of every device: QEMU would put some behind the CXL bridge.
machine=q35,hmat=on
if [ -n "$cxl" ]; then
  machine+=,cxl=on,cxl-fmw.0.targets.0=cxl,cxl-fmw.0.size=4G
  options+=(-object "memory-backend-ram,id=cxl_memory,share=on,size=256M"
    -device "pxb-cxl,bus_nr=12,bus=pcie.0,id=cxl" -device "cxl-rp,port=0,bus=cxl,id=cxl_port,chassis=0,slot=2"
    -device "cxl-type3,bus=cxl_port,volatile-memdev=cxl_memory,id=cxl_device,sn=0x1")
fi
options+=(-machine "$machine" -device "virtio-serial-pci,bus=pcie.0"
  -chardev "file,id=output,path=/dev/fd/3" -device "virtserialport,chardev=output")

folder() { # TAG PATH OPTIONS: one of the host's, by 9p
  options+=(-fsdev "local,id=$1,path=${2//,/,,},security_model=none,multidevs=remap$3"
    -device "virtio-9p-pci,fsdev=$1,mount_tag=$1,bus=pcie.0")
}
folder host / ,readonly=on
folder run "$work" ''
for i in "${!binds[@]}"; do
  folder "bind$i" "${binds[$i]}" ''
  echo "${binds[$i]}" >>"$work/binds"
done

node=disk
# A flush need not reach the host's disk: its kernel outlives the machine.
options+=(-blockdev "driver=file,node-name=disk,filename=${disk//,/,,},cache.no-flush=on")
if [ -n "$cut" ]; then
  # Where a cluster's first write lies is noted in QEMU's memory until the next flush, so what was not
  # flushed is lost with QEMU, as with a disk's own cache.
  (become "$root/usr/bin/qemu-img" create -q -f qcow2 -F raw -b "$disk" -o lazy_refcounts=on "$work/cache")
  options+=(-blockdev "driver=file,node-name=cache_file,filename=$work/cache,cache.no-flush=on"
    -blockdev "driver=qcow2,node-name=cache,file=cache_file,backing=disk")
  node=cache
fi
if [ -n "$throttle" ]; then
  options+=(-object "throttle-group,id=limit,x-bps-total=$throttle"
    -blockdev "driver=throttle,node-name=throttled,throttle-group=limit,file=$node")
  node=throttled
fi
if [ -n "$error" ]; then
  options+=(-blockdev "driver=blkdebug,node-name=faulty,image=$node,inject-error.0.event=none,\
inject-error.0.iotype=read,inject-error.0.errno=5,inject-error.0.sector=$error")
  node=faulty
fi
if [ -n "$log" ]; then
  # A flush takes no time here, so that what is before it in the log is what it covers.
  : >"$log"
  options+=(-blockdev "driver=file,node-name=log,filename=${log//,/,,},cache.no-flush=on"
    -blockdev "driver=blklogwrites,node-name=logged,file=$node,log=log,log-sector-size=512")
  node=logged
fi
options+=(-device "nvme,serial=kvmem,drive=$node,bus=pcie.0")

# Not QEMU's own standard output, which is one only as long as there is standard input.
exec 3> >(exec cat)
output=$!

become setpriv --pdeathsig KILL "$root/usr/bin/qemu-system-x86_64" -L "$root/usr/share/qemu" \
  -L "$root/usr/share/seabios" "${options[@]}" </dev/null >"$work/qemu" 2>&1 &
qemu=$!
exec 3>&-

keep_disk() { # what the cut left in the disk's cache's file, which QEMU mends for not having been closed
  (become "$root/usr/bin/qemu-img" commit -q -d "$work/cache" >"$work/commit" 2>&1) && return
  cat "$work/commit" >&2
  exit 125
}

sleep "$timeout" >/dev/null 2>&1 &
clock=$!
ended='' was_cut=''
if [ -n "$cut" ]; then
  : "${cut_when:=$work/started}"
  until [ -e "$cut_when" ] || ! kill -0 "$qemu" 2>/dev/null || ! kill -0 "$clock" 2>/dev/null; do sleep 0.05; done
  if [ -e "$cut_when" ] && kill "$clock" 2>/dev/null; then
    was_cut=1
    sleep "$cut" >/dev/null 2>&1 &
    clock=$!
  fi
fi
wait -n -p ended "$qemu" "$clock" || true
if [ "$ended" = "$qemu" ]; then
  qemu=''
  wait "$output"
  [ -z "$cut" ] || keep_disk
  [ ! -s "$work/status" ] || exit "$(cat "$work/status")"
  echo "vm/run.sh: the machine failed" >&2
  tail -n 30 "$work/qemu" "$work/console" >&2 || true
  exit 125
fi
clock=''
kill -9 "$qemu"
wait "$qemu" 2>/dev/null || true
qemu=''
wait "$output"
if [ -n "$was_cut" ]; then
  keep_disk
  exit 137
fi
echo "vm/run.sh: not done after $timeout s" >&2
[ -e "$work/started" ] || tail -n 30 "$work/qemu" "$work/console" >&2 || true
exit 124
