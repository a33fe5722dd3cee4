#!/usr/bin/env bash
# packages.sh [--yes] [--check]: the programs that the demo and the tests run beside our own, from the
# distribution's packages. Idempotent; where everything is there it does nothing and takes no time.
# Tried on Debian 12 and 13; written for Ubuntu 24.04 too, which has not been tried. --check only tells what is missing (exit 1).
set -euo pipefail

# program -> package that brings it
declare -A NEEDED=(
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
)
PATH=$PATH:/usr/sbin:/sbin

yes=no check=no
for argument in "$@"; do
    case $argument in
        --yes) yes=yes ;;
        --check) check=yes ;;
        *) echo "usage: packages.sh [--yes] [--check]" >&2; exit 2 ;;
    esac
done

missing=()
for program in "${!NEEDED[@]}"; do
    command -v "$program" >/dev/null || missing+=("${NEEDED[$program]}")
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
apt() { "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -q -o Dpkg::Use-Pty=0 "$@"; }

apt update
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
