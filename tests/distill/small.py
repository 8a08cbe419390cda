"""A teacher of a few parameters in a run's folder, and configs of students that are taught by it."""

from ..runs import write_run
from ..training.conftest import tiny

NAMES = ("a", "b", "c", "d")


def write_teacher(folder, **options):
    """The run of a softmax model of `tiny()` with two blocks, in which nothing was trained; (model, params)."""
    options = {"attn_type": "softmax", "depth": 2} | options
    _, model, params = write_run(folder, NAMES, {1: 50.0}, **options)
    return model, params[1]


def student(folder, model=None, **distill):
    """The config of a student of that teacher, with linear attention."""
    config = tiny()
    config.model.update({"attn_type": "linear", "depth": 2} | (model or {}))
    config.train.batch_size = 16
    config.distill.update({"teacher": str(folder)} | distill)
    return config
