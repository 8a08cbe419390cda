"""Top-1 on ImageNet-1k that others published of one host with its attention exchanged: DeiT-T, 224 px, 300 epochs."""

from typing import NamedTuple


class Published(NamedTuple):
    """A published accuracy.

    Attributes:
        top1: in percent.
        source: the papers whose tables have it.
        changed: what else than the attention is not the host's; such rows are shown and not counted.
    """

    top1: float
    source: str
    changed: str = ""


HOST = "DeiT-T, ImageNet-1k, 224 px, 300 epochs"
PUBLISHED: dict[str, Published] = {
    "softmax": Published(72.2, "DeiT (Touvron et al., 2021)"),
    "hydra": Published(68.3, "FLatten (Han et al., 2023)"),
    "linear": Published(69.8, "MALA (Fan et al., 2025), MHLA (2026); 70.5 in FLatten"),
    "efficient": Published(70.2, "FLatten (Han et al., 2023)"),
    "linear_angular": Published(70.8, "FLatten (Han et al., 2023)"),
    "litemla": Published(72.9, "FLatten (Han et al., 2023), there 'enhanced linear attention' of EfficientViT"),
    "focused": Published(74.1, "FLatten (Han et al., 2023)"),
    "inline": Published(74.5, "InLine (Han et al., 2024)"),
    "agent": Published(74.9, "Agent Attention (Han et al., 2024)"),
    "circulant": Published(75.0, "Circulant Attention (Han et al., 2026)"),
    "mala": Published(75.1, "MALA (Fan et al., 2025)"),
    "mhla": Published(75.8, "MHLA (2026), which pads 224 px to 256 tokens"),
    "ttt": Published(76.5, "ViT3 (Han et al., 2026)", "6 heads, conditional positions, no class token"),
    "gla": Published(77.2, "ViG (Liao et al., 2025)", "ViG's own block"),
}
SAME_HOST = {name: row.top1 for name, row in PUBLISHED.items() if not row.changed}
