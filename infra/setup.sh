#!/usr/bin/env bash
# Makes the two environments that everything runs in: .venv (the pipeline) and .venv-triton (the server).
# With --pipeline, only the first (the images need one each). A second call sees that the locks have not changed and returns at once.
set -euo pipefail
cd "$(dirname "$0")/.."

say() { printf 'setup: %s\n' "$*"; }
fail() { printf 'setup: %s\n' "$*" >&2; exit 1; }

find_python() {
    local candidate
    for candidate in "${ACCORDION_PYTHON:-}" python3.11 python3; do
        [ -n "$candidate" ] || continue
        if "$candidate" -c 'import sys; raise SystemExit(sys.version_info[:2] != (3, 11))' 2>/dev/null; then
            command -v "$candidate"
            return
        fi
    done
    fail "Python 3.11 was not found; on Debian 12: apt-get install python3 (or name one with ACCORDION_PYTHON=...)"
}

need_debian() { # need_debian PACKAGE WHY: install a Debian package when that can be done, else say what to do
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        say "installing Debian package $1 ($2)"
        apt-get install -y -qq "$1" >/dev/null 2>&1 || { apt-get update -qq && apt-get install -y -qq "$1" >/dev/null; }
    else
        fail "$2 is missing; install it with: sudo apt-get install $1"
    fi
}

make_pipeline_environment() {
    local python=$1 stamp=.venv/.accordion-lock
    local key
    key=$(cat requirements.lock pyproject.toml | sha256sum | cut -d' ' -f1)
    if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$key" ] && .venv/bin/python -c '' 2>/dev/null; then
        return
    fi
    say "making .venv with $("$python" --version) (one to four minutes, about 2.5 GB)"
    [ -x .venv/bin/python ] && .venv/bin/python -m pip --version >/dev/null 2>&1 || "$python" -m venv --clear .venv
    # torch first and with pip: pip takes a local CPU wheel where it is configured with one (docs/decisions)
    say "installing $(grep '^torch==' requirements.lock)"
    .venv/bin/python -m pip install --quiet --disable-pip-version-check "$(grep '^torch==' requirements.lock)"
    .venv/bin/python -m pip install --quiet --disable-pip-version-check uv
    say "installing the $(grep -c == requirements.lock) locked packages"
    .venv/bin/uv pip install --quiet --no-deps --compile-bytecode --python .venv/bin/python -r requirements.lock
    .venv/bin/uv pip install --quiet --no-deps --no-build-isolation --python .venv/bin/python -e .
    echo "$key" >"$stamp"
}

command -v git >/dev/null || need_debian git "git"
python=$(find_python)
"$python" -c 'import venv, ensurepip' 2>/dev/null || need_debian python3-venv "the venv module of Python"

exec 9>"${TMPDIR:-/tmp}/accordion-setup-$(pwd | sha256sum | cut -c1-12).lock"
flock 9 # two calls at once: the second waits, then finds the work done
make_pipeline_environment "$python"
[ "${1:-}" = --pipeline ] || infra/triton/setup.sh "$python"
