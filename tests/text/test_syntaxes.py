"""Prompts that the strict reading refuses, as A1111 reads them, and as literal text."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from jaxl.errors import InputError
from jaxl.text.prompt import MAX_LENGTH, SYNTAXES, is_composed, parse, schedule
from jaxl.text.spans import Span

DOWN = 1 / 1.1


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a smile :)", [("a smile :)", 1)]),
        ("1) first 2) second", [("1) first 2) second", 1)]),
        ("(a cat:1.2", [("a cat:1.2", 1.1)]),
        ("((a b)", [("a b", 1.21)]),
        ("a (b) c) d", [("a ", 1), ("b", 1.1), (" c) d", 1)]),
        ("[a b", [("a b", DOWN)]),
        ("(a b]", [("a b]", 1.1)]),
        ("[(a b])", [("a b", 1)]),
        ("(a [b) c]", [("a ", 1.1), ("b", 1), (" c", DOWN)]),
        ("(a:15)", [("a", 15)]),
        ("(a:1,2)", [("a:1,2", 1.1)]),
        ("(a:1.2.3)", [("a:1.2.3", 1.1)]),
        ("a:1.2)", [("a:1.2)", 1)]),
        ("((a:0):2)", [("a", 0)]),
        ("CATS AND DOGS", [("CATS AND DOGS", 1)]),
        ("a \\", [("a ", 1)]),
        (r"\(a\) \b", [("(a) b", 1)]),
        (r"(16\:9)", [("16", 9)]),
        ("[photo:half]", [("photo:half", DOWN)]),
        ("a <3 :< b", [("a <3 :< b", 1)]),
    ],
)
def test_what_does_not_parse_is_text(text: str, expected: list[tuple[str, float]]) -> None:
    assert [(span.text, pytest.approx(span.weight)) for span in parse(text)[0]] == expected


@pytest.mark.parametrize("text", ["a BREAK b", "aBREAK", "(a BREAK b", "a , BREAK , b", "BREAK", "x BREAK BREAK y"])
def test_breaks(text: str) -> None:
    expected = [part.strip() for part in re.split(r"\bBREAK\b", text.replace("(", ""))]
    assert ["".join(span.text for span in section) for section in parse(text)] == expected


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        # brackets without a partner, and those around them, are text; others keep their meaning
        (":) [a:b:2]", {0: ":) a", 2: ":) b"}),
        ("([a:b:2] c", {0: "(a c", 2: "(b c"}),
        ("[x:[a:b:2] ) y:1]", {0: "[x:a ) y:1]", 2: "[x:b ) y:1]"}),
        ("[a:(b:2]", {0: "[a:(b:2]"}),
        ("[x:[a:b]:2]", {0: "[x:[a:b]:2]"}),
        ("[x:(a:b:c):2]", {0: "[x:(a:b:c):2]"}),
        ("[a:b:half] [c:d:2]", {0: "[a:b:half] c", 2: "[a:b:half] d"}),
        ("[a:b:c:2]", {0: "[a:b:c:2]"}),
        ("[a:b:[2]]", {0: "[a:b:[2]]"}),
        ("[a:b:1.5]", {0: "a"}),
        ("[a:b:-1]", {0: "b"}),
        ("[a:b:2e0]", {0: "a", 2: "b"}),
        ("[a:b:1e999]", {0: "a"}),
        ("[a||b]", {0: "a", 1: "", 2: "b", 3: "a"}),
        # these leave the whole prompt as it is
        ("x | [a:b:2]", {0: "x | [a:b:2]"}),
        ("[a|b:2] [c:d:2]", {0: "[a|b:2] [c:d:2]"}),
        ("[a|b [c:d:2]", {0: "[a|b [c:d:2]"}),
        ("[a|(b] [c:d:2]", {0: "[a|(b] [c:d:2]"}),
        ("[c:d:2] \\", {0: "[c:d:2] \\"}),
        ("[" * 40 + "[c:d:2]", {0: "[" * 40 + "[c:d:2]"}),
    ],
)
def test_schedules_that_do_not_parse(prompt: str, expected: dict[int, str]) -> None:
    assert dict(schedule(prompt, 4)) == expected


def reference(text: str) -> list[list[tuple[str, float]]]:
    """Each character with its weight, by section: the documented rules of A1111, one after the other, on a list."""
    places: list[tuple[str, float] | None] = []  # None begins a section
    opened: dict[str, list[int]] = {"(": [], "[": []}

    def multiply(start: int, factor: float) -> None:
        bounded = (place and (place[0], max(-3.4e38, min(3.4e38, place[1] * factor))) for place in places[start:])
        places[start:] = list(bounded)

    rest = text
    while rest:
        weight = re.match(r":\s*([+-]?(?:\d+\.?\d*|\.\d+))\s*\)", rest)
        if rest[0] == "\\":
            length = 2 if rest[1:2] and rest[1] in "()[]\\" else 1
            places += [(character, 1.0) for character in rest[1:length]]
        elif rest[0] in opened:
            length = 1
            opened[rest[0]].append(len(places))
        elif weight and opened["("]:
            length = weight.end()
            multiply(opened["("].pop(), float(weight[1]))
        elif rest[0] == ")" and opened["("]:
            length = 1
            multiply(opened["("].pop(), 1.1)
        elif rest[0] == "]" and opened["["]:
            length = 1
            multiply(opened["["].pop(), DOWN)
        else:
            plain = re.match(r"[^\\()\[\]:]+", rest)
            length = plain.end() if plain else 1
            for n, part in enumerate(re.split(r"\bBREAK\b", rest[:length])):
                places += [None] * (n > 0) + [(character, 1.0) for character in part]
        rest = rest[length:]
    for kind, factor in (("(", 1.1), ("[", DOWN)):
        for start in opened[kind]:
            multiply(start, factor)
    sections: list[list[tuple[str, float]]] = [[]]
    for place in places:
        if place is None:
            sections.append([])
        elif not place[0].isspace():
            sections[-1].append(place)
    return sections


signs = ["(", ")", "[", "]", ":", "|", "\\", " ", "\n", "a", "b c", "BREAK", "AND", "1.2", "-3", "9" * 40, "[a:b:0.5]"]
characters = st.characters(codec="utf-8", exclude_characters="<")


@settings(deadline=None, derandomize=True)
@given(st.lists(st.sampled_from(signs), max_size=40).map("".join) | st.text(characters, max_size=60))
@example("((((a:" + "9" * 39 + "):0):2) b BREAK [c")
def test_any_text_is_read_and_weighed_as_a1111_does(text: str) -> None:
    for _, now in schedule(text, 3):
        found = [[(c, span.weight) for span in section for c in span.text if not c.isspace()] for section in parse(now)]
        expected = reference(now)
        assert [[c for c, _ in section] for section in found] == [[c for c, _ in section] for section in expected]
        weights = [weight for section in found for _, weight in section]
        assert weights == pytest.approx([weight for section in expected for _, weight in section], rel=1e-9)
        assert all(map(math.isfinite, weights))


@pytest.mark.parametrize(
    "unit", ["(", "[", ")", "((a", "[a:", "[a|", "(a:9)", ":1", "\\", " BREAK", "<a:", "embedding: "]
)
def test_hostile_texts_are_read(unit: str) -> None:
    text = (unit * MAX_LENGTH)[: MAX_LENGTH - 1]
    assert all(parse(now) for _, now in schedule(text, 50))


@pytest.mark.parametrize("syntax", ["a1111", "lenient"])
@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("a <lora:x:0.8>", "'<lora:x:0.8>' is for other networks, .* at character 2"),
        ("<hypernet:y>", "'<hypernet:y>' is for other networks"),
    ],
)
def test_files_that_jaxl_does_not_load_are_refused_by_name(syntax: Any, prompt: str, message: str) -> None:
    with pytest.raises(InputError, match=f"{message}.* or give `prompt_syntax='literal'`"):
        schedule(prompt, 3, syntax=syntax)
    assert parse(prompt, syntax="literal") == ((Span(prompt, 1.0),),)


@pytest.mark.parametrize(
    "prompt",
    [
        "embedding: a vector",
        "(embedding:1.2)",
        "[embedding:3]",
        "reembedding:x",
        r"\embedding\:x \<lora:x:1>",
        "<3 a:b>",
    ],
)
@pytest.mark.parametrize("syntax", ["a1111", "lenient"])
def test_words_that_are_no_names_of_files(syntax: Any, prompt: str) -> None:
    texts = [now for _, now in schedule(prompt, 4, syntax=syntax)]
    found = [span for now in texts for section in parse(now, syntax=syntax) for span in section]
    assert found
    assert not any(span.embedding for span in found)


@pytest.mark.parametrize("syntax", ["a1111", "lenient"])
@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("a, embedding:Bad-Dream.pt, b", {0: [("a, ", 1), ("=Bad-Dream.pt", 1), (", b", 1)]}),
        ("(embedding:x:1.2) [embedding:y]", {0: [("=x", 1.2), (" ", 1), ("=y", DOWN)]}),
        ("(a embedding:x b:0.5)", {0: [("a ", 0.5), ("=x", 0.5), (" b", 0.5)]}),
        ("embedding:x embedding:x", {0: [("=x", 1), (" ", 1), ("=x", 1)]}),
        ("[embedding:x:embedding:y:2]", {0: [("=x", 1)], 2: [("=y", 1)]}),
        ("[embedding:x:2]", {0: [], 2: [("=x", 1)]}),
        ("[embedding:x|b]", {0: [("=x", 1)], 1: [("b", 1)], 2: [("=x", 1)]}),
        (r"\embedding:x", {0: [("embedding:x", 1)]}),
    ],
)
def test_embeddings_as_comfyui_names_them(syntax: Any, prompt: str, expected: dict[int, Any]) -> None:
    def spans(now: str) -> list[tuple[str, Any]]:
        (section,) = parse(now, syntax=syntax)
        return [("=" * span.embedding + span.text, pytest.approx(span.weight)) for span in section]

    assert {first: spans(now) for first, now in schedule(prompt, 3, syntax=syntax)} == expected
    for literal in ("literal", "plain"):
        assert parse(prompt, syntax=literal) == ((Span(prompt, 1.0),),)


def test_literal_text_is_what_it_is() -> None:
    text = "(a:1.2) [b|c] BREAK " * 1000
    for syntax in ("literal", "plain"):
        assert parse(text, syntax=syntax) == ((Span(text, 1.0),),)
        assert schedule(text, 9, syntax=syntax) == ((0, text),)


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_a_prompt_that_is_no_text(syntax: Any) -> None:
    with pytest.raises(InputError, match="must be a string"):
        schedule(3, 3, syntax=syntax)  # pyright: ignore[reportArgumentType]


def test_what_a1111_would_compose() -> None:
    assert all(map(is_composed, ("a AND b", "ROCK AND ROLL", "(a AND b:2)", "AND")))
    assert not any(map(is_composed, ("a \\AND b", "BAND", "ANDY", "and")))
