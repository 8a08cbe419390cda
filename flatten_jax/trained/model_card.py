"""The model card of a shared model: Markdown, with the front matter that the Hugging Face Hub reads."""

import json
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax

from flatten_jax.data.augment import eval_transform
from flatten_jax.models import abstract_variables, multiply_adds
from flatten_jax.models.images import IMAGENET_MEAN, IMAGENET_STD

PAPER = "https://arxiv.org/abs/2308.00442"
MAX_CLASSES = 20  # that are listed


def render(config: Mapping[str, Any], model: nn.Module) -> str:
    """The card.

    Args:
        config: what `hub.save_pretrained` writes as config.json.
        model: that it describes.
    """
    return "\n".join([*_front_matter(config), "", *_body(config, model), ""])


def _front_matter(config: Mapping[str, Any]) -> list[str]:
    """YAML. Values are written as JSON, which is YAML."""
    lines = ["---", "library_name: flatten_jax", "pipeline_tag: image-classification"]
    lines += ["tags:", *(f"- {tag}" for tag in ("jax", "flax", "image-classification", "flatten-transformer"))]
    if config["licence"]:
        lines.append(f"license: {json.dumps(config['licence'])}")
    evaluation = config["evaluation"]
    if evaluation is not None:
        dataset = json.dumps(config["dataset"] or "unnamed")
        metrics = [("accuracy", "top-1 accuracy (%)", "eval/acc1"), ("accuracy", "top-5 accuracy (%)", "eval/acc5")]
        metrics.append(("loss", "cross-entropy", "eval/loss"))
        lines += ["model-index:", f"- name: {config['model']}", "  results:"]
        lines += ["  - task:", "      type: image-classification"]
        lines += ["    dataset:", f"      name: {dataset}", f"      type: {dataset}", "    metrics:"]
        for kind, name, key in metrics:
            lines += [f"    - type: {kind}", f"      name: {name}", f"      value: {round(evaluation[key], 4)}"]
    return [*lines, "---"]


def _body(config: Mapping[str, Any], model: nn.Module) -> list[str]:
    name, options, names = config["model"], config["options"], config["class_names"]
    own = {k: v for k, v in options.items() if k not in ("image_size", "num_classes")}
    (height, width), to = model.image_size, eval_transform(model.image_size, config["resize_ratio"]).resize
    squash = config["resize"] == "squash"
    cover, aspect = ("", "whatever their aspect") if squash else ("cover ", "their aspect stays")
    told = tuple(config["mean"]), tuple(config["std"])
    imagenet = told == (IMAGENET_MEAN, IMAGENET_STD)
    normalised = "ImageNet's mean and standard deviation" if imagenet else f"the mean {told[0]} and deviation {told[1]}"
    parameters = sum(leaf.size for leaf in jax.tree.leaves(abstract_variables(model)["params"]))
    lines = [
        f"# {name}",
        "",
        f"An image classifier of the library flatten_jax, which has the models of [FLatten Transformer]({PAPER}).",
        "",
        f"- {parameters:,} parameters, {multiply_adds(model) / 1e9:.3f} G multiply-adds a picture",
        f"- RGB pictures, resized to {cover}{to[0]} x {to[1]} pixels (height x width, bicubic, {aspect}); "
        f"the central {height} x {width} of them, normalised by {normalised}",
        f"- {model.num_classes} classes{_listed(names)}",
    ]
    if own:
        lines.append(f"- options: `{json.dumps(own)}`")
    lines += ["", "## Evaluation", "", *_evaluation(config)]
    lines += ["", "## Use", "", "```python", "from flatten_jax.trained import hub", ""]
    lines += ['model, variables = hub.from_pretrained("FOLDER")  # or owner/name on the Hub']
    lines += ["logits = model.apply(variables, images)", "```", ""]
    lines += ["    flatten-jax predict --from FOLDER pictures/*.jpg", "", "## Weights", ""]
    origin = [f"- {what}: {value}" for what, value in config["origin"].items()]
    lines += [*origin, f"- SHA-256: `{config['sha256']}`", f"- flatten_jax {config['library_version']}"]
    return lines


def _listed(names: list[str] | None) -> str:
    if names is None:
        return ", without names"
    return f": {', '.join(names)}" if len(names) <= MAX_CLASSES else f", from {names[0]} to {names[-1]}"


def _evaluation(config: Mapping[str, Any]) -> list[str]:
    evaluation = config["evaluation"]
    if evaluation is None:
        return ["Not run."]
    return [
        "| data | pictures | top-1 % | top-5 % | loss |",
        "|---|---|---|---|---|",
        f"| {config['dataset'] or 'unnamed'} | {evaluation['eval/count']} | {evaluation['eval/acc1']:.2f} "
        f"| {evaluation['eval/acc5']:.2f} | {evaluation['eval/loss']:.4f} |",
    ]
