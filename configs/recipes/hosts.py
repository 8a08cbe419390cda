"""Recipes of DeiT, PVT, Swin and CSwin, with the attentions of FLatten, InLine, Agent Attention and PolaFormer."""

from functools import partial

from configs.recipes.recipe import Recipe

# Where a number differs between the paper and the release it is the release's.
_RELEASE = "LeapLabTHU/FLatten-Transformer@abdb115, cfgs/flatten_{}_*.yaml"
_swin = partial(
    Recipe,
    source=_RELEASE.format("swin") + " and the defaults of config.py",
    warmup_learning_rate=5e-7,
    min_learning_rate=5e-6,
    clip_norm=5.0,
)
_deit = partial(_swin, 1024, 0.1, source="not public: these are the FLatten release's Swin settings")
_pvt = partial(Recipe, source=_RELEASE.format("pvt"), warmup_epochs=5, cooldown_epochs=10)
_cswin = partial(
    Recipe,
    source=_RELEASE.format("cswin") + " and the commands of README.md",
    cooldown_epochs=10,
    ema_decay=0.99984,
)
_FINE_SWIN = dict(  # fine-tuned from swin_b; evaluated at 384 x 384 without a crop
    epochs=30,
    warmup_epochs=5,
    learning_rate=2e-5,
    warmup_learning_rate=2e-8,
    min_learning_rate=2e-7,
    weight_decay=1e-8,
    resize_ratio=1.0,
)
_FINE_CSWIN = dict(  # fine-tuned from cswin_b
    epochs=20,
    warmup_epochs=0,
    learning_rate=5e-6,
    warmup_learning_rate=5e-6,
    min_learning_rate=5e-7,
    weight_decay=1e-8,
)
# By the name of the backbone: softmax attention is trained by the recipe of what it is compared with.
_OF_FLATTEN = {
    "deit_t": _deit(),
    "deit_s": _deit(),
    "deit_b": _deit(),
    "pvt_t": _pvt(1024, 0.1),
    "pvt_s": _pvt(512, 0.1),
    "pvt_m": _pvt(512, 0.3, clip_norm=1.0),
    "pvt_l": _pvt(256, 0.3, clip_norm=1.0),
    "pvt_v2_b0": _pvt(1024, 0.1),
    "pvt_v2_b1": _pvt(1024, 0.1),
    "pvt_v2_b2": _pvt(1024, 0.1),
    "pvt_v2_b3": _pvt(1024, 0.3, clip_norm=1.0),
    "pvt_v2_b4": _pvt(512, 0.3, clip_norm=1.0),
    "swin_t": _swin(1024, 0.2),
    "swin_s": _swin(1024, 0.3),
    "swin_b": _swin(512, 0.5),
    "swin_b_384": _swin(256, 0.5, **_FINE_SWIN),
    "cswin_t": _cswin(2048, 0.2),
    "cswin_s": _cswin(1024, 0.4),
    "cswin_b": _cswin(512, 0.5, ema_decay=0.99982, weight_decay=0.1),
    "cswin_b_384": _cswin(256, 0.7, ema_decay=0.99982, **_FINE_CSWIN),
}
_distilled = partial(
    Recipe,
    1024,
    0.1,
    source="facebookresearch/deit, the defaults of main.py",
    warmup_epochs=5,
    cooldown_epochs=10,
    warmup_learning_rate=1e-6 / 2,
    min_learning_rate=1e-5 / 2,
    resize="short",
    repeats=3,
    missing="a teacher, regnety_160, which is not in this library; another: --config.distill.kind=hard "
    "--config.distill.teacher=PATH",
)
# InLine, Agent Attention and PolaFormer are trained by FLatten's recipes, but for batches and averages of the weights.
# InLine trains in float16. DeiT is trained from scratch at 288 and 448 px too, PVT at 256 px and Swin at 288 px.
_OF_INLINE = {
    "deit_t": _swin(4096, 0.1),
    "deit_s": _swin(1024, 0.1),
    "deit_b": _swin(512, 0.1),
    "pvt_t": _pvt(1024, 0.1),
    "pvt_s": _pvt(1024, 0.1),
    "pvt_m": _pvt(1024, 0.3, clip_norm=1.0),
    "pvt_l": _pvt(512, 0.3, clip_norm=1.0),
    "swin_t": _swin(1024, 0.2),
    "swin_s": _swin(1024, 0.3),
    "swin_b": _swin(512, 0.5),
    "swin_b_384": _swin(256, 0.5, **_FINE_SWIN),
    # Its averages are 0.9996 for a batch of 4096, and longer for a smaller one.
    "cswin_t": _cswin(1024, 0.2, ema_decay=0.9996 ** (1024 / 4096)),
    "cswin_s": _cswin(1024, 0.4, ema_decay=0.9996 ** (1024 / 4096)),
    "cswin_b": _cswin(512, 0.5, ema_decay=0.9996 ** (512 / 4096), weight_decay=0.1),
    "cswin_b_384": _cswin(256, 0.7, ema_decay=0.9996 ** (256 / 4096), **_FINE_CSWIN),
}
_OF_AGENT = {
    "deit_t": _swin(4096, 0.0),
    "deit_s": _swin(1024, 0.1),
    "deit_s_448": _swin(512, 0.1),
    "deit_b": _swin(1024, 0.3),
    "pvt_t": _pvt(1024, 0.1),
    "pvt_s": _pvt(1024, 0.1),
    "pvt_m": _pvt(1024, 0.3, clip_norm=1.0),
    "pvt_m_256": _pvt(512, 0.3, clip_norm=1.0),
    "pvt_l": _pvt(512, 0.3, clip_norm=1.0),
    "swin_t": _swin(1024, 0.2),
    "swin_s": _swin(1024, 0.3),
    "swin_s_288": _swin(512, 0.3, resize_ratio=1.0),
    "swin_b": _swin(512, 0.5),
    "swin_b_384": _swin(256, 0.5, **_FINE_SWIN),
    "cswin_t": _cswin(1024, 0.2),
    "cswin_s": _cswin(1024, 0.4),
    "cswin_b": _cswin(512, 0.5, ema_decay=0.99992, weight_decay=0.1),
    "cswin_b_384": _cswin(256, 0.7, ema_decay=0.9998, **_FINE_CSWIN),
}
_OF_POLA = {
    name: recipe for name, recipe in _OF_FLATTEN.items() if name.split("_")[:-1] in (["pvt"], ["swin"], ["swin", "b"])
}


def _of(paper: str, recipes: dict[str, Recipe], source: str) -> dict[str, Recipe]:
    """Recipes by the names of models, with the sources that they have in a repository of FLatten's layout."""
    source += f"{paper}_{{}}_*.yaml, the defaults of config.py, and README.md"
    return {f"{paper}_{name}": own._replace(source=source.format(name.split("_")[0])) for name, own in recipes.items()}


HOSTS: dict[str, Recipe] = {
    **{f"flatten_{name}": recipe for name, recipe in _OF_FLATTEN.items()},
    **_OF_FLATTEN,
    **{f"deit_{size}_distilled": _distilled() for size in "tsb"},
    **_of("inline", _OF_INLINE, "LeapLabTHU/InLine@e463a6f, cfgs/"),
    **_of("agent", _OF_AGENT, "LeapLabTHU/Agent-Attention@207ce3e, agent_transformer/cfgs/"),
    **_of("pola", _OF_POLA, "ZacharyMeng/PolaFormer@44cdd39, cfgs/"),
}
