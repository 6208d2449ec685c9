#!/usr/bin/env bash
# The check on an NVIDIA host, in eight minutes: benchmarks/h100.sh [PACK]
#
# PACK: wheels of mlx and mlx-cuda-13 in a folder, or an archive (.tar.xz) of them unpacked, for a host without a network whose Python has
# NVIDIA's own packages; without it pip installs mlx[cuda13] into a virtual environment. Results come to $OUT (out/ unless set), a line of
# JSON each as they come, so that what is there when the time is over can be kept: check.jsonl, and what was printed, check.txt.
# BUDGET: seconds, 480 unless set.
set -euo pipefail
cd "$(dirname "$0")/.."
pack=${1:-} out=${OUT:-out} budget=${BUDGET:-480} start=$SECONDS
mkdir -p "$out"

if [[ $pack == *.tar.* ]]; then
    site=$(mktemp -d)
    tar -xf "$pack" -C "$site"
    ln -sfn "$(python3 -c 'import nvidia; print(list(nvidia.__path__)[0])')" "$site/nvidia"  # where libmlx.so looks for its libraries
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
