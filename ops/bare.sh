#!/bin/sh
# The README's two commands and the installation page on a bare Debian, as somebody meets them who has nothing else: in
# a root of debootstrap with python3 and git.
#
#   sh ops/bare.sh [demo] [test] [install]      all of them if none is named; as root, with debootstrap
#
# What is committed here is cloned there; demo and test run as a user and as root, install as root. The demo is ended
# after a minute and a half, as by Ctrl-C. Ports are those of this machine: stop what listens on 1883, 5432 and 9100
# before install.
#
#   TRAKSENSE_BARE      the folder for the roots (default /var/tmp/traksense-bare)
#   TRAKSENSE_SUITE     Debian's release (default bookworm)
set -eu
source=$(cd "$(dirname "$0")/.." && pwd)
place=${TRAKSENSE_BARE:-/var/tmp/traksense-bare}
suite=${TRAKSENSE_SUITE:-bookworm}
base=$place/$suite root=$place/root

say() {
    printf 'bare: %s\n' "$*" >&2
}

# As this machine reaches the network, so does the root.
make_base() {
    [ -e "$base/made" ] && return
    rm -rf "$base"
    mkdir -p "$base"
    debootstrap --variant=minbase --include=python3,git,ca-certificates "$suite" "$base"
    for file in /etc/resolv.conf /etc/hosts /etc/pip.conf /etc/apt/apt.conf.d/*proxy* /usr/local/share/ca-certificates/*; do
        if [ -f "$file" ]; then cp -L "$file" "$base$file"; fi
    done
    chroot "$base" update-ca-certificates
    chroot "$base" useradd --create-home --shell /bin/sh engineer
    touch "$base/made"
}

# Whatever still runs in the root is ended, too.
unmount() {
    for process in /proc/[0-9]*; do
        if [ "$(readlink "$process/root" 2>/dev/null)" = "$root" ]; then kill -KILL "${process#/proc/}"; fi
    done
    for point in dev/shm dev/pts dev proc; do
        if mountpoint -q "$root/$point"; then umount -l "$root/$point"; fi
    done
}

# A root in which nothing has happened yet, with a clone of what is committed here.
fresh_root() {
    unmount
    rm -rf "$root"
    cp -a "$base" "$root"
    mount -t proc proc "$root/proc"
    for point in dev dev/pts; do
        mount --bind "/$point" "$root/$point"
        mount --make-private "$root/$point"
    done
    mount -t tmpfs -o mode=1777 tmpfs "$root/dev/shm"
    git clone -q --bare "$source" "$root/srv/traksense.git"
    chroot "$root" git config --system safe.directory '*'
}

# inside USER COMMAND: in a clone in that user's home, with nothing of this environment.
inside() {
    user=$1 home=$(chroot "$root" sh -c "eval echo ~$1")
    shift
    chroot --userspec="$user" "$root" /usr/bin/env -i HOME="$home" PATH=/usr/sbin:/usr/bin:/sbin:/bin sh -eu -c \
        "cd && { [ -d traksense ] || git clone -q /srv/traksense.git traksense; } && cd traksense && $*"
}

# The text of the blocks of commands of a page.
blocks() {
    awk '/^```sh$/ { on = 1; next } /^```$/ { on = 0 } on' "$source/ops/$1"
}

demo() {
    for user in engineer root; do
        fresh_root
        say "demo, as $user"
        inside "$user" 'timeout --preserve-status --signal=INT 90 sh ops/demo.sh' | tee "$place/demo-$user.log"
        grep -q 'It adds up' "$place/demo-$user.log"
    done
}

tests() {
    for user in engineer root; do
        fresh_root
        say "test, as $user"
        inside "$user" 'sh ops/test.sh' >"$place/test-$user.log" 2>&1 || { tail -n 50 "$place/test-$user.log" && exit 1; }
        grep -E '(passed|failed).* in ' "$place/test-$user.log"
    done
}

install_page() {
    fresh_root
    say "install-debian.md and uninstall.md, as root"
    cp "$source/ops/bare-systemctl.sh" "$root/usr/local/bin/systemctl"
    chmod 755 "$root/usr/local/bin/systemctl"
    { echo 'PATH=/usr/local/bin:$PATH DEBIAN_FRONTEND=noninteractive; export PATH DEBIAN_FRONTEND' && blocks install-debian.md; } \
        >"$root/install.sh"
    blocks uninstall.md >"$root/uninstall.sh"
    inside root 'sh -eux /install.sh' 2>&1 | tee "$place/install.log"
    grep -qE 'press-1 +\| temperature +\| .* \| +7.3 \| °C' "$place/install.log"
    grep -q 'parse_error' "$place/install.log"
    grep -q 'ALL CHECKS PASSED' "$place/install.log"
    # As cron does: its PATH, nothing else, from elsewhere.
    sed -n -e 's/^PATH=/export &/p' -e 's/^\([0-9*][^ ]* \)\{5\}root //p' "$root/etc/cron.d/traksense" >"$root/cron.sh"
    chroot "$root" /usr/bin/env -i HOME=/root SHELL=/bin/sh /bin/sh -eux /cron.sh 2>&1 | tee "$place/cron.log"
    grep -q 'parse_error' "$place/cron.log"
    # Behind a pipe its exit status would be lost.
    inside root 'PATH=/usr/local/bin:$PATH sh -eux /uninstall.sh' >"$place/uninstall.log" 2>&1 ||
        { tail -n 50 "$place/uninstall.log" && exit 1; }
}

trap unmount EXIT
if [ -n "$(git -C "$source" status --porcelain)" ]; then say "what is not committed is not tried"; fi
make_base
for what in ${*:-demo test install}; do
    case $what in
        demo) demo ;;
        test) tests ;;
        install) install_page ;;
        *) say "demo, test or install, not $what" && exit 2 ;;
    esac
done
say "passed: ${*:-demo test install}"
