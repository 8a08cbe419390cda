import numpy as np

from flatten_jax.bench import input_pipeline
from flatten_jax.data.augment import TrainTransform


def test_pillow_alone_does_the_same_augmentation():
    data = input_pipeline.NoiseJpegs(1, "4:2:0").files[0]
    assert 80_000 < len(data) < 120_000
    for augment in input_pipeline.TRANSFORMS.values():
        transform = TrainTransform(input_pipeline.SIZE, rand_augment=augment)
        for seed in range(8):
            slow = input_pipeline.pillow_alone(data, augment, np.random.default_rng(seed)).astype(int)
            fast = transform.from_file(data, "noise", np.random.default_rng(seed))
            assert np.median(np.abs(slow - fast)) <= 1, seed  # of the resize; operations may enlarge it


def test_rows_say_what_was_measured():
    rows = input_pipeline.measure(repeats=2, examples=2)
    by = ["flatten_jax", "Pillow alone"]
    assert [(row["transform"], row["by"]) for row in rows] == [(t, b) for t in ("crop + flip", "published") for b in by]
    for row in rows:
        assert 0 < row["low"] <= row["images_per_second_per_core"] <= row["high"] and row["repeats"] == 2
        assert row["over_pillow"] == 1 or row["by"] == "flatten_jax"
    assert input_pipeline.cores(2500, 600) == 5
