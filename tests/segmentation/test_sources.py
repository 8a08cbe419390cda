"""Pictures with masks, as they lie on a disk, and every fault of them named in a line with the way out."""

import io
import re

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from flatten_jax.cli.main import main
from flatten_jax.data.source import Example, Source
from flatten_jax.segmentation import check, mosaic
from flatten_jax.segmentation.distort import resized
from flatten_jax.segmentation.masks import IGNORED, MaskError
from flatten_jax.segmentation.mosaic import MosaicSource
from flatten_jax.segmentation.sources import open_masks

EQUAL = np.testing.assert_array_equal
MASK = np.arange(48, dtype=np.uint8).reshape(6, 8) % 4  # 0 to 3
PIXELS = np.random.default_rng(0).integers(0, 256, (6, 8, 3), np.uint8)


def save(path, pixels, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)


@pytest.fixture
def ade(tmp_path):
    """ADE20K's challenge, three pictures for training and one for validation."""
    for split, numbers in (("training", (1, 2, 3)), ("validation", (1,))):
        for number in numbers:
            name = f"ADE_{split[:-3] if split == 'training' else 'val'}_{number:08d}"
            save(tmp_path / f"images/{split}/{name}.jpg", PIXELS)
            save(tmp_path / f"annotations/{split}/{name}.png", np.roll(MASK, number))
    return tmp_path


def opened(folder, split="train", **changes):
    return open_masks("folder", split, folder=folder, **{"num_classes": 3, "reduce_zero_label": True} | changes)


def mask_path(ade):
    return ade / "annotations/training/ADE_train_00000002.png"


def test_the_challenges_layout_is_read(ade):
    train, evaluation = opened(ade), opened(ade, "eval")
    assert (len(train), len(evaluation), train.class_names) == (3, 1, ("0", "1", "2"))
    image, label, name = train[1]
    assert name == str(ade / "images/training/ADE_train_00000002.jpg")
    assert image == (ade / "images/training/ADE_train_00000002.jpg").read_bytes()
    EQUAL(label, np.where(np.roll(MASK, 2) == 0, IGNORED, np.roll(MASK, 2) - 1))
    assert (label.dtype, train.size(1)) == (np.uint8, (6, 8))
    EQUAL(opened(ade, num_classes=4, reduce_zero_label=False)[1].label, np.roll(MASK, 2))


def test_names_of_classes_are_those_of_the_folder(ade):
    (ade / "objectInfo150.txt").write_text(
        "Idx\tRatio\tTrain\tVal\tName\n1\t.1\t2\t3\twall\n2\t.1\t2\t3\tsky, air\n3\t.1\t1\t1\tsea\n"
    )
    assert opened(ade, num_classes=0).class_names == ("wall", "sky", "sea")
    (ade / "classes.txt").write_text("a\nb\nc\n")
    assert opened(ade, num_classes=0).class_names == ("a", "b", "c")


def palette(path):
    image = Image.fromarray(MASK).convert("P")
    image.putpalette(list(range(256)) * 3)
    image.save(path)


