"""The data of the pictures of `uncomp rope`, without their look: what ui/plots_rope.py draws."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from uncomp_cli.evals.rope.cells import NeedleCell, RopeCell

__all__ = ["ArmMaps", "arm_maps"]

Grid = tuple[tuple[float | None, ...], ...]


@dataclass(frozen=True, slots=True)
class ArmMaps:
    """One arm's needles by depth (rows) and length (columns): NLL, share found, entropy; None where not measured.

    The entropy is that of the `heads`: retrieval heads, or all heads.
    """

    arm: str
    depths: tuple[float, ...]
    lengths: tuple[int, ...]
    nll: Grid
    found: Grid
    entropy: Grid
    heads: str


def arm_maps(cells: Sequence[RopeCell]) -> list[ArmMaps]:
    """The maps of every arm, all on the same axes. Entropy is that of the retrieval heads where all cells have one."""
    needles = [cell for cell in cells if isinstance(cell, NeedleCell)]
    depths = tuple(sorted({cell.depth for cell in needles}))
    lengths = tuple(sorted({cell.tokens for cell in needles}))
    known = all(cell.retrieval_entropy is not None for cell in needles)
    maps = []
    for arm in dict.fromkeys(cell.arm for cell in needles):
        placed = {
            (depth, tokens): [c for c in needles if (c.arm, c.depth, c.tokens) == (arm, depth, tokens)]
            for depth in depths
            for tokens in lengths
        }

        def grid(name: str, placed: dict[tuple[float, int], list[NeedleCell]] = placed) -> Grid:
            return tuple(tuple(_mean(placed[depth, tokens], name) for tokens in lengths) for depth in depths)

        entropy, heads = ("retrieval_entropy", "retrieval heads") if known else ("entropy", "all heads")
        maps.append(ArmMaps(arm, depths, lengths, grid("nll"), grid("match"), grid(entropy), heads))
    return maps


def _mean(cells: Sequence[NeedleCell], name: str) -> float | None:
    return fmean(getattr(cell, name) for cell in cells) if cells else None
