#!/usr/bin/env bash
# The paper's ablation on CIFAR-10: five attentions, three seeds, one recipe; then a table of what came out.
#   tools/cifar_ablation.sh FOLDER RUNS [more overrides, such as --config.model.dtype=bfloat16]
# FOLDER holds train/<class>/ and test/<class>/; RUNS gets a folder for each run. Stopped, it goes on where it was.
set -euo pipefail
cd "$(dirname "$0")/.."
folder=$(realpath "$1") runs=$2
shift 2
off='--config.model.use_dwc=False --config.model.use_positional_encoding=False'
declare -A variants=(
    [1_softmax]='--config.model.attn_type=S'
    [2_vanilla_linear]="--config.model.focusing_factor=1 $off"
    [3_focused_map]="$off"
    [4_depthwise_branch]='--config.model.focusing_factor=1 --config.model.use_positional_encoding=False'
    [5_flatten]=''
)
for seed in 0 1 2; do
    for variant in $(printf '%s\n' "${!variants[@]}" | sort); do
        # shellcheck disable=SC2086
        python main.py --config configs/cifar10.py --workdir "$runs/$variant-$seed" --config.seed="$seed" \
            --config.data.folder="$folder" ${variants[$variant]} "$@"
    done
done
python - "$runs" <<'PYTHON'
import json, pathlib, statistics, sys

found = {}
for run in sorted(pathlib.Path(sys.argv[1]).glob("*-[0-9]")):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    last = {name: value for line in lines for name, value in line.items()}
    found.setdefault(run.name[2:-2], []).append((last["eval/acc1"], last["perf/img_per_sec"]))
print("| attention | top-1 of each seed | mean | images/s |\n|---|---|---|---|")
for name, runs in found.items():
    accuracies, speeds = zip(*runs)
    print(f"| {name.replace('_', ' ')} | {', '.join(f'{a:.2f}' for a in accuracies)} | {statistics.mean(accuracies):.2f} | {statistics.median(speeds):.0f} |")
PYTHON
