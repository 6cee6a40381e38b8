#!/usr/bin/env bash
# Resolves requirements.in into requirements.lock: every package, one version, no index address.
set -euo pipefail
cd "$(dirname "$0")/.."
find_links=()
for folder in ${PIP_FIND_LINKS:-}; do find_links+=(--find-links "$folder"); done
.venv/bin/uv pip compile --quiet --python-version 3.11 "${find_links[@]}" requirements.in --override infra/overrides.txt \
    --constraint requirements.lock --no-annotate --no-header --no-emit-index-url --no-emit-find-links |
    sed 's/^torch==\([0-9.]*\)+cpu$/torch==\1/' >requirements.lock.new
mv requirements.lock.new requirements.lock
printf 'lock: %s packages in requirements.lock\n' "$(grep -c == requirements.lock)"
