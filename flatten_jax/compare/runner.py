"""What attentions learn: one run of main.py for each attention and seed, in a folder each that any machine may share.

DIR/PRESET/preset.json                  the config that all runs have in common
DIR/PRESET/rate_softmax.json            the learning rates that were tried, and the one that was chosen
DIR/PRESET/search/NAME-lrRATE-s0/       the short runs that it was chosen by
DIR/PRESET/runs/NAME-lrRATE-sSEED/      runs: config, metrics, checkpoints, train.log; result.json when it is over
"""

import contextlib
import json
import math
import re
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import ml_collections

from flatten_jax import attention as attentions_of
from flatten_jax import paths
from flatten_jax.analysis.curves import read_metrics
from flatten_jax.bench.report import commit, hardware
from flatten_jax.compare import patterns
from flatten_jax.compare.inside import inside
from flatten_jax.compare.presets import Preset
from flatten_jax.models import multiply_adds, normalize, num_params
from flatten_jax.training import loop, settings, setup
from flatten_jax.training.checkpoint import Checkpoints, load_weights
from flatten_jax.training.lock import FolderInUseError, only_run_in

REFERENCE = "softmax"
OF_A_CASE = ("config.seed", "config.model.attn_type", "config.optimizer.learning_rate")
OF_A_PLACE = ("data.folder", "data.data_dir", "data.workers")  # may be others on another machine
RESULT = "result.json"
ReadConfig = Callable[[str, list[str]], ml_collections.ConfigDict]  # `cli.config_file.read_config`


@dataclass(frozen=True)
class Case:
    """One run.

    Attributes:
        attention: a name, or a name with options, "focused[use_dwc=False]".
        seed: of the first parameters, the order of the data and the augmentation.
        rate: optimizer.learning_rate.
        hybrid: which blocks keep softmax instead, as `patterns.parse` takes it; "": none.
    """

    attention: str
    seed: int
    rate: float
    hybrid: str = ""

    @property
    def label(self) -> str:
        return f"{self.attention} {self.hybrid}".strip()

    @property
    def folder(self) -> str:
        name = re.sub(r"[^\w=.]+", "_", self.label).strip("_")
        return f"{name}-lr{self.rate:g}-s{self.seed}"

    def overrides(self, entries: int) -> list[str]:
        """What main.py is given besides the preset's; `entries` are the model's blocks, or stages."""
        name, options = split(self.attention)
        kind = patterns.attn_type(patterns.parse(self.hybrid, entries), name) if self.hybrid else name
        chosen = {"model.attn_type": kind, **{f"model.{k}": v for k, v in options.items()}}
        chosen |= {"seed": self.seed, "optimizer.learning_rate": self.rate}
        return [f"--config.{key}={value}" for key, value in chosen.items()]


def split(attention: str) -> tuple[str, dict[str, str]]:
    """ "focused[use_dwc=False,focusing_factor=1]" -> its name and its options.

    Raises:
        ValueError: not written so, or an unknown attention or option.
    """
    match = re.fullmatch(r"([^\[\],]+)(?:\[([\w.,=]+)\])?", attention)
    pairs = [pair.partition("=") for pair in (match[2] or "").split(",") if pair] if match else [("", "", "")]
    if not all(name and equals and value for name, equals, value in pairs):
        raise ValueError(f"attention {attention!r} must be a name, or name[option=value,...]")
    blocks = attentions_of.pattern(match[1], [1 + len(re.findall(r"[/+]", match[1]))])[0]
    known = {option for name in blocks for option in attentions_of.attention_options(name)}
    if unknown := sorted({name for name, _, _ in pairs} - known):
        raise ValueError(f"{match[1]} has no option {', '.join(unknown)}; it has {', '.join(sorted(known)) or 'none'}")
    return match[1], {name: value for name, _, value in pairs}


def all_attentions() -> list[str]:
    """Every attention, for a model that has it in all blocks; what needs another one before it comes after softmax."""
    names = attentions_of.list_attentions()
    return [f"{REFERENCE}*1+{n}" if attentions_of.attention_class(n).takes_before else n for n in names]


