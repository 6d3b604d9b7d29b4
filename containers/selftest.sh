#!/usr/bin/env bash
# Every method once, on images of a few voxels: compiles the kernels when the image is built, and shows
# afterwards that it works and has nothing left to compile. Installed as gsrecon-selftest.
#
#   gsrecon-selftest [--only-direct]      (--only-direct: without the run as a BIDS-App)
set -euo pipefail
export OMP_WAIT_POLICY=passive # on a shared machine, waiting threads would keep others from working

folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
prefix="${GSRECON_PREFIX:-/opt/bids_gsrecon}"
# shellcheck source=containers/environment.sh
. "$prefix/environment.sh"

compiled() { find "$NUMBA_CACHE_DIR" -name '*.nbc' 2>/dev/null | wc -l; }
try() {
    local began=$SECONDS
    if ! gsrecon "$@" >"$folder/log" 2>&1; then
        cat "$folder/log" >&2
        echo "gsrecon-selftest: FAILED: gsrecon $1" >&2
        exit 1
    fi
    echo "gsrecon-selftest: $1: $((SECONDS - began)) s"
}

before="$(compiled)"
cd "$folder"
try demo demo --resolution 4
anat=demo/sub-01/anat
try harmonize $anat/sub-01_T1w.nii.gz $anat/sub-01_T2w.nii.gz -o harmonized --save-field --relax-geometry
try sample harmonized/sub-01_T2w_field.h5 --resolution 3 -o sampled.nii.gz
try superres $anat/sub-01_T2w.nii.gz -o fine.nii.gz
try simulate stacks $anat/sub-01_T1w.nii.gz moved --in-plane 4 --thickness 8
try svr moved/stack-{1,2,3}.nii.gz --masks moved/mask-{1,2,3}.nii.gz -o volume.nii.gz --resolution 4
try simulate cine case.h5 --matrix 48 48 --frames 8
try cine case.h5 -o cine.nii.gz
try evaluate fine.nii.gz fine.nii.gz
if [ "${1:-}" != --only-direct ]; then
    began=$SECONDS
    bids_gsrecon demo out participant -w work --skip-bids-validation --sloppy --nprocs 2 --omp-nthreads 1 | tail -n 1
    echo "gsrecon-selftest: bids_gsrecon: $((SECONDS - began)) s"
fi
echo "gsrecon-selftest: OK: ${NUMBA_CPU_NAME:-this processor}, $(compiled) kernels, $(($(compiled) - before)) of them compiled now"
