"""The options of a model's attentions, written out: what its weights mean."""

from typing import Any

from flatten_jax.attention import attention_options
from flatten_jax.models.backbone import Backbone


def attention_settings(model: Backbone) -> dict[str, Any]:
    """Every option of every attention of a model, as `create_model` takes them: also those left at their defaults.

    Where the attentions of different stages have different defaults for one, it is a tuple of an entry for each stage
    (in DeiT, block), None where no attention has it. Where those of one stage do, no value says both: it is left out.
    """
    stages = model.attentions()
    entries = stages if len(stages) == model.attn_entries else [(name,) for names in stages for name in names]
    settings = dict(model.attn_options)
    for option in sorted(applicable(model) - settings.keys()):
        known = [[attention_options(name) for name in names] for names in entries]
        defaults = [{own[option] for own in stage if option in own} for stage in known]
        if len(set.union(*defaults)) == 1:
            (settings[option],) = set.union(*defaults)
        elif all(len(values) <= 1 for values in defaults):
            settings[option] = tuple(next(iter(values), None) for values in defaults)
    return settings


def applicable(model: Backbone) -> set[str]:
    """The options of the attentions of a model."""
    return {option for names in model.attentions() for name in names for option in attention_options(name)}
