"""Training with a teacher: what it is taught, which parameters learn, and that nothing else changes."""

import jax
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from flatten_jax.attention import contract
from flatten_jax.attention.contract import MAPS
from flatten_jax.distill import losses
from flatten_jax.distill.choose import notes_of
from flatten_jax.distill.rates import factors_for_new, only_attentions
from flatten_jax.distill.tasks import Taught
from flatten_jax.distill.teacher import Teacher, load_teacher
from flatten_jax.models import abstract_variables, create_model, stack
from flatten_jax.models.images import dummy_images, normalize
from flatten_jax.models.stack import GIVEN, SEEN
from flatten_jax.training.setup import model_of, training_of
from flatten_jax.training.sharding import make_mesh, put_batch, to_host
from flatten_jax.training.step import abstract_state, held, init_state, make_train_step

from ..training.conftest import tiny
from .small import student, write_teacher

RNG = np.random.default_rng(0)
BATCH = {
    "image": RNG.integers(0, 256, (16, 16, 16, 3), np.uint8),
    "label": np.arange(16, dtype=np.int32) % 4,
}
EQUAL = np.testing.assert_array_equal


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    folder = tmp_path_factory.mktemp("teacher")
    return folder, *write_teacher(folder)


def made(config, devices=1):
    mesh, model = make_mesh(jax.devices()[:devices]), model_of(config)
    of = load_teacher(config, model, mesh) if config.distill.teacher else None
    return training_of(config, model, mesh, 5, of)


def run_steps(training, steps=2, state=None):
    state, step = state or init_state(training), make_train_step(training)
    start, losses_ = to_host(state), []
    for _ in range(steps):
        state, metrics = step(state, put_batch(BATCH, training.mesh), *training.task.constants)
        losses_.append(float(metrics["loss"]))
    return start, to_host(state), losses_


def changed(before, after):
    """Paths of the parameters that are others now."""
    before, after = flatten_dict(before.params), flatten_dict(after.params)
    return {"/".join(path) for path in before if not np.array_equal(before[path], after[path])}


def test_with_no_share_for_answers_it_is_plain_training_bit_for_bit(teacher):
    folder, *_ = teacher
    plain = student("", {"drop_path": 0.5})
    plain.augment.mixup = 0.8
    config = plain.copy_and_resolve_references()
    config.distill.update(kind="soft", alpha=0.0, teacher=str(folder))
    jax.tree.map(EQUAL, run_steps(made(config)), run_steps(made(plain)))


