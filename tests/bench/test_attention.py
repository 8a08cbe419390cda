"""The attention sweep: what is timed computes the same attention, and its numbers are those of the mathematics."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flatten_jax import list_attentions
from flatten_jax.attention import ATTENTIONS
from flatten_jax.bench import attention, figures
from flatten_jax.bench.timing import Spread

L, S = "linear", "softmax"
SMALL = dict(channels=16, num_heads=2)


@pytest.fixture(scope="module")
def rows():
    limit = 48 * 2**20  # the scores of 784 tokens take 5 MiB, those of 3136 take 75
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "interleaved", partial(attention.interleaved, at_least=0.01))
        return list(attention.sweep(tokens=(784, 3136), rounds=1, memory_limit=limit, **SMALL))


def test_every_softmax_computes_the_same():
    rng = np.random.default_rng(0)
    for core in (False, True):
        layers = attention.layers(36, jnp.float32, core=core, **SMALL)
        assert len(layers) == len(attention.ATTENTIONS) + 2
        found = [layer for name, layer in layers.items() if "softmax" in name]
        variables, inputs = (
            jax.tree.map(lambda x: rng.normal(size=x.shape).astype("f"), shapes) for shapes in found[0][1:]
        )
        ours, *others = (layer(variables, *inputs) for layer, _, _ in found)
        assert len(others) == 2
        for other in others:
            np.testing.assert_allclose(ours, other, rtol=0, atol=1e-5 * float(jnp.abs(ours).max()))


def test_every_attention_has_a_layer_and_those_with_streams_a_core():
    layers, cores = (attention.layers(64, jnp.float32, 32, 2, list_attentions(), core) for core in (False, True))
    assert {name for name in list_attentions() if not ATTENTIONS[name].takes_before} < set(layers)
    assert set(cores) < set(layers)
    for layer, variables, inputs in (*layers.values(), *cores.values()):
        assert jax.eval_shape(layer, variables, *inputs).shape[:2] == (1, 64)


def test_backward_gives_the_gradients_of_every_input():
    layer, variables, inputs = attention.layers(36, jnp.float32, **SMALL)[attention.PLAIN]
    compiled = attention._compile(layer, "forward + backward", variables, inputs)
    variables, inputs, cotangent = attention._inputs(compiled)
    gradients = compiled(variables, inputs, cotangent)[1]
    expected = jax.grad(lambda p, x: (layer({"params": p}, x) * cotangent).sum(), (0, 1))(variables["params"], *inputs)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5 * np.abs(b).max()), gradients, expected)


def test_arguments_of_a_call_are_arrays_of_their_own_and_those_of_another_call_the_same():
    compiled = jax.jit(lambda q, k, v: q + k + v).lower(*[jax.ShapeDtypeStruct((4, 2), jnp.float32)] * 3).compile()
    arrays = {}
    first, again = attention._inputs(compiled, arrays), attention._inputs(compiled, arrays)
    assert len({id(x) for x in first}) == len(arrays) == 3
    assert all(a is b for a, b in zip(first, again, strict=True))
    assert not np.array_equal(first[0], first[1])


def test_memory_grows_as_the_mathematics_says(rows):
    for direction in attention.DIRECTIONS:
        growth = {}
        for name in (L, S, attention.PLAIN):
            small, large = attention.curve(rows, name, direction, "MiB").values()
            growth[name] = large / small
        assert growth[L] == pytest.approx(4, rel=0.1)
        assert min(growth[S], growth[attention.PLAIN]) > 8  # 16 but for what XLA reuses at one N and not at the other


def test_what_does_not_fit_is_not_run_and_says_so(rows):
    by = {(row["attention"], row["N"], row["direction"]): row for row in rows}
    assert len(by) == len(rows) == (len(attention.ATTENTIONS) + 2) * 2 * len(attention.DIRECTIONS)
    scores = 2 * 3136**2 * 4 / 2**30
    words, needed, unit = by[attention.PLAIN, 3136, "forward"]["ms"].rsplit(" ", 2)
    assert (words, unit) == ("not run: needs", "GiB") and scores <= float(needed) < 4 * scores
    assert by[attention.PLAIN, 784, "forward"]["x softmax, plain"] == Spread(1, 1, 1)
    assert all(isinstance(by[L, n, d]["ms"], Spread) for n in (784, 3136) for d in attention.DIRECTIONS)


def test_sides_must_be_whole():
    with pytest.raises(ValueError, match="200 tokens are no square grid"):
        attention.side(200)


def test_crossing_is_the_smallest_n_from_which_it_stays_faster():
    def some(name, times, mib):
        for n, ms in times.items():
            spread = ms if isinstance(ms, str) else Spread(ms, ms, ms)
            yield {"attention": name, "N": n, "direction": "forward", "ms": spread, "MiB": mib * n}

    softmax = {196: 2.0, 784: 2.0, 3136: 32.0, 12544: 512.0, 16384: "not run: needs 9 GiB"}
    linear = {196: 1.0, 784: 3.0, 3136: 12.0, 12544: 48.0, 16384: 60.0}  # ahead at 196 by chance
    said = attention.summary([*some(L, linear, 1), *some(S, softmax, 1), *some(attention.PLAIN, {196: 0.5}, 1)])
    assert [row["attention"] for row in said] == [L]
    assert said[0][f"faster than {S} from N"] == 3136
    assert said[0][f"faster than {attention.PLAIN} from N"] == "none here"
    assert said[0]["memory ~ N^"] == pytest.approx(1)


def test_picture_has_a_line_of_its_own_for_every_attention(rows):
    figure = figures.attention_curves(rows)
    assert len(figure.axes) == 4
    for axes in figure.axes:
        lines = [line for line in axes.lines if not line.get_label().startswith("_")]
        assert len(lines) == len(attention.ATTENTIONS) + 2
        assert len({(line.get_marker(), str(line.get_linestyle())) for line in lines}) == len(lines)
    time, memory = figure.axes[:2]
    drawn = {line.get_label(): list(line.get_xdata()) for line in time.lines}
    assert drawn[L] == [784, 3136] and drawn[attention.PLAIN] == [784]
    assert {line.get_label(): list(line.get_xdata()) for line in memory.lines}[attention.PLAIN] == [784, 3136]
