"""A filter for `jaxl serve`: a small classifier of pictures, learned from two folders and kept in a file.

    python examples/filter.py learn --refuse knives/ --allow others/ -o filter.npz
    JAXL_FILTER=filter.npz jaxl serve --filter examples/filter.py:look

It is a linear model of what a small copy of a picture looks like, which is enough to tell the things of one folder
from others and to show how a filter is written. One that is to protect people needs a network made for that, called in
`look` just the same.
"""

from __future__ import annotations

import argparse
import os
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

SIDE = 16
# how much the weights are held back: the more, the less the model learns by heart
RIDGE = 3.0
# scores go from about -1, allowed, to 1, refused
BLUR, REFUSE = -0.2, 0.2


def look(picture: Image.Image, prompt: str) -> str:
    """Return the verdict on a picture, by the model in the file that JAXL_FILTER names."""
    score = scores(weights(os.environ["JAXL_FILTER"]), [picture])[0]
    return "refuse" if score > REFUSE else "blur" if score > BLUR else "pass"


@cache
def weights(file: str) -> np.ndarray:
    """Read a model once, for all pictures."""
    with np.load(file, allow_pickle=False) as found:
        return found["weights"]


def scores(weights: np.ndarray, pictures: list[Image.Image]) -> np.ndarray:
    return features(pictures) @ weights


def features(pictures: list[Image.Image]) -> np.ndarray:
    """Return what the model sees of pictures: colours and edges of small copies, the same mirrored, and a constant."""
    small = (
        np.stack([np.asarray(each.convert("RGB").resize((SIDE, SIDE)), np.float32) for each in pictures]) / 255 - 0.5
    )
    small = (small + small[:, :, ::-1]) / 2
    edges = [np.abs(np.diff(small, axis=axis)).mean(-1).reshape(len(pictures), -1) for axis in (1, 2)]
    return np.concatenate([small.reshape(len(pictures), -1), *edges, np.ones((len(pictures), 1), np.float32)], 1)


def learn(refuse: list[Image.Image], allow: list[Image.Image]) -> np.ndarray:
    """Return the weights that fit best (ridge regression), both kinds of pictures counting the same."""
    seen = features([*refuse, *allow])
    wanted = np.repeat([1.0, -1.0], [len(refuse), len(allow)])
    share = np.repeat([1 / len(refuse), 1 / len(allow)], [len(refuse), len(allow)]) * len(wanted) / 2
    held = RIDGE * np.eye(seen.shape[1])
    return np.linalg.solve((seen.T * share) @ seen + held, seen.T @ (share * wanted))


def pictures_in(folder: str) -> list[Image.Image]:
    return [Image.open(file).convert("RGB") for file in sorted(Path(folder).iterdir())]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("command", choices=["learn", "test"])
    parser.add_argument("--refuse", required=True)
    parser.add_argument("--allow", required=True)
    parser.add_argument("-o", "--output", default="filter.npz")
    given = parser.parse_args()
    kinds = {name: pictures_in(getattr(given, name)) for name in ("refuse", "allow")}
    if given.command == "learn":
        np.savez(given.output, weights=learn(**kinds))
    os.environ["JAXL_FILTER"] = given.output
    for name, pictures in kinds.items():
        verdicts = [look(picture, "") for picture in pictures]
        print(f"{name}: " + ", ".join(f"{verdicts.count(each)} {each}" for each in ("pass", "blur", "refuse")))


if __name__ == "__main__":
    main()