@pytest.mark.parametrize("kind", ["soft", "hard"])
def test_answers_are_those_to_the_same_mixed_picture_normalised_as_the_teacher_knows_it(teacher, kind):
    folder, model, params = teacher
    config = student(folder, kind=kind, alpha=0.3, tau=2.0)
    config.data.update(mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    config.augment.update(mixup=0.8, erase_prob=0.5)
    training = made(config)
    task, state = training.task, init_state(training)
    images, targets = task.inputs(BATCH, jax.random.key(1), jax.random.key(2))
    loss, _ = jax.jit(task.loss)(state.variables, (images, targets), jax.random.key(3), *task.constants)
    as_pixels = images * np.float32([0.5, 0.6, 0.7]) + np.float32([0.1, 0.2, 0.3])
    taught = jax.jit(model.apply)({"params": params}, normalize(as_pixels * 255))
    ours = jax.jit(task.model.apply)(state.variables, images)
    expected = 0.7 * optax.softmax_cross_entropy(ours, targets).mean()
    expected += 0.3 * losses.answer_loss(ours, taught, kind, 2.0)
    assert loss == pytest.approx(float(expected), rel=1e-4)


def test_a_model_with_a_head_for_answers_learns_labels_by_the_other(teacher):
    folder, *_ = teacher
    config = student(folder, {"name": "deit_t_distilled"}, kind="hard", alpha=0.5)
    config.model = type(config)({**tiny().model.to_dict(), "name": "deit_t_distilled", "attn_type": "softmax"})
    task = made(config).task
    state = init_state(made(config))
    inputs = task.inputs(BATCH, *jax.random.split(jax.random.key(0)))
    gradient = jax.jit(jax.grad(lambda p: task.loss({"params": p}, inputs, jax.random.key(0), *task.constants)[0]))
    heads = {name: np.abs(gradient(state.params)[name]["kernel"]).sum() for name in ("head", "head_dist")}
    assert min(heads.values()) > 0
    config.distill.alpha = 1.0
    only = made(config).task
    gradient = jax.jit(jax.grad(lambda p: only.loss({"params": p}, inputs, jax.random.key(0), *only.constants)[0]))
    tree = gradient(state.params)
    assert np.abs(tree["head"]["kernel"]).sum() == 0 < np.abs(tree["head_dist"]["kernel"]).sum()


def test_the_teachers_weights_are_arguments_of_the_step(teacher):
    folder, _, params = teacher
    training = made(student(folder, kind="soft"))
    batch = training.task.abstract_batch(16, training.mesh)
    text = make_train_step(training).lower(abstract_state(training), batch, *training.task.constants).as_text()
    main = text.split("@main(")[1].split(") -> ")[0]
    leaves = len(jax.tree.leaves(abstract_state(training))) + len(batch)
    assert main.count("tensor<") == leaves + len(jax.tree.leaves(params))


def test_eight_devices_are_taught_what_one_is(teacher):
    folder, *_ = teacher
    config = student(folder, kind="soft", alpha=0.5, weight=10.0)
    config.train.accumulation = 2
    in_parts = run_steps(made(config, devices=8))[2]
    config.train.accumulation = 1
    np.testing.assert_allclose(in_parts, run_steps(made(config))[2], rtol=1e-5)


# What costs nothing


@pytest.mark.parametrize("options", [{}, {"scan": True, "remat": True}])
def test_the_program_of_a_training_that_asks_for_nothing_is_as_if_there_were_nothing_to_ask(options, monkeypatch):
    config = tiny()
    config.model.update(attn_type="softmax*1+linear", depth=3, **options)

    def text():
        training = made(config)
        batch = training.task.abstract_batch(16, training.mesh)
        return make_train_step(training).lower(abstract_state(training), batch).as_text()

    with_hooks = text()
    monkeypatch.setattr(stack, "_seen", lambda block, *args: block(*args))
    monkeypatch.setattr(contract.Attention, "show_map", lambda *args: None)
    assert text() == with_hooks


def lowered(model, *wanted):
    variables = jax.eval_shape(model.init, jax.random.key(0), dummy_images(model))
    return jax.jit(lambda v, x: model.apply(v, x, mutable=list(wanted))).lower(variables, dummy_images(model)).as_text()


def test_a_program_that_asks_is_another():
    model = model_of(student("x", {"attn_type": "hedgehog"}))
    assert len({lowered(model), lowered(model, SEEN), lowered(model, MAPS)}) == 3


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("deit_t", dict(embed_dim=8, num_heads=2, depth=3, patch_size=4)),
        ("swin_t", dict(depths=(2, 2), num_heads=(2, 2), embed_dim=8, softmax_window_size=2)),
        ("pvt_v2_b0", dict(depths=(1, 1, 1, 1), num_heads=(1, 1, 2, 2), embed_dims=(8,) * 4, mlp_ratios=(1,) * 4)),
    ],
)
def test_what_blocks_see_is_the_same_in_a_loop_and_recomputed_and_can_be_given_back(name, options):
    results = []
    for more in ({}, {"scan": True, "remat": True}):
        model = create_model(name, attn_type="softmax", image_size=32, num_classes=3, **options, **more)
        rng = np.random.default_rng(0)
        variables = jax.tree.map(
            lambda x, rng=rng: np.float32(0.3 * rng.standard_normal(x.shape)), abstract_variables(model)
        )
        images = jax.random.normal(jax.random.key(0), (2, 32, 32, 3))

        @jax.jit
        def both(v, model=model, images=images):
            logits, seen = model.apply(v, images, mutable=[SEEN, MAPS])
            given = {p: x for p, x in flatten_dict(seen[SEEN]).items() if p[-1] == "given"}
            other = model.apply({**v, GIVEN: _doubled(given)}, images, mutable=[SEEN])[1][SEEN]
            return logits, model.apply(v, images), seen, other

        logits, plain, seen, other = both(variables)
        np.testing.assert_allclose(logits, plain, rtol=1e-4, atol=1e-5)
        results.append((seen, other))
        for path, x in flatten_dict(seen[SEEN]).items():
            if path[-1] == "given":
                np.testing.assert_allclose(2 * x, flatten_dict(other)[path], rtol=1e-4, atol=1e-5)
        for path, x in flatten_dict(seen[MAPS]).items():
            if path[-1] == "map":
                np.testing.assert_allclose(x.sum(-1), 1, rtol=1e-5)
    assert len(results[0][0][SEEN]) and len(flatten_dict(results[0][0][MAPS])) >= 4
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), *results)