class Comparison:
    """The runs of a preset in a folder.

    Args:
        preset, name: of `presets.PRESETS`.
        out: DIR.
        read_config: gives the config of a file with overrides.
        overrides: more of them, for all runs, such as --config.data.folder=PATH.
        say: is told a line for every run.

    Raises:
        ValueError, OSError: the preset's config or data, or runs that are there are of another config.
    """

    def __init__(
        self,
        name: str,
        preset: Preset,
        out: Path,
        read_config: ReadConfig,
        overrides: Sequence[str] = (),
        say: Callable[[str], None] = print,
    ):
        self.name, self.preset, self.folder, self.say = name, preset, out / name, say
        commit()  # now, see there
        self._read, self._overrides = read_config, [*preset.overrides, *overrides]
        if own := [o for o in overrides if o.lstrip("-").partition("=")[0] in OF_A_CASE]:
            raise ValueError(f"{own[0]} is what the runs differ in: use --attentions, --seeds and --learning-rates")
        config = setup.prepare(self._config([f"--config.model.attn_type={REFERENCE}"])).config
        self.entries = setup.model_of(config).attn_entries
        self._claim(json.loads(config.to_json_best_effort()), self._changed())

    def run(self, attentions: Sequence[str], seeds: int, hybrids: Sequence[str] = (), own_rates: bool = False) -> int:
        """Every run that is not there yet, all attentions with one seed before the next seed; softmax is first.

        Args:
            seeds: how many, from 0.
            hybrids: of every attention but softmax, besides itself.
            own_rates: each attention's own rate is searched as softmax's is, and run too where it is another one.

        Returns:
            how many runs have no result, since others hold them or there was no memory.
        """
        attentions = list(dict.fromkeys((REFERENCE, *attentions)))
        kinds = [(a, "") for a in attentions] + [(a, h) for a in attentions if a != REFERENCE for h in hybrids]
        for attention, hybrid in kinds:  # mistakes are to be known before the first run
            Case(attention, 0, 0.0, hybrid).overrides(self.entries)
        rate = self.rate(REFERENCE)
        cases = [Case(attention, seed, rate, hybrid) for seed in range(seeds) for attention, hybrid in kinds]
        left = self._all(cases)
        if own_rates:
            own = {kind: self.rate(*kind) for kind in kinds}
            left += self._all([Case(a, s, r, h) for s in range(seeds) for (a, h), r in own.items() if r != rate])
        return left

    def rate(self, attention: str, hybrid: str = "") -> float:
        """The learning rate that a short search chose, which is done if it was not: best at its end, with seed 0.

        ValueError where none of the rates trains.
        """
        cases = [Case(attention, 0, rate, hybrid) for rate in self.preset.rates]
        path = self.folder / f"rate_{cases[0].folder.rpartition('-lr')[0]}.json"
        if path.exists():
            return json.loads(path.read_text())["chosen"]
        while True:
            results = [self._once(case, "search", self._search_overrides()) for case in cases]
            if all(results):
                break
            self.say(f"waiting for the search of {cases[0].label}'s learning rate, which others do")
            time.sleep(10)
        trained = [result for result in results if result["status"] == "finished"]
        if not trained and attention == REFERENCE:
            raise ValueError(f"none of the rates {self.preset.rates} trains {attention}: {results[0]['said']}")
        best = max(trained, key=lambda r: (r["top1"], -r["loss"]), default={"rate": self.preset.rates[0]})
        tried = [{key: r.get(key) for key in ("rate", "status", "top1", "loss")} for r in results]
        _write(path, {"attention": attention, "hybrid": hybrid, "chosen": best["rate"], "tried": tried})
        self.say(f"learning rate of {cases[0].label}: {best['rate']:g} of {self.preset.rates}")
        return best["rate"]

    def _search_overrides(self) -> list[str]:
        epochs, split = self.preset.search_epochs, self.preset.search_split
        whole = [f"--config.{key}={epochs}" for key in ("train.epochs", "eval.every_epochs", "checkpoint.every_epochs")]
        return whole + ([f"--config.data.eval_split={split}"] if split else [])

    def _all(self, cases: Sequence[Case]) -> int:
        left = 0
        for number, case in enumerate(cases, 1):
            began = time.monotonic()
            there = (self.folder / "runs" / case.folder / RESULT).exists()
            result = self._once(case, "runs")
            left += result is None
            if result and not there:
                what = f"{result['top1']:.2f} %" if result["status"] == "finished" else result["status"]
                seconds = time.monotonic() - began
                self.say(f"[{number}/{len(cases)}] {case.label}, seed {case.seed}: {what} ({seconds:.0f} s)")
        return left

    def _once(self, case: Case, kind: str, overrides: Sequence[str] = ()) -> dict[str, Any] | None:
        """The result of a run, which is done, or gone on with, if it has none; None where another process has it."""
        folder = self.folder / kind / case.folder
        if (folder / RESULT).exists():
            return json.loads((folder / RESULT).read_text())
        with only_run_in(folder, patience=0) as other:
            pass
        if other:
            self.say(f"{case.label}, seed {case.seed}: left to {other}")
            return None
        result = {"preset": self.name, **asdict(case), "made_on": hardware(), "commit": commit()}
        try:
            result |= self._trained(case, folder, overrides, kind == "runs")
        except FolderInUseError as error:
            self.say(f"{case.label}, seed {case.seed}: {error}")
            return None
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            self.say(f"{case.label}, seed {case.seed}: no memory on this machine; left for another one")
            return None
        _write(folder / RESULT, result)
        return result

    def _trained(self, case: Case, folder: Path, overrides: Sequence[str], look: bool) -> dict[str, Any]:
        """What is written of a run: its status, and of a finished one the last epoch's figures, never the best's."""
        config = self._config([*overrides, *case.overrides(self.entries)])
        try:
            model = setup.model_of(settings.checked(config))
        except ValueError as error:
            return {"status": "does not fit", "said": str(error)}
        size = {"parameters": num_params(model), "multiply_adds": _multiply_adds(model)}
        with (folder / "train.log").open("a") as log, contextlib.redirect_stdout(log):
            run = setup.prepare(config)
            try:
                loop.train(run, str(folder))
            except loop.TrainingDiverged as error:
                return size | {"status": "not finite", "said": str(error).split(". ")[0]}
        last = Checkpoints(folder / "checkpoints", read_only=True).evaluation(run.total_steps)
        top1, loss = (last.get(f"eval_raw/{name}", last[f"eval/{name}"]) for name in ("acc1", "loss"))
        if not math.isfinite(loss):
            return size | {"status": "not finite", "said": f"the loss of the last evaluation is {loss}"}
        rates = [record["perf/img_per_sec"] for record in read_metrics(folder) if "perf/img_per_sec" in record]
        size |= {"step": run.total_steps, "images_per_second": statistics.median(rates) if rates else None}
        seen = {"inside": _inside(run, folder)} if look else {}
        return {"status": "finished", "said": "", "top1": top1, "loss": loss, **size, **seen}

    def _config(self, overrides: Sequence[str]) -> ml_collections.ConfigDict:
        return self._read(self.preset.config, [*self._overrides, *overrides])

    def _changed(self) -> list[str]:
        """What the overrides make of the preset's settings, "train.epochs=8.0"."""
        theirs = settings.flat(self._read(self.preset.config, list(self.preset.overrides)).to_dict())
        ours = settings.flat(self._config([]).to_dict())
        return [f"{key}={ours[key]}" for key in sorted(ours) if ours[key] != theirs[key] and key not in OF_A_PLACE]

    def _claim(self, config: dict[str, Any], changed: list[str]) -> None:
        """Save what all runs have in common, or compare it with what is there."""
        ours = json.loads(json.dumps(settings.flat(config)))
        ours = {key: value for key, value in ours.items() if key not in OF_A_PLACE}
        path = self.folder / "preset.json"
        if not path.exists():
            _write(path, {"preset": self.name, "about": self.preset.about, "changed": changed, "config": ours})
            return
        theirs = json.loads(path.read_text())["config"]
        changed = [key for key in sorted(ours.keys() | theirs.keys()) if ours.get(key) != theirs.get(key)]
        if changed:
            lines = "".join(f"\n  {key}: {theirs.get(key)} there, {ours.get(key)} now" for key in changed)
            raise ValueError(f"{self.folder} holds runs of another config:{lines}\nTake another --out.")


@cache
def _multiply_adds(model: nn.Module) -> int:
    return multiply_adds(model)


def _inside(run: setup.Run, folder: Path) -> list[dict[str, Any]]:
    """Of the last step's weights on the first pictures of the evaluation set."""
    variables, _ = load_weights(folder, run.model)
    with contextlib.closing(run.eval_batches()) as batches:
        images = jax.device_get(next(batches)["image"])
    pictures = images.ndim == 4  # else tokens, which the model takes as they are
    images = normalize(images, run.task.mean, run.task.std) if pictures else images
    return inside(run.model, variables, images)


def _write(path: Path, content: dict[str, Any]) -> None:
    paths.write_text(path, json.dumps(content, indent=1) + "\n")
