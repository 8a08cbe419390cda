"""Heads against numbers of mmsegmentation's classes, in float64."""

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from flatten_jax import num_params
from flatten_jax.segmentation.heads import FPN, FCNHead, FPNHead, UPerHead
from flatten_jax.segmentation.resize import bilinear
from flatten_jax.weights.layout import torch_modules
from tests.attention.recipe import assert_is, cosines, sines

SHAPES = ((4, 12, 12), (6, 6, 6), (8, 3, 3), (10, 2, 2))


def filled(variables):
    """Values by the rule of the goldens: sines in the order of PyTorch's names, 1 more for scales of norms."""
    params = flatten_dict(variables["params"])
    leaves = {"kernel": "weight", "scale": "weight", "bias": "bias"}
    names = {path: torch_modules(path[:-1]) + leaves[path[-1]] for path in params}
    made = {}
    for index, path in enumerate(sorted(params, key=names.get)):
        shape = params[path].shape
        torch_shape = (shape[3], shape[2], *shape[:2]) if path[-1] == "kernel" else shape
        values = sines(index, torch_shape)
        made[path] = values.transpose(2, 3, 1, 0) if path[-1] == "kernel" else values + (path[-1] == "scale")
    statistics = flatten_dict(variables.get("batch_stats", {}))
    statistics = {path: np.full(leaf.shape, float(path[-1] == "var")) for path, leaf in statistics.items()}
    return {"params": unflatten_dict(made), "batch_stats": unflatten_dict(statistics)}


def answer(module, *args):
    abstract = jax.eval_shape(lambda: module.init(jax.random.key(0), *args))
    return jax.jit(lambda variables: module.apply(variables, *args))(filled(abstract))


@pytest.fixture
def maps():
    with jax.enable_x64(True):
        yield [cosines(1, *shape).transpose(0, 2, 3, 1) for shape in SHAPES]


def test_uper_head_is_mmsegmentations(maps):
    found = np.asarray(answer(UPerHead(3, 5), maps, False)).transpose(0, 3, 1, 2)
    assert found.shape == (1, 3, 12, 12)
    first, last = [-1.15854228, -1.88519937, -1.93040355], [0.07680273, 0.09927832, -0.01216972]
    assert_is(found, first, last[-1], 3.5614652057, 261.7831873952, 1e-8)
    np.testing.assert_allclose(found.reshape(-1)[-3:], last, atol=1e-8)


def test_fpn_and_its_head_are_mmsegmentations(maps):
    found = np.asarray(answer(FPNHead(3, 5), answer(FPN(6), maps), False)).transpose(0, 3, 1, 2)
    assert found.shape == (1, 3, 12, 12)
    first, last = [0.45916403, 0.61555548, 0.71919929], [-0.48375208, -0.43024192, -0.24486408]
    assert_is(found, first, last[-1], 25.0564412602, 266.5315425623, 1e-8)
    np.testing.assert_allclose(found.reshape(-1)[-3:], last, atol=1e-8)


def test_bilinear_is_not_antialiased():
    """PyTorch's, by hand: of 6 -> 3 each new sample lies between two old ones, of 10 -> 5 likewise."""
    x = cosines(1, 6, 10, 1)
    means = x.reshape(1, 3, 2, 5, 2, 1).mean(axis=(2, 4))
    np.testing.assert_allclose(bilinear(np.float32(x), (3, 5)), means, atol=1e-6)


def sizes(module, widths, *args):
    """Parameters of a module on maps of these widths; nothing is computed."""
    maps = [jax.ShapeDtypeStruct((1, 32 >> i, 32 >> i, width), np.float32) for i, width in enumerate(widths)]
    maps = maps if len(maps) > 1 else maps[0]
    return num_params(jax.eval_shape(lambda maps: module.init(jax.random.key(0), maps, *args), maps))


def test_heads_have_mmsegmentations_numbers_of_parameters():
    assert sizes(UPerHead(150), (96, 192, 384, 768), False) == 31_497_366
    assert sizes(FCNHead(150), (384,), False) == 923_798
    assert sizes(UPerHead(150), (128, 256, 512, 1024), False) == 33_315_990
    assert sizes(FCNHead(150), (512,), False) == 1_218_710
    assert sizes(FPN(), (64, 128, 320, 512)) == 2_623_488
    assert sizes(FPN(), (96, 192, 384, 768)) == 2_729_984
    assert sizes(FPNHead(150), (256,) * 4, False) == 1_643_158
