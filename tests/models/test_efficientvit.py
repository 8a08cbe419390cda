"""What is special in EfficientViT: five levels, rates of all residual branches, a convolution before pooling."""

import flax.linen as nn
import jax
import numpy as np
import pytest

from flatten_jax.models import abstract_variables, dummy_images
from flatten_jax.models.efficientvit import _AttentionBlock, _ConvBlock

from .test_backbones import images, random_variables, small


def test_levels_are_halved_and_rounded_up():
    model = small("efficientvit", image_size=(75, 101), features_only=True)
    maps = jax.eval_shape(model.apply, abstract_variables(model), images(model))
    assert [x.shape[1:3] for x in maps] == [(38, 51), (19, 26), (10, 13), (5, 7), (3, 4)]
    assert [info["reduction"] for info in model.feature_info] == [2, 4, 8, 16, 32]
    assert "head" not in abstract_variables(model)["params"]


def test_rates_grow_over_all_residual_branches():
    model, rates = small("efficientvit", depths=(2, 3, 1, 2), drop_path=0.5), []

    def record(call, args, kwargs, context):
        if isinstance(context.module, _ConvBlock) and context.module.shortcut:
            rates.append(context.module.rate)
        elif isinstance(context.module, _AttentionBlock):
            rates.extend([args[2], args[2] + context.module.step])
        return call(*args, **kwargs)

    with nn.intercept_methods(record):
        jax.eval_shape(lambda: model.init(jax.random.key(0), dummy_images(model)))
    np.testing.assert_allclose(rates, 0.5 * np.arange(1, 11) / 10)


def test_features_are_pooled_after_the_convolution_of_the_head():
    model, headless = small("efficientvit"), small("efficientvit", num_classes=0)
    assert set(abstract_variables(headless)["params"]["head"]) == {"op_list_0"}
    variables, batch = random_variables(model), images(model)
    pooled, logits = jax.jit(lambda v: (headless.apply(v, batch), model.apply(v, batch)))(variables)
    head = variables["params"]["head"]
    x = np.asarray(pooled, np.float64) @ head["op_list_2"]["linear"]["kernel"]
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    x = x * head["op_list_2"]["norm"]["scale"] + head["op_list_2"]["norm"]["bias"]
    x = x * np.clip(x + 3, 0, 6) / 6
    expected = x @ head["op_list_3"]["linear"]["kernel"] + head["op_list_3"]["linear"]["bias"]
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("attention", ["litemla,linear", "rala"])
def test_attentions_are_exchanged(attention):
    tree = abstract_variables(small("efficientvit", attn_type=attention))["params"]["backbone"]
    block = tree["stages_3"]["op_list_1"]
    assert set(block["context_module"]["main"]) >= {"proj"}
    assert "norm" not in block["local_module"]["main"]["depth_conv"]
