"""A run small enough for a test: one block, 16-pixel pictures, a handful of steps."""

import ml_collections
import pytest

from configs import flatten_deit_t


def tiny() -> ml_collections.ConfigDict:
    config = flatten_deit_t.get_config("smoke")
    config.model.update(
        image_size=(16, 16), patch_size=4, embed_dim=16, depth=1, num_heads=2, drop_path=0.0, num_classes=4
    )
    config.data.examples = 40
    config.train.update(batch_size=8, epochs=2, warmup_epochs=0)
    config.eval.batch_size = 16
    # Random numbers take longest to compile; what is about them says so.
    config.augment.update(erase_prob=0.0, mixup=0.0, cutmix=0.0)
    return config


@pytest.fixture
def tiny_config() -> ml_collections.ConfigDict:
    return tiny()
