"""All models by name, collected from their families' files."""

import dataclasses
from collections.abc import Mapping
from types import ModuleType
from typing import Any

from flatten_jax.models import (
    care,
    convnext,
    convnext_isotropic,
    crossvit,
    cswin,
    cvt,
    deit,
    efficientvit,
    flowformer,
    hornet,
    hyena_deit,
    l2vit,
    lra,
    mhla_deit,
    mila,
    msvmamba,
    pvt,
    pvt_v2,
    ravlt,
    skipat_deit,
    soft,
    sret,
    stvit,
    svt,
    swin,
    tnt,
    vig,
    vig_h,
    vvt,
    xcit,
)
from flatten_jax.models.backbone import Backbone
from flatten_jax.models.published import Published

# A family's file says FAMILY, its class; MODELS, name -> settings; ALIASES, others' names for them; and PUBLISHED.
_FAMILIES = (
    deit,
    pvt,
    pvt_v2,
    swin,
    cswin,
    ravlt,
    mila,
    l2vit,
    vvt,
    soft,
    flowformer,
    care,
    efficientvit,
    vig,
    vig_h,
    xcit,
    mhla_deit,
    hyena_deit,
    skipat_deit,
    convnext,
    convnext_isotropic,
    hornet,
    cvt,
    sret,
    svt,
    crossvit,
    tnt,
    msvmamba,
    stvit,
    lra,
)
FAMILIES: dict[str, ModuleType] = {module.__name__.rpartition(".")[2]: module for module in _FAMILIES}


@dataclasses.dataclass(frozen=True)
class Entry:
    """A listed model: `family(**settings)`."""

    family: type[Backbone]
    settings: Mapping[str, Any]


MODELS: dict[str, Entry] = {
    name: Entry(module.FAMILY, settings) for module in _FAMILIES for name, settings in module.MODELS.items()
}
ALIASES: dict[str, str] = {alias: name for module in _FAMILIES for alias, name in module.ALIASES.items()}
PUBLISHED: dict[str, Published] = {name: said for module in _FAMILIES for name, said in module.PUBLISHED.items()}


def where_weights_are(name: str) -> str:
    """Where the published weights of a model are, and how they are loaded, for people."""
    said = PUBLISHED.get(name)
    if said is None or not said.weights:
        return (
            f"No published weights of {name} are known here, `flatten-jax models` links those of others; a file is "
            "loaded by flatten_jax.load_weights(FILE, model)"
        )
    return (
        f"Those of {name} are at {said.weights}: download them in a browser, then "
        f"flatten_jax.load_weights({name + '.pth'!r}, flatten_jax.create_model({name!r})), "
        f"or flatten-jax predict --from {name}.pth PICTURES"
    )
