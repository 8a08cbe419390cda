"""Cut a golden of an official class down to what the tests need: python slice_golden.py SOURCE.npz NAME ATTENTION ...

    python tests/attention/slice_golden.py rala.npz rala rala --heads 6 --grid 14 14

SOURCE holds `keys` ([name, shape] of the state dict), `y`, perhaps `dx` (the gradient of sum(y w) with respect to x,
w = RandomState(8).standard_normal(y.shape)), `grad:NAME` of parameters, `buffer:NAME` (values to be taken as they are).
Weights are made of names and shapes (tests/models/reference.py), x is RandomState(7).standard_normal(shape). Kept are
every few values of y, dx and the gradients, a few kB. To be found by test_goldens.py it needs nothing but its place.
"""

import argparse
import json
from pathlib import Path

import numpy as np

from flatten_jax.weights.layout import is_buffer

STEP = 97  # coprime with all sizes in use: a slice passes through all channels and tokens


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("source")
    parser.add_argument("name", help="of the golden, tests/attention/goldens/NAME.npz")
    parser.add_argument("attention", help="one of list_attentions()")
    parser.add_argument("--heads", type=int, required=True)
    parser.add_argument("--grid", type=int, nargs=2, required=True)
    parser.add_argument("--prefix", type=int, default=0, help="class tokens before those of the grid")
    parser.add_argument("--options", type=json.loads, default={}, help="of the attention, as JSON")
    parser.add_argument("--sr-ratio", type=int, default=1, help="of PVT's host")
    parser.add_argument("--strip", default="", help="start of the official names that is a wrapper's, such as 'a.'")
    args = parser.parse_args()
    with np.load(args.source) as file:
        source = dict(file)
    keys = json.loads(str(source["keys"]))
    kept = {
        "keys": json.dumps(keys),
        "gain": str(source.get("gain", "[]")),
        "call": json.dumps(
            dict(
                attention=args.attention,
                num_heads=args.heads,
                grid=args.grid,
                prefix=args.prefix,
                options=args.options,
                sr_ratio=args.sr_ratio,
                strip=args.strip,
                shape=source["y"].shape,
            )
        ),
        "y": source["y"].reshape(-1)[::STEP],
    }
    for name, array in source.items():
        if name == "dx" or name.startswith("grad:"):
            kept[name] = array.reshape(-1)[::STEP]
        if name.startswith("buffer:") and not is_buffer(name):
            kept[name] = array
    target = Path(__file__).parent / "goldens" / f"{args.name}.npz"
    np.savez_compressed(target, **kept)
    print(f"{target}: {target.stat().st_size / 1024:.1f} kB")


if __name__ == "__main__":
    main()
