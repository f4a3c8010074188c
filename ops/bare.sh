#!/bin/sh
# The README's two commands and the installation page on a bare Debian, as somebody meets them who has nothing else: in
# a root of debootstrap with python3 and git.
#
#   sh ops/bare.sh [demo] [test] [install]      all of them if none is named; as root, with debootstrap
#   sh ops/bare.sh base                         the root alone: whether demo, test and install can run here
#   sh ops/bare.sh clone                        the demo without such a root, as any user: in a new clone on this system,
#                                               with an empty home and an empty environment
#
# What is committed here is cloned there; demo and test run as a user and as root, install as root. Ports are those of
# this machine: stop what listens on 1883, 5432 and 9100 before install.
#
#   TRAKSENSE_BARE      the folder for the roots (default /var/tmp/traksense-bare)
#   TRAKSENSE_SUITE     Debian's release (default bookworm)
set -eu
source=$(cd "$(dirname "$0")/.." && pwd)
place=${TRAKSENSE_BARE:-/var/tmp/traksense-bare}
suite=${TRAKSENSE_SUITE:-bookworm}
base=$place/$suite root=$place/root
demo='sh ops/demo.sh --seconds 20'

say() {
    printf 'bare: %s\n' "$*" >&2
}

# As this machine reaches the network, so does the root.
make_base() {
    [ "$(id -u)" = 0 ] || { say "a bare root takes root" && return 1; }
    command -v debootstrap >/dev/null || { say "a bare root takes debootstrap" && return 1; }
    mkdir -p "$place/proc"
    mount -t proc proc "$place/proc" || { say "a bare root takes mounts, which are not allowed here" && return 1; }
    umount "$place/proc"
    [ -e "$base/made" ] && return
    unmount
    rm -rf "$base"
    mkdir -p "$base"
    debootstrap --variant=minbase --include=python3,git,ca-certificates "$suite" "$base" ||
        { say "debootstrap has made no root" && return 1; }
    for file in /etc/resolv.conf /etc/hosts /etc/pip.conf /etc/apt/apt.conf.d/*proxy* /usr/local/share/ca-certificates/*; do
        if [ -f "$file" ]; then cp -L "$file" "$base$file"; fi
    done
    chroot "$base" update-ca-certificates
    chroot "$base" useradd --create-home --shell /bin/sh engineer
    touch "$base/made"
}

# Of both roots: debootstrap mounts, too, and may have been killed. Whatever still runs in them is ended.
unmount() {
    for folder in "$root" "$base"; do
        for process in /proc/[0-9]*; do
            if [ "$(readlink "$process/root" 2>/dev/null)" = "$folder" ]; then kill -KILL "${process#/proc/}" || true; fi
        done
        for point in dev/shm dev/pts dev sys proc; do
            if mountpoint -q "$folder/$point"; then umount -l "$folder/$point"; fi
        done
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
    clone_to "$root/srv/traksense.git" --bare
    chroot "$root" git config --system safe.directory '*'
}

# clone_to FOLDER [OPTION]: whoever owns what is cloned.
clone_to() {
    settings=$(mktemp)
    printf '[safe]\n\tdirectory = *\n' >"$settings"
    GIT_CONFIG_GLOBAL=$settings git clone -q ${2:-} "$source" "$1"
    rm "$settings"
}

# inside USER COMMAND: in a clone in that user's home, with nothing of this environment.
inside() {
    user=$1 home=$(chroot "$root" sh -c "eval echo ~$1")
    shift
    chroot --userspec="$user" "$root" /usr/bin/env -i HOME="$home" PATH=/usr/sbin:/usr/bin:/sbin:/bin sh -eu -c \
        "cd && { [ -d traksense ] || git clone -q /srv/traksense.git traksense; } && cd traksense && $*"
}

# blocks PAGE [TIMES]: the text of the blocks of commands of a page, each so many times. With -e, sh goes on after a list
# of && of which a command fails: the status is looked at.
blocks() {
    awk -v times="${2:-1}" '/^```sh$/ { on = 1; text = ""; next }
        /^```$/ { for (n = on ? times : 0; n > 0; n--) printf "%s[ $? = 0 ]\n", text; on = 0 }
        on { text = text $0 "\n" }' "$source/ops/$1"
}

# shown PAGE LOG: what the page shows as printed is in the log, with other numbers, and anything for …
shown() {
    awk '/^```text$/ { on = 1; next } /^```$/ { on = 0 } on && NF' "$source/ops/$1" |
        sed -e 's/[[\.*^$]/\\&/g' -e 's/[0-9][0-9]*/[0-9][0-9]*/g' -e 's/…/.*/g' |
        while read -r line; do
            grep -qe "$line" "$2" || { say "$1 shows what was not printed: $line" && exit 1; }
        done
}

# as_cron FILE LOG: the lines of a file of cron's, as cron runs them: with its PATH, nothing else, from elsewhere.
as_cron() {
    sed -n -e 's/^PATH=/export &/p' -e 's/^\([0-9*][^ ]* \)\{5\}root //p' "$root/etc/cron.d/$1" >"$root/cron.sh"
    chroot "$root" /usr/bin/env -i HOME=/root SHELL=/bin/sh /bin/sh -eux /cron.sh >"$2" 2>&1 || { cat "$2" && exit 1; }
}

