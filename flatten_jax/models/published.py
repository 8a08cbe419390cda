"""What others published about a model."""

import dataclasses

WEIGHTS = "https://cloud.tsinghua.edu.cn/f/{}/?dl=1"  # where FLatten, InLine and Agent Attention keep theirs


@dataclasses.dataclass(frozen=True)
class Published:
    """ImageNet-1k top-1 accuracy in percent that others report for a model; None where they do not.

    Attributes:
        paper: by the model's own authors, in their paper or README; for FLatten's models and their softmax twins in the
            tables of the FLatten paper, which for softmax repeat those of the original papers.
        release: printed by the FLatten release, in its log excerpts or in its table of weights.
        weights: where the authors' weights are.
        note: how the model that was measured differs from the one here.
    """

    paper: float | None = None
    release: float | None = None
    weights: str | None = None
    note: str = ""
