#!/usr/bin/env bash
# packages.sh [--yes] [--check] [--group GROUP]...: the programs that run beside our own, from the distribution's
# packages: those of the demo and the tests, or, by --group, those of the systems that `cargo bench-peers` compares
# and of the tools by which `cargo bench-instructions` counts.
# Idempotent; where everything is there it does nothing and takes no time. No service is started or enabled.
# Tried on Debian 12 and 13; written for Ubuntu 24.04 too, which has not been tried. --check only tells what is missing (exit 1).
set -euo pipefail

usage() {
    echo "usage: packages.sh [--yes] [--check] [--group dpdk-io|libvirt|oracle|ovs-dpdk|qsd|raw|valgrind|perf]..." >&2
    exit 2
}

# program -> packages that bring it
declare -A NEEDED=()
group() {
    case $1 in
        demo)
            NEEDED+=(
                [qemu-system-x86_64]=qemu-system-x86
                [iperf3]=iperf3
                [fio]=fio
                [mke2fs]=e2fsprogs
                [modprobe]=kmod
                [cpio]=cpio
                [xz]=xz-utils
                [ar]=binutils
                [cc]=gcc
                [setpriv]=util-linux
            ) ;;
        dpdk-io) NEEDED[dpdk-testpmd]=dpdk-dev ;;
        libvirt) NEEDED[virsh]=libvirt-clients ;;
        oracle) NEEDED+=([nft]=nftables [ip]=iproute2 [unshare]=util-linux) ;;
        ovs-dpdk) NEEDED[/usr/lib/openvswitch-switch-dpdk/ovs-vswitchd-dpdk]=openvswitch-switch-dpdk ;;
        qsd)
            NEEDED[qemu-storage-daemon]="qemu-system-common qemu-utils"
            NEEDED[qemu-img]=qemu-utils ;;
        raw) NEEDED[fio]=fio ;;
        valgrind) NEEDED[valgrind]=valgrind ;;
        perf)
            NEEDED[perf]=linux-perf
            grep -qs '^ID=ubuntu' /etc/os-release && NEEDED[perf]="linux-tools-common linux-tools-generic" || true ;;
        *) usage ;;
    esac
}
PATH=$PATH:/usr/sbin:/sbin

yes=no check=no groups=()
while [ $# -gt 0 ]; do
    case $1 in
        --yes) yes=yes ;;
        --check) check=yes ;;
        --group) [ $# -ge 2 ] || usage; groups+=("$2"); shift ;;
        *) usage ;;
    esac
    shift
done
[ ${#groups[@]} -gt 0 ] || groups=(demo)
for name in "${groups[@]}"; do group "$name"; done

installed() { dpkg-query -W -f '${db:Status-Status} ${Version}' "$1" 2>/dev/null | sed -n 's/^installed //p'; }
# QEMU moved a program from one of its packages to another, so qemu-utils has to be of the release that is there.
exact() {
    local version
    version=$(installed qemu-system-common)
    if [ "$1" = qemu-utils ] && [ -n "$version" ] && apt-cache show "$1=$version" >/dev/null 2>&1; then
        echo "$1=$version"
    else
        echo "$1"
    fi
}

missing=()
for program in "${!NEEDED[@]}"; do
    command -v "$program" >/dev/null && continue
    for package in ${NEEDED[$program]}; do missing+=("$package"); done
done
[ ${#missing[@]} -eq 0 ] && exit 0
mapfile -t missing < <(printf '%s\n' "${missing[@]}" | sort -u)
echo "missing packages: ${missing[*]}"
[ $check = yes ] && exit 1

if [ $yes = no ] && [ -t 0 ]; then
    read -r -p "install them with apt-get? [Y/n] " answer
    case $answer in [Nn]*) echo "error: cannot go on without them" >&2; exit 1 ;; esac
fi

as_root=()
if [ "$(id -u)" -ne 0 ]; then
    command -v sudo >/dev/null || { echo "error: installing packages needs root or sudo
  fix: as root run: apt-get install ${missing[*]}" >&2; exit 1; }
    as_root=(sudo)
fi
apt() {
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -q -o Dpkg::Use-Pty=0 -o DPkg::Lock::Timeout=300 "$@"
}

# Packages of daemons start them, unless policy-rc.d (deb-policy, invoke-rc.d(8)) forbids it. One that is there stays as
# it is; ours goes again. What a package enabled for the next boot is disabled, if it was not on this machine before.
policy=/usr/sbin/policy-rc.d
if [ ! -e $policy ]; then
    trap '"${as_root[@]}" rm -f $policy' EXIT
    printf '#!/bin/sh\nexit 101\n' | "${as_root[@]}" tee $policy >/dev/null
    "${as_root[@]}" chmod 755 $policy
fi
declare -A SERVICES=([openvswitch-switch]=openvswitch-switch.service [dpdk]=dpdk.service [uuid-runtime]=uuidd.socket)
for package in "${!SERVICES[@]}"; do
    [ -z "$(installed "$package")" ] || unset "SERVICES[$package]"
done

apt update
for index in "${!missing[@]}"; do missing[index]=$(exact "${missing[index]}"); done
# A machine that has qemu-utils from backports cannot take qemu-system-x86 from the release itself: --no-remove lets
# apt refuse instead of removing what the machine has, and then the backports suite is added.
if ! apt install -y --no-remove --no-install-recommends "${missing[@]}"; then
    . /etc/os-release
    [ "${ID:-}" = debian ] || { echo "error: apt-get could not install ${missing[*]}" >&2; exit 1; }
    mirror=$(awk '/^URIs:/ {print $2; exit}' /etc/apt/sources.list.d/*.sources 2>/dev/null || true)
    [ -n "$mirror" ] || mirror=$(awk '$1 == "deb" {for (i = 2; i <= NF; i++) if ($i ~ "^http") {print $i; exit}}' /etc/apt/sources.list)
    printf 'Types: deb\nURIs: %s\nSuites: %s-backports\nComponents: main\nSigned-By: /usr/share/keyrings/debian-archive-keyring.gpg\n' \
        "$mirror" "$VERSION_CODENAME" | "${as_root[@]}" tee /etc/apt/sources.list.d/outboard-backports.sources >/dev/null
    apt update
    apt install -y --no-remove --no-install-recommends -t "$VERSION_CODENAME-backports" "${missing[@]}"
fi

if command -v systemctl >/dev/null; then
    for package in "${!SERVICES[@]}"; do
        [ -z "$(installed "$package")" ] || "${as_root[@]}" systemctl --quiet disable "${SERVICES[$package]}" || true
    done
fi
hash -r
for program in "${!NEEDED[@]}"; do
    command -v "$program" >/dev/null || { echo "error: ${NEEDED[$program]} came without $program" >&2; exit 1; }
done
