"""All models by name, collected from their families' files."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from flatten_jax.models import crossvit, cswin, deit, msvmamba, pvt, pvt_v2, stvit, swin, tnt
from flatten_jax.models.backbone import Backbone
from flatten_jax.models.published import Published

# A family's file says FAMILY, its class; MODELS, name -> settings; ALIASES, others' names for them; and PUBLISHED.
_FAMILIES = (deit, pvt, pvt_v2, swin, cswin, crossvit, tnt, msvmamba, stvit)


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
