#!/bin/sh
# sh ops/backup.sh [FOLDER]: dump the database traksense into FOLDER (/var/backups), as root, and print the dump's name.
#
# No dump is ever overwritten, since the next one may be of a database that is empty or half restored. The newest KEEP
# (7) stay, and older ones that are much larger. With DATABASE_URL set, as on a server of others, whoever runs this dumps
# that database as its owner.
set -eu
umask 077

say() {
    echo "${0##*/}: $*" >&2
}

fail() {
    say "$*: no dump was made, and those before are as they were"
    exit 1
}

# sql [OPTION]...: psql on the database.
TARGET=$(echo "${DATABASE_URL:-traksense}" | sed 's/^postgresql+asyncpg:/postgresql:/')
OPTIONS=--format=custom${DATABASE_URL:+ --enable-row-security}
export TARGET OPTIONS
sql() {
    if [ -n "${DATABASE_URL:-}" ]; then
        psql -X -q -v ON_ERROR_STOP=1 "$@" -d "$TARGET"
    else
        env -C / runuser -u postgres -- psql -X -q -v ON_ERROR_STOP=1 "$@" -d "$TARGET"
    fi
}

# dumps: those of this script, in the order of their dates.
dumps() {
    day='[0-9][0-9][0-9][0-9]-[0-9][0-9]-[0-9][0-9]'
    ls | grep -x "traksense-${day}T[0-9][0-9][0-9][0-9][0-9][0-9]\.dump"
}

keep=${KEEP:-7}
case $keep in '' | *[!0-9]* | 0* | ?????*) fail "KEEP=$keep: give the number of dumps to keep, at least 1" ;; esac
cd "${1:-/var/backups}" || fail "the folder cannot be entered"
# The folder is the lock: two dumps at once would be one too many.
exec 9<.
flock --nonblock 9 || fail "another backup is running"

version=$(sql -At -c 'SELECT max(version) FROM traksense.schema_version') ||
    fail "the database cannot be read, or traksense is not in it"
[ -n "$version" ] || fail "the database is empty, or half restored"

# Of a run that was killed.
rm -f traksense-*.dump.new traksense-*.dump.log traksense-*.dump.end
name=traksense-$(date +%Y-%m-%dT%H%M%S).dump
[ ! -e "$name" ] || fail "$PWD/$name is there already"
trap 'rm -f "$name.new" "$name.log" "$name.end"' EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM
# TimescaleDB empties a chunk once it is compressed: pg_dump, whose snapshot is older than its locks, would find neither
# the one nor the other. So the locks come first. What pg_dump warns of when all is well, such as TimescaleDB's circular
# foreign keys, would be mail from cron every night.
sql >"$name.new" 2>"$name.log" 3>"$name.end" <<'END' || true
SELECT coalesce(string_agg(DISTINCT inhparent::regclass::text, ', '), 'traksense.schema_version') AS tables
FROM pg_inherits JOIN pg_class c ON c.oid = inhparent WHERE relkind = 'r' \gset
BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY;
LOCK TABLE :tables IN ACCESS SHARE MODE;
SELECT pg_export_snapshot() AS snapshot \gset
\setenv SNAPSHOT :snapshot
\! pg_dump $OPTIONS --snapshot="$SNAPSHOT" -d "$TARGET" && echo end >&3
END
[ -s "$name.end" ] || {
    cat "$name.log" >&2
    fail "pg_dump failed"
}
sync "$name.new"
mv "$name.new" "$name"
echo "$PWD/$name"

large=$(($(stat -c %s "$name") * 2))
dumps | sed "/^$name\$/,\$d" | head -n "-$((keep - 1))" | while read -r old; do
    if [ "$(stat -c %s "$old")" -gt "$large" ]; then
        say "$PWD/$old is more than twice as large as the dump of now: it stays. Are data missing? If not, remove it"
    else
        rm "$old"
    fi
done
newest=$(dumps | tail -n 1)
[ "$newest" = "$name" ] || say "$PWD/$newest has a later date than now: set the clock, or remove it"
