"""What one arm of `uncomp rope` scored, a line of its results file, and the data of the pictures of all of them.

A cell is one needle in a text, or a pass along a plain text. Figures are plain numbers, so that a cell survives JSON
and needs no model to be read again. By head means [L][G]; layers with a sliding window have an empty row, since no
position past their window is looked at. ui/plots.py draws the maps.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any, ClassVar, Literal

from uncomp_cli.evals.journal import Kind
from uncomp_cli.schema import Count, read, value_of

CellKey = tuple[str, str, int, float, int]
"""Cell, arm, tokens, depth, index."""


@dataclass(frozen=True, slots=True)
class NeedleCell:
    """One needle: number `index` of those at `depth` of a text that fills `tokens`, question and answer included.

    `nll` is the mean over the answer's tokens from the second on (the first is predicted before the last eviction),
    `match` 1 when the greedy answer holds the needle. Entropies are means over the answer's tokens, divided by ln n,
    sinks left out (arXiv 2406.13282): `entropy` over all heads, `retrieval_entropy` over the preset's retrieval heads;
    `raw_entropy` is that over all heads in nats, which grows with n.
    """

    name: ClassVar[str] = "needle"

    arm: str
    tokens: Count
    depth: float
    index: Count
    nll: float
    match: float
    answer: str
    entropy: float
    raw_entropy: float
    retrieval_entropy: float | None
    entropy_by_head: list[list[float]]
    kv_bytes: Count
    kept_fraction: float
    seconds: float

    @property
    def key(self) -> CellKey:
        """What makes it unique in a results file."""
        return (self.name, self.arm, self.tokens, self.depth, self.index)


@dataclass(frozen=True, slots=True)
class TextCell:
    """One pass over `tokens` of plain text.

    `losses` are (position, NLL): the mean in nats of the tokens up to that position and behind the one before.
    `patterns[at]` [L][G][bins] is the attention by relative distance of the tokens before position `at`.
    """

    name: ClassVar[str] = "text"

    arm: str
    tokens: Count
    losses: list[tuple[Count, float]]
    patterns: dict[str, list[list[list[float]]]]
    chunk_tokens: Count
    kv_bytes: Count
    seconds: float

    @property
    def key(self) -> CellKey:
        """What makes it unique in a results file."""
        return (self.name, self.arm, self.tokens, 0.0, 0)


RopeCell = NeedleCell | TextCell


def _made(record: dict[str, Any]) -> RopeCell:
    cells: dict[str, type[RopeCell]] = {cell.name: cell for cell in (NeedleCell, TextCell)}
    name = value_of(Literal["needle", "text"], record.get("cell"), "cell")
    return read(cells[name], {key: value for key, value in record.items() if key != "cell"})


CELLS: Kind[RopeCell] = Kind(
    program="uncomp rope",
    make=_made,
    plain=lambda cell: {"cell": cell.name, **asdict(cell)},
    key=lambda cell: cell.key,
    place=lambda cell: f"{cell.arm} at {cell.tokens:,} tokens",
    fresh=False,
)
"""The results of `uncomp rope`."""


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
