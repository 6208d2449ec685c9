#!/usr/bin/env bash
# The check on an NVIDIA host, in eight minutes: benchmarks/h100.sh [PACK]
#
# PACK: a folder with wheels of mlx and mlx-cuda-13, or an archive (.tar.xz) with their unpacked contents, for a host without network whose
# Python has NVIDIA's packages; without PACK pip installs mlx[cuda13] into a virtual environment. Results are written to $OUT (default out/)
# as they come, one line of JSON each, so that partial results are kept: check.jsonl, and the printed output, check.txt.
# BUDGET: seconds, default 480.
set -euo pipefail
cd "$(dirname "$0")/.."
pack=${1:-} out=${OUT:-out} budget=${BUDGET:-480} start=$SECONDS
mkdir -p "$out"

if [[ $pack == *.tar.* ]]; then
    site=$(mktemp -d)
    tar -xf "$pack" -C "$site"
    ln -sfn "$(python3 -c 'import nvidia; print(list(nvidia.__path__)[0])')" "$site/nvidia"  # libmlx.so looks for its libraries here
    export PYTHONPATH="$PWD:$site${PYTHONPATH:+:$PYTHONPATH}"
    python=python3
else
    python3 -m venv --system-site-packages "$out/venv"
    python="$out/venv/bin/python"
    if [[ -n $pack ]]; then
        "$python" -m pip install --quiet --no-index --find-links "$pack" mlx mlx-cuda-13
    else
        "$python" -m pip install --quiet "mlx[cuda13]==0.32.4"
    fi
    export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
fi

export MLX_ENABLE_TF32=0  # float32 products in float32
left=$((budget - (SECONDS - start)))
"$python" -m ember_mlx --check --budget "$left" --json "$out/check.jsonl" 2>&1 | tee "$out/check.txt"
