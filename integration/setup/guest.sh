#!/usr/bin/env bash
# guest.sh: makes the kernel and the initramfs that test guests boot, in a cache folder, and prints that folder.
# It holds then: vmlinux (or vmlinuz), initramfs.cpio, and initramfs-fio.cpio, which has fio too: that is large, and only
# guests that need it shall unpack it. Needs no root: the kernel and busybox come out of downloaded packages and nothing
# is installed. Made anew only when this script, guest-init or the distribution changes.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
PATH=$PATH:/usr/sbin:/sbin
. /etc/os-release

key=$(cat "$here/guest.sh" "$here/guest-init" /etc/os-release | sha256sum | cut -c1-16)
cache=${XDG_CACHE_HOME:-${HOME:?}/.cache}/outboard
out=$cache/guest-$key
if [ -e "$out/complete" ]; then echo "$out"; exit 0; fi

mkdir -p "$cache"
work=$(mktemp -d "$cache/making.XXXXXX")
trap 'rm -rf "$work"' EXIT
say() { echo "guest: $*" >&2; }

# download PACKAGE...: unpacks packages into $work/root
download() {
    (cd "$work" && apt-get -q download "$@" >/dev/null 2>"$work/apt.err") || {
        cat "$work/apt.err" >&2
        echo "error: could not download $*
  fix: run 'apt-get update' as root, then try again" >&2
        exit 1
    }
    for deb in "$work"/*.deb; do dpkg-deb -x "$deb" "$work/root"; rm "$deb"; done
}
# depends PACKAGE PATTERN: the dependency of PACKAGE that matches
depends() { apt-cache depends "$1" | awk '$1 == "Depends:" {print $2}' | grep -E "$2" | head -n1; }

say "downloading a kernel and busybox"
case ${ID:-} in
    ubuntu)
        image=$(depends linux-image-generic '^linux-image-[0-9]')
        download "$image" "$(depends "$image" '^linux-modules-[0-9]')" busybox-static ;;
    *) download "$(depends linux-image-amd64 '^linux-image-[0-9]')" busybox-static ;;
esac
# first PATH...: the first that exists (packages put things below / or below /usr)
first() { for path in "$@"; do [ -e "$path" ] && { echo "$path"; return; }; done; echo "error: none of $* in the packages" >&2; exit 1; }
modules_dir=$(first "$work"/root/lib/modules/* "$work"/root/usr/lib/modules/*)
version=$(basename "$modules_dir")

# The ELF kernel inside a bzImage boots by PVH and spares the guest from unpacking itself under emulation.
image=$(first "$work"/root/boot/vmlinuz-*)
offset=$({ LC_ALL=C grep -abo $'\xFD7zXZ' "$image" || true; } | head -n1 | cut -d: -f1)
# xz stops at the end of its stream, whatever follows it in the image; the check below tells whether it was good
[ -z "$offset" ] || tail -c +$((offset + 1)) "$image" 2>/dev/null | xz -dc >"$work/vmlinux" 2>/dev/null || true
if ! head -c4 "$work/vmlinux" 2>/dev/null | grep -q ELF; then rm -f "$work/vmlinux"; cp "$image" "$work/vmlinuz"; fi

say "making the initramfs (kernel $version)"
tree=$work/tree
mkdir -p "$tree"/{bin,dev,proc,sys,tmp,mnt,root,etc,lib/modules/"$version"}
ln -s bin "$tree/sbin"
cp "$(first "$work"/root/bin/busybox "$work"/root/usr/bin/busybox)" "$tree/bin/busybox"
install -m755 "$here/guest-init" "$tree/init"
ln -sf /proc/mounts "$tree/etc/mtab"

# modules: the closure of what guest-init loads
base=${modules_dir%/lib/modules/*}
cp "$modules_dir"/modules.{builtin,builtin.modinfo,order} "$tree/lib/modules/$version/"
depmod -b "$base" "$version"
modprobe -d "$base" -S "$version" -a --show-depends virtio_pci virtio_net virtio_blk crc32c_generic ext4 8021q 2>/dev/null |
    awk '$1 == "insmod" {print $2}' | sort -u | while read -r module; do
    to=$tree/lib/modules/$version/${module#*"/lib/modules/$version/"}
    install -D -m644 "$module" "$to"
    case $module in *.xz) unxz "$to" ;; *.zst) unzstd -q --rm "$to" ;; esac
done
depmod -b "$tree" "$version"

# programs FOLDER NAME...: programs of this machine, with the libraries that the loader names for them
programs() {
    local folder=$1 program path library
    shift
    for program in "$@"; do
        path=$(command -v "$program") || { echo "error: $program is not installed
  fix: run integration/setup/packages.sh" >&2; exit 1; }
        install -D "$(readlink -f "$path")" "$folder/bin/$program"
        ldd "$path" | awk '/=> \// {print $3} $1 ~ /^\// {print $1}' | while read -r library; do
            install -D "$(readlink -f "$library")" "$folder$library"
        done
    done
}
# archive FOLDER: it as cpio on standard output; the kernel unpacks archives that follow one another into one tree
archive() { (cd "$1" && find . -print0 | cpio --null -o -H newc --quiet); }

programs "$tree" iperf3 mke2fs
ln -s mke2fs "$tree/bin/mkfs.ext4"
archive "$tree" >"$work/initramfs.cpio"
extra=$work/extra
programs "$extra" fio
# what the first archive brought need not come twice
(cd "$extra" && find . -type f) | while read -r file; do [ ! -e "$tree/$file" ] || rm "$extra/$file"; done
{ cat "$work/initramfs.cpio"; archive "$extra"; } >"$work/initramfs-fio.cpio"

rm -rf "$work/root" "$tree" "$extra" "$work/apt.err"
touch "$work/complete"
chmod 755 "$work"
# another run may have finished first: then its folder is as good
mv -T "$work" "$out" 2>/dev/null || [ -e "$out/complete" ]
trap - EXIT
rm -rf "$work"
echo "$out"