def _doubled(given):
    return unflatten_dict({path: 2 * x for path, x in given.items()})


# Block by block


def test_aligned_to_itself_there_is_nothing_to_learn(teacher):
    folder, model, params = teacher
    training = made(student(folder, {"attn_type": "softmax"}, kind="align"))
    outputs = training.task
    maps = type(outputs)(**{**vars(outputs), "match": "map"})
    weighted = made(student(folder, {"attn_type": "softmax"}, weight=50.0)).task
    plain = made(student("", {"attn_type": "softmax"})).task
    inputs = outputs.inputs(BATCH, *jax.random.split(jax.random.key(0)))

    def loss(params, task):
        return task.loss({"params": params}, inputs, jax.random.key(0), *task.constants)[0]

    value, of_maps, beside, labels = (
        float(jax.jit(loss, static_argnums=1)(params, t)) for t in (outputs, maps, weighted, plain)
    )
    assert value == 0
    assert beside == labels
    assert of_maps == pytest.approx(float(jax.jit(lambda p: _entropy(model, p, inputs[0]))(params)), rel=1e-5)
    _, _, values = run_steps(training, 1, init_state(training, {"params": params}))
    assert values == [0], "in the step too"


def _entropy(model, params, images):
    maps = flatten_dict(model.apply({"params": params}, images, mutable=[MAPS])[1][MAPS])
    each = [-(x * jax.numpy.log(x)).sum(-1).mean() for p, x in maps.items() if p[-1] == "map"]
    return sum(each) / len(each)


@pytest.mark.parametrize(
    ("attention", "learns", "match", "expected"),
    [
        ("linear", "auto", "output", {"attn/qkv"}),
        ("linear", "mixer", "output", {"attn/qkv", "attn/proj"}),
        ("hedgehog", "auto", "map", {"attn/q_map", "attn/k_map"}),
        ("hedgehog", "qkv", "output", {"attn/qkv", "attn/q_map", "attn/k_map"}),
    ],
)
def test_the_alignment_moves_what_was_chosen_and_nothing_else(teacher, attention, learns, match, expected):
    folder, *_ = teacher
    config = student(folder, {"attn_type": f"softmax*1+{attention}"}, kind="align", learns=learns, match=match)
    config.optimizer.update(weight_decay=0.1, learning_rate=0.1, clip_norm=1.0)
    training = made(config)
    start, end, values = run_steps(training, steps=6)
    names = {path.removesuffix("/kernel").removesuffix("/bias") for path in changed(start, end)}
    assert names == {f"blocks_1/{name}" for name in expected}, "the first block has the teacher's attention"
    assert values[-1] < values[0]

    task = training.task
    inputs = task.inputs(BATCH, *jax.random.split(jax.random.key(0)))

    def loss(params):
        return task.loss({"params": held(params, training.rates)}, inputs, jax.random.key(0), *task.constants)[0]

    gradient = flatten_dict(jax.jit(jax.grad(loss))(start.params))
    reached = {"/".join(path) for path, leaf in gradient.items() if np.any(leaf)}
    assert reached <= {f"blocks_1/{n}{end}" for n in expected for end in ("", "/kernel", "/bias")} and reached


