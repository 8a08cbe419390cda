#!/usr/bin/env bash
# On every host of a Cloud TPU: train in the background, log to ~/flatten_jax.log, and outlive the ssh session.
#   tools/tpu_train.sh --config configs/flatten_pvt_t.py --workdir gs://BUCKET/runs/flatten_pvt_t ...
# The same command again goes on from the newest checkpoint. To stop: pkill -TERM -f main.py (it saves first).
set -euo pipefail
cd "$(dirname "$0")/.."
if pgrep -f 'python -u main\.py' >/dev/null; then
    echo "$(hostname): main.py runs already; pkill -TERM -f main.py ends it with a checkpoint" >&2
    exit 1
fi
setsid nohup ~/venv/bin/python -u main.py "$@" >>~/flatten_jax.log 2>&1 </dev/null &
sleep 5
kill -0 $! 2>/dev/null || { echo "$(hostname): main.py ended at once:" >&2; tail -n 20 ~/flatten_jax.log >&2; exit 1; }
echo "$(hostname): started; tail -f ~/flatten_jax.log"
