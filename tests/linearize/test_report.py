"""What is measured of each block, against NumPy."""

import jax
import numpy as np
import pytest

from flatten_jax.distill.tasks import Align
from flatten_jax.distill.teacher import Teacher
from flatten_jax.linearize import report
from flatten_jax.linearize.swap import student_of, swap
from flatten_jax.models import create_model
from flatten_jax.models.images import IMAGENET_MEAN, IMAGENET_STD

from .test_swap import CSWIN, DEIT, random_variables

DEIT = {**DEIT, "depth": 2}


def measured(name, options, attention, change=lambda variables: None, **more):
    teacher = create_model(name, **options)
    variables = random_variables(teacher)
    change(variables["params"])
    _, _, student = student_of(teacher, attention, (), more)
    ours, _ = swap(variables, teacher, student)
    task = Align(student, teacher=Teacher(teacher, variables, IMAGENET_MEAN, IMAGENET_STD))
    images = jax.random.normal(jax.random.key(0), (2, *teacher.image_size, 3))
    return report.blocks(task, variables, ours, images), teacher, variables, images


def test_of_softmax_itself_nothing_is_apart_and_flat_rows_have_the_largest_entropy():
    def no_queries(params):
        for block in ("blocks_0", "blocks_1"):
            for leaf in params[block]["attn"]["qkv"].values():
                leaf[..., :8] = 0

    rows, *_ = measured("deit_t", DEIT, "softmax", no_queries)
    assert [row["block"] for row in rows] == [0, 1]
    for row in rows:
        assert row["error"] == 0 and row["dead_rows"] >= 0.5  # all of the queries
        assert row["entropy"] == pytest.approx(np.log(17), rel=1e-4)


def test_keys_that_are_all_the_same_are_shifted_by_all_of_their_length():
    def same_keys(params):
        for block in ("blocks_0", "blocks_1"):
            params[block]["attn"]["qkv"]["kernel"][:, 8:16] = 0
            params[block]["attn"]["qkv"]["bias"][8:16] = 1

    shifted, *_ = measured("deit_t", DEIT, "linear", same_keys)
    plain, *_ = measured("deit_t", DEIT, "linear")
    for a, b in zip(shifted, plain, strict=True):
        assert a["key_shift"] == pytest.approx(1, rel=1e-5) and 0 < b["key_shift"] < 1
        assert b["error"] > 0 and 0 < b["entropy"] < np.log(17)


@pytest.mark.slow
def test_in_stripes_both_branches_count():
    rows, *_ = measured("cswin_t", CSWIN, "linear")
    assert [row["attention"] for row in rows] == ["linear"] * 4
    assert all(row[key] is not None for row in rows for key in ("error", "entropy", "key_shift", "dead_rows"))
    text = report.words([*rows, {**rows[0], "block": 4, "entropy": None}])
    assert len(text.splitlines()) == 6 and text.splitlines()[5].split()[3] == "-"


def test_without_the_class_token_the_picture_is_compared():
    rows, *_ = measured("deit_t", DEIT, "focused", class_token=False)
    assert all(np.isfinite(row["error"]) and row["error"] > 0 for row in rows)
