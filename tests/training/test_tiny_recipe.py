"""The parts of the tiny model's recipe that are plain computation: scenes, held-out rules, captions, vocabulary."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "training" / "tiny"))
bpe, captions, scenes = (importlib.import_module(name) for name in ("bpe", "captions", "scenes"))

CONCEPTS = scenes.load_concepts()
EXPECTED = ["a dodo, noto style", "chopsticks on a yellow background", "a bagel, noto style", "a bikini, flat style"]


def draw(count: int, seed: int = 7) -> list:
    """(scene, caption) pairs as training draws them."""
    sampler = scenes.SceneSampler(CONCEPTS, seed)
    drawn = (sampler.draw() for _ in range(count))
    return [(scene, captions.random_caption(scene, CONCEPTS, sampler.rng)) for scene in drawn]


def test_concepts_are_the_models_562_and_distinct():
    assert len(CONCEPTS) == len({concept.key for concept in CONCEPTS}) == 562
    assert all(concept.phrases and all(concept.names) for concept in CONCEPTS)


def test_names_are_phrases_without_their_article():
    concept = scenes.Concept("x", ("an owl", "a thing", "the sun", "scissors", "anchor"))
    assert concept.names == ("owl", "thing", "sun", "scissors", "anchor")


def test_same_seed_same_captions_and_another_seed_others():
    assert draw(200) == draw(200)
    assert draw(200) != draw(200, seed=8)


def test_captions_of_the_tokenizers_seed_are_the_ones_the_model_was_trained_with():
    assert [caption for _, caption in draw(4, seed=123)] == EXPECTED


def test_captions_say_only_what_is_in_the_scene():
    for scene, caption in draw(3000):
        said = [any(name in caption for name in CONCEPTS[item.concept].names) for item in scene.items]
        assert all(said), caption
        assert "style" not in caption or f"{scenes.STYLES[scene.style]} style" in caption
        assert "background" not in caption or f"{scenes.COLOUR_NAMES[scene.background]} background" in caption
        assert "a orange" not in caption
        if scene.relation:
            assert f" {scene.relation} " in caption or (scene.relation in scenes.SIDE_BY_SIDE and " and " in caption)


def test_full_caption_leaves_nothing_out():
    items = tuple(scenes.Item(concept, 112.0, 128.0, 128.0) for concept in (0, 1))
    orange = scenes.COLOUR_NAMES.index("orange")
    scene = scenes.Scene(1, orange, scenes.PLAIN, 0.0, items, "above")
    expected = f"{CONCEPTS[0].phrases[0]} above {CONCEPTS[1].phrases[0]} on an orange background, noto style"
    assert captions.full_caption(scene, CONCEPTS) == expected


def test_training_scenes_never_break_a_held_out_rule():
    for scene, _ in draw(5000):
        first, *others = (item.concept for item in scene.items)
        if others:
            assert others[0] != first
            assert not scenes.is_held_out_pair(first, others[0])
        else:
            assert not scenes.is_held_out_single(first, scene.background)


def test_held_out_rules_keep_one_single_in_12_and_one_pair_in_125():
    count = len(CONCEPTS)
    singles = [scenes.is_held_out_single(concept, colour) for concept in range(count) for colour in range(12)]
    pairs = [scenes.is_held_out_pair(low, high) for high in range(count) for low in range(high)]
    assert sum(singles) / len(singles) == pytest.approx(1 / 12, rel=0.02)
    assert sum(pairs) / len(pairs) == pytest.approx(1 / 125, rel=0.02)


def test_held_out_pairs_do_not_depend_on_the_order():
    assert all(
        scenes.is_held_out_pair(first, second) == scenes.is_held_out_pair(second, first)
        for first in range(60)
        for second in range(first)
    )


def test_items_are_where_the_relation_says():
    axes_and_signs = {"to the left of": ("x", -1), "to the right of": ("x", 1), "above": ("y", -1), "below": ("y", 1)}
    relations = set()
    for scene, _ in draw(3000):
        if scene.relation:
            axis, sign = axes_and_signs[scene.relation]
            first, second = (getattr(item, axis) for item in scene.items)
            assert sign * (first - second) > 100
            relations.add(scene.relation)
    assert relations == set(axes_and_signs)


def test_time_ids_tell_crops_and_enlargements():
    drawn = [scene for scene, _ in draw(3000)]
    for scene in drawn:
        height, width, top, left, *target = scene.time_ids
        assert target == [256, 256]
        if scene.enlarged_from:
            assert (height, width, top, left) == (scene.enlarged_from, scene.enlarged_from, 0, 0)
        else:
            assert 0 <= top <= height - 256
            assert 0 <= left <= width - 256
    cropped = sum(max(scene.time_ids[:2]) > 256 for scene in drawn)
    assert cropped / len(drawn) == pytest.approx(0.12, abs=0.03)
    assert sum(scene.enlarged_from > 0 for scene in drawn) / len(drawn) == pytest.approx(0.08, abs=0.03)


def test_byte_symbols_are_256_distinct_and_start_with_the_padding_mark():
    symbols = bpe.byte_symbols()
    assert sorted(symbols) == list(range(256))
    assert len(set(symbols.values())) == 256
    assert next(iter(symbols.values())) == "!"
    assert symbols[ord(" ")] == "\u0120"  # as in GPT-2's and CLIP's vocabularies


def test_merges_go_by_frequency_and_ties_by_the_later_pair():
    # "d a" counts five, "da y" three; "da s", "s h" and "o g" two each, of which "s h" sorts last
    merges = bpe.learn_merges({"day": 3, "dash": 2, "og": 2}, 3)
    assert merges == [("d", "a"), ("da", "y</w>"), ("s", "h</w>")]


def test_merging_stops_when_every_word_is_one_symbol():
    assert bpe.learn_merges({"ab": 1}, 10) == [("a", "b</w>")]


def test_merge_applies_from_the_left_without_overlap():
    assert bpe.apply_merge(("a", "a", "a", "b"), ("a", "a")) == ("aa", "a", "b")
    assert bpe.apply_merge(("a", "a", "a", "a"), ("a", "a")) == ("aa", "aa")


def test_vocabulary_has_bytes_merges_and_marks_in_this_order():
    vocabulary = bpe.build_vocabulary([("a", "b</w>")])
    assert vocabulary["!"] == 0
    assert vocabulary["!</w>"] == 256
    assert list(vocabulary)[512:] == ["ab</w>", "<|startoftext|>", "<|endoftext|>"]


def test_vocabulary_refuses_two_ways_to_the_same_token():
    with pytest.raises(ValueError, match="'abc'"):
        bpe.build_vocabulary([("a", "b"), ("b", "c"), ("ab", "c"), ("a", "bc")])
