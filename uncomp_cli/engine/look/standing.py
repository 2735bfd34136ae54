"""Whether a passage stands out for a question: what an open question, a summary or a list of everything, lacks.

    share    = Σ_s a_s over the PEAK_TOKENS neighbours of the document that are looked at most, sinks left out
               a_s is the mean over the watched heads (watch.py), the largest of the question's rows and of the chunks

A question for a fact finds it: retrieval heads look at it while the question is read. One for a summary finds nothing
that is more its own than the rest, and what is kept of a text for it is as good as chance. The heads' entropies say so
too, less well (docs/results/open.md). A preset says below which share a question is open. The longer a text the less of
it any passage has, so that the limit says nothing of texts longer than those it was measured on, `MEASURED_TOKENS`.
"""

from functools import partial
from typing import TYPE_CHECKING

from uncomp_cli.cache.layer import Head
from uncomp_cli.engine.look.watch import PEAK_TOKENS, AnswerWatch, Watched
from uncomp_cli.engine.tokens.prompt import Prompt
from uncomp_cli.models.ranks import ALONE, Ranks
from uncomp_cli.spec import ModelSpec

if TYPE_CHECKING:
    from uncomp_cli.engine.read.chunk import ChunkStates

MEASURED_TOKENS = 2_000


class Standing:
    """Watches the questions of a prompt while it is read; `shares[q]` is how far a passage stands out for each."""

    def __init__(self, watched: Watched, spec: ModelSpec, prompt: Prompt, ranks: Ranks = ALONE) -> None:
        self.shares = [0.0] * len(prompt.questions)
        self._watched, self._spec, self._ranks = watched, spec, ranks
        self._last = max(layer for layer, _ in watched.heads)
        self._document = range(int(prompt.context.protected.sum()), len(prompt.context) - prompt.asked)
        self._states: ChunkStates | None = None
        self.begin()

    def begin(self) -> None:
        """Start a chunk: nothing has been seen of it."""
        texts = [self._document.stop]
        self._watches = [
            AnswerWatch(self._watched, partial(self._held, number), self._spec, texts=texts, ranks=self._ranks)
            for number in range(len(self.shares))
        ]

    def observe(self, layer: int, states: "ChunkStates") -> None:
        """What the questions of a chunk look at in `layer`, which follows those that were observed."""
        self._states = states
        for number, watch in enumerate(self._watches):
            watch.observe(layer, states.asking(number)[None], states.form)
        if layer == self._last:
            self.shares = [max(pair) for pair in zip(self.shares, map(self._share, self._watches), strict=True)]

    def _held(self, question: int, layer: int, head: int) -> Head:
        if self._states is None:
            raise RuntimeError("nothing has been observed")
        return self._states.asked_of(question, head)

    def _share(self, watch: AnswerWatch) -> float:
        (mass,) = watch.mass
        looked = mass[:, self._document.start :]
        width = min(PEAK_TOKENS, looked.shape[1])
        if not width:
            return 1.0  # there is no document
        return float(looked.unfold(1, width, 1).sum(dim=-1).max()) / len(self._watched.heads)
