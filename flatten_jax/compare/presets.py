"""What is held fixed: host, data, recipe. A preset is a config of main.py and what it changes, as one table of facts.

So a run of `flatten-jax compare run --preset NAME` is main.py with the preset's config and overrides, an attention
and a seed, and nothing else.
"""

import difflib
from typing import NamedTuple


class Preset(NamedTuple):
    """A host and its recipe.

    Attributes:
        config: a config file of main.py, from the folder where the command is started.
        overrides: of its settings, as main.py takes them.
        rates: learning rates to choose from on softmax, `optimizer.learning_rate`.
        search_epochs: of the short runs that they are chosen by.
        search_split: that these are evaluated on; "": the one of the runs.
        about: host, data, and how long a run takes where.
    """

    config: str
    overrides: tuple[str, ...]
    rates: tuple[float, ...]
    search_epochs: float
    about: str
    search_split: str = ""


def _settings(**sections: dict[str, object]) -> tuple[str, ...]:
    """Overrides by section; all presets keep one checkpoint, and loop over alike blocks."""
    common = {"model": {"scan": True}, "checkpoint": {"keep": 1}}
    sections = {name: {**common.get(name, {}), **sections.get(name, {})} for name in {**common, **sections}}
    return tuple(
        f"--config.{section}.{name}={str(value).replace(' ', '')}"
        for section, values in sections.items()
        for name, value in values.items()
    )


PRESETS: dict[str, Preset] = {
    # 440 steps: a run is 40 to 50 s of one CPU core beside other work, two thirds of it for compiling, which more steps
    # would not change; all attentions and three seeds are about an hour and a half of it. Three blocks compile faster
    # written out than as a loop, 14 s against 18.
    "digits": Preset(
        "configs/digits.py",
        _settings(
            model=dict(image_size=(8, 8), patch_size=2, embed_dim=48, depth=3, num_heads=3, mlp_ratio=2.0, scan=False),
            train=dict(batch_size=32, epochs=10, warmup_epochs=1),
            eval=dict(every_epochs=10),
            checkpoint=dict(every_epochs=5),
        ),
        rates=(3.2e-2, 6.4e-2, 1.28e-1),
        search_epochs=5,
        about="1,437 handwritten digits of 8 x 8 px as 16 tokens, C 48, 3 blocks of 3 heads, 440 steps of 32",
    ),
    "cifar10-small": Preset(
        "configs/cifar10.py",
        _settings(
            model=dict(embed_dim=128, depth=4, num_heads=4, mlp_ratio=2.0, drop_path=0.0),
            train=dict(epochs=15, warmup_epochs=1),
            augment=dict(scale=(0.5, 1.0), rand_augment="", mixup=0.0, cutmix=0.0),
            checkpoint=dict(every_epochs=1),
        ),
        rates=(2e-3, 4e-3, 8e-3),
        search_epochs=3,
        about="CIFAR-10 at 32 px, patches of 4: 64 tokens, C 128, 4 blocks of 4 heads, MLP x 2, 15 epochs of crop and "
        "flip; estimated 40 minutes a run on two CPU cores",
    ),
    "cifar10-256": Preset(
        "configs/cifar10.py",
        _settings(
            model=dict(patch_size=2, embed_dim=128, depth=4, num_heads=4, mlp_ratio=2.0, drop_path=0.0),
            train=dict(epochs=100, warmup_epochs=5),
            augment=dict(scale=(0.5, 1.0), mixup=0.0, cutmix=0.0),
        ),
        rates=(2e-3, 4e-3, 8e-3),
        search_epochs=10,
        about="CIFAR-10 at 32 px, patches of 2: 256 tokens, C 128, 4 blocks of 4 heads, MLP x 2, 100 epochs; for a GPU",
    ),
    # Epochs, warm-up, batch, drop path, mixing and erasing of SPT_LSA (aanna0701/SPT_LSA_ViT); its augmentation is
    # AutoAugment with pictures repeated three times, ours RandAugment without, and its MLP is half as wide.
    "cifar10-deit_t": Preset(
        "configs/cifar10.py",
        _settings(
            model=dict(drop_path=0.1),
            train=dict(epochs=100, warmup_epochs=10),
            augment=dict(erase_prob=0.25),
        ),
        rates=(2e-3, 4e-3, 8e-3),
        search_epochs=10,
        about="CIFAR-10 at 32 px, patches of 4: 64 tokens, DeiT-T's width and depth, 100 epochs; for a GPU",
    ),
    # The arena's own models and recipes, but that Image is classified by the mean of the tokens: 14 attentions take no
    # class token. Its one block needs no loop.
    "lra-image": Preset(
        "configs/lra_image.py",
        _settings(
            model=dict(class_token=False, scan=False),
            data=dict(eval_split="test"),
        ),
        rates=(5e-4, 1e-3, 2e-3),
        search_epochs=10,
        about="Long Range Arena's Image, grey CIFAR-10 as 1,024 tokens, C 128, qkv 64, 1 block of 8 heads, 200 epochs, "
        "no class token; rates by the validation split, figures of the test split; for a GPU",
        search_split="validation",
    ),
    "lra-pathfinder": Preset(
        "configs/lra_pathfinder.py:32",
        _settings(data=dict(eval_split="test")),
        rates=(5e-4, 1e-3, 2e-3),
        search_epochs=10,
        about="Long Range Arena's Pathfinder of 32 px, 1,024 tokens, C 32, qkv 16, 4 blocks of 4 heads, 200 epochs; "
        "rates by the validation split, figures of the test split; for a GPU",
        search_split="validation",
    ),
    "imagenet-deit_t": Preset(
        "configs/flatten_deit_t.py",
        _settings(model=dict(drop_path=0.1)),
        rates=(2.5e-4, 5e-4, 1e-3),
        search_epochs=30,
        about="ImageNet-1k, DeiT-T at 224 px without class token, 300 epochs by the config's recipe; for accelerators",
    ),
}


def find(name: str) -> Preset:
    """A preset by name; ValueError names the nearest."""
    if name not in PRESETS:
        close = difflib.get_close_matches(name, PRESETS, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"choose from {', '.join(PRESETS)}"
        raise ValueError(f"--preset {name} is not known; {hint}")
    return PRESETS[name]
