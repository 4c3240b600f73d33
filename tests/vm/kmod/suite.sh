#!/bin/bash
# Everything about kvmem.ko that runs in the test machine, as root.
#
# usage: suite.sh FOLDER [PROGRAM...]   what build.sh made; without programs all of them
set -u
cd "$1" || exit 1
shift
[ $# -gt 0 ] || set -- load abi scan migrate fuzz
failed=0
for program; do
  case $program in
    load) ./kmod_load claims kvmem.ko ;;
    fuzz) ./kmod_load load kvmem.ko && ./kmod_fuzz "${FUZZ:-20000}" && ./kmod_load unload ;;
    # What a program leaves open it would be refused for.
    *) ./kmod_load load kvmem.ko && "./kmod_$program" && ./kmod_load unload ;;
  esac
  status=$?
  [ $status = 0 ] || { echo "# $program: status $status"; failed=1; ./kmod_load unload; }
done

if dmesg | grep -E 'BUG|WARNING|Oops|Call Trace|general protection|Bad page|bad page|rss-counter'; then
  dmesg | tail -n 100
  echo "not ok - TheKernelHasNothingToComplainOf"
  failed=1
else
  echo "ok - TheKernelHasNothingToComplainOf"
fi
exit $failed
