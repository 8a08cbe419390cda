"""Values of the settings `distill` and `linearize` that are right by themselves and do not fit together."""

from collections.abc import Iterator

import ml_collections

STAGES = ("align", "features", "train")


def conflicts(config: ml_collections.ConfigDict) -> Iterator[str]:
    """A line for each."""
    distill, linearize = config.distill, config.linearize
    asks = [f"distill.kind={distill.kind!r}"] if distill.kind not in ("none", "mesa") else []
    asks += [f"distill.weight={distill.weight:g}"] if distill.weight and distill.kind != "mesa" else []
    asks += [f"distill.new_factor={distill.new_factor:g}"] if distill.new_factor != 1 else []
    asks += [f"linearize.attention={linearize.attention!r}"] if linearize.attention else []
    if asks and not distill.teacher:
        yield f"{asks[0]} needs a teacher: add --config.distill.teacher=PATH, a run's folder or a file of weights"
    if distill.teacher and not asks:
        yield (
            f"distill.teacher={distill.teacher!r} has no effect: say what it teaches, such as "
            "--config.distill.kind=hard or --config.distill.weight=50"
        )
    if distill.kind in ("align", "features") and distill.weight and not linearize.attention:
        yield f"distill.weight={distill.weight:g} has no effect on distill.kind={distill.kind!r}: leave it out"
    if distill.match == "map" and distill.learns not in ("auto", "new"):
        yield f"distill.learns={distill.learns!r} has no effect on distill.match='map', which teaches what is new alone"
    decay = config.train.ema_decay
    if distill.kind == "mesa" and not (decay and distill.weight):
        yield (
            f"distill.kind='mesa' teaches what the moving average answers: train.ema_decay={decay:g} and "
            f"distill.weight={distill.weight:g} must be above 0, such as 0.9999 and 1"
        )
    if linearize.attention:
        yield from _of_stages(config)


def _of_stages(config: ml_collections.ConfigDict) -> Iterator[str]:
    stages = split(config.linearize.stages)
    wrong = [stage for stage in stages if stage not in STAGES]
    if wrong or len(set(stages)) < len(stages):
        yield f"linearize.stages={config.linearize.stages!r} must be of {', '.join(STAGES)}, each once, with commas"
    if any(not number.isdecimal() for number in split(config.linearize.keep)):
        yield f"linearize.keep={config.linearize.keep!r} must be numbers of blocks with commas, such as 7,11"
    if config.init_from:
        yield f"init_from={config.init_from!r} has no effect on a conversion, which starts from distill.teacher"
    if config.distill.kind not in ("none", "soft", "hard"):
        yield (
            f"distill.kind={config.distill.kind!r} is a stage of a conversion: name it in linearize.stages; none, soft "
            "and hard say what stage train learns beside"
        )


def split(text: str) -> list[str]:
    """ "7, 11" -> ["7", "11"]."""
    return [word.strip() for word in text.split(",") if word.strip()]
