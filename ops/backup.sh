#!/bin/sh
# sh ops/backup.sh [FOLDER]: dump the database traksense into FOLDER (/var/backups), as root, and print the dump's name.
#
# No dump is ever overwritten, since the next one may be of a database that is empty or half restored: the newest KEEP
# (7) stay. With DATABASE_URL set, as on a server of others, whoever runs this dumps that database as its owner.
set -eu
umask 077

fail() {
    echo "${0##*/}: $*: no dump was made, and those before are as they were" >&2
    exit 1
}

# database PROGRAM [OPTION]...: a PostgreSQL client on the database.
database() {
    if [ -n "${DATABASE_URL:-}" ]; then
        "$@" -d "$DATABASE_URL"
    else
        env -C / runuser -u postgres -- "$@" -d traksense
    fi
}

keep=${KEEP:-7}
case $keep in '' | *[!0-9]* | 0) fail "KEEP=$keep: give the number of dumps to keep, at least 1" ;; esac
cd "${1:-/var/backups}" || fail "the folder cannot be entered"
# The folder is the lock: two dumps at once would be one too many.
exec 9<.
flock --nonblock 9 || fail "another backup is running"

database psql -X -qAt -c 'SELECT count(*) FROM traksense.schema_version' >/dev/null ||
    fail "the database cannot be read, or traksense is not in it"

# Of a run that was killed.
rm -f traksense-*.dump.new traksense-*.dump.log
name=traksense-$(date +%Y-%m-%dT%H%M%S).dump
[ ! -e "$name" ] || fail "$PWD/$name is there already"
trap 'rm -f "$name.new" "$name.log"' EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM
# What it warns of when all is well, such as TimescaleDB's circular foreign keys, would be mail from cron every night.
database pg_dump ${DATABASE_URL:+--enable-row-security} --format=custom >"$name.new" 2>"$name.log" || {
    cat "$name.log" >&2
    fail "pg_dump failed"
}
sync "$name.new"
mv "$name.new" "$name"
echo "$PWD/$name"
# In the order of their dates.
ls | grep '^traksense-[0-9T-]*\.dump$' | head -n "-$keep" | while read -r old; do rm "$old"; done
