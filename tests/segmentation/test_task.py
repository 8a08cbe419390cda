"""The loss of a segmenter, its schedule and decay, and its evaluation over pictures of several sizes."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from configs.ade20k_semfpn_flatten_pvt_t import get_config as semfpn
from configs.ade20k_upernet_flatten_swin_t import get_config as upernet
from configs.recipes import dense
from flatten_jax.data import pipeline
from flatten_jax.data.source import Example
from flatten_jax.segmentation.batches import plan_batches
from flatten_jax.segmentation.masks import IGNORED, id_table
from flatten_jax.segmentation.metrics import scores
from flatten_jax.segmentation.sources import MaskSource, Stored
from flatten_jax.segmentation.task import Segment, cross_entropy
from flatten_jax.segmentation.transforms import EvalTransform
from flatten_jax.training import setup
from flatten_jax.training.evaluate import evaluate, make_eval_step
from flatten_jax.training.optimizer import decay_mask, make_schedule
from flatten_jax.training.settings import checked
from flatten_jax.training.sharding import make_mesh, put_batch

CLASSES = 3


class Tiny(nn.Module):
    """Logits of every fourth pixel: a convolution, and in training an auxiliary answer."""

    no_weight_decay = ()
    image_size: tuple[int, int] = (16, 16)
    num_classes: int = CLASSES

    @nn.compact
    def __call__(self, images, train=False):
        logits = nn.Conv(self.num_classes, (4, 4), 4)(images)
        beside = nn.Conv(self.num_classes, (8, 8), 8, name="auxiliary_head")(images)
        return (logits, beside) if train else logits

    def at_size(self, image_size):
        return self.clone(image_size=image_size)


RNG = np.random.default_rng(0)
LABELS = RNG.integers(0, CLASSES, (2, 16, 16)).astype(np.uint8)
LABELS[0, :7] = IGNORED


def by_hand(logits, labels):
    """(sum of losses of labelled pixels, number of them), in float64."""
    large = np.asarray(jax.image.resize(logits, (*labels.shape, CLASSES), "linear", antialias=False), np.float64)
    losses = (
        np.log(np.exp(large).sum(-1))
        - np.take_along_axis(large, np.minimum(labels, 2)[..., None].astype(int), -1)[..., 0]
    )
    return losses[labels < 255].sum(), (labels < 255).sum()


def test_the_loss_is_a_mean_over_all_pixels_or_over_labelled_ones():
    logits = jnp.asarray(RNG.normal(size=(2, 4, 4, CLASSES)), jnp.float32)
    total, labelled = by_hand(logits, LABELS)
    labels = jnp.asarray(LABELS, jnp.int32)
    assert float(cross_entropy(logits, labels)) == pytest.approx(total / LABELS.size, rel=1e-5)
    assert float(cross_entropy(logits, labels, avg_non_ignore=True)) == pytest.approx(total / labelled, rel=1e-5)
    nothing = jnp.full_like(labels, IGNORED)
    assert float(cross_entropy(logits, nothing)) == float(cross_entropy(logits, nothing, True)) == 0


def test_the_auxiliary_head_counts_by_its_weight():
    model = Tiny()
    images = jnp.asarray(RNG.normal(size=(2, 16, 16, 3)), jnp.float32)
    variables = model.init(jax.random.key(0), images)
    main, beside = (by_hand(x, LABELS)[0] / LABELS.size for x in model.apply(variables, images, train=True))
    value, changed = Segment(model).loss(variables, (images, jnp.asarray(LABELS, jnp.int32)), jax.random.key(0))
    assert float(value) == pytest.approx(main + 0.4 * beside, rel=1e-5) and changed == {}


def optimizer(**changes):
    rates = dict(learning_rate=6e-5 * 32, warmup_learning_rate=6e-5 * 32e-6, min_learning_rate=0.0)
    return ml_collections.ConfigDict(rates | dict(schedule="poly", power=1.0) | changes)


def test_poly_is_mmcvs_with_the_warm_up_as_a_factor():
    schedule = make_schedule(optimizer(), batch_size=16, warmup_steps=1500, total_steps=160_000)
    for step in (0, 1, 700, 1499, 1500, 80_000, 159_999, 160_000):
        regular = 6e-5 * (1 - step / 160_000)
        factor = 1 - (1 - step / 1500) * (1 - 1e-6) if step < 1500 else 1
        assert float(schedule(step)) == pytest.approx(regular * factor, rel=1e-4, abs=1e-12), step
    power = make_schedule(
        optimizer(learning_rate=2e-4 * 32, power=0.9), batch_size=16, warmup_steps=0, total_steps=40_000
    )
    assert float(power(0)) == pytest.approx(2e-4, rel=1e-6)
    assert float(power(10_000)) == pytest.approx(2e-4 * 0.75**0.9, rel=1e-5)


@pytest.mark.parametrize(
    ("get", "steps", "warmup", "rate", "decay", "power", "which"),
    [(semfpn, 40_000, 0, 2e-4, 1e-4, 0.9, "all"), (upernet, 160_000, 1500, 6e-5, 0.01, 1.0, "not_norms")],
)
def test_the_published_recipes(get, steps, warmup, rate, decay, power, which):
    config = get()
    config.data.folder = "somewhere"
    config = checked(config)
    epoch = pipeline.steps_per_epoch(dense.ADE20K, config.train.batch_size)
    assert (round(config.train.epochs * epoch), round(config.train.warmup_epochs * epoch)) == (steps, warmup)
    assert config.optimizer.learning_rate * config.train.batch_size / 512 == pytest.approx(rate)
    assert (config.optimizer.weight_decay, config.optimizer.power, config.optimizer.decay) == (decay, power, which)
    assert (config.optimizer.schedule, config.train.batch_size, config.model.image_size) == ("poly", 16, (512, 512))
    wanted = config.segmentation
    assert (wanted.resize, wanted.ratio, wanted.cat_max_ratio, config.augment.hflip) == (
        (512, 2048),
        (0.5, 2),
        0.75,
        0.5,
    )
    assert wanted.reduce_zero_label and wanted.photometric and not wanted.avg_non_ignore
    small = setup.model_of(checked(dense.variant(get(), "smoke")))
    assert (setup.model_of(config).num_classes, small.num_classes, small.head) == (150, 10, wanted.head)


def test_what_decays_of_upernet_and_of_semantic_fpn():
    params = {
        "backbone": {
            "norm1": {"scale": np.ones(2), "bias": np.ones(2)},
            "qkv": {"kernel": np.ones((2, 2)), "bias": np.ones(2)},
            "relative_position_bias_table": np.ones((4, 2)),
        },
        "decode_head": {"bn": {"scale": np.ones(2)}},
    }
    spared = ("relative_position_bias_table",)
    decayed = {
        which: {".".join(path) for path, on in flatten_dict(decay_mask(params, spared, which)).items() if on}
        for which in ("matrices", "not_norms", "all")
    }
    assert decayed["matrices"] == {"backbone.qkv.kernel"}
    assert decayed["not_norms"] == {"backbone.qkv.kernel", "backbone.qkv.bias", "decode_head.bn.scale"}
    assert len(decayed["all"]) == 6


class Known(MaskSource):
    """Nine pictures of three sizes."""

    class_names = ("a", "b", "c")
    table = id_table(CLASSES)
    sizes = ((16, 16), (20, 33), (40, 17))

    def __len__(self):
        return 9

    def stored(self, index):
        rng, size = np.random.default_rng(index), self.sizes[index % 3]
        mask = rng.integers(0, 2, size).astype(np.uint8)  # class 2 is nowhere but in predictions
        mask[:2] = IGNORED
        return Stored(rng.integers(0, 256, (*size, 3), np.uint8), mask, str(index), str(index))


def resize(x, size):
    return np.asarray(jax.image.resize(jnp.asarray(x), (*size, x.shape[-1]), "linear", antialias=False))


def direct(task, variables, transform):
    """The confusion matrix, picture by picture, each step as it is said."""
    confusion, source = np.zeros((CLASSES, CLASSES), int), Known()
    for i in range(len(source)):
        example = source[i]
        size = example.label.shape
        resized = transform.resized_size(size)
        window = transform.window or resized
        total, count = np.zeros((*resized, CLASSES), np.float32), np.zeros((*resized, 1))
        for image, (top, left) in zip(transform.windows(example), transform.places(resized), strict=True):
            logits = task.model.at_size(window).apply(variables, task.given({"image": image[None]}))[0]
            total[top : top + window[0], left : left + window[1]] += resize(logits, window)
            count[top : top + window[0], left : left + window[1]] += 1
        ids = resize(total / count, size).argmax(-1)
        np.add.at(confusion, (example.label[example.label < 255], ids[example.label < 255]), 1)
    return confusion


@pytest.mark.parametrize(
    "transform",
    [EvalTransform((16, 64), multiple=4), EvalTransform((16, 64), (16, 16), stride=12)],
    ids=["whole", "slide"],
)
def test_every_picture_counts_once_at_its_own_size_whatever_the_devices(transform):
    model, mesh = Tiny(), make_mesh(jax.devices()[:4])
    task = Segment(model, class_names=Known.class_names)
    variables = model.init(jax.random.key(1), jnp.zeros((1, 16, 16, 3)))
    batches = plan_batches(Known(), transform, batch_size=4, devices=4)
    assert sorted(i for _, indices in batches.plan for i in indices) == list(range(9))
    assert len(batches.shapes) == (1 if transform.window else 3)
    step = make_eval_step(task, mesh)
    found = evaluate(
        task, step, variables, (put_batch(b, mesh) for b in pipeline.iterate(batches, batches.largest, 0)), 9
    )
    expected = scores(direct(task, variables, transform))
    assert found["miou"] == pytest.approx(100 * expected.miou, abs=0.05)  # a pixel or two, where logits are equal
    assert found["aacc"] == pytest.approx(100 * expected.aacc, abs=0.05)
    assert found["macc"] == pytest.approx(100 * expected.macc, abs=0.05)
    assert found["count"] == 9
    said = task.words({f"eval/{k}": v for k, v in found.items()})
    assert said == f"mIoU {found['miou']:.2f} %, aAcc {found['aacc']:.2f} %, mAcc {found['macc']:.2f} % on 9 images"
    lines = task.details({f"eval/{k}": v for k, v in found.items()}).splitlines()
    assert lines[1:] == [f"  {name}  {found[f'iou/{name}']:6.2f}" for name in "abc"]


def test_two_processes_read_each_its_half_of_every_batch():
    of = dict(batch_size=4, devices=2, process_count=2)
    transform = EvalTransform((16, 64), multiple=4)
    whole, *halves = (
        plan_batches(Known(), transform, **{**of, "process_count": n, "process_index": i})
        for n, i in ((1, 0), (2, 0), (2, 1))
    )
    assert len(whole) == len(halves[0]) == len(halves[1])
    for i in range(len(whole)):
        batch, parts = whole[i][0], [half[i][0] for half in halves]
        for key in batch:
            np.testing.assert_array_equal(batch[key], np.concatenate([part[key] for part in parts]))


def test_a_class_that_is_nowhere_is_left_out_and_said():
    task = Segment(Tiny(), class_names=("a", "b", "c"))
    limbs = np.stack([np.zeros((3, 3)), [[3, 1, 0], [0, 4, 0], [0, 0, 0]]]).astype(np.uint32)
    found = task.summary({"confusion": limbs, "count": np.float32(1)})
    assert "iou/c" not in found and found["miou"] == pytest.approx(50 * (3 / 4 + 4 / 5))
    assert task.details({f"eval/{k}": v for k, v in found.items()}).splitlines()[3] == "  c  nowhere"


WRONG = {
    "segmentation.head=fcn": r"segmentation\.head='fcn' must be one of upernet, semfpn",
    "augment.mixup=0.8": r"augment\.mixup=0\.8 has no effect on pictures with masks: set it to 0\.0",
    "segmentation.stride=65 segmentation.eval=slide": r"stride=65 leaves gaps .*\(64, 64\): make it at most 64",
    "segmentation.reduce_zero_label=True": "mosaics make their own",
    "distill.kind=hard distill.teacher=x": "segmenters are trained without a teacher",
    "data.name=listops": "neither masks nor pictures of classes",
    "segmentation.mosaic=none data.name=folder": r"data\.folder=PATH, a folder with images/ and annotations/",
    "segmentation.head= augment.hflip=0.5": r"segmentation\.mosaic='voronoi' has no effect without a head",
}


@pytest.mark.parametrize("overrides", WRONG)
def test_settings_that_do_not_fit_are_a_line_each(overrides):
    from flatten_jax.cli.config_file import read_config

    with pytest.raises(ValueError, match=WRONG[overrides]) as error:
        checked(read_config("configs/mosaic.py", [f"--config.{o}" for o in overrides.split(" ")]))
    assert "\n" not in str(error.value)


def test_training_batches_of_a_segmenter_have_masks():
    """And are a function of (seed, step), wherever a run starts."""
    config = checked(dense.variant(semfpn(), "smoke"))
    source, transform = setup.open_source(config, "train"), setup.segmentation.transform(config, (64, 64), train=True)
    options = dict(batch_size=8, seed=3, stop_step=6)
    whole = list(pipeline.train_batches(source, transform, start_step=0, **options))
    rest = list(pipeline.train_batches(source, transform, start_step=4, **options))
    assert whole[0]["image"].shape == (8, 64, 64, 3) and whole[0]["label"].shape == (8, 64, 64)
    assert whole[0]["label"].dtype == np.uint8
    for batch, again in zip(whole[4:], rest, strict=True):
        for key in batch:
            np.testing.assert_array_equal(batch[key], again[key])


def test_examples_without_masks_still_have_numbers():
    class Plain:
        def __len__(self):
            return 4

        def __getitem__(self, index):
            return Example(np.full((4, 4, 3), index, np.uint8), index, "")

    (batch,) = pipeline.train_batches(
        Plain(), lambda image, rng: np.asarray(image), batch_size=4, seed=0, start_step=0, stop_step=1
    )
    assert batch["label"].dtype == np.int32 and list(batch["label"]) == list(batch["image"][:, 0, 0, 0])
