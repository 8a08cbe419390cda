"""What is special in CARE: two heads, a last block that ends in its hidden values, and channels kept as memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flatten_jax import to_torch
from flatten_jax.models import abstract_variables
from flatten_jax.ops.gelu import gelu
from flatten_jax.weights.load import load_with_report

from .test_backbones import images, random_variables, small


def test_logits_are_the_mean_of_two_heads_on_the_last_hidden_values():
    model, headless = small("care"), small("care", num_classes=0)
    variables, batch = random_variables(model), images(model)
    pooled, logits = jax.jit(lambda v: (headless.apply(v, batch), model.apply(v, batch)))(variables)
    assert pooled.shape == (2, 64)

    def head(name):
        x = np.asarray(gelu(pooled), np.float64)
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
        own = variables["params"][name]
        return (x * own["norm"]["scale"] + own["norm"]["bias"]) @ own["fc"]["kernel"] + own["fc"]["bias"]

    np.testing.assert_allclose(logits, (head("head") + head("dist_head")) / 2, rtol=1e-4, atol=1e-5)
    info = small("care", features_only=True).feature_info
    assert [(level["num_chs"], level["reduction"]) for level in info] == [(8, 4), (8, 8), (16, 16), (64, 32)]


def test_a_new_head_is_two():
    old, new = small("care"), small("care", num_classes=3)
    arrays = to_torch(random_variables(old), old)
    with pytest.raises(ValueError, match="the weights have 10 classes, the model 3: new_head=True"):
        load_with_report(arrays, new)
    params = load_with_report(arrays, new, new_head=True)[0]["params"]
    assert {params[name]["fc"]["kernel"].shape for name in ("head", "dist_head")} == {(64, 3)}
    np.testing.assert_array_equal(params["stem_0"]["bias"], arrays["stem.0.bias"])


def test_images_below_the_stride_are_refused():
    with pytest.raises(ValueError, match=r"image_size=\(16, 64\) has a side below 32"):
        small("care", image_size=(16, 64))


def test_attentions_are_exchanged():
    tree = abstract_variables(small("care", attn_type="care,linear,rala,softmax"))["params"]["stages_2"]["blocks_0"]
    assert set(tree["token_mixer"]) >= {"qkvo", "proj"}
    assert set(tree["inter_layer"]) == {f"inter{i}_{part}" for i in (1, 2) for part in ("norm", "fc1", "conv", "fc2")}
    assert jnp.shape(tree["gamma"]) == (16,)
