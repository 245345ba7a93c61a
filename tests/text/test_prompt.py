"""The strict reading. The expected texts and weights, where no difference is stated, are what the web UI's own parser
gives."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import pytest

from jaxl.errors import InputError
from jaxl.text.prompt import MAX_LENGTH, parse, schedule
from jaxl.text.spans import MAX_DEPTH, Span, Steps

DOWN = 1 / 1.1
parse, schedule = (partial(read, syntax="a1111") for read in (parse, schedule))


def spans(text: str) -> list[list[tuple[str, Any]]]:
    return [[(span.text, pytest.approx(span.weight)) for span in section] for section in parse(text)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        ("a red apple", [("a red apple", 1)]),
        ("a (red) apple", [("a ", 1), ("red", 1.1), (" apple", 1)]),
        ("((red))", [("red", 1.21)]),
        ("(red:1.3)", [("red", 1.3)]),
        ("(red: 1.3 )", [("red", 1.3)]),
        ("(red:.5)(blue:+2.)(green:-1)", [("red", 0.5), ("blue", 2), ("green", -1)]),
        ("(red:0)", [("red", 0)]),
        ("[red]", [("red", DOWN)]),
        ("[[red]]", [("red", DOWN * DOWN)]),
        ("(a (b:1.5) [c])", [("a ", 1.1), ("b", 1.65), (" ", 1.1), ("c", 1)]),
        ("((a:2) b:3)", [("a", 6), (" b", 3)]),
        ("(one)(two)", [("onetwo", 1.1)]),
        ("(a:1)b", [("ab", 1)]),
        ("()", []),
        ("(:1.2)", []),
        ("(portrait: detailed)", [("portrait: detailed", 1.1)]),
        ("(a:b:1.2)", [("a:b", 1.2)]),
        ("(a:)", [("a:", 1.1)]),
        ("(a: ...)", [("a: ...", 1.1)]),
        ("(a|b:1.2)", [("a|b", 1.2)]),
        ("a:b, 16:9, x|y", [("a:b, 16:9, x|y", 1)]),
        ("(16:9)", [("16", 9)]),
        (r"\(a\) \[b\] \\ c", [(r"(a) [b] \ c", 1)]),
        (r"(smile \(happy\):1.2)", [("smile (happy)", 1.2)]),
        (r"artist\_name", [("artist_name", 1)]),
        # the web UI takes the next two as a weight and as a break
        (r"(16\:9)", [("16:9", 1.1)]),
        (r"\BREAK", [("BREAK", 1)]),
        (r"\AND \<lora:x:1>", [("AND <lora:x:1>", 1)]),
        ("ANDROID BREAKFAST and break", [("ANDROID BREAKFAST and break", 1)]),
        ("<3 >:< a<b", [("<3 >:< a<b", 1)]),
    ],
)
def test_weights(text: str, expected: list[tuple[str, float]]) -> None:
    assert spans(text) == [expected]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a BREAK b", [[("a ", 1)], [(" b", 1)]]),
        ("a BREAK BREAK b", [[("a ", 1)], [(" ", 1)], [(" b", 1)]]),
        ("BREAK", [[], []]),
        ("a,BREAK,b", [[("a,", 1)], [(",b", 1)]]),
        # the web UI would encode the word BREAK with a negative weight
        ("(a BREAK b:1.2)", [[("a ", 1.2)], [(" b", 1.2)]]),
    ],
)
def test_breaks(text: str, expected: list[list[tuple[str, float]]]) -> None:
    assert spans(text) == expected


def test_a_parsed_text_is_a_key() -> None:
    assert {parse("a (b) BREAK c"): 1}[parse("a (b) BREAK c")] == 1
    assert parse("(a)") == ((Span("a", 1.1),),)


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("a cat", ((0, "a cat"),)),
        ("a (cat:1.2) BREAK [dog]", ((0, "a (cat:1.2) BREAK [dog]"),)),
        ("a [cat:dog:0.5]", ((0, "a cat"), (5, "a dog"))),
        ("a [cat:dog:3]", ((0, "a cat"), (3, "a dog"))),
        ("a [cat:dog: 3 ]", ((0, "a cat"), (3, "a dog"))),
        ("a [cat:.25]", ((0, "a "), (2, "a cat"))),
        ("a [cat::0.29]", ((0, "a cat"), (2, "a "))),
        ("a [cat:dog:1]", ((0, "a cat"), (1, "a dog"))),
        ("a [cat:dog:1.0]", ((0, "a cat"),)),
        ("a [cat:dog:0]", ((0, "a dog"),)),
        ("a [cat:dog:0.05]", ((0, "a dog"),)),
        ("a [cat:dog:10]", ((0, "a cat"),)),
        ("a [cat:dog:99]", ((0, "a cat"),)),
        ("a [cat:cat:5]", ((0, "a cat"),)),
        ("[a:[b:c:6]:3]", ((0, "a"), (3, "b"), (6, "c"))),
        ("[[a:b:6]:c:3]", ((0, "a"), (3, "c"))),
        ("[(a:1.2):(b):3]", ((0, "(a:1.2)"), (3, "(b)"))),
        ("([a:b:3]:1.2)", ((0, "(a:1.2)"), (3, "(b:1.2)"))),
        ("(a:[0.8:1.2:3])", ((0, "(a:0.8)"), (3, "(a:1.2)"))),
        ("[[a]:3]", ((0, ""), (3, "[a]"))),
        ("[a:b BREAK c:3]", ((0, "a"), (3, "b BREAK c"))),
        ("[photo: 3d render]", ((0, "[photo: 3d render]"),)),
        ("[photo: 1920-1940]", ((0, "[photo: 1920-1940]"),)),
        (r"[a\:3]", ((0, r"[a\:3]"),)),
        (r"[\[a\]:3] \(b\)", ((0, r" \(b\)"), (3, r"\[a\] \(b\)"))),
        ("[3]", ((0, "[3]"),)),
    ],
)
def test_schedule(prompt: str, expected: tuple[tuple[int, str], ...]) -> None:
    assert schedule(prompt, 10) == expected


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("[a|b]", ((0, "a"), (1, "b"), (2, "a"), (3, "b"), (4, "a"))),
        ("[fe|]male", ((0, "female"), (1, "male"), (2, "female"), (3, "male"), (4, "female"))),
        ("[a|b|b]", ((0, "a"), (1, "b"), (3, "a"), (4, "b"))),
        ("[a|a]", ((0, "a"),)),
        ("[[a|b]:c:3]", ((0, "a"), (1, "b"), (2, "a"), (3, "c"))),
        ("[x|[a|b]]", ((0, "x"), (1, "b"), (2, "x"), (3, "b"), (4, "x"))),
        (r"[a\|b]", ((0, r"[a\|b]"),)),
        ("(a|b) | c", ((0, "(a|b) | c"),)),
        # the web UI shows the whole prompt as it was written, since it has a bar outside of brackets
        ("x | [a:b:3]", ((0, "x | a"), (3, "x | b"))),
    ],
)
def test_alternation(prompt: str, expected: tuple[tuple[int, str], ...]) -> None:
    assert schedule(prompt, 5) == expected


def test_a_second_pass_goes_on_where_the_first_one_ended() -> None:
    """As in A1111: the first one has the numbers up to 1, or up to its steps; of 28 steps the last 20 are run."""
    steps = Steps(28, first=8, earlier=10)
    expected = {
        "[a:b:0.5]": ((0, "b"),),
        "[a:b:1.5]": ((0, "a"), (18, "b")),
        "[a:b:6]": ((0, "a"), (4, "b")),  # before what is run
        "[a:b:14]": ((0, "a"), (12, "b")),
        "[a:b:2.5]": ((0, "a"),),
    }
    # the strict reading takes no share above 1
    assert {prompt: schedule(prompt, steps, syntax="lenient") for prompt in expected} == expected
    assert schedule("[a:b:0.5]", steps) == expected["[a:b:0.5]"]
    (*_, eighth, ninth) = schedule("[a|b|c]", replace(steps, total=10))
    assert (eighth, ninth) == ((8, "a"), (9, "b"))


def test_one_step() -> None:
    assert schedule("[a|b] [c:d:0.5] [e:f:1]", 1) == ((0, "a d e"),)


def sections(prompt: str, argument: str) -> list[tuple[tuple[Span, ...], ...]]:
    return [parse(text, argument) for _, text in schedule(prompt, 3, argument)]


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        (":)", r"'\)' does not close a bracket at character 1"),
        ("a (b", r"'\(' is never closed at character 2"),
        ("(a]", r"'\]' does not close a bracket at character 2"),
        ("[(a])", r"'\]' does not close a bracket at character 3"),
        (r"(a\)", r"'\(' is never closed at character 0"),
        ("a\\", "a backslash with nothing behind it at character 1"),
        ("x (a:1.2.3)", r"'1\.2\.3' is not a weight such as 1\.2, .* at character 2"),
        ("(a:1e999)", "'1e999' is not a weight"),
        ("(a:nan)", "'nan' is not a weight"),
        ("(a:-inf)", "'-inf' is not a weight"),
        ("(a:1,2)", "'1,2' is not a weight"),
        ("(a:120%)", "'120%' is not a weight"),
        ("(a:11)", "a weight of 11, not from -10 to 10, at character 0"),
        ("(a:-10.5)", "a weight of -10.5, not from"),
        ("((a:6):2)", "a weight of 12, not from -10 to 10, at character 1"),
        (f"(a:{'9' * 400})", "a weight of inf"),
        ("cat AND dog", "'AND' is for composed prompts, which jaxl lacks, at character 4"),
        ("(cat AND dog:1.2)", "'AND' is for composed prompts"),
        ("[a:b:1.5]", r"'1\.5' is not a step such as 8 or a fraction such as 0\.4, .* at character 0"),
        ("x [a:-1]", "'-1' is not a step .* at character 2"),
        ("[a:b:0.5.1]", "'0.5.1' is not a step"),
        ("[a:50%]", "'50%' is not a step"),
        ("[a:1e-1]", "'1e-1' is not a step"),
        ("[a:b:half]", "'half' is not a step"),
        ("[a:b:]", "'' is not a step"),
        ("[a:b:(3)]", "'' is not a step"),
        ("[a:b:c:3]", "more than two colons"),
        ("[a|b:3]", r"a bracket with both '\|' and ':' at character 0"),
        ("[x:[y:z:w]:9]", "'w' is not a step"),
    ],
)
def test_broken_syntax_is_one_clear_line(prompt: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        sections(prompt, "negative_prompt")
    assert caught.value.argument == "negative_prompt"
    assert "write a backslash before what is meant as text, or give `prompt_syntax='lenient'`" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("opening", ["(", "["])
def test_depth_is_limited(opening: str) -> None:
    closing = {"(": ")", "[": "]"}[opening]
    prompt = opening * 23 + "a" + closing * 23
    assert schedule(prompt, 3) == ((0, prompt),)
    assert len(parse(prompt)[0]) == 1
    with pytest.raises(InputError, match=f"more than 32 brackets inside each other at character {MAX_DEPTH}"):
        schedule(opening * (MAX_DEPTH + 1) + "a", 3)


def test_length_is_limited() -> None:
    assert schedule("x" * MAX_LENGTH, 3) == ((0, "x" * MAX_LENGTH),)
    with pytest.raises(
        InputError, match=r"1000000 characters; give at most 10000, or `prompt_syntax='literal'`"
    ) as caught:
        schedule("(" * 1_000_000, 3)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("prompt", [None, 3, b"cat"])
def test_a_prompt_that_is_no_text(prompt: Any) -> None:
    with pytest.raises(InputError, match="must be a string"):
        schedule(prompt, 3)
