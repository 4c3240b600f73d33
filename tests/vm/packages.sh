#!/usr/bin/env bash
# Prints the folder, build/vm/root, that holds what the test machine is made of: QEMU, a static
# busybox, and Debian's kernels 6.1 and 6.12 with their headers (usr/src/linux-headers-*-amd64, for
# make -C), unpacked from Debian's packages. The system is not changed: apt works in build/vm with
# lists and a cache of its own, on the machine's own mirror and with its keyring. About 160 MiB are
# fetched the first time; later runs find them. Needs no root.
#
# Exits 77 where no mirror answers, 1 where one lacks a package.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
vm=$(cd "$here/../.." && pwd)/build/vm
root=$vm/root
keyring=/usr/share/keyrings/debian-archive-keyring.gpg
archives=$vm/apt/cache/archives

mkdir -p "$vm"
exec 9>"$vm/lock"
flock 9
# This script as it was when it last succeeded: another one may want other packages.
if cmp -s "$here/packages.sh" "$vm/unpacked_by"; then
  echo "$root"
  exit 0
fi

stop() { # STATUS MESSAGE
  echo "packages.sh: $2" >&2
  [ ! -e "$vm/apt.log" ] || tail -n 20 "$vm/apt.log" >&2
  exit "$1"
}

rm -rf "$root" "$vm/apt" "$vm/apt.log" "$vm/unpacked_by" "$vm"/initrd-*
mkdir -p "$root" "$vm/apt/lists/partial" "$archives/partial"
# Read after the machine's files, so that what they run after an update is not run for this one.
cat >"$vm/apt/apt.conf" <<CONF
Dir::State::lists "$vm/apt/lists";
Dir::Cache "$vm/apt/cache";
Dir::Etc::preferences "$vm/apt/preferences";
Dir::Etc::preferencesparts "/dev/null";
Acquire::Languages "none";
Acquire::IndexTargets::deb::Contents-deb::DefaultEnabled "false";
APT::Update::Error-Mode "any";
#clear APT::Update::Pre-Invoke;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
Debug::NoLocking "true";
CONF
# Of the suites' QEMUs only the later one has CXL devices.
printf '%s\n' 'Package: qemu-system-* qemu-utils seabios' 'Pin: release n=*-backports' 'Pin-Priority: 990' \
  >"$vm/apt/preferences"

# shellcheck source=/dev/null
suite=$(. /etc/os-release && echo "${VERSION_CODENAME:-}")
apt() { apt-get -c "$vm/apt/apt.conf" "$@"; }
lists=(-o "Dir::Etc::sourcelist=$vm/apt/sources.list" -o Dir::Etc::sourceparts=/dev/null)

apt update >"$vm/apt.log" 2>&1 || stop 77 "no mirror of Debian's answers"
# shellcheck disable=SC2016  # apt's own fields
mirror=$(apt indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Origin: Debian' "Codename: $suite" \
  'Component: main' | head -n 1)
[ -n "$mirror" ] || stop 1 "this machine's apt has no mirror of Debian's suite '$suite'"
for s in "$suite" "$suite-backports"; do echo "deb [signed-by=$keyring] $mirror $s main"; done >"$vm/apt/sources.list"
apt "${lists[@]}" update >"$vm/apt.log" 2>&1 || stop 77 "the mirror does not answer for $suite-backports"

kernel() { # IMAGE|HEADERS SUITE VERSION: the package that is that suite's newest
  local name
  name=$(apt-cache -c "$vm/apt/apt.conf" "${lists[@]}" depends "linux-$1-amd64/$2" 2>>"$vm/apt.log" |
    sed -n "s/^ *Depends: \(linux-$1-$3\..*-amd64\)$/\1/p")
  [ -n "$name" ] || stop 1 "$2 has no linux-$1 $3"
  echo "$name"
}
images=("$(kernel image "$suite" 6.1)" "$(kernel image "$suite-backports" 6.12)")
others=(qemu-system-x86 qemu-utils busybox-static
  "$(kernel headers "$suite" 6.1)" "$(kernel headers "$suite-backports" 6.12)")

# As if they were installed, so that of what they depend on only what the machine lacks is fetched; a
# kernel's image needs nothing of what it depends on to be booted.
apt "${lists[@]}" install -y --download-only --reinstall --no-install-recommends "${others[@]}" \
  >"$vm/apt.log" 2>&1 || stop 1 "packages are not to be had: ${others[*]}"
(cd "$archives" && apt "${lists[@]}" download "${images[@]}") >"$vm/apt.log" 2>&1 ||
  stop 1 "packages are not to be had: ${images[*]}"
for deb in "$archives"/*.deb; do
  dpkg-deb -x "$deb" "$root" 2>>"$vm/apt.log" || stop 1 "$deb cannot be unpacked"
done

# Headers name each other by where they would be installed.
for makefile in "$root"/usr/src/linux-headers-*-amd64/Makefile; do
  sed -i "s| /usr/src/| $root/usr/src/|" "$makefile"
done

rm -rf "$vm/apt"
cp "$here/packages.sh" "$vm/unpacked_by"
echo "$root"
