"""Learning rate step by step, which tensors decay, and the update itself."""

import math

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from flatten_jax.models import abstract_variables, create_model
from flatten_jax.training.optimizer import decay_mask, make_optimizer, make_schedule


def config(**changes):
    values = dict(learning_rate=5e-4, warmup_learning_rate=1e-6, min_learning_rate=1e-5, weight_decay=0.05)
    return ml_collections.ConfigDict(values | dict(clip_norm=0.0, b1=0.9, b2=0.999, eps=1e-8) | changes)


def test_schedule_is_the_releases_number_by_number():
    """timm's CosineLRScheduler with warmup_prefix=False: the cosine does not wait for the warm-up."""
    schedule = make_schedule(config(), batch_size=1024, warmup_steps=50, total_steps=3000)
    cosine = lambda t: 2e-5 + 0.5 * (1e-3 - 2e-5) * (1 + math.cos(math.pi * t / 3000))  # noqa: E731
    expected = {0: 2e-6, 25: 2e-6 + (1e-3 - 2e-6) / 2, 49: 2e-6 + (1e-3 - 2e-6) * 49 / 50}
    expected |= {50: cosine(50), 51: cosine(51), 1500: cosine(1500), 2999: cosine(2999), 3000: 2e-5, 3099: 2e-5}
    for step, rate in expected.items():
        assert float(schedule(step)) == pytest.approx(rate, rel=1e-4), step


def test_schedule_without_warm_up_starts_at_the_peak():
    schedule = make_schedule(config(), batch_size=512, warmup_steps=0, total_steps=10)
    assert float(schedule(0)) == pytest.approx(5e-4, rel=1e-6)


def undecayed(name):
    model = create_model(name)
    params = abstract_variables(model)["params"]
    mask = flatten_dict(decay_mask(params, model.no_weight_decay), sep="/")
    return mask, {path.split("/")[-1] for path, decayed in mask.items() if not decayed}


def test_linear_attention_is_decayed_norms_and_biases_are_not():
    mask, spared = undecayed("flatten_pvt_t")
    assert spared == {"bias", "scale"}  # `scale` of LayerNorms
    for name in ("attn/positional_encoding", "attn/scale", "attn/dwc/kernel", "attn/q/kernel"):
        assert mask[f"block1_0/{name}"]
    assert mask["pos_embed1"]
    assert not mask["block1_0/norm1/scale"]


def test_deit_spares_its_position_embedding_and_class_token():
    assert undecayed("deit_t")[1] == {"bias", "scale", "pos_embed", "cls_token"}
    assert undecayed("flatten_deit_t")[0]["blocks_0/attn/positional_encoding"]


def test_update_is_torch_adamws():
    """torch.optim.AdamW (2.13), lr 0.1, weight_decay 0.05: weight [[1, -2]], bias [3], three steps of constant
    gradient ([[0.5, -1e-3]], [-2])."""
    optimizer = make_optimizer(config(), lambda step: 0.1, ())
    params = {"kernel": jnp.array([[1.0, -2.0]]), "bias": jnp.array([3.0])}
    state = optimizer.init(params)
    for _ in range(3):
        gradient = {"kernel": jnp.array([[0.5, -1e-3]]), "bias": jnp.array([-2.0])}
        updates, state = optimizer.update(gradient, state, params)
        params = jax.tree.map(jnp.add, params, updates)
    np.testing.assert_allclose(params["kernel"], [[0.68657243, -1.67165041]], rtol=1e-5)
    np.testing.assert_allclose(params["bias"], [3.3], rtol=1e-6)


def test_clip_bounds_the_global_norm_of_the_gradient():
    """Adam forgets the gradient's scale but for eps: with a large one the clip can be seen."""
    gradient = {"a": jnp.array([3.0]), "b": jnp.array([4.0])}  # norm 5
    sizes = []
    for clip_norm in (0.0, 1.0):
        optimizer = make_optimizer(config(clip_norm=clip_norm, eps=1e3, weight_decay=0.0), lambda step: 1.0, ())
        params = jax.tree.map(jnp.zeros_like, gradient)
        sizes.append(optimizer.update(gradient, optimizer.init(params), params)[0]["a"][0])
    assert float(sizes[0] / sizes[1]) == pytest.approx(5, rel=1e-2)
