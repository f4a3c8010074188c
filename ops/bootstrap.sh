# shellcheck shell=sh
# Parts of demo.sh and test.sh: a virtual environment and, where wanted, Mosquitto, PgBouncer and promtool, on a machine
# that may have nothing but Python 3.11 and git. POSIX sh; sourced from the root of the repository.
#
# Nothing on the system is changed, also when root calls: what Debian's packages have and this machine lacks is unpacked
# into .bootstrap/, so no service starts and nothing is left behind but that folder.
#
#   TRAKSENSE_PYTHON       the Python to use (default: the first of python3, python3.13, … that is new enough)
#   TRAKSENSE_BOOTSTRAP    the folder to use instead of .bootstrap/
#   TRAKSENSE_MOSQUITTO    the Mosquitto to use; likewise TRAKSENSE_MOSQUITTO_PUB, TRAKSENSE_PGBOUNCER, TRAKSENSE_PROMTOOL

bootstrap=${TRAKSENSE_BOOTSTRAP:-$PWD/.bootstrap}
export PIP_DISABLE_PIP_VERSION_CHECK=1

say() {
    printf 'traksense: %s\n' "$*" >&2
}

die() {
    say "$*"
    exit 1
}

# Prints the path of a Python that traksense runs on.
find_python() {
    for candidate in ${TRAKSENSE_PYTHON:-python3 python3.13 python3.12 python3.11}; do
        if "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null; then
            command -v "$candidate"
            return
        fi
    done
    die "needs Python 3.11, 3.12 or 3.13 (Debian: apt-get install python3), or name one in TRAKSENSE_PYTHON"
}

# make_venv FOLDER: does nothing if it is there and works.
make_venv() {
    "$1/bin/python" -m pip --version >/dev/null 2>&1 && return
    python=$(find_python)
    mkdir -p "$bootstrap"
    rm -rf "$1"
    if ! "$python" -m venv "$1" >"$bootstrap/venv.log" 2>&1; then
        # Debian keeps ensurepip, without which venv has no pip, in a package of its own (python3-venv).
        say "python3 -m venv lacks pip: taking it from Debian's python3-pip-whl"
        unpack_debian python3-pip-whl ||
            die "cannot make a virtual environment: install python3-venv (Debian: apt-get install python3-venv)"
        rm -rf "$1"
        "$python" -m venv --without-pip "$1"
        for wheel in "$bootstrap"/debian/usr/share/python-wheels/pip-*.whl; do
            "$1/bin/python" "$wheel/pip" install --quiet --no-index "$wheel"
        done
    fi
}

# pip_install FOLDER WHAT FILE...: pip install WHAT, unless done since these files last changed.
pip_install() {
    venv=$1 what=$2
    shift 2
    wanted="$PWD $what $(cat "$@" /dev/null | cksum)"
    [ "$(cat "$venv/installed" 2>/dev/null)" = "$wanted" ] && return
    say "installing $what into $venv"
    # $what unquoted: it may have an option before the name.
    # shellcheck disable=SC2086
    "$venv/bin/python" -m pip install --quiet $what
    printf '%s\n' "$wanted" >"$venv/installed"
}

# Each exports TRAKSENSE_… unless one is on the system already.
find_mosquitto() {
    find_program mosquitto mosquitto TRAKSENSE_MOSQUITTO 'MQTT broker Mosquitto' -h
}
find_mosquitto_pub() {
    find_program mosquitto_pub mosquitto-clients TRAKSENSE_MOSQUITTO_PUB 'MQTT client mosquitto_pub' --help
}
find_pgbouncer() {
    find_program pgbouncer pgbouncer TRAKSENSE_PGBOUNCER 'connection pooler PgBouncer' --version
}
find_promtool() {
    find_program promtool prometheus TRAKSENSE_PROMTOOL 'tool promtool of Prometheus' --version
}

# find_program PROGRAM PACKAGE VARIABLE WORDS OPTION: exports VARIABLE unless PROGRAM is on the system; OPTION makes it
# say what it is.
find_program() {
    eval "[ -n \"\${$3:-}\" ]" && return
    command -v "$1" >/dev/null && return
    for folder in /usr/sbin /usr/local/sbin /opt/homebrew/sbin /opt/homebrew/bin; do
        [ -x "$folder/$1" ] && return
    done
    wrapper=$bootstrap/$1
    if ! is_program "$wrapper" "$5"; then
        say "$1 is not installed: taking it from Debian's package $2"
        unpack_debian "$2" ||
            die "needs the $4: install it (Debian: apt-get install $2), or name it in $3"
        libraries=$(find "$bootstrap/debian" -name '*.so.*' -exec dirname {} + | sort -u | paste -s -d : -)
        program=$(find "$bootstrap/debian/usr/sbin" "$bootstrap/debian/usr/bin" -name "$1" 2>/dev/null | head -n 1)
        cat >"$wrapper" <<WRAPPER
#!/bin/sh
LD_LIBRARY_PATH='$libraries'\${LD_LIBRARY_PATH:+:\$LD_LIBRARY_PATH} exec '$program' "\$@"
WRAPPER
        chmod 755 "$wrapper"
        is_program "$wrapper" "$5" || die "Debian's $1 does not run here: install one (apt-get install $2)"
    fi
    eval "export $3=\"\$wrapper\""
}

# is_program PROGRAM OPTION: whether it is there and says something when it is asked.
is_program() {
    [ -x "$1" ] && [ -n "$("$1" "$2" 2>&1 | head -n 1 | grep -iv 'error\|not found')" ]
}

# unpack_debian PACKAGE: it and what it needs beyond what is installed, into .bootstrap/debian. Works for any user.
unpack_debian() (
    command -v apt-get >/dev/null && command -v dpkg >/dev/null || exit 1
    mkdir -p "$bootstrap/apt/lists/partial" "$bootstrap/apt/cache/archives/partial" "$bootstrap/debian"
    cd "$bootstrap/apt" || exit 1
    apt() {
        # With lists and cache of our own, apt-get needs no rights; only the sources and the state of dpkg are read.
        apt-get -qq -o Dir::State="$bootstrap/apt" -o Dir::State::status=/var/lib/dpkg/status \
            -o Dir::Cache="$bootstrap/apt/cache" -o APT::Sandbox::User="$(id -un)" -o APT::Update::Post-Invoke::= \
            -o Debug::NoLocking=1 "$@"
    }
    # $names unquoted: it is a list.
    # shellcheck disable=SC2086
    {
        apt update &&
            names=$(apt -s --no-install-recommends install "$1" | sed -n 's/^Inst \([^ ]*\) .*/\1/p') &&
            apt download $names
    } >"$bootstrap/apt.log" 2>&1 || {
        say "apt-get said: $(tail -n 1 "$bootstrap/apt.log")"
        exit 1
    }
    for package in *.deb; do
        dpkg -x "$package" "$bootstrap/debian"
    done
    rm -rf "$bootstrap/apt"
)