def test_blocks_learn_apart_from_each_other(teacher):
    """A block's loss is that of its own attention on the teacher's input, whatever the blocks before it give."""
    folder, model, params = teacher
    training = made(student(folder, kind="align"))
    task = training.task
    images, _ = inputs = task.inputs(BATCH, *jax.random.split(jax.random.key(0)))
    spoilt = jax.tree.map(lambda x: x, params)
    spoilt["blocks_0"] = jax.tree.map(lambda x: x + 1, spoilt["blocks_0"])

    @jax.jit
    def gradient(p):
        return jax.grad(lambda p: task.loss({"params": p}, inputs, jax.random.key(0), *task.constants)[0])(p)

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7),
        gradient(params)["blocks_1"]["attn"],
        gradient(spoilt)["blocks_1"]["attn"],
    )
    seen = jax.jit(lambda p: model.apply({"params": p}, images, mutable=[SEEN])[1][SEEN])(params)
    of_student = jax.jit(
        lambda p: task.model.apply({"params": p, GIVEN: _inputs(seen)}, images, mutable=[SEEN])[1][SEEN]
    )(params)
    each = [np.mean((of_student[b]["attended"] - seen[b]["attended"]) ** 2) for b in ("blocks_0", "blocks_1")]
    loss = jax.jit(task.loss)({"params": params}, inputs, jax.random.key(0), *task.constants)[0]
    assert loss == pytest.approx(float(np.mean(each)), rel=1e-5)


def _inputs(seen):
    return {block: {"given": of["given"]} for block, of in seen.items()}


def test_a_class_token_that_the_student_has_not_is_not_compared(tmp_path):
    model, _ = write_teacher(tmp_path, name="deit_t", class_token=True)
    config = student(tmp_path, {"attn_type": "focused"}, kind="align")
    training = made(config)
    assert (model.prefix, training.task.model.prefix) == (1, 0)
    start, end, values = run_steps(training)
    assert np.isfinite(values).all() and changed(start, end)
    features = made(student(tmp_path, kind="features", features="cosine"))
    assert np.isfinite(run_steps(features)[2]).all()


def test_features_are_learned_by_all_without_labels(teacher):
    folder, model, params = teacher
    config = student(folder, kind="features")
    config.optimizer.learning_rate = 0.1
    training = made(config)
    task, state = training.task, init_state(training)
    inputs = task.inputs(BATCH, *jax.random.split(jax.random.key(0)))
    other = (inputs[0], 1 - inputs[1])
    loss = jax.jit(lambda i: task.loss(state.variables, i, jax.random.key(0), *task.constants)[0])
    assert loss(inputs) == loss(other)
    apply = jax.jit(lambda m, v: m.apply(v, inputs[0], method="forward_features"), static_argnums=0)
    apart = apply(task.model, state.variables) - apply(model, {"params": params})
    assert loss(inputs) == pytest.approx(float((apart**2).mean()), rel=1e-5)
    start, end, values = run_steps(training, 6)
    assert values[-1] < values[0] and "patch_embed/proj/kernel" in changed(start, end)
    assert not any(name.startswith("head") for name in changed(start, end))


