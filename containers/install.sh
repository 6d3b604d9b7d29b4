#!/usr/bin/env bash
# Installs the app into a Debian bookworm tree: the one recipe behind Singularity.def, the Dockerfile and a
# plain chroot. Run as root. Everything it depends on is set here or given by these variables:
#
#   SOURCE        folder with the project (default: the parent of this script's folder)
#   PREFIX        where the environment goes (default: /opt/bids_gsrecon)
#   TORCH         requirement for PyTorch (default: torch==2.13.0)
#   TORCH_INDEX   package index for PyTorch; CPU builds by default, for CUDA for instance
#                 https://download.pytorch.org/whl/cu130 ; empty: pip's own index
#   EXTRAS        optional parts of the project, for instance "validate" (default: none)
#   KEEP_APT      1 keeps the compiler and the package lists (default: 0)
set -euo pipefail

here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
SOURCE="${SOURCE:-$(dirname "$here")}"
PREFIX="${PREFIX:-/opt/bids_gsrecon}"
TORCH="${TORCH:-torch==2.13.0}"
TORCH_INDEX="${TORCH_INDEX-https://download.pytorch.org/whl/cpu}"
EXTRAS="${EXTRAS:-}"
KEEP_APT="${KEEP_APT:-0}"

export DEBIAN_FRONTEND=noninteractive
export PYTHONNOUSERSITE=1
export PIP_NO_CACHE_DIR=1
export PIP_DISABLE_PIP_VERSION_CHECK=1
export NO_ET=1 NIPYPE_NO_ET=1

say() { printf '[install] %s\n' "$*"; }
fail() { printf '[install] ERROR: %s\n' "$*" >&2; exit 1; }

[ "$(id -u)" = 0 ] || fail 'run me as root (I install packages)'
[ -f "$SOURCE/setup.cfg" ] || fail "no setup.cfg in $SOURCE: set SOURCE to the project's folder"

# --- system -------------------------------------------------------------------------------------------
# The wheels bring everything else. Python 3.11 is bookworm's own.
say 'system packages'
apt-get update -q
apt-get install -y -q --no-install-recommends ca-certificates libgomp1 python3 python3-venv
python3 -c 'import sys; sys.exit(sys.version_info < (3, 10))' || fail 'needs Python 3.10 or later (bookworm has 3.11)'

# --- environment --------------------------------------------------------------------------------------
say "environment in $PREFIX"
python3 -m venv "$PREFIX"
pip() { "$PREFIX/bin/python" -m pip "$@"; }
torch_arguments=("$TORCH")
if [ -n "$TORCH_INDEX" ]; then
    torch_arguments+=(--index-url "$TORCH_INDEX")
fi
# PyTorch first and alone, from its own index: the project's requirement then finds it installed.
pip install -q "${torch_arguments[@]}"
# Built from a copy: a source tree mounted read-only stays untouched.
build="$(mktemp -d)"
trap 'rm -rf "$build"' EXIT
cp -r "$SOURCE/bids_gsrecon" "$SOURCE/gpu" "$SOURCE/workflows" "$SOURCE/setup.cfg" "$SOURCE/pyproject.toml" "$build/"
for file in README.md LICENSE CHANGES.md; do
    if [ -f "$SOURCE/$file" ]; then cp "$SOURCE/$file" "$build/"; fi
done
find "$build" -name __pycache__ -type d -prune -exec rm -rf {} +
target="$build"
if [ -n "$EXTRAS" ]; then target="${build}[$EXTRAS]"; fi
pip install -q "$target"
pip check

# --- entry points -------------------------------------------------------------------------------------
# In a read-only container numba cannot use a cache that it cannot write: the warm one is then copied to a
# place that it can (a few MB), once per machine and user.
for program in bids_gsrecon gsrecon; do
    cat >"/usr/local/bin/$program" <<EOF
#!/bin/sh
warm=$PREFIX/numba-cache
: "\${NUMBA_CACHE_DIR:=\$warm}"
if [ ! -w "\$NUMBA_CACHE_DIR" ]; then
    NUMBA_CACHE_DIR="\${TMPDIR:-/tmp}/gsrecon-numba-\$(id -u)"
    if [ ! -d "\$NUMBA_CACHE_DIR" ]; then
        copy="\$NUMBA_CACHE_DIR.\$\$"
        if cp -r "\$warm" "\$copy" && chmod -R u+w "\$copy"; then
            mv -T "\$copy" "\$NUMBA_CACHE_DIR" 2>/dev/null || rm -rf "\$copy"
        fi
    fi
fi
: "\${MPLCONFIGDIR:=\${TMPDIR:-/tmp}/gsrecon-matplotlib-\$(id -u)}"
export NUMBA_CACHE_DIR MPLCONFIGDIR PYTHONNOUSERSITE=1 NO_ET=1 NIPYPE_NO_ET=1
exec "$PREFIX/bin/$program" "\$@"
EOF
    chmod 755 "/usr/local/bin/$program"
done

# --- kernels ------------------------------------------------------------------------------------------
# Compiled once, here, for every later run: a container is read-only, and a node may be without home. The
# cache is keyed by the processor: on another kind of node the first run compiles them again (a minute).
export NUMBA_CACHE_DIR="$PREFIX/numba-cache"
mkdir -p "$NUMBA_CACHE_DIR"
say 'compiling kernels (a small harmonisation)'
warm="$(mktemp -d)"
gsrecon demo "$warm/demo" >/dev/null
reference="$(find "$warm/demo" -name '*_T1w.nii.gz' -not -path '*/derivatives/*' | sort | head -n 1)"
contrast="$(find "$warm/demo" -name '*_T2w.nii.gz' -not -path '*/derivatives/*' | sort | head -n 1)"
gsrecon harmonize "$reference" "$contrast" -o "$warm/out" >/dev/null
rm -rf "$warm"
chmod -R a+rX "$PREFIX"

# --- check and tidy -----------------------------------------------------------------------------------
bids_gsrecon --version
gsrecon --help >/dev/null
if [ "$KEEP_APT" != 1 ]; then
    apt-get clean
    rm -rf /var/lib/apt/lists/*
fi
say 'done'
