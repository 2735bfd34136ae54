"""What `uncomp rope` compares: kinds, factors, budgets and lengths as they are typed, and what is refused."""

import pytest

from uncomp_cli.budget.amount import FULL_BUDGET, Budget
from uncomp_cli.errors import UsageError
from uncomp_cli.evals.rope.arms import ModelLengths, RopeArm, parse_arms, parse_lengths, unread
from uncomp_cli.models.extension import RopeChoice

TRAINED = 8192
LENGTHS = ModelLengths(TRAINED, TRAINED)


def arms(text: str, *, longest: int = 16384, budget: str = "10%", compress: bool = False) -> list[str]:
    found = parse_arms(text, longest=longest, unscaled_length=TRAINED, budget=Budget.parse(budget), compress=compress)
    return [arm.label for arm in found]


def test_a_kind_without_a_factor_takes_the_smallest_whole_one_that_reaches() -> None:
    assert arms("plain,linear,ntk:8,yarn", longest=24_576) == ["plain", "linear:3", "ntk:8", "yarn:3"]
    assert arms("yarn", longest=16_385) == ["yarn:3"]
    assert arms("yarn", longest=1_000) == ["yarn:2"]


def test_repack_always_has_a_budget_and_others_when_it_is_asked_for() -> None:
    assert arms("plain,yarn:2,repack:2") == ["plain", "yarn:2", "repack:2@10%"]
    assert arms("plain,yarn:2,reread:4", compress=True) == ["plain@10%", "yarn:2@10%", "reread:4@10%"]
    assert arms("yarn:2,yarn:2@20%,repack:2@5%") == ["yarn:2", "yarn:2@20%", "repack:2@5%"]


def test_repack_and_reread_have_a_factor_that_is_said() -> None:
    default = RopeChoice("repack").repack_factor
    assert arms("repack,reread") == [f"repack:{default:g}@10%", f"reread:{default:g}@10%"]


def test_reread_looks_back_as_far_as_repack() -> None:
    repack, reread = RopeArm("repack", 4.0, Budget.parse("5%")), RopeArm("reread", 4.0, Budget.parse("5%"))
    assert (repack.choice, reread.choice) == (RopeChoice("repack", 4.0), RopeChoice("reread", 4.0))
    assert repack.reach(TRAINED) == reread.reach(TRAINED) == TRAINED // 4


def test_reach_and_what_is_beyond_it() -> None:
    yarn, plain, repack = (
        RopeArm("yarn", 2.0, FULL_BUDGET),
        RopeArm("plain", None, FULL_BUDGET),
        RopeArm("repack", 2.0, Budget.parse("10%")),
    )
    assert yarn.reads(2 * TRAINED, LENGTHS)
    assert not yarn.reads(2 * TRAINED + 1, LENGTHS)
    assert plain.reads(1000 * TRAINED, LENGTHS)
    assert repack.reads(100 * TRAINED, LENGTHS)
    assert (repack.reach(TRAINED), yarn.reach(TRAINED)) == (TRAINED // 2, None)
    (sentence,) = unread([yarn, plain, repack], [TRAINED, 20_000, 30_000], LENGTHS)
    assert sentence == "yarn:2 reads up to 16,384 tokens: not measured at 20,000, 30,000"


def test_factors_count_from_the_length_before_a_scaling_of_the_models_own() -> None:
    scaled = ModelLengths(trained=2048, unscaled=512)
    (yarn,) = parse_arms("yarn", longest=4096, unscaled_length=scaled.unscaled, budget=Budget.parse("10%"))
    assert yarn.label == "yarn:8"
    assert yarn.reads(4096, scaled)
    assert not RopeArm("yarn", 2.0, FULL_BUDGET).reads(1025, scaled)
    assert RopeArm("repack", 2.0, Budget.parse("10%")).reach(scaled.trained) == 1024


def test_plain_reads_as_far_as_a_rope_that_depends_on_the_length() -> None:
    plain, ends = RopeArm("plain", None, FULL_BUDGET), ModelLengths(512, 512, plain=2048)
    assert plain.reads(2048, ends)
    assert list(unread([plain], [1024, 4096], ends)) == ["plain reads up to 2,048 tokens: not measured at 4,096"]
    assert plain.choice_for(1024) == RopeChoice("plain", None, 1024)


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("yran:2", "yran", "yarn"),
        ("yarn:0.5", "0.5", "yarn"),
        ("plain,auto", "auto", "--kinds"),
        (" , ", "names nothing", "--kinds"),
        ("yarn:2,yarn", "yarn:2 twice", "leave one"),
        ("repack@full", "keeps everything", "repack@5%"),
        ("yarn:2@much", "much", ""),
    ],
)
def test_a_wrong_kind_is_named(text: str, message: str, hint: str) -> None:
    with pytest.raises(UsageError) as refusal:
        arms(text)
    assert message in refusal.value.message
    assert hint in (refusal.value.hint or "")


def test_a_budget_that_is_no_part_is_refused() -> None:
    with pytest.raises(UsageError, match="full is no part"):
        arms("repack", budget="full")


def test_lengths_rise_and_k_is_1024() -> None:
    assert parse_lengths("16k, 12k,9000,12288") == (9000, 12_288, 16_384)


@pytest.mark.parametrize("text", ["", "16q", "-3", "0", "16k,many", "100", "1.5k"])
def test_what_is_no_length_is_named(text: str) -> None:
    with pytest.raises(UsageError) as refusal:
        parse_lengths(text)
    assert text.split(",")[-1] in refusal.value.message
    assert refusal.value.hint