def test_outputs_are_matched_beside_the_labels_with_their_weight(teacher):
    folder, *_ = teacher
    training = made(student(folder, weight=50.0))
    task, plain = training.task, made(student("")).task
    state = init_state(training)
    inputs = task.inputs(BATCH, *jax.random.split(jax.random.key(0)))
    loss = float(jax.jit(task.loss)(state.variables, inputs, jax.random.key(0), *task.constants)[0])
    labels = float(jax.jit(plain.loss)(state.variables, inputs, jax.random.key(0))[0])
    assert loss > labels
    half = type(task)(**{**vars(task), "weight": 25.0})
    value = float(jax.jit(half.loss)(state.variables, inputs, jax.random.key(0), *task.constants)[0])
    assert loss - labels == pytest.approx(2 * (value - labels), rel=1e-4)


# Rates


def test_new_parameters_learn_faster(teacher):
    folder, *_ = teacher
    config = student(folder, {"attn_type": "hedgehog"}, weight=0.0, new_factor=20.0)
    fast, slow = made(config), made(student("", {"attn_type": "hedgehog"}))
    assert set(flatten_dict(fast.rates).values()) == {1.0, 20.0}
    start, end, _ = run_steps(fast, 1)
    _, plain, _ = run_steps(slow, 1)
    for name, factor in (("q_map", 20), ("qkv", 1)):
        moved = [jax.tree.leaves(x.params["blocks_0"]["attn"][name])[-1] for x in (start, end, plain)]
        np.testing.assert_allclose(moved[1] - moved[0], factor * (moved[2] - moved[0]), rtol=1e-3, atol=1e-7)


def test_of_a_projection_the_streams_that_are_new_learn_faster():
    teacher, own = model_of(student("x", {"attn_type": "softmax"})), model_of(student("x", {"attn_type": "rala"}))
    rate = factors_for_new(teacher, own, 20.0)["blocks_0"]["attn"]
    name = "qkvo"
    assert rate[name]["bias"].tolist()[:48] == [1.0] * 48 and set(rate[name]["bias"].tolist()[48:]) == {20.0}
    only = only_attentions(teacher, own, "new")["blocks_1"]
    assert only["attn"][name]["kernel"].tolist()[:48] == [0.0] * 48 and only["mlp"]["fc1"]["kernel"] == 0
    assert only_attentions(teacher, teacher, "qkv")["blocks_1"]["attn"]["qkv"]["kernel"] == 1


# The model's own average


def test_from_a_quarter_of_the_epochs_on_the_average_is_asked():
    plain = student("", {"drop_path": 0.5})
    plain.train.update(ema_decay=0.5, epochs=1.6)  # 8 steps
    config = plain.copy_and_resolve_references()
    config.distill.update(kind="mesa", weight=1.5)
    training = made(config)
    assert training.task.start == 2
    (_, first, ours), (_, _, theirs) = run_steps(training, 3), run_steps(made(plain), 3)
    np.testing.assert_allclose(ours[:2], theirs[:2], rtol=1e-5)
    assert abs(ours[2] - theirs[2]) > 0.1
    inputs = training.task.inputs(BATCH, *jax.random.split(jax.random.key(0)))
    task, key = training.task, jax.random.key(1)
    loss = jax.jit(lambda step: task.loss(first.variables, inputs, key, first.averaged, step)[0])
    logits = jax.jit(lambda: task.trained(first.variables, inputs[0], key)[0])()
    answer = jax.nn.softmax(jax.jit(task.model.apply)(first.averaged, inputs[0]))
    expected = -(answer * jax.nn.log_softmax(logits)).sum(-1).mean()
    assert loss(2) - loss(1) == pytest.approx(1.5 * float(expected), rel=1e-4)


def test_which_of_a_teachers_weights_were_resampled_is_said():
    said = "x.pth -> DeiT of 32 x 32 pixels\n  resampled 1\n    pos_embed (1, 197, 8) -> (1, 5, 8)\n  matched 3"
    task = Taught(None, teacher=Teacher(None, {}, (0.0,), (1.0,), said=said))
    assert notes_of(task)[1:] == ["resampled: pos_embed (1, 197, 8) -> (1, 5, 8)"]
