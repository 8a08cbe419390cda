"""The losses against reference values, computed by the official code in float64 or by NumPy from the formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from flatten_jax.attention.core import row_normalised
from flatten_jax.attention.hedgehog import hedgehog_features
from flatten_jax.attention.softmax import softmax_map
from flatten_jax.distill import losses


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def wave(f, *shape):
    return jnp.cos(f * jnp.arange(np.prod(shape), dtype=jnp.float64)).reshape(shape)


def of_deit(kind, alpha, tau=1.0, reduction="deit"):
    out, answers, taught = wave(0.21, 3, 7), wave(0.5, 3, 7), 3 * wave(0.9, 3, 7)
    base = optax.softmax_cross_entropy(out, jax.nn.softmax(2 * wave(1.3, 3, 7), axis=-1)).mean()
    if kind == "none":
        return base
    return (1 - alpha) * base + alpha * losses.answer_loss(answers, taught, kind, tau, reduction)


def test_answers_are_those_of_deits_code():
    assert of_deit("none", 0) == pytest.approx(1.968443920717, abs=1e-10)
    assert of_deit("hard", 0.5) == pytest.approx(1.913668208490, abs=1e-10)
    assert of_deit("soft", 0.5) == pytest.approx(1.048555828744, abs=1e-10)
    assert of_deit("soft", 0.1, tau=3) == pytest.approx(1.798883057452, abs=1e-10)


def test_a_mean_over_pictures_is_greater_by_the_number_of_classes():
    answers, taught = wave(0.5, 3, 7), 3 * wave(0.9, 3, 7)
    of_picture, of_class = (losses.answer_loss(answers, taught, "soft", 2.0, r) for r in ("sample", "deit"))
    assert of_picture == pytest.approx(7 * float(of_class), rel=1e-12)
    p, q = (np.exp(x / 2) / np.exp(x / 2).sum(-1, keepdims=True) for x in (np.asarray(taught), np.asarray(answers)))
    assert of_picture == pytest.approx(4 * (p * np.log(p / q)).sum() / 3, rel=1e-12)
    assert losses.answer_loss(taught, taught, "soft", 3.0) == 0


def maps():
    q, k, v = (wave(f, 1, 2, 5, 4).swapaxes(1, 2) for f in (0.21, 0.33, 0.47))
    weights = jnp.sin(0.37 * jnp.arange(32.0) + 0.1).reshape(2, 4, 4)
    features = {kind: [hedgehog_features(x, weights, kind) for x in (q, k)] for kind in ("softmax_dim", "exp_dim")}
    return softmax_map(q, k), row_normalised(*features["softmax_dim"], 1e-12), v, features


def test_maps_and_their_loss_are_those_of_lolcats():
    theirs, ours, v, features = maps()
    of_q = features["softmax_dim"][0].swapaxes(1, 2).reshape(-1)
    np.testing.assert_allclose(of_q[:3], [0.27751346, 0.26483532, 0.24237039], atol=1e-8)
    assert of_q[-1] == pytest.approx(0.20922682, abs=1e-8) and of_q.sum() == pytest.approx(20, abs=1e-9)
    assert features["exp_dim"][0].sum() == pytest.approx(70.0391869796, abs=1e-8)
    cross, error = losses.map_cross_entropy(ours, theirs), losses.squared_error(*_moved(ours, theirs, v))
    assert cross == pytest.approx(1.603675252074, abs=1e-10)
    assert error == pytest.approx(0.050819750766, abs=1e-10)
    assert losses.map_cross_entropy(theirs, theirs) == pytest.approx(1.323267569421, abs=1e-10)
    assert losses.map_loss(ours, theirs, v) == pytest.approx(float(1000 * error + cross), rel=1e-12)


def _moved(ours, theirs, v):
    return [[np.einsum("bhnm,bmhd->bnhd", x, v)] for x in (ours, theirs)]


def test_errors_of_blocks_are_a_mean_of_means():
    ours, theirs = [np.zeros((2, 3, 4)), np.zeros((2, 5, 8))], [np.full((2, 3, 4), 2.0), np.full((2, 5, 8), 4.0)]
    assert losses.squared_error(ours, theirs) == (4 + 16) / 2
    assert losses.squared_error(ours, ours) == 0


def test_features_apart():
    x, y = wave(0.3, 2, 5, 4), wave(0.7, 2, 5, 4)
    assert losses.feature_loss(x, y) == pytest.approx(float(((x - y) ** 2).mean()), rel=1e-12)
    a, b = np.asarray(x), np.asarray(y)
    cosine = (a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)
    apart = np.abs(a - b)
    smooth = np.where(apart < 1, apart**2 / 2, apart - 0.5).mean()
    assert losses.feature_loss(x, y, "cosine") == pytest.approx((1 - cosine).mean() + smooth, rel=1e-9)
    for kind in ("mse", "cosine"):
        assert losses.feature_loss(x, x, kind) == pytest.approx(0, abs=1e-9)


def test_what_a_map_never_gives_costs_a_finite_amount():
    ours, theirs = jnp.array([[[[1.0, 0.0]]]]), jnp.array([[[[0.5, 0.5]]]])
    assert losses.map_cross_entropy(ours, theirs) == pytest.approx(-0.5 * np.log(1e-12))
    assert np.isfinite(jax.grad(losses.map_cross_entropy)(ours, theirs)).all()
