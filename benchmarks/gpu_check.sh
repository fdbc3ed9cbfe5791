#!/usr/bin/env bash
# On a machine with an NVIDIA GPU: measures step times of LLM shapes (refits the engine model of the
# scheduler) and the embedding server's encoder on CUDA beside the CPU. Needs PyTorch with CUDA and
# sentence-transformers in the interpreter that PYTHON names; SAGE itself need not be installed.
#
#   benchmarks/gpu_check.sh OUT [MODEL_FOLDER]
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
[ $# -ge 1 ] || { sed -n '2,6p' "${BASH_SOURCE[0]}" | cut -c3-; exit 2; }
out=$1
shift
export PYTHONPATH=${PYTHONPATH:+$PYTHONPATH:}.:gateway:benchmarks HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1 PYTHONUNBUFFERED=1
exec "${PYTHON:-python3}" -m sage_bench.gpu "$out" ${1:+--model "$1"} "${@:2}"
