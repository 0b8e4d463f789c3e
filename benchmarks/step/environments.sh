#!/bin/sh
# The peers' environments, one for each framework because their requirements clash, beside the checkout:
#     sh benchmarks/step/environments.sh [FOLDER, else ../thalweg-peers] [NAME...]
# Where one is absent, its rows of the bench say so. run.py finds them there, or in the folder THALWEG_PEERS names.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
folder=${1:-$here/../../../thalweg-peers}
[ $# -gt 0 ] && shift
[ $# -gt 0 ] || set -- jax tensorflow torch
for name in "$@"; do
    test -x "$folder/$name/bin/python" || "${PYTHON:-python3}" -m venv "$folder/$name"
    "$folder/$name/bin/python" -m pip install --quiet --requirement "$here/requirements-$name.txt"
done
