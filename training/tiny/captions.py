"""The caption grammar: what is said of a scene. Needs numpy only."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from scenes import COLOUR_NAMES, SIDE_BY_SIDE, STYLES, Concept, Scene

# A form is taken when a number drawn from 0..1 is below its bound and not below the one before.
SINGLE_FORMS = (
    (0.40, "{phrase} {where}, {style} style"),
    (0.52, "an emoji of {phrase} {where}, {style} style"),
    (0.62, "{name}, {colour} background, {style} style"),
    (0.72, "a {style} style picture of {phrase} {where}"),
    (0.84, "{phrase} {where}"),
    (0.92, "{phrase}, {style} style"),
    (0.96, "{phrase}"),
    (1.00, "{name}"),
)
PAIR_FORMS = (
    (0.65, "{first} {relation} {second} {where}, {style} style"),
    (0.75, "{first} {relation} {second}, {colour} background, {style} style"),
    (0.90, "{first} {relation} {second} {where}"),
    (1.00, "{first} {relation} {second}, {style} style"),
)
AND_SHARE = 0.4  # of captions whose two things are side by side


def random_caption(scene: Scene, concepts: Sequence[Concept], rng: np.random.Generator) -> str:
    """One of the things that may be said of the scene; it may leave out style or background."""
    chance = rng.random()
    phrases = [_any_of(concepts[item.concept].phrases, rng) for item in scene.items]
    if len(phrases) == 1:
        name = _any_of(concepts[scene.items[0].concept].names, rng)
        return _form(SINGLE_FORMS, chance).format(phrase=phrases[0], name=name, **_setting(scene))
    said_and = rng.random() < AND_SHARE and scene.relation in SIDE_BY_SIDE
    relation = "and" if said_and else scene.relation
    return _form(PAIR_FORMS, chance).format(first=phrases[0], second=phrases[1], relation=relation, **_setting(scene))


def full_caption(scene: Scene, concepts: Sequence[Concept]) -> str:
    """The caption that leaves nothing out, with each concept's first phrase."""
    phrases = [concepts[item.concept].phrases[0] for item in scene.items]
    if len(phrases) == 1:
        return SINGLE_FORMS[0][1].format(phrase=phrases[0], **_setting(scene))
    return PAIR_FORMS[0][1].format(first=phrases[0], second=phrases[1], relation=scene.relation, **_setting(scene))


def _setting(scene: Scene) -> dict[str, str]:
    colour = COLOUR_NAMES[scene.background]
    article = "an" if colour == "orange" else "a"
    return {"style": STYLES[scene.style], "colour": colour, "where": f"on {article} {colour} background"}


def _form(forms: Sequence[tuple[float, str]], chance: float) -> str:
    return next(form for bound, form in forms if chance < bound)


def _any_of(texts: Sequence[str], rng: np.random.Generator) -> str:
    return texts[int(rng.integers(len(texts)))] if len(texts) > 1 else texts[0]
