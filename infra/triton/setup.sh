#!/usr/bin/env bash
# Makes .venv-triton: the real Triton server, its Python stub and what the served models import. It is an environment
# of its own because the stub needs numpy < 2. A second call returns at once. Usage: infra/triton/setup.sh [PYTHON]
set -euo pipefail
cd "$(dirname "$0")/../.."

say() { printf 'setup: %s\n' "$*"; }
fail() { printf 'setup: %s\n' "$*" >&2; exit 1; }

python=${1:-python3.11}
venv=.venv-triton
lock=infra/triton/requirements.txt
stamp=$venv/.accordion-lock

stub() { echo "$venv/lib/python3.11/site-packages/pytriton/tritonserver/python_backend_stubs/3.11/triton_python_backend_stub"; }
libdir() { "$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_config_var("LIBDIR"))'; }
missing_libraries() { # shared libraries that the stub needs and this machine has not
    LD_LIBRARY_PATH="$(libdir)" ldd "$(stub)" | sed -n 's/^\s*\(\S*\) => not found.*/\1/p' | tr '\n' ' '
}

need_libraries() { # the stub links libpython3.11, which Debian's python3 does not bring with it
    local missing
    missing=$(missing_libraries)
    [ -n "$missing" ] || return 0
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        say "installing Debian package libpython3.11 (Triton's Python stub needs $missing)"
        apt-get install -y -qq libpython3.11 >/dev/null 2>&1 ||
            { apt-get update -qq && apt-get install -y -qq libpython3.11 >/dev/null; }
        missing=$(missing_libraries)
    fi
    [ -z "$missing" ] || fail "Triton's Python stub needs $missing; install with: sudo apt-get install libpython3.11"
}

key=$( (cat "$lock"; "$python" -c 'import sys; print(sys.base_prefix, sys.version)') | sha256sum | cut -d' ' -f1)
if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$key" ] && "$venv/bin/python" -c '' 2>/dev/null; then
    exit 0
fi
[ "$(uname -sm)" = "Linux x86_64" ] || fail "the Triton server binary exists for x86-64 Linux only; this is $(uname -sm)"
say "making $venv with $("$python" --version) (Triton server, about 15 seconds, 330 MB)"
if [ -x .venv/bin/uv ]; then
    .venv/bin/uv venv --quiet --clear --python "$python" "$venv"
    .venv/bin/uv pip install --quiet --no-deps --require-hashes --python "$venv/bin/python" -r "$lock"
else
    "$python" -m venv --clear "$venv"
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r "$lock"
fi
backend=$venv/backends/python # what tritonserver --backend-directory wants: the backend, its module and its stub side by side
server=$venv/lib/python3.11/site-packages/pytriton/tritonserver
mkdir -p "$backend"
cp "$server"/backends/python/{libtriton_python.so,triton_python_backend_utils.py} "$(stub)" "$backend"
need_libraries
"$venv/bin/python" -c 'import numpy, onnxruntime, tokenizers; assert numpy.__version__ < "2"'
echo "$key" >"$stamp"