demo() {
    for user in engineer root; do
        fresh_root
        say "demo, as $user"
        inside "$user" "$demo" | tee "$place/demo-$user.log"
        grep -q 'It adds up' "$place/demo-$user.log"
    done
}

# The environment keeps only how this machine reaches a package index; the path, where its Python is.
in_clone() {
    python=$(cd "$source" && . ops/bootstrap.sh && "$(find_python)" -c 'import sys; print(sys.executable)')
    new=$(mktemp -d "${TMPDIR:-/var/tmp}/traksense-bare.XXXXXX")
    chmod 755 "$new"
    mkdir "$new/home" "$new/traksense"
    if [ -e "$source/.git" ]; then
        clone_to "$new/traksense"
    else
        say "this is no clone: a copy is tried"
        tar -c -C "$source" --exclude=./.bootstrap --exclude=./.tox . | tar -x -C "$new/traksense"
    fi
    say "demo, in a new clone as $(id -un)"
    (
        cd "$new/traksense"
        for file in "${HOME:-}/.pip/pip.conf" "${HOME:-}/.config/pip/pip.conf"; do
            if [ -f "$file" ]; then export PIP_CONFIG_FILE="$file"; fi
        done
        export HOME="$new/home"
        PATH=${python%/*}:/usr/bin:/bin
        for name in $(env | sed -n 's/^\([A-Za-z_][A-Za-z_0-9]*\)=.*/\1/p'); do
            case $name in
                HOME | PATH | PIP_* | *_proxy | *_PROXY | SSL_CERT_*) ;;
                *) unset "$name" ;;
            esac
        done
        exec $demo
    ) | tee "$new/log"
    grep -q 'It adds up' "$new/log"
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
    say "install-debian.md, operations.md (upgrade, restore) and uninstall.md, as root"
    cp "$source/ops/bare-systemctl.sh" "$root/usr/local/bin/systemctl"
    chmod 755 "$root/usr/local/bin/systemctl"
    # Each block twice, as by somebody who pastes one again.
    { echo 'PATH=/usr/local/bin:$PATH DEBIAN_FRONTEND=noninteractive; export PATH DEBIAN_FRONTEND' && blocks install-debian.md 2; } \
        >"$root/install.sh"
    blocks uninstall.md >"$root/uninstall.sh"
    # An upgrade, and the way back from the dump: what was stored is there again, and more is stored.
    {
        echo "count() { env -C / runuser -u postgres -- psql -XAtd traksense -c 'SELECT count(*) FROM ts_measure'; }"
        echo 'before=$(count)'
        blocks operations.md | sed 's|^dump=.*-DATE.dump$|dump=$(ls /var/backups/traksense-*.dump \| tail -n 1)|'
        echo '[ "$before" -gt 0 ]'
        echo '[ "$(count)" = "$before" ]'
        # The service has just been started.
        echo 'curl --silent --output /dev/null --retry 60 --retry-delay 1 --retry-all-errors --fail http://localhost:9100/readyz'
        echo 'traksense --env-file /etc/traksense/operator.env validate'
    } >"$root/restore.sh"
    inside root 'sh -eux /install.sh' 2>&1 | tee "$place/install.log"
    shown install-debian.md "$place/install.log"
    grep -q 'parse_error' "$place/install.log"
    as_cron traksense "$place/cron.log"
    grep -q 'parse_error' "$place/cron.log"
    # Behind a pipe their exit status would be lost.
    for script in restore uninstall; do
        inside root "PATH=/usr/local/bin:\$PATH sh -eux /$script.sh" >"$place/$script.log" 2>&1 ||
            { tail -n 50 "$place/$script.log" && exit 1; }
        [ $script = restore ] || continue
        # The dump that was tried has as many rows as the database, and the one that cron makes every night is a dump.
        [ "$(sed -n 's/^ *\([1-9][0-9]*\) | 2.*/\1/p' "$place/restore.log" | uniq -c | tr -s ' ' | cut -d ' ' -f 2)" = 2 ]
        rm "$root"/var/backups/traksense-*.dump
        as_cron traksense-backup "$place/backup.log"
        chroot "$root" sh -c 'pg_restore --list /var/backups/traksense-*.dump' >/dev/null
    done
    # Debian's own settings, which name no file that is gone.
    grep -q '^include_dir' "$root/etc/mosquitto/mosquitto.conf"
    # Cron's, and the one before the end.
    [ "$(ls "$root/var/backups" | grep -c '^traksense-.*dump$')" = 2 ]
}

new=
trap 'unmount; rm -rf "$new"' EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM
if [ -n "$(git -c safe.directory='*' -C "$source" status --porcelain 2>/dev/null)" ]; then
    say "what is not committed is not tried"
fi
if [ "${*:-}" != clone ]; then make_base; fi
for what in ${*:-demo test install}; do
    case $what in
        base) ;;
        clone) in_clone ;;
        demo) demo ;;
        test) tests ;;
        install) install_page ;;
        *) say "demo, test, install, base or clone, not $what" && exit 2 ;;
    esac
done
say "passed: ${*:-demo test install}"
