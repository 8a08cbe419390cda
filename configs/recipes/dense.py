"""What the configs of segmentation have in common."""

from configs import base

ADE20K = 20_210  # training pictures


def epochs(steps: int, batch_size: int, examples: int = ADE20K) -> float:
    """So many steps, in epochs, in which all durations are given: the fraction comes out as these very steps."""
    return steps / (examples // batch_size)


def ade20k(model: str, head: str, recipe):
    """A segmenter on ADEChallengeData2016 at 512 x 512, with mmsegmentation's augmentation."""
    config = base.imagenet(model, recipe)
    config.model.update(num_classes=150, image_size=(512, 512))
    config.data.update(name="folder", workers=8)
    config.segmentation.update(head=head, reduce_zero_label=True)
    config.optimizer.schedule = "poly"
    config.eval.batch_size = 8
    return config


def variant(config, arg: str):
    """What follows the colon in --config configs/x.py:ARG. There is one: "smoke", mosaics made of stripes."""
    if arg not in ("", "smoke"):
        raise ValueError(f"unknown variant {arg!r} of a config; leave it out, or use ':smoke'")
    if not arg:
        return config
    config = base.smoke(config)
    config.train.update(batch_size=8, epochs=2.0)
    config.data.examples = 32
    config.optimizer.update(learning_rate=0.1)
    config.segmentation.update(mosaic="rectangles", reduce_zero_label=False, channels=16)
    config.eval.batch_size = 8
    return config
