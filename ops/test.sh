#!/bin/sh
# All tests, on a machine with nothing but Python 3.11 and git: tox, with a real Mosquitto, PostgreSQL,
# PgBouncer and promtool.
#
#   sh ops/test.sh [arguments of tox, such as -e lint or -e py311 -- tests/unit]
#
# Pythons that are missing are reported as skipped. Tools go into .bootstrap/ and .tox/; nothing else is touched.
set -eu
cd "$(dirname "$0")/.."
# shellcheck source=ops/bootstrap.sh
. ops/bootstrap.sh

make_venv "$bootstrap/test"
pip_install "$bootstrap/test" 'tox>=4.20,<5' /dev/null
find_mosquitto
find_mosquitto_pub
find_pgbouncer
find_promtool
# pyenv's Pythons are found by tox only if they are on the path.
for folder in "${PYENV_ROOT:-$HOME/.pyenv}"/versions/3.1[123].*/bin; do
    if [ -d "$folder" ]; then PATH=$PATH:$folder; fi
done
exec "$bootstrap/test/bin/python" -m tox run "$@"
