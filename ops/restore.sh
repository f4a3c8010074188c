#!/bin/sh
# sh ops/restore.sh DUMP DATABASE: restore a dump into a database that is empty, as root. With TimescaleDB, its version
# has to be the dump's.
set -eu
[ $# = 2 ] && [ -r "$1" ] && [ -n "$2" ] || {
    echo "usage: sh ops/restore.sh DUMP DATABASE, and DUMP has to be a file that can be read: ${1:-none}" >&2
    exit 2
}
dump=$1 name=$2

superuser() {
    env -C / runuser -u postgres -- "$@"
}

# timescaledb pre|post: what TimescaleDB wants before and after a restore, if the database has it.
timescaledb() {
    superuser psql -X -q -v ON_ERROR_STOP=1 -d "$name" >/dev/null <<END
SELECT format('SELECT %I.timescaledb_$1_restore()', nspname)
FROM pg_extension JOIN pg_namespace n ON n.oid = extnamespace WHERE extname = 'timescaledb'
\gexec
END
}

# In a database that has one, pg_restore would fail in the middle.
there=$(superuser psql -X -qAt -d "$name" -c "SELECT count(*) FROM pg_namespace WHERE nspname = 'traksense'")
[ "$there" = 0 ] || {
    echo "${0##*/}: the database $name has a schema traksense: restore into an empty one" >&2
    exit 1
}
if superuser pg_restore --list <"$dump" | grep ' EXTENSION - timescaledb' >/dev/null; then
    superuser psql -X -q -v ON_ERROR_STOP=1 -d "$name" -c 'SET client_min_messages = warning' \
        -c 'CREATE EXTENSION IF NOT EXISTS timescaledb'
fi
# Also after a failure or Ctrl-C: TimescaleDB would go on storing rows where nobody finds them.
trap 'timescaledb post' EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM
timescaledb pre
superuser pg_restore --exit-on-error -d "$name" <"$dump"