# What is done to one mask of three, and what is said of it.
FAULTS = {
    "an id out of range": (
        lambda p: save(p, MASK + 2),
        r"has the ids 4, 5, and the 3 classes are 1 to 3: .*reduce_zero_label",
    ),
    "another size": (
        lambda p: save(p, MASK[:5]),
        r"is 6 x 8 \(height x width\), its mask 5 x 8: make them of one size",
    ),
    "a palette": (palette, r"is a palette PNG: save the ids themselves as 8-bit grey"),
    "16 bits": (lambda p: save(p, MASK.astype(np.uint16)), r"is a 16-bit PNG: save the ids"),
    "one bit": (lambda p: save(p, MASK > 1), r"is a 1-bit PNG: save the ids"),
    "colours": (lambda p: save(p, PIXELS), r"is a PNG of RGB, not of ids: save the ids"),
    "a JPEG": (lambda p: save(p, MASK, format="JPEG"), r"is no PNG: masks are 8-bit grey PNGs"),
    "cut off": (lambda p: p.write_bytes(p.read_bytes()[:-30]), r"cannot be decoded"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_of_a_mask_is_a_line_before_training_and_when_it_is_read(ade, fault):
    damage, said = FAULTS[fault]
    damage(mask_path(ade))
    source = opened(ade)
    (line,) = check.check_masks(source).faults
    assert re.search(said, line) and "ADE_train_00000002" in line and "\n" not in line
    with pytest.raises(ValueError, match=f"(?s)^1 of 3 pictures with masks cannot be used:.*{said}.*check-data"):
        check.glance(source)
    with pytest.raises(ValueError, match=said):
        source[1]


def test_what_training_replaces_is_no_fault_of_it(ade):
    """A file that is cut off, and no mask that is wrong."""
    FAULTS["cut off"][0](mask_path(ade))
    assert check.glance(opened(ade), skip_corrupt=True).startswith("3 masks with the ids 0-3")
    FAULTS["16 bits"][0](mask_path(ade))
    with pytest.raises(ValueError, match="is a 16-bit PNG"):
        check.glance(opened(ade), skip_corrupt=True)


def test_missing_partners_are_named(ade):
    mask_path(ade).unlink()
    (ade / "images/training/ADE_train_00000003.jpg").unlink()
    with pytest.raises(FileNotFoundError) as error:
        opened(ade)
    said = str(error.value)
    assert "1 picture without a mask in" in said and "such as ADE_train_00000002" in said
    assert "1 mask without a picture in" in said and "such as ADE_train_00000003" in said
    assert "\n" not in said


@pytest.mark.parametrize(
    ("damage", "changes", "said"),
    [
        (
            lambda root: (root / "images").rename(root / "train"),
            {},
            r"no images/ and annotations/, but .*mosaic=voronoi",
        ),
        (lambda root: (root / "images/training").rename(root / "images/x"), {}, "no folder training or train"),
        (lambda root: None, {"split": "test"}, "no folder test"),
        (lambda root: None, {"num_classes": 0}, r"how many classes .*--config\.model\.num_classes=N.*classes\.txt"),
        (lambda root: None, {"num_classes": 255}, "num_classes=255 of masks has to be 1 to 254"),
        (lambda root: None, {"folder": "/none"}, "/none does not exist; expected"),
    ],
)
def test_a_folder_of_another_layout_is_refused(ade, damage, changes, said):
    damage(ade)
    with pytest.raises((FileNotFoundError, ValueError), match=said):
        opened(**{"folder": ade, **changes})


def test_what_masks_hold_is_said(ade):
    assert check.glance(opened(ade)) == "3 masks with the ids 0-3: all 3 classes; 25.0% of the pixels are of none"
    said = check.glance(opened(ade, num_classes=5))
    assert said == "3 masks with the ids 0-3: 3 of 5 classes, not 3, 4; 25.0% of the pixels are of none"


def test_the_command_checks_all_of_a_folder(ade, capsys):
    command = ["check-data", "--config", "configs/ade20k_semfpn_flatten_pvt_t.py", f"--config.data.folder={ade}"]
    main([*command, "--config.model.num_classes=3"])
    assert capsys.readouterr().out.splitlines() == [
        "train: 3 masks with the ids 0-3: all 3 classes; 25.0% of the pixels are of none; 0 unusable",
        "eval: 1 mask with the ids 0-3: all 3 classes; 25.0% of the pixels are of none; 0 unusable",
    ]
    save(mask_path(ade), MASK + 2)
    (ade / "images/validation/ADE_val_00000001.jpg").write_bytes(b"no picture")
    with pytest.raises(SystemExit, match="error: 2 pictures with masks cannot be used; see above"):
        main([*command, "--config.model.num_classes=3"])
    lines = capsys.readouterr().out.splitlines()
    assert "has the ids 4, 5" in lines[0] and "ADE_val_00000001.jpg' cannot be decoded" in lines[2]


def png(pixels):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return io.BytesIO(file.getvalue())


class OxfordIIITPet(tfds.core.GeneratorBasedBuilder):
    """Named and made as TFDS's own: a mask of 1 pet, 2 background, 3 border. Needs no TensorFlow."""

    VERSION = tfds.core.Version("4.0.0")
    name = "oxford_iiit_pet"

    def _info(self):
        features = {
            "image": tfds.features.Image(),
            "label": tfds.features.ClassLabel(num_classes=37),
            "file_name": tfds.features.Text(),
            "segmentation_mask": tfds.features.Image(shape=(None, None, 1)),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(range(3)), "test": self._generate_examples(range(2))}

    def _generate_examples(self, indices):
        for i in indices:
            mask = MASK % 3 + 1
            yield i, {"image": png(PIXELS), "label": i, "file_name": f"{i}.jpg", "segmentation_mask": png(mask)}


def test_pets_have_two_classes_and_a_border(tmp_path):
    tfds.disable_progress_bar()
    OxfordIIITPet(data_dir=tmp_path, file_format="array_record").download_and_prepare()
    source = open_masks("oxford_iiit_pet", "eval", num_classes=0, data_dir=tmp_path)
    assert (len(source), source.class_names, source.size(0)) == (2, ("pet", "background"), (6, 8))
    EQUAL(source[1].label, np.where(MASK % 3 == 2, IGNORED, MASK % 3))
    assert check.glance(source).startswith("2 masks with the ids 1-3: all 2 classes")


@pytest.mark.parametrize(
    ("name", "said"),
    [("scene_parse150", "not the ADE20K of 150 classes.*ADEChallengeData2016"), ("cifar10", "has no masks")],
)
def test_sets_without_the_masks_that_they_are_taken_for_are_refused(name, said, tmp_path):
    with pytest.raises(ValueError, match=said):
        open_masks(name, "train", num_classes=150, data_dir=tmp_path)


class Grey(Source):
    """Picture i is all of one grey value, 10 i, and of class i % 3."""

    class_names = ("a", "b", "c")

    def __len__(self):
        return 20

    def __getitem__(self, index):
        return Example(np.full((8, 8, 3), 10 * index, np.uint8), index % 3, str(index))


@pytest.mark.parametrize("cells", mosaic.CELLS)
def test_a_cell_of_a_mosaic_is_one_picture_with_its_class(cells):
    source = MosaicSource(Grey(), cells, (24, 32), 5)
    counts = set()
    for i in range(5):
        image, label, _ = source[i]
        inside = label != IGNORED
        assert 0.5 < inside.mean() < 0.98
        EQUAL(label[inside], image[..., 0][inside] // 10 % 3)
        counts.add(len(np.unique(image[..., 0])))
        same = label[:, 1:] == label[:, :-1]
        grey_same = image[:, 1:, 0] == image[:, :-1, 0]
        assert (grey_same | ~same | (label[:, 1:] == IGNORED)).all(), "two cells touch without a border"
    assert len(counts) > 1


def test_a_mosaic_is_a_function_of_seed_and_index():
    first, again, other = (MosaicSource(Grey(), "voronoi", (24, 32), 5, seed) for seed in (0, 0, 1))
    EQUAL(first[3].image, again[3].image)
    EQUAL(first[3].label, again[3].label)
    assert (first[3].image != first[2].image).any() and (first[3].image != other[3].image).any()
    with pytest.raises(IndexError):
        first[5]


def test_a_picture_covers_its_cell():
    """A cell of 24 x 16 pixels gets a picture of 8 x 8 three times as large, of which 24 x 16 are seen."""
    noise = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    EQUAL(mosaic._covering(noise, (24, 16), np.array([0.0, 0.5])), resized(noise, (24, 24))[:, 4:20])


def test_a_mask_error_survives_a_worker_process():
    import pickle

    assert str(pickle.loads(pickle.dumps(MaskError("the mask x")))) == "the mask x"
