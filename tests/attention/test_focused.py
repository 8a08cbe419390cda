"""The focused map, the linear core and the attention against the paper's and the release's numbers."""

import importlib.util
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flatten_jax import QKVAttention, ReducedAttention
from flatten_jax.attention import Site, focused_map, linear_attention
from flatten_jax.attention.focused import stretch_tokens
from flatten_jax.bench import gpus

QUERY = jnp.array([0.39, 0.94])
KEYS = jnp.array([[0.43, 0.87], [0.54, 0.30], [0.97, 0.32], [0.86, 0.14]])


# Spec, section 1; p = 1 and p = 3 are the paper's figure 4.
@pytest.mark.parametrize(
    ("p", "scores"),
    [
        (1, [0.376, 0.188, 0.259, 0.178]),
        (2, [0.570, 0.165, 0.165, 0.100]),
        (3, [0.750, 0.114, 0.085, 0.051]),
        (4, [0.870, 0.069, 0.038, 0.024]),
    ],
)
def test_scores_sharpen_with_the_power_as_in_figure_4(p, scores):
    products = focused_map(KEYS, p) @ focused_map(QUERY, p)
    np.testing.assert_allclose(products / products.sum(), scores, atol=6e-4)  # the table has three digits


@pytest.mark.parametrize("p", [1, 2, 2.5, 3, 8, 32])
def test_map_is_the_formula_in_float64(p):
    x = np.random.default_rng(0).normal(size=(5, 24))
    raw = np.random.default_rng(1).normal(size=24)
    positive = (np.maximum(x, 0) + 1e-6) / np.log1p(np.exp(raw))
    power = positive**p
    expected = np.linalg.norm(positive, axis=-1, keepdims=True) * power / np.linalg.norm(power, axis=-1, keepdims=True)
    np.testing.assert_allclose(focused_map(jnp.float32(x), p, jnp.float32(raw)), expected, rtol=2e-5, atol=1e-9)


def test_map_keeps_the_length():
    x = jnp.abs(jax.random.normal(jax.random.key(0), (7, 16)))
    np.testing.assert_allclose(jnp.linalg.norm(focused_map(x, 3), axis=-1), jnp.linalg.norm(x, axis=-1), rtol=1e-5)


@pytest.mark.parametrize("p", [1, 2.5, 3, 32])
@pytest.mark.parametrize("form", ["cpu", "cuda", "default"])
def test_map_gradient_is_that_of_the_plain_formula_in_float64(form, p, monkeypatch):
    """In every form that it is lowered to."""
    monkeypatch.setattr(
        jax.lax, "platform_dependent", lambda *args, **branches: branches.get(form, branches["default"])(*args)
    )

    def plain(x, p, scale):
        positive = (jnp.maximum(x, 0) + 1e-6) / nn.softplus(scale)
        power = positive**p
        norms = (jnp.linalg.norm(a, axis=-1, keepdims=True) for a in (positive, power))
        return power * next(norms) / next(norms)

    with jax.enable_x64(True):
        x, scale, weight = (
            jax.random.normal(jax.random.key(i), shape) for i, shape in enumerate([(5, 24), (24,), (5, 24)])
        )
        ours, expected = (
            jax.grad(lambda x, scale, form=form: (form(x, p, scale) * weight).sum(), (0, 1))(x, scale)
            for form in (focused_map, plain)
        )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12), ours, expected)


@pytest.mark.skipif(importlib.util.find_spec("jax_plugins") is None, reason="needs jax[cuda13], but no GPU")
def test_map_is_one_kernel_on_gpus():
    """Compiled, not run: of all kernels one has results of the size of the tokens, the map's own."""
    [device] = gpus.describe("h100", 1)
    place = jax.sharding.SingleDeviceSharding(device)
    x, scale = (jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=place) for shape in ((32, 784, 384), (384,)))
    half = jax.jit(lambda x, scale: focused_map(x, 3, scale).astype(x.dtype))
    text = half.lower(x, scale).compile(gpus.COMPILER_OPTIONS).as_text()
    results = re.findall(r"^ .* = (\S+) fusion\(", text[text.index("ENTRY") :], re.MULTILINE)
    assert [result[: result.index("]") + 1] for result in results if "784" in result] == ["bf16[32,784,384]"]


