#!/bin/sh
# The peers' environment, beside the checkout:
#     sh benchmarks/rules/environments.sh [FOLDER, else THALWEG_PEERS, else ../thalweg-peers]
# Where it is absent, their rows of the bench say so. run.py finds it there, or in the folder THALWEG_PEERS names.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
folder=${1:-${THALWEG_PEERS:-$here/../../../thalweg-peers}}
test -x "$folder/rules/bin/python" || "${PYTHON:-python3}" -m venv "$folder/rules"
"$folder/rules/bin/python" -m pip install --quiet --requirement "$here/requirements.txt"
