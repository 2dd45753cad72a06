#!/usr/bin/env bash
# Runs tests.gpu.on_card with the packages that `python -m tests.gpu.prepare` packed. In the repository's root:
#   bash tests/gpu/run.sh --parts 0-4 --seconds 300
# $PYTHON has torch; figures go to $OUT.
set -eu
python=${PYTHON:-python3}
site=$(mktemp -d)
for wheel in .gpu/wheels/*.whl; do "$python" -m zipfile -e "$wheel" "$site"; done
export PYTHONPATH="$site:$PWD/.gpu/bitsandbytes:$PWD" PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1 PYTORCH_NVML_BASED_CUDA_CHECK=1
exec "$python" -m tests.gpu.on_card --out "${OUT:-.}" "$@"