def test_map_rejects_a_power_below_one():
    with pytest.raises(ValueError, match="focusing_factor=0"):
        focused_map(KEYS, 0)


def test_core_is_attention_with_the_row_normalised_product_matrix():
    q, k, v = (jax.random.uniform(key, (2, 9, 3, 4)) for key in jax.random.split(jax.random.key(0), 3))
    scores = jnp.einsum("bnhd,bmhd->bhnm", q, k)
    expected = jnp.einsum("bhnm,bmhe->bnhe", scores / scores.sum(-1, keepdims=True), v)
    np.testing.assert_allclose(linear_attention(q, k, v), expected, rtol=1e-4)


def sines(shape, index):
    return (0.3 * np.sin(0.37 * np.arange(np.prod(shape)) + 0.9 * index + 0.1)).reshape(shape)


def test_swin_form_gives_the_release_numbers_in_float64():
    """Spec, section 1: the release's module under weights and input that anyone can write down."""
    with jax.enable_x64(True):
        params = {
            "dwc": {"bias": sines((4,), 0), "kernel": sines((4, 1, 5, 5), 1).transpose(2, 3, 1, 0)},
            "positional_encoding": sines((1, 16, 8), 2),
            "proj": {"bias": sines((8,), 3), "kernel": sines((8, 8), 4).T},
            "qkv": {"bias": sines((24,), 5), "kernel": sines((24, 8), 6).T},
            "scale": sines((1, 1, 8), 7),
        }
        x = np.cos(0.21 * np.arange(2 * 16 * 8)).reshape(2, 16, 8)
        y = np.asarray(QKVAttention(num_heads=2).apply({"params": params}, jnp.asarray(x), Site((4, 4))))
    assert y.dtype == np.float64
    first = [0.17652994, -0.07037302, -0.07074887, -0.23641738, -0.26310458, -0.28976209, -0.3141945, -0.18775272]
    last = [0.52035532, -0.31711722, 0.07079987, -0.26811577, -0.34229895, -0.10227929, -0.60380027, 0.19445224]
    np.testing.assert_allclose(y[0, 0], first, atol=1e-8)
    np.testing.assert_allclose(y[1, 15], last, atol=1e-8)
    np.testing.assert_allclose([y.sum(), np.abs(y).sum()], [-36.33064604619, 62.66397281321], atol=1e-8)


EXTREMES = {
    "zeros": lambda shape: np.zeros(shape),
    "huge": lambda shape: 1e4 * np.sign(np.random.default_rng(0).normal(size=shape)),
    "constant": lambda shape: np.full(shape, 1e4),
    "one huge": lambda shape: np.eye(shape[1], shape[2])[None].repeat(shape[0], 0) * 1e4,
}


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("p", [1, 3, 8, 32])
def test_core_is_finite_with_finite_gradients(dtype, p):
    def total(q, k, v):
        q, k = (focused_map(a, p).reshape(1, 16, 2, 4) for a in (q, k))
        y = linear_attention(q, k, v.reshape(1, 16, 2, 4), dtype=dtype)
        return y.astype(jnp.float32).sum(), y

    compiled = jax.jit(jax.grad(total, argnums=(0, 1, 2), has_aux=True))
    for extreme, make in EXTREMES.items():
        gradients, y = compiled(*[jnp.asarray(make((1, 16, 8)), dtype)] * 3)
        assert y.dtype == dtype
        assert all(bool(jnp.isfinite(a).all()) for a in (y, *gradients)), extreme


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_module_is_finite_with_finite_gradients(dtype):
    module, shape = QKVAttention(num_heads=3, dtype=dtype), (2, 196, 192)
    params = jax.jit(lambda: module.init(jax.random.key(0), jnp.zeros(shape), Site((14, 14))))()

    def total(params, x):
        return module.apply(params, x, Site((14, 14))).astype(jnp.float32).sum()

    compiled = jax.jit(jax.value_and_grad(total, argnums=(0, 1)))
    for extreme, make in EXTREMES.items():
        value, gradients = compiled(params, jnp.asarray(make(shape), dtype))
        assert np.isfinite(value), extreme
        assert all(bool(jnp.isfinite(g).all()) for g in jax.tree.leaves(gradients)), extreme


