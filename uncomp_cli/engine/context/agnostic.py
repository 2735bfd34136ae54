"""Presets for questions that nobody has asked yet: what is kept must not go by the one that is asked first."""

from dataclasses import replace

from uncomp_cli.budget.presets import AGNOSTIC_PRESET, Preset, load_preset
from uncomp_cli.cache.scorers import make_scorer
from uncomp_cli.engine.spend.allocation import scorer_config
from uncomp_cli.errors import UsageError

__all__ = ["for_any_question"]


def for_any_question(preset: Preset) -> tuple[Preset, str | None]:
    """The preset with a scorer that needs no question and no thinning, which does; a note when that changes it.

    Raises UsageError for a policy that is defined by a scorer that needs one.
    """
    unthinned = replace(preset, thinning="none")
    if not make_scorer(scorer_config(unthinned)).needs_queries:
        return unthinned, None
    changed = replace(unthinned, scorer=load_preset(AGNOSTIC_PRESET).scorer)
    scorer = make_scorer(scorer_config(changed))
    if scorer.needs_queries:
        raise UsageError(
            f"policy {preset.policy} ranks by the question, and what is kept must serve questions nobody has asked yet",
            hint="leave --policy out, or take one that goes with any scorer, such as uniform",
        )
    if preset.policy == "full":
        return changed, None
    before = make_scorer(scorer_config(preset)).name
    return changed, (
        f"preset {preset.name} ranks tokens by the question ({before}); here they must serve later questions too: "
        f"scorer {scorer.name} is used"
    )
