"""Which layers stay exact for a distance: their order, how many, and the file of the choice."""

import json
from pathlib import Path

import pytest

from jaxl.errors import CheckpointError, InputError
from jaxl.run.model import Model
from jaxl.weights.layout import flatten
from jaxl.weights.quantise import ALL, layers, read_precision
from jaxl.weights.sensitivity import (
    Choice,
    choice_file,
    fewest,
    groups,
    in_order,
    multiply_adds,
    read_choice,
    share,
    write_choice,
)
from jaxl.weights.source import open_checkpoint

TREE = Model.from_configs(open_checkpoint("tiny").configs).shapes()["unet"]
EVERY = layers(TREE)


def test_layers_of_one_input_are_one_group() -> None:
    found = groups(EVERY)
    assert sorted(path for group in found for path in group) == sorted(EVERY)
    several = [group for group in found if len(group) > 1]
    assert len(several) == sum(path.endswith("attn1.to_q") for path in EVERY) > 0
    assert all([path.rpartition(".")[2] for path in group] == ["to_q", "to_k", "to_v"] for group in several)


def test_multiply_adds() -> None:
    """As many as a weight has numbers, at each pixel of what the layer makes: a quarter on a lower level."""
    work, sizes = multiply_adds(TREE), {key: leaf.size for key, leaf in flatten(TREE).items()}
    levels = {
        "conv_in": 0,
        "down_blocks.0.resnets.0.conv1": 0,
        "down_blocks.0.downsamplers.0.conv": 1,
        "down_blocks.2.resnets.0.conv2": 2,
        "mid_block.attentions.0.proj_in": 2,
        "up_blocks.0.resnets.0.conv1": 2,
        "up_blocks.0.upsamplers.0.conv": 1,
        "up_blocks.2.resnets.0.conv_shortcut": 0,
    }
    assert {path: work[path] for path in levels} == {p: sizes[f"{p}.weight"] / 4**n for p, n in levels.items()}
    assert not [path for path in work if "attn2.to_k" in path or "time_emb" in path or "norm" in path]
    assert 0.85 < share(TREE, EVERY) < 1
    assert share(TREE, EVERY[:1]) == work[EVERY[0]] / sum(work.values())


def test_what_disturbs_most_for_its_work_comes_first() -> None:
    small, large = ("down_blocks.2.resnets.0.conv2",), ("down_blocks.0.resnets.0.conv2",)
    ratio = multiply_adds(TREE)[small[0]] / multiply_adds(TREE)[large[0]]
    assert in_order({large: 1.0, small: 1.01 * ratio}, TREE) == [small, large]
    assert in_order({large: 1.0, small: 0.99 * ratio}, TREE) == [large, small]


@pytest.mark.parametrize("needed", [0, 1, 5, 7])
def test_no_more_layers_stay_exact_than_needed(needed: int) -> None:
    order = [(f"{i}.a", f"{i}.b") for i in range(7)]
    asked: list[int] = []

    def psnr(exact: frozenset[str]) -> float:
        asked.append(len(exact) // 2)
        assert exact == {path for group in order[: asked[-1]] for path in group}
        return 20.0 + asked[-1]

    assert fewest(order, psnr, 20.0 + needed) == {path for group in order[:needed] for path in group}
    assert len(asked) <= 3, "pictures are dear"


def test_precisions_with_a_distance() -> None:
    found = read_precision("int8+all@37.5", "tpu")
    assert (found.name, found.decibels, found.pattern) == ("int8+all@37.5", 37.5, ALL)
    assert read_precision("int8+all", "cpu").decibels is None
    for wrong in ("int8@", "int8@x", "int8@0", "int8@-3", "int8@nan", "int8@101"):
        with pytest.raises(InputError, match=r"give a distance in dB above 0 and up to 100, such as int8@35"):
            read_precision(wrong, "cpu")
    with pytest.raises(InputError, match="did you mean 'int8\\+all'"):
        read_precision("int8+al@35", "cpu")
    with pytest.raises(InputError, match="use int8 or fp8\\+all"):
        read_precision("int8+all@35", "gpu")


def test_the_file_of_a_choice(tmp_path: Path) -> None:
    file = choice_file(tmp_path / "scales" / "0a.json", "int8+all@35")
    assert read_choice(file, TREE) is None
    for choice in (Choice(tuple(EVERY[:3]), 35.25, 0.9), Choice((), None, 1.0)):
        write_choice(file, choice)
        assert read_choice(file, TREE) == choice
    assert [each.name for each in file.parent.iterdir()] == ["0a-int8+all@35.json"]
    whole = {"exact": [EVERY[0]], "psnr": 35.0, "share": 0.9}
    for wrong in ({"exact": ["conv_in"]}, {"exact": 1}, {"psnr": "35"}, {"share": None}, {"share": float("nan")}):
        file.write_text(json.dumps(whole | wrong))
        with pytest.raises(CheckpointError, match=r"damaged choice of layers \(not .*; remove it"):
            read_choice(file, TREE)
    file.write_text("[]")
    with pytest.raises(CheckpointError, match="damaged choice of layers"):
        read_choice(file, TREE)
