#!/bin/sh
# sh run.sh FLUENT_DIR NOTO_DIR WORK_DIR
# Data, tokenizers, both training rounds, scores and reference files; the checkpoint is WORK_DIR/tiny.
set -eu
if [ $# -ne 3 ]; then
    echo "usage: sh run.sh FLUENT_DIR NOTO_DIR WORK_DIR" >&2
    exit 2
fi
here=$(cd "$(dirname "$0")" && pwd)
fluent=$1 noto=$2 work=$3

recipe() {
    script=$1
    shift
    "${PYTHON:-python3}" "$here/$script" "$@"
}

recipe build_data.py --fluent "$fluent" --noto "$noto" --out "$work/data"
recipe build_tokenizer.py --data "$work/data" --out "$work/tokenizers"

denoiser() {
    recipe train_denoiser.py --data "$work/data" --tokenizers "$work/tokenizers" "$@"
}

recipe train_vae.py --data "$work/data" --out "$work/vae1" --steps 876
denoiser --vae "$work/vae1" --out "$work/round1" --steps 3262

recipe train_vae.py --data "$work/data" --init "$work/vae1" --out "$work/vae2" --steps 2678 --batch 12 --kl 2e-6
denoiser --vae "$work/vae2" --init "$work/round1" --out "$work/tiny" --steps 1074 --lr 8e-4 --warm-up 0.05 --seed 5

recipe evaluate.py --model "$work/tiny" --data "$work/data" --out "$work/evaluation"
recipe golden.py --model "$work/tiny"
