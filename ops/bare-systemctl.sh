#!/bin/sh
# What bare.sh has for systemctl in a root without systemd: starts and stops what the pages ask for.
set -eu
unit=/etc/systemd/system/traksense.service

# start NAME COMMAND...: in the background, as a service.
start() {
    name=$1
    shift
    setsid "$@" >"/var/log/$name.log" 2>&1 </dev/null &
    echo $! >"/run/$name.pid"
}

stop() {
    [ -e "/run/$1.pid" ] || return 0
    pid=$(cat "/run/$1.pid")
    rm "/run/$1.pid"
    kill -TERM "$pid"
    while kill -0 "$pid" 2>/dev/null; do sleep 0.2; done
}

case "$*" in
    daemon-reload) ;;
    "start postgresql")
        version=$(pg_lsclusters -h | cut -d ' ' -f 1)
        pg_ctlcluster "$version" main status >/dev/null || pg_ctlcluster "$version" main start
        ;;
    "stop postgresql") pg_ctlcluster "$(pg_lsclusters -h | cut -d ' ' -f 1)" main stop ;;
    "stop mosquitto") stop mosquitto ;;
    "restart mosquitto") stop mosquitto && start mosquitto mosquitto -c /etc/mosquitto/mosquitto.conf ;;
    "reload mosquitto") kill -HUP "$(cat /run/mosquitto.pid)" ;;
    "restart traksense") "$0" stop traksense && "$0" start traksense ;;
    "enable --now traksense" | "start traksense")
        if [ -e /run/traksense.pid ]; then exit; fi
        # As the unit says: this file, this program, and a user without rights.
        file=$(sed -n 's/^EnvironmentFile=//p' "$unit")
        program=$(sed -n 's/^ExecStart=//p' "$unit")
        # Unquoted: words of their own.
        # shellcheck disable=SC2046,SC2086
        start traksense env -i HOME=/ PATH="$PATH" $(sed '/^ *#/d' "$file") setpriv --reuid=nobody --clear-groups $program
        ;;
    "disable --now traksense" | "stop traksense") stop traksense ;;
    *) echo "systemctl: this stand-in cannot $*" >&2 && exit 1 ;;
esac
