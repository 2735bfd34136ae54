"""Contestants: what stands for judgement, in one short word, and the settings they are judged at.

    POLICY[/SCORER][/8bit|/4bit][/published][/thin=THINNING][/KEY=VALUE]...
    uniform · pyramid · uniform/keydiff · full/8bit · uniform/published · uncomp:groups=2/width=7/pooling=max
    full/thin=gather:after=8,keep=0.2 · uncertain/agreement/profile=balanced/thin=uncertain

`8bit` and `4bit` hold the prompt's keys and values in fewer bits. `published` takes window, pooling and single tokens
as the scorer's paper has them instead of our coherence (cache/coherence.py), which every contestant gets otherwise,
controls included. `thin` is a thinning of hidden states (budget/thinning.py); `full` then keeps all that each layer
saw. A KEY is a setting of the scorer (config.ScorerConfig), or `profile`, whose VALUE is the preset whose profile holds
what policy and thinning need measured; without it they measure live. `preset:NAME[/thin=THINNING]` takes policy,
scorer, bits, thinning and profile from a preset. Labels of both have a digest, so that results of what was edited or
calibrated again are another's. A setting is a contestant at a budget: at those that are asked for, or at its one after
an `@` (`uniform@10%`). `preset:NAME@own` has the preset's budget with its floor: what `uncomp ask -p NAME` does.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

from uncomp_cli.budget.amount import FULL_BUDGET, Budget
from uncomp_cli.budget.notation import read_settings
from uncomp_cli.budget.policies import Policy, make_policy
from uncomp_cli.budget.presets import Preset, load_preset
from uncomp_cli.budget.thinning import NoThinning, make_thinning
from uncomp_cli.cache.scorers import SCORERS, make_scorer, scorer_names
from uncomp_cli.config import ScorerConfig
from uncomp_cli.errors import UsageError, did_you_mean

FULL = "full"
_BITS = {"8bit": 8, "4bit": 4}
_PUBLISHED = "published"
_PROFILE = "profile"
_THIN = "thin"
_OWN = "own"


@dataclass(frozen=True, slots=True)
class Setting:
    """One contestant at one budget; `preset` is what the engine is given."""

    contestant: str
    preset: Preset

    @property
    def budget(self) -> str:
        """The budget in the user's own unit."""
        return str(self.preset.budget)

    @property
    def label(self) -> str:
        """`uniform/keydiff 20%`; the full cache is `full`."""
        return self.contestant if self.budget == FULL else f"{self.contestant} {self.budget}"


def make_settings(contestants: Sequence[str], budgets: Sequence[Budget | str], *, seed: int) -> list[Setting]:
    """The full cache, and every contestant at every budget, each once; what keeps all tokens has one setting.

    Raises UsageError for a name or budget that is none; a budget of `auto` depends on the machine and is refused.
    """
    chosen = {s.label: s for s in [Setting(FULL, parse_contestant(FULL, seed=seed))]}
    for written in contestants:
        text, at, budget = written.partition("@")
        if budget == _OWN:
            found = [_as_asked(written, seed=seed)]
        else:
            found = _at_budgets(text, [budget] if at else budgets, seed=seed)
        for setting in found:
            chosen.setdefault(setting.label, setting)
    return list(chosen.values())


def _at_budgets(text: str, budgets: Sequence[Budget | str], *, seed: int) -> list[Setting]:
    preset, found = parse_contestant(text, seed=seed), []
    for budget in [FULL_BUDGET] if preset.policy == FULL else [_checked_budget(b) for b in budgets]:
        whole = budget.kind == FULL and text.startswith("preset:") and f"/{_THIN}=" not in text  # as `ask -b full`
        thinning = "none" if whole else preset.thinning
        found.append(Setting(preset.name, replace(preset, budget=budget, thinning=thinning)))
    return found


def _as_asked(written: str, *, seed: int) -> Setting:
    """A preset as `ask` uses it, its floor in the digest."""
    text = written.partition("@")[0]
    kind, _, name = text.partition(":")
    if kind != "preset":
        raise UsageError(f"contestant '{written}' has no budget of its own", hint="write preset:NAME@own, or @20%")
    own = load_preset(name.partition(f"/{_THIN}=")[0])
    preset = parse_contestant(text, seed=seed)
    digest = hashlib.sha256(f"{preset.name} {own.floor_tokens}".encode()).hexdigest()[:8]
    named = f"{written}#{digest}"
    return Setting(named, replace(preset, name=named, budget=own.budget, floor_tokens=own.floor_tokens))


def parse_contestant(text: str, *, seed: int) -> Preset:
    """The preset of a contestant at full budget, named as it was written. Raises UsageError with the nearest name."""
    kind, _, name = text.partition(":")
    if kind == "preset" and name:
        return _of_preset(text, name, seed=seed)
    policy_name, *rest = text.split("/")
    parts = [part for part in rest if "=" not in part]
    policy = make_policy(policy_name)
    scorers = [part for part in parts if part not in _BITS and part != _PUBLISHED]
    for part in parts:
        _check_part(part, text)
    if len(scorers) > 1 or len(parts) != len(set(parts)) or sum(part in _BITS for part in parts) > 1:
        raise UsageError(f"contestant '{text}' says one thing twice", hint="write POLICY[/SCORER][/8bit][/published]")
    settings = [part for part in rest if "=" in part]
    if policy_name == FULL and (scorers or _PUBLISHED in parts or _rank(settings)):
        hint = "write full, full/8bit, full/4bit or full/thin=gather"
        raise UsageError(f"contestant '{text}': policy full ranks nothing", hint=hint)
    scorer_name = _scorer_name(text, policy.fixed_scorer, scorers)
    config = _published(policy, scorer_name) if _PUBLISHED in parts else ScorerConfig(scorer_name)
    bits = next((_BITS[part] for part in parts if part in _BITS), 16)
    preset = Preset(text, "", FULL_BUDGET, policy_name, replace(config, seed=seed), kv_bits=bits)
    return _with_settings(preset, settings, text)


