#!/bin/bash
# The same as jobset.yaml with xpk, which writes the JobSet itself:
#   CLUSTER=my-cluster NAME=d2mae TYPE=v5litepod-16 IMAGE=... BUCKET=my-bucket \
#     scripts/launch/xpk.sh --config=configs/d2mae_thyroid.py --config.data.name=packed \
#     --config.data.root=gs://my-bucket/packed
set -euo pipefail
: "${CLUSTER:?name of the cluster}" "${NAME:?name of the run}" "${TYPE:?type, such as v5litepod-16}" "${IMAGE:?image}"
: "${BUCKET:?name of the bucket}"
WORKDIR="${WORKDIR:-gs://$BUCKET/runs/$NAME}"

arguments=""
for argument in "$@"; do
    arguments+=" $(printf '%q' "$argument")"
done
# With --max-restarts, xpk starts the run again after exit codes 42 and 127 to 255; 124 (a run that hung) and 75 (a bucket
# that could not be reached) are added.
xpk workload create --cluster="$CLUSTER" --workload="$NAME" --tpu-type="$TYPE" --num-slices=1 \
    --docker-image="$IMAGE" --max-restarts="${MAX_RESTARTS:-50}" --restart-on-exit-codes=75,124 \
    --command="exec python main.py --distributed=on --workdir=$WORKDIR$arguments"