@pytest.mark.parametrize("switch", [{"focusing_factor": 1}, {"use_dwc": False}, {"use_positional_encoding": False}])
def test_each_switch_of_the_ablation_changes_the_answer(switch):
    x = jax.random.normal(jax.random.key(0), (1, 12, 8))
    full = QKVAttention(num_heads=2)
    params = full.init(jax.random.key(1), x, Site((3, 4)))["params"]
    # Away from its zero start, so that leaving the encoding out can be seen.
    params["positional_encoding"] = params["positional_encoding"] + jax.random.normal(jax.random.key(2), (1, 12, 8))
    ablated = QKVAttention(num_heads=2, options=switch)
    kept = jax.eval_shape(lambda: ablated.init(jax.random.key(1), x, Site((3, 4))))["params"]
    answer = ablated.apply({"params": {name: params[name] for name in kept}}, x, Site((3, 4)))
    difference = jnp.abs(answer - full.apply({"params": params}, x, Site((3, 4)))).max()
    assert difference > 1e-3 * jnp.abs(answer).max()


def test_vanilla_linear_attention_has_only_its_projections_and_scale():
    options = {"focusing_factor": 1, "use_dwc": False, "use_positional_encoding": False}
    module, x = QKVAttention(2, options=options), jnp.zeros((1, 4, 8))
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), x, Site((2, 2))))
    assert set(shapes["params"]) == {"qkv", "proj", "scale"}


def test_rows_and_columns_of_a_rectangular_grid_are_told_apart():
    """Only the depthwise branch knows the grid: transposing picture and kernel transposes the answer."""
    x = jax.random.normal(jax.random.key(0), (1, 3, 5, 8))
    module = QKVAttention(num_heads=2, options={"use_positional_encoding": False})
    params = module.init(jax.random.key(1), x.reshape(1, 15, 8), Site((3, 5)))
    upright = module.apply(params, x.reshape(1, 15, 8), Site((3, 5))).reshape(1, 3, 5, 8)
    params["params"]["dwc"]["kernel"] = params["params"]["dwc"]["kernel"].swapaxes(0, 1)
    turned = module.apply(params, x.swapaxes(1, 2).reshape(1, 15, 8), Site((5, 3))).reshape(1, 5, 3, 8)
    np.testing.assert_allclose(turned.swapaxes(1, 2), upright, atol=1e-5)


def test_grid_that_does_not_hold_the_tokens_is_refused():
    with pytest.raises(ValueError, match=r"17 tokens were given, and the grid 4 x 4 has 16.*class token"):
        QKVAttention(num_heads=2).init(jax.random.key(0), jnp.zeros((1, 17, 8)), Site((4, 4)))


def test_heads_that_do_not_divide_the_channels_are_refused():
    with pytest.raises(ValueError, match="channels=8 is not divisible by num_heads=3"):
        QKVAttention(num_heads=3).init(jax.random.key(0), jnp.zeros((1, 16, 8)), Site((4, 4)))


def test_values_are_stretched_as_torch_interpolate_does():
    """torch.nn.functional.interpolate([1, 2, 4], size=6, mode="linear") (PyTorch 2.13)."""
    v = jnp.array([1.0, 2.0, 4.0]).reshape(1, 3, 1)
    np.testing.assert_allclose(stretch_tokens(v, 6)[0, :, 0], [1, 1.25, 1.75, 2.5, 3.5, 4], atol=1e-6)


def test_reduced_form_has_encodings_and_keys_on_the_coarse_grid():
    module = ReducedAttention(num_heads=2, sr_ratio=2)
    x = jax.random.normal(jax.random.key(0), (1, 24, 8))
    params = module.init(jax.random.key(1), x, Site((4, 6)))
    assert params["params"]["positional_encoding"].shape == (1, 6, 8)
    assert module.apply(params, x, Site((4, 6))).shape == x.shape
