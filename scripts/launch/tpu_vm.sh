#!/bin/bash
# A run on a TPU slice (Cloud TPU VMs) that goes on until it is finished; the slice is created again if it is preempted:
#   export NAME=d2mae ZONE=us-west4-a TYPE=v5litepod-16 BUCKET=my-bucket SOURCE=https://.../deblur_mae_jax.git
#   scripts/launch/tpu_vm.sh --config=configs/d2mae_thyroid.py --config.data.name=packed \
#     --config.data.root=gs://my-bucket/packed
# Data and workdir are in the bucket. Needs gcloud, logged in; the workers need Python 3.11 or later (PYTHON).
set -euo pipefail
: "${NAME:?name of the slice}" "${ZONE:?zone, such as us-west4-a}" "${TYPE:?type, such as v5litepod-16}"
: "${BUCKET:?name of the bucket}" "${SOURCE:?address of the repository, which the workers clone}"
VERSION="${VERSION:-v2-alpha-tpuv5-lite}"
WORKDIR="${WORKDIR:-gs://$BUCKET/runs/$NAME}"
SPOT="${SPOT:---spot}"

on_all_workers() {
    gcloud compute tpus tpu-vm ssh "$NAME" --zone="$ZONE" --worker=all --command="$1"
}

is_ready() {
    [ "$(gcloud compute tpus tpu-vm describe "$NAME" --zone="$ZONE" --format='value(state)' 2>/dev/null)" = READY ]
}

create() {
    gcloud compute tpus tpu-vm delete "$NAME" --zone="$ZONE" --quiet 2>/dev/null || true
    # shellcheck disable=SC2086
    gcloud compute tpus tpu-vm create "$NAME" --zone="$ZONE" --accelerator-type="$TYPE" --version="$VERSION" $SPOT
}

# What is there already is not made again, so this can run before every attempt.
prepare() {
    on_all_workers "set -e
        [ -d deblur_mae_jax ] || git clone -q '$SOURCE' deblur_mae_jax
        cd deblur_mae_jax
        [ -e .venv/ready ] || {
            ${PYTHON:-python3} -m venv .venv
            .venv/bin/pip install -q -r requirements.txt
            .venv/bin/pip install -q gcsfs \"jax[tpu]==\$(.venv/bin/python -c 'import jax; print(jax.__version__)')\"
            touch .venv/ready
        }"
}

arguments=""
for argument in "$@"; do
    arguments+=" $(printf '%q' "$argument")"
done

for attempt in $(seq 1 "${MAX_RESTARTS:-50}"); do
    is_ready || create || { sleep 60; continue; }
    prepare || { echo "attempt $attempt: the workers could not be prepared"; sleep 60; continue; }
    code=0
    on_all_workers "cd deblur_mae_jax && .venv/bin/python main.py --distributed=on --workdir='$WORKDIR'$arguments" ||
        code=$?
    echo "attempt $attempt: exit code $code"
    case "$code" in
        0) exit 0 ;;
        2 | 3 | 4 | 5) exit "$code" ;; # a wrong setting, a loss that is not finite, a save that failed, too little memory
        *) sleep 10 ;;                 # stopped, hung, or the connection to a preempted slice was lost
    esac
done
echo "not finished after ${MAX_RESTARTS:-50} attempts"
exit 1
