"""The surface that all backbones have: logits, features, maps of every level, and what to call them."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from flatten_jax.attention.contract import Site
from flatten_jax.attention.table import attention_class, of_stage, takes_bias
from flatten_jax.models.blocks import Block, drop_path_rates
from flatten_jax.models.images import check_images
from flatten_jax.models.stack import rematerialised, run_blocks
from flatten_jax.ops.dense import Dense
from flatten_jax.ops.norm import LayerNorm


class Backbone(nn.Module):
    """Base of the models; a family says what its levels compute.

    `model.apply(variables, images, train=False)` gives
        logits (B, num_classes), float32; or
        with num_classes=0: the pooled features (B, C), float32; there is no head, `head` has no parameters; or
        with features_only=True: a list of maps (B, height, width, C), one for each of `out_indices`, before the final
        norm and the head, which have no parameters, nor have the levels after the last one asked for.
    `model.apply(variables, images, method="forward_features")` gives what is pooled, after the final norm: a map
        (B, height, width, C); in DeiT tokens (B, N, C), the class token first where there is one.

    Attributes:
        num_classes: width of the logits.
        image_size: (height, width). Position encodings and windows are made for it.
        attn_type: name of the attention (`flatten_jax.list_attentions()`), or a pattern of names (`attention.pattern`).
        attn_options: attributes of the attentions, such as {"focusing_factor": 3}; a tuple has an entry for each stage.
        drop_path: stochastic-depth rate of the last block; it grows linearly from 0.
        dtype: of the computation (None: float32). Parameters are float32, logits too.
        remat: compute blocks again in the backward pass instead of keeping their intermediates.
        remat_policy: what `remat` keeps all the same: "nothing", or "products", the results of linear layers, so that
            only what is quick is computed again.
        scan: loop over blocks that are alike instead of writing them out, which compiles faster (`stack.run_blocks`).
        features_only: be a backbone of dense prediction.
        out_indices: levels wanted of features_only, negative ones from the end; () means the family's choice.
        feature_norm: a LayerNorm `norm{level}` on each map of features_only, as in Swin's detection code; in families
            whose originals have such norms in their own detection code, that.
    """

    # An entry of the original's state dict that no other family's has; "" for hosts, known by widths and attentions.
    hallmark: ClassVar[str] = ""
    tokens: ClassVar[bool] = False  # whether it takes numbers of tokens (B, N), and no pictures
    pads: ClassVar[bool] = False  # whether it takes pictures of any size, padded where they have to be
    no_weight_decay: ClassVar[tuple[str, ...]] = ()
    epsilon: ClassVar[float] = 1e-6  # of the LayerNorms in blocks and after them
    # Patterns of how the names end of what the original's state dict holds and anyone can compute: not loaded.
    computed: ClassVar[tuple[str, ...]] = ()
    # Where the layers are that belong to the classes: what `new_head` makes new.
    heads: ClassVar[tuple[tuple[str, ...], ...]] = (("head",),)

    num_classes: int = 1000
    image_size: tuple[int, int] = (224, 224)
    attn_type: str = "focused"
    attn_options: Mapping[str, Any] = nn.FrozenDict()
    drop_path: float = 0.0
    dtype: jnp.dtype | None = None
    remat: bool = False
    remat_policy: str = "nothing"
    scan: bool = False
    features_only: bool = False
    out_indices: tuple[int, ...] = ()
    feature_norm: bool = False

    # What a family says.

    def level_info(self) -> list[dict[str, Any]]:
        """{"num_chs", "reduction", "module"} of each level."""
        raise NotImplementedError

    def attentions(self) -> list[tuple[str, ...]]:
        """The names of the attentions of each stage's blocks; none in a family whose mixers cannot be exchanged."""
        if self.attn_type:
            raise ValueError(
                f"{type(self).__name__} has no attention to exchange: leave out attn_type={self.attn_type!r}"
            )
        return []

    def levels(self, images: jax.Array, train: bool, count: int) -> list[jax.Array]:
        """What the first `count` levels give, none of the later ones being computed."""
        raise NotImplementedError

    def check_input(self, images: jax.Array) -> None:
        """ValueError, with what to do, unless these are what `levels` takes."""
        check_images(images, self.image_size)

    def final_norm(self, x: jax.Array) -> jax.Array:
        return LayerNorm(epsilon=self.epsilon, dtype=self.dtype, name="norm")(x)

    def final_map(self, x: jax.Array, train: bool) -> jax.Array:
        """What is pooled, of the last level: that after `final_norm`, unless the family has more there."""
        return self.final_norm(x)

    def pool(self, x: jax.Array) -> jax.Array:
        return x.mean(axis=(1, 2))

    def as_map(self, x: jax.Array) -> jax.Array:
        """A level as (B, height, width, C)."""
        return x

    def map_norm(self, x: jax.Array, i: int) -> jax.Array:
        """Level i, of features_only, after its norm."""
        return LayerNorm(epsilon=self.epsilon, dtype=self.dtype, name=f"norm{i}")(x)

    def classify(self, x: jax.Array, train: bool) -> jax.Array | tuple[jax.Array, ...]:
        """Logits (B, num_classes) of the pooled features; of several heads those of each, whose mean is given."""
        return Dense(self.num_classes, dtype=self.dtype, name="head")(x)

    def original(self, name: str) -> str:
        """PyTorch's name of an entry that would be called `name` by the names of our modules."""
        return name

    def torch_buffers(self) -> dict[str, np.ndarray]:
        """What the original's strict loading asks for besides weights: PyTorch's name -> value. See `computed`."""
        return {}

    def torch_copies(self, entries: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """What the original's state dict holds under a second name: that name -> the entry. See `computed`."""
        return {}

    # Options that only blocks with scores (True), or only those without (False), look at.
    only_with: ClassVar[Mapping[str, bool]] = {}

    def idle_options(self) -> set[str]:
        """Attributes that have no effect with the others as they are."""
        present = {takes_bias(name) for names in self.attentions() for name in names}
        idle = {option for option, scores in self.only_with.items() if scores not in present}
        idle |= set() if self.features_only else {"out_indices", "feature_norm"}
        return idle | (set() if self.remat else {"remat_policy"})

    def looped(self) -> "Backbone":
        """This model with a loop over alike blocks, which is traced once."""
        return self if "scan" in self.idle_options() else self.clone(scan=True)

    def host(self, i: int, j: int, attention: str, options: dict[str, Any]) -> partial[nn.Module]:
        """Makes the host of the attention of block j of stage i; blocks with equal ones are alike."""
        raise NotImplementedError

    def rates(self) -> list[list[float]]:
        """Drop-path rates of each stage's blocks."""
        return drop_path_rates(self.drop_path, [len(names) for names in self.attentions()])

    def default_indices(self) -> tuple[int, ...]:
        return tuple(range(len(self.level_info())))

    # What follows from it.

    @nn.nowrap  # the blocks belong to whichever module calls: Swin's layers
    def stage(
        self,
        x: jax.Array,
        site: Site,
        i: int,
        name: str,
        *,
        block: type[nn.Module] = Block,
        count: int | None = None,
        scan: bool | None = None,
        first: int = 0,
        own: Callable[[int], dict[str, Any]] = lambda j: {},
        **settings: Any,
    ) -> list[jax.Array]:
        """The blocks of stage i, one after the other: what each gives; with `scan` only what the last one gives.

        Args:
            x: (B, N, C) tokens at `site`, or a map (B, height, width, C), then the results are maps too; or whatever
                else `block` takes and gives: TNT's words beside the tokens.
            name: of the blocks, "stage1_" say, to which their number is added.
            block: makes a block of attention=, epsilon=, dtype=, name= and `settings`.
            count: the first so many blocks only.
            scan: default: the model's.
            first: number of the first block, in its name.
            own: own(j) -> settings of block j alone; blocks with equal ones are alike.
        """
        if isinstance(x, jax.Array) and x.ndim == 4:
            tokens = x.reshape(x.shape[0], -1, x.shape[3])
            site = site.replace(grid=x.shape[1:3])
            more = dict(block=block, count=count, scan=scan, first=first, own=own, **settings)
            outputs = self.stage(tokens, site, i, name, **more)
            return [y.reshape(*x.shape[:3], y.shape[2]) for y in outputs]
        attentions = self.attentions()
        rates = self.rates()[i][:count]
        names, make = attentions[i][:count], rematerialised(block, self.remat_policy) if self.remat else block
        hosts = [self.host(i, j, attention, self.options_of(i, j)) for j, attention in enumerate(names)]
        settings = {"epsilon": self.epsilon, "dtype": self.dtype, **settings}
        blocks = [
            make(attention=of_block, name=f"{name}{first + j}", **settings, **own(j))
            for j, of_block in enumerate(hosts)
        ]
        kinds = [(of_block.func, of_block.args, of_block.keywords, own(j)) for j, of_block in enumerate(hosts)]
        carry = any(attention_class(attention).takes_before for attention in names)
        return run_blocks(blocks, kinds, rates, x, site, scan=self.scan if scan is None else scan, carry=carry)

    @property
    def answer_head(self) -> bool:
        """Whether the last of its heads is for a teacher's answers (`distill.tasks`)."""
        return False

    @property
    def prefix(self) -> int:
        """How many tokens stand before those of the picture: a class token, where there is one."""
        return int(getattr(self, "class_token", False))

    def options_of(self, i: int, j: int) -> dict[str, Any]:
        """The options of the attention of block j of stage i."""
        return of_stage(self.attn_options, i)

    @property
    def attn_entries(self) -> int:
        """How many entries an attention's option has that is a tuple."""
        return len(self.attentions())

    @property
    def feature_info(self) -> list[dict[str, Any]]:
        """Of each map of features_only: num_chs, reduction (its stride), module (the release's name), index."""
        info = self.level_info()
        return [{**info[i], "index": i} for i in self._indices()]

    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array | list[jax.Array]:
        """images: (B, height, width, 3), normalised -> logits, pooled features, or a list of maps: see the class."""
        return self._forward(images, train, "maps" if self.features_only else "logits")

    def forward_features(self, images: jax.Array, train: bool = False) -> jax.Array:
        """images: (B, height, width, 3), normalised -> the features before pooling: see the class."""
        if self.features_only:
            raise ValueError("features_only=True has no final norm: call the model itself, or make it without")
        return self._forward(images, train, "features")

    def logits_of_heads(self, images: jax.Array, train: bool = False) -> tuple[jax.Array, ...]:
        """images: (B, height, width, 3), normalised -> logits (B, num_classes) of each head; the labels' head first."""
        if self.features_only or not self.num_classes:
            raise ValueError(f"features_only={self.features_only}, num_classes={self.num_classes}: there is no head")
        return self._forward(images, train, "heads")

    @nn.compact
    def _forward(self, images: jax.Array, train: bool, output: str) -> Any:
        self.check_input(images)
        indices = self._indices()
        levels = self.levels(images, train, max(indices) + 1 if output == "maps" else len(self.level_info()))
        if output == "maps":
            maps = [self.as_map(levels[i]) for i in indices]
            return [self.map_norm(x, i) for i, x in zip(indices, maps, strict=True)] if self.feature_norm else maps
        x = self.final_map(levels[-1], train)
        if output == "features":
            return x
        x = self.pool(x)
        if self.num_classes:
            x = self.classify(x, train)
        if output == "heads":
            return tuple(head.astype(jnp.float32) for head in (x if isinstance(x, tuple) else (x,)))
        return (sum(x[1:], x[0]) / len(x) if isinstance(x, tuple) else x).astype(jnp.float32)

    def _indices(self) -> tuple[int, ...]:
        count = len(self.level_info())
        if any(not -count <= i < count for i in self.out_indices):
            raise ValueError(f"out_indices={self.out_indices} must be within the {count} levels of this model")
        return tuple(i % count for i in self.out_indices) or self.default_indices()
