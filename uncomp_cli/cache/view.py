"""What a scorer sees of one layer, and what it must be."""

from dataclasses import dataclass
from typing import ClassVar, Protocol

from torch import Tensor

from uncomp_cli.cache.softmax import Form
from uncomp_cli.config import ScorerConfig


@dataclass(frozen=True, slots=True)
class Again:
    """Queries [H, N, D] and keys [G, N, D] of tokens behind a context that they repeat, after RoPE.

    `sums` are the log-sum-exp [H, N] of each row's scores over the context and, causally, themselves, where attention
    has found them.
    """

    queries: Tensor
    keys: Tensor
    sums: Tensor | None = None


@dataclass(frozen=True, slots=True)
class LayerView:
    """What a scorer may look at in one layer of one row.

    queries: [H, S, D] and keys, values: [G, S, D], of the context (trunk) whose tokens are scored; queries and keys
    after RoPE. Of a prompt that is read in chunks the queries are those of the last chunk alone: fewer than S.
    form: how the layer makes weights of its scores.
    branches: for every question its (queries [H, N, D], keys [G, N, D]), both after RoPE, N the question's tokens.
    frequencies: radians a position by which RoPE turns each pair of dimensions, [R] with pairs (i, i + R), i < R; the
    other D - 2R dimensions stand still. None when the model's layers do not all turn by the same ones.
    positions: [N] where the queries stand in the text; None when they are the whole context, from its first token on.
    key_positions: [G, S] where the keys stand in the text, and `first_head`, the number in the model of the first KV
    head: of a prompt that is read in chunks. None: all heads hold the whole context.
    asked: how many last tokens of the context belong to the question: they compete with it, and observe it.
    again: N of the context's tokens that are read a second time, right behind it.
    """

    layer: int
    queries: Tensor
    keys: Tensor
    values: Tensor
    branches: tuple[tuple[Tensor, Tensor], ...]
    form: Form
    frequencies: Tensor | None = None
    asked: int = 0
    positions: Tensor | None = None
    key_positions: Tensor | None = None
    first_head: int = 0
    again: Again | None = None

    @property
    def scaling(self) -> float:
        """What products of queries and keys are multiplied by."""
        return self.form.scaling


class Scorer(Protocol):
    """Scores the context tokens of one layer. Most scorers have the properties as class variables."""

    @property
    def name(self) -> str:
        """What it is called in SCORERS."""
        ...

    @property
    def query_aware(self) -> bool:
        """Whether the question decides; if not, one compression serves questions that nobody has asked yet."""
        ...

    @property
    def needs_queries(self) -> bool:
        """Whether keys and values alone do not do: then what a cache holds cannot be ranked again later."""
        ...

    @property
    def repeats(self) -> bool:
        """Whether the text is read a second time behind itself for it: it scores `LayerView.again`, without pooling."""
        ...

    @property
    def shared(self) -> float:
        """Part of the final scores that comes from what the heads of all layers agree on (window.py); 0: none."""
        ...

    @property
    def published(self) -> ScorerConfig:
        """The window and the coherence that the scorer's paper, or its released code, uses."""
        ...

    def score(self, view: LayerView) -> Tensor:
        """Scores [G, S] in float32; larger stays longer."""
        ...


@dataclass(frozen=True, slots=True)
class Unasked:
    """What scorers have in common that look at no question: a subclass says its name, what is published, the score."""

    query_aware: ClassVar[bool] = False
    needs_queries: ClassVar[bool] = False
    repeats: ClassVar[bool] = False
    shared: ClassVar[float] = 0.0
    config: ScorerConfig


@dataclass(frozen=True, slots=True)
class Asking:
    """The same of those that go by the question, each layer and head by its own attention."""

    query_aware: ClassVar[bool] = True
    needs_queries: ClassVar[bool] = True
    repeats: ClassVar[bool] = False
    shared: ClassVar[float] = 0.0
    config: ScorerConfig
