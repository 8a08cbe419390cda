"""Figures hold the numbers they are given, and the console command draws them."""

import dataclasses

import jax
import numpy as np
import pytest
from PIL import Image

from flatten_jax.analysis import capture, entropy, figures
from flatten_jax.analysis.profile import depth_profile, of_block, query_map, query_maps
from flatten_jax.analysis.visualize import visualize
from flatten_jax.cli.main import main
from flatten_jax.models import abstract_variables, create_model
from flatten_jax.models.images import normalize
from flatten_jax.weights.files import save_weights

OPTIONS = dict(image_size=16, patch_size=4, embed_dim=12, depth=2, num_classes=2, attn_type="SL")


@pytest.fixture(scope="module")
def model():
    return create_model("flatten_deit_t", **OPTIONS)


@pytest.fixture(scope="module")
def variables(model):
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: (0.3 * rng.standard_normal(x.shape)).astype(np.float32), abstract_variables(model))


@pytest.fixture(scope="module")
def pictures():
    return list(np.random.default_rng(1).integers(0, 256, (2, 16, 16, 3), np.uint8))


@pytest.fixture(scope="module")
def layers(model, variables, pictures):
    return capture(model, variables, normalize(np.stack(pictures)))


def test_profiles_are_means_over_queries_and_pictures(layers):
    softmax, focused = depth_profile(layers, (16, 16))
    assert (softmax.block, softmax.kind, focused.block, focused.kind) == (0, "softmax", 1, "focused")
    np.testing.assert_allclose(focused.entropy, entropy(layers[1].attention()).mean(axis=(0, 2)), rtol=1e-6)
    assert focused.uniform == pytest.approx(np.log(16))
    streams = {**layers[0].streams, "q": np.zeros_like(layers[0].streams["q"])}
    uniform = dataclasses.replace(layers[0], call=layers[0].call.replace(streams=streams))
    # Of 4 x 4 tokens of 4 pixels, all pairs.
    places = 4 * np.argwhere(np.ones((4, 4)))
    expected = np.linalg.norm(places[:, None] - places, axis=-1).mean()
    np.testing.assert_allclose(depth_profile([uniform], (16, 16))[0].distance, expected, rtol=1e-6)
    few = layers[1].attention(tokens=[0, 8, 15])
    (sampled,) = depth_profile(layers[1:], (16, 16), queries=3)
    np.testing.assert_allclose(sampled.entropy, entropy(few).mean(axis=(0, 2)), rtol=1e-6)


def test_a_block_of_stripes_is_one_profile_and_one_map(layers):
    twins = [layers[1], layers[1]]
    (profile,) = depth_profile(twins, (16, 16))
    assert profile.entropy.shape == profile.distance.shape == (6,)
    example, token = layers[1].locate((1, 2), 1)
    heads = layers[1].places.on_picture(layers[1].influence(token, example), example)
    np.testing.assert_allclose(query_map(twins, (1, 2), picture=1), heads.mean(axis=0))


def test_maps_are_drawn_in_their_place(layers, pictures):
    queries = [(0, 3), (2, 1)]
    maps = query_maps(of_block(layers, -1), queries, picture=1)
    assert list(maps) == ["softmax", "linear", "focused", "focused + local branch"]
    assert list(query_maps(of_block(layers, 0), queries)) == ["linear", "softmax"]
    figure = figures.attention_maps([pictures[1]] * 2, queries, maps)
    axes = figure.axes[8]  # second row, "focused"
    drawn = maps["focused"][1]
    np.testing.assert_allclose(axes.images[0].get_array(), drawn / drawn.max())
    np.testing.assert_array_equal(axes.lines[0].get_xydata(), [[6, 10]])  # the middle of token (2, 1)
    assert f"{drawn.max() * 16 / drawn.sum():.1f} x mean" in axes.get_title()


def test_the_focused_map_is_the_papers():
    bars = figures.focus(focusing_factors=(1, 3)).axes[3].patches  # p = 3
    np.testing.assert_allclose([bar.get_height() for bar in bars], [0.750, 0.114, 0.085, 0.051], atol=1e-3)


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(figure="map"), "figure='map' is none of attention, spectra, depth"),
        (dict(block=2), "block=2 must be within the 2 blocks"),
        (dict(figure="spectra", head=3), "head=3 must be within the 3 heads of block 1"),
        (dict(queries=[(1.2, 0)]), "must be two shares"),
        (dict(queries=[]), "2 pictures and 0 queries"),
    ],
    ids=lambda x: "" if isinstance(x, str) else "-".join(x),
)
def test_what_cannot_be_drawn_is_said(model, variables, pictures, options, message):
    with pytest.raises(ValueError, match=message):
        visualize(model, variables, pictures, **options)


@pytest.mark.parametrize("figure", ["attention", "spectra", "depth"])
def test_the_command_draws_and_does_not_overwrite(tmp_path, variables, pictures, figure, capsys):
    save_weights(tmp_path / "w.safetensors", variables, "flatten_deit_t", OPTIONS)
    Image.fromarray(pictures[0]).save(tmp_path / "a.png")
    output = tmp_path / "out.png"
    command = ["visualize", str(tmp_path / "a.png"), "--from", str(tmp_path / "w.safetensors"), "--output", str(output)]
    command += ["--figure", figure, "--query", "1", "0"]
    main(command)
    with Image.open(output) as drawn:
        assert len(drawn.getcolors(maxcolors=2**24)) > 50
    before = output.read_bytes()
    with pytest.raises(SystemExit, match="exists already"):
        main(command)
    assert output.read_bytes() == before
    main([*command, "--overwrite"])


def test_commands_without_a_model(tmp_path):
    main(["visualize", "--figure", "focus", "--output", str(tmp_path / "focus.svg")])
    assert "<svg" in (tmp_path / "focus.svg").read_text()
    with pytest.raises(SystemExit, match=r"visualize needs weights \(--from\)"):
        main(["visualize", "a.png", "--output", str(tmp_path / "x.png")])
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "train/loss": 2.0}\n')
    main(["curves", str(tmp_path), "--output", str(tmp_path / "curves.pdf")])
    with pytest.raises(SystemExit, match="exists already"):
        main(["curves", str(tmp_path), "--output", str(tmp_path / "curves.pdf")])
