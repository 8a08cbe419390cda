"""What others published about a model."""

import dataclasses

WEIGHTS = "https://cloud.tsinghua.edu.cn/f/{}/?dl=1"  # where the FLatten release keeps its own


@dataclasses.dataclass(frozen=True)
class Published:
    """ImageNet-1k top-1 accuracy in percent that others report for a model; None where they do not.

    Attributes:
        paper: in the tables of the FLatten paper, which for softmax models repeat those of the original papers.
        release: printed by the release, in its log excerpts or in its table of weights.
        weights: where the release's weights are.
        note: how the model that was measured differs from the one here.
    """

    paper: float | None = None
    release: float | None = None
    weights: str | None = None
    note: str = ""
