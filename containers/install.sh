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
#   KEEP_APT      1 keeps compilers and the package lists (default: 0)
#
# CPU and CUDA images differ by TORCH_INDEX alone: where PyTorch has CUDA, its kernels are compiled too, for all
# architectures, by a compiler that is removed again.
set -euo pipefail
umask 022

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
apt-get update -qq
apt-get install -y -qq --no-install-recommends ca-certificates libgomp1 python3 python3-venv
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
packages="$("$PREFIX/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"
# Compiled kernels carry the time of their source with its fractions of a second, which the file systems of images
# drop: whole seconds, or every run would compile them again. Byte code is not compared with its source at all.
find "$packages/bids_gsrecon" -name '*.py' -exec touch -d '2020-01-01 00:00:00 UTC' {} +
"$PREFIX/bin/python" -m compileall -q -f --invalidation-mode unchecked-hash "$packages/bids_gsrecon"

# --- entry points -------------------------------------------------------------------------------------
install -m 644 "$here/environment.sh" "$PREFIX/environment.sh"
for program in bids_gsrecon gsrecon; do
    cat >"/usr/local/bin/$program" <<EOF
#!/bin/sh
prefix=$PREFIX
. "\$prefix/environment.sh"
exec "\$prefix/bin/$program" "\$@"
EOF
    chmod 755 "/usr/local/bin/$program"
done
sed "s|/opt/bids_gsrecon|$PREFIX|" "$here/selftest.sh" >/usr/local/bin/gsrecon-selftest
chmod 755 /usr/local/bin/gsrecon-selftest

# --- kernels ------------------------------------------------------------------------------------------
# Compiled once, here, for every later run: an image is read-only, and a node may be without home.
mkdir -p "$PREFIX/warm/numba" "$PREFIX/warm/matplotlib"
"$PREFIX/bin/python" -c 'import time; print(time.strftime("%Y%m%d%H%M%S", time.gmtime()))' >"$PREFIX/build-id"
prefix="$PREFIX"
# shellcheck source=containers/environment.sh
. "$here/environment.sh"
kernel_levels >"$PREFIX/kernel-levels"
mapfile -t levels <"$PREFIX/kernel-levels"
for level in "${levels[@]:-}"; do
    say "compiling kernels for ${level:-this processor}"
    if [ -n "$level" ]; then export NUMBA_CPU_NAME="$level" NUMBA_CPU_FEATURES=''; fi
    gsrecon-selftest --only-direct | tail -n 1
done
if "$PREFIX/bin/python" -c 'import sys, torch; sys.exit(torch.version.cuda is None)'; then
    say 'compiling CUDA kernels'
    release="$("$PREFIX/bin/python" -c 'import torch; print(torch.version.cuda)')"
    toolkit="$(mktemp -d)"
    apt-get install -y -qq --no-install-recommends g++
    python3 -m venv "$toolkit"
    "$toolkit/bin/python" -m pip install -q "nvidia-cuda-nvcc==$release.*" "nvidia-cuda-crt==$release.*" \
        "nvidia-nvvm==$release.*" "nvidia-cuda-runtime==$release.*" "nvidia-cuda-cccl==$release.*"
    nvcc="$(find "$toolkit" -path '*/bin/nvcc' | head -n 1)"
    [ -n "$nvcc" ] || fail "the toolkit of CUDA $release has no nvcc: set TORCH_INDEX to a build for CUDA 13 or later"
    home="$(dirname "$(dirname "$nvcc")")"
    ln -sf "$(basename "$(find "$home/lib" -name 'libcudart.so.*' | head -n 1)")" "$home/lib/libcudart.so"
    CUDA_HOME="$home" LIBRARY_PATH="$home/lib" "$PREFIX/bin/python" -m bids_gsrecon.gpu.cuda_build --folder "$PREFIX/cuda"
    rm -rf "$toolkit"
    if [ "$KEEP_APT" != 1 ]; then apt-get purge -y -qq --autoremove g++; fi
fi
chmod -R a+rX "$PREFIX"

# --- check and tidy -----------------------------------------------------------------------------------
bids_gsrecon --version
gsrecon --help >/dev/null
if [ "$KEEP_APT" != 1 ]; then
    apt-get clean
    rm -rf /var/lib/apt/lists/*
fi
say 'done'
