# shellcheck shell=sh disable=SC2154
# What every program of the image needs, whoever starts it and however little may be written. Sourced by sh, with
# $prefix set to the folder of the environment; installed by install.sh.

# The processor levels of x86-64 that this machine has, and that kernels are compiled for: worst first.
kernel_levels() {
    flags=" $(sed -n 's/^flags[^:]*: //p' /proc/cpuinfo 2>/dev/null | head -n 1) "
    for flag in avx avx2 bmi1 bmi2 f16c fma abm movbe; do
        case "$flags" in *" $flag "*) ;; *) return 0 ;; esac
    done
    echo x86-64-v3
    for flag in avx512f avx512bw avx512cd avx512dq avx512vl; do
        case "$flags" in *" $flag "*) ;; *) return 0 ;; esac
    done
    echo x86-64-v4
}

# A folder of this user and this image that can be written, made from the one in the image. Where several
# tasks start at once the first one makes it. Compiled code of somebody else is never run.
writable_copy() {
    copy="${TMPDIR:-/tmp}/gsrecon-$(id -u)-$(cat "$prefix/build-id")"
    if [ ! -d "$copy" ]; then
        partial="$(mktemp -d "$copy.XXXXXX")" || return 1
        cp -r "$prefix/warm/." "$partial" && chmod -R u+w "$partial" || return 1
        mv -T "$partial" "$copy" 2>/dev/null || rm -rf "$partial"
    fi
    if [ -z "$(find "$copy" -maxdepth 0 -type d -user "$(id -u)")" ]; then
        copy="$(mktemp -d)" && cp -r "$prefix/warm/." "$copy" && chmod -R u+w "$copy" || return 1
    fi
    echo "$copy"
}

export PYTHONNOUSERSITE=1 NO_ET=1 NIPYPE_NO_ET=1
export LOGNAME="${LOGNAME:-gsrecon}" # a user without an entry in /etc/passwd
if [ -d "$prefix/cuda" ]; then
    export GSRECON_CUDA_CACHE="${GSRECON_CUDA_CACHE:-$prefix/cuda}"
fi

# Kernels lie in the image for levels of processors, not for the one it was built on: any node finds its own.
if [ -z "${NUMBA_CPU_NAME:-}" ]; then
    for level in $(kernel_levels); do
        if grep -qx "$level" "$prefix/kernel-levels" 2>/dev/null; then
            export NUMBA_CPU_NAME="$level" NUMBA_CPU_FEATURES=
        fi
    done
fi

# Caches must be writable to be used at all (a few MB).
if [ -z "${GSRECON_WARM:-}" ]; then
    GSRECON_WARM="$prefix/warm"
    if [ ! -w "$GSRECON_WARM" ]; then
        GSRECON_WARM="$(writable_copy)" || {
            echo "bids_gsrecon: error: ${TMPDIR:-/tmp} cannot be written: mount a writable folder there, or set TMPDIR to one." >&2
            exit 2
        }
    fi
    export GSRECON_WARM
fi
export NUMBA_CACHE_DIR="${NUMBA_CACHE_DIR:-$GSRECON_WARM/numba}"
export MPLCONFIGDIR="${MPLCONFIGDIR:-$GSRECON_WARM/matplotlib}"
if [ ! -w "${HOME:-/nonexistent}" ]; then
    export HOME="$GSRECON_WARM"
fi
