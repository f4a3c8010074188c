#!/bin/sh
# The whole of traksense on this machine, with nothing installed: database, broker, service and a simulated fleet.
#
#   sh ops/demo.sh [arguments of `traksense demo`, such as --seconds 60]
#
# The first run makes a virtual environment in .bootstrap/ and takes a minute; nothing else on the machine is touched.
set -eu
here=$PWD
cd "$(dirname "$0")/.."
# shellcheck source=ops/bootstrap.sh
. ops/bootstrap.sh

make_venv "$bootstrap/demo"
pip_install "$bootstrap/demo" '--editable .[demo]' setup.cfg pyproject.toml
# Where the caller is: that is what a relative --directory means.
cd "$here"
# -P: or a folder named traksense there, such as this clone, would hide the package.
exec "$bootstrap/demo/bin/python" -P -m traksense demo "$@"