def _published(policy: Policy, scorer_name: str) -> ScorerConfig:
    """How a paper ranks: the policy's, where the scorer is the one that it uses, else the scorer's."""
    if policy.published is not None and policy.published.name == scorer_name:
        return policy.published
    return make_scorer(ScorerConfig(scorer_name)).published


def _of_preset(text: str, name: str, *, seed: int) -> Preset:
    """The preset of `NAME[/thin=THINNING]`, without its budget and floor."""
    name, given, thinning = name.partition(f"/{_THIN}=")
    preset = load_preset(name)
    preset = replace(preset, thinning=make_thinning(thinning).text) if given else preset
    _check_thinning(preset, text)
    scorer = replace(preset.scorer, seed=seed)
    return replace(preset, name=f"{text}#{_digest(preset)}", budget=FULL_BUDGET, floor_tokens=0, scorer=scorer)


def _rank(settings: Sequence[str]) -> bool:
    """Whether any of `key=value` settings is about ranking: a profile is not, when there is a thinning to use it."""
    keys = {part.partition("=")[0] for part in settings}
    return bool(keys - ({_THIN, _PROFILE} if _THIN in keys else {_THIN}))


def _with_settings(preset: Preset, settings: Sequence[str], text: str) -> Preset:
    """The preset with its thinning, `key=value` settings of its scorer, and the profile that `profile` names."""
    profiles, thinnings = _values(settings, _PROFILE), _values(settings, _THIN)
    of_scorer = [part for part in settings if part.partition("=")[0] not in (_PROFILE, _THIN)]
    if len(profiles) > 1 or len(thinnings) > 1:
        raise UsageError(f"contestant '{text}' says one thing twice", hint="name one profile= and one thin=")
    if any(part.startswith(("name=", "seed=")) for part in of_scorer):
        raise UsageError(f"contestant '{text}' sets what has its own place", hint="write POLICY/SCORER, and use --seed")
    if of_scorer:
        read = read_settings(ScorerConfig, ",".join(of_scorer), text=text)
        preset = replace(preset, scorer=replace(preset.scorer, **read))
    if thinnings:
        preset = replace(preset, thinning=make_thinning(thinnings[0]).text)
    preset = _with_profile(preset, profiles[0], text) if profiles else preset
    _check_thinning(preset, text)
    return preset


def _values(settings: Sequence[str], key: str) -> list[str]:
    """What `key=value` settings say about `key`."""
    return [part.partition("=")[2] for part in settings if part.partition("=")[0] == key]


def _with_profile(preset: Preset, name: str, text: str) -> Preset:
    """The preset with the profile of preset `name`, and its digest in the label."""
    source = load_preset(name)
    if source.profile is None:
        raise UsageError(f"contestant '{text}': preset {source.name} has no profile", hint="uncomp calibrate makes one")
    preset = replace(preset, profile=source.profile, folder=source.folder)
    return replace(preset, name=f"{text}#{_digest(preset)}")


def _check_thinning(preset: Preset, text: str) -> None:
    """Raise UsageError for a thinning that can go by a profile alone, and has none."""
    thinning = make_thinning(preset.thinning)
    if thinning.measures and not thinning.watches and preset.profile is None:
        message = f"contestant '{text}': thinning {thinning.name} goes by a profile"
        raise UsageError(message, hint="name a preset that has one: profile=balanced")


def _digest(preset: Preset) -> str:
    """Eight digits of what decides a preset's results, its profile among it, budget and floor aside."""
    path = preset.profile_path
    measured = "" if path is None or not path.is_file() else hashlib.sha256(path.read_bytes()).hexdigest()
    decisive = [preset.policy, asdict(preset.scorer), preset.kv_bits, measured]
    decisive += [] if preset.thinning == NoThinning.name else [preset.thinning]  # so that older labels stay
    return hashlib.sha256(json.dumps(decisive).encode()).hexdigest()[:8]


def _check_part(part: str, text: str) -> None:
    if part in (*SCORERS, *_BITS, _PUBLISHED):
        return
    known = [*scorer_names(), *_BITS, _PUBLISHED]
    if part not in known:
        hint = did_you_mean(part, known, f"after the policy: {', '.join(known)}")
        raise UsageError(f"contestant '{text}' has the unknown part '{part}'", hint=hint)


def _scorer_name(text: str, fixed: str | None, scorers: Sequence[str]) -> str:
    if fixed is not None and scorers and scorers[0] != fixed:
        raise UsageError(
            f"contestant '{text}': the policy has its own scorer, {fixed}", hint=f"write uniform/{scorers[0]}"
        )
    return scorers[0] if scorers else fixed or ScorerConfig().name


def _checked_budget(given: Budget | str) -> Budget:
    budget = Budget.of(given)
    if budget.kind == "auto":
        raise UsageError("budget auto depends on the memory that is free", hint="name one: --budget 20%")
    return budget
