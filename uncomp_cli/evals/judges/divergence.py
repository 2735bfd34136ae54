"""Judge fidelity: how far a compressed cache's predictions are from the full one's, along the full one's own text.

    kl, kl_p99   KL(full || setting) per token, mean and 99th percentile, in nats
    agreement    share of tokens whose argmax is the same
    divergence   where the argmax differs first, as a share of the text (1: nowhere)

The text is the full cache's greedy continuation; stop tokens do not end it, so all samples have one length. Its first
token is left out: with the question in the prefill its logits are everybody's but of settings that thin hidden states.
"""

from collections.abc import Iterator, Sequence

from torch import Tensor

from uncomp_cli.evals.judges.case import Case, Compressed
from uncomp_cli.evals.judges.contestants import FULL, Setting, make_settings
from uncomp_cli.evals.judges.forced_rows import in_batches
from uncomp_cli.evals.tables.outcome import Outcome
from uncomp_cli.evals.tasks.task import Regime

__all__ = ["compare_logits", "judge_fidelity"]


def judge_fidelity(case: Case, settings: Sequence[Setting], regime: Regime, stop_ids: Sequence[int]) -> list[Outcome]:
    """Outcomes of `settings`, which need not hold the full cache."""
    compressed, outcomes = case.compress(settings, regime)
    full = next((one for one in compressed if one.outcome.contestant == FULL), None)
    if full is None:
        (full,), _ = case.compress(make_settings([FULL], [], seed=0), regime)
    text = _continue(case, full, regime)
    (reference,) = _predict(case, [full], regime, text)
    for batch in in_batches([one.cache for one in compressed], case.decoder.spec, tokens=len(text)):
        predictions = _predict(case, [compressed[i] for i in batch], regime, text)
        for index, logits in zip(batch, predictions, strict=True):
            outcomes.append(compressed[index].judged(compare_logits(reference, logits)))
    return outcomes


def compare_logits(full: Tensor, ours: Tensor) -> dict[str, float]:
    """The metrics of two predictions of one text: logits [N, vocab] each."""
    expected, log_ours = full.float().log_softmax(dim=-1), ours.float().log_softmax(dim=-1)
    kl = (expected.exp() * (expected - log_ours)).sum(dim=-1).clamp_min(0)
    same = full.argmax(dim=-1) == ours.argmax(dim=-1)
    differs = (~same).nonzero()
    first = int(differs[0]) if len(differs) else len(same)
    return {
        "kl": float(kl.mean()),
        "kl_p99": float(kl.quantile(0.99)),
        "agreement": float(same.float().mean()),
        "divergence": first / len(same),
    }


def _continue(case: Case, full: Compressed, regime: Regime) -> list[int]:
    room = case.sample.queries[0].max_new_tokens
    rows, logits = case.begin([full], regime, 0, room=room)
    return [step.token for step in case.writer(rows, logits, 0, max_new_tokens=room, stop_ids=()).write()]


def _predict(case: Case, compressed: Sequence[Compressed], regime: Regime, text: Sequence[int]) -> Iterator[Tensor]:
    """Every row's logits [N - 1, vocab] of the text's tokens from the second on."""
    rows, _ = case.begin(compressed, regime, 0, room=len(text))
    return iter(rows.feed(text[:-1]))
