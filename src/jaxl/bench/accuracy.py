"""The pictures of an accuracy run, and how good they are: CLIP score and Fréchet Inception distance.

MLPerf asks of Stable Diffusion XL, over its 5,000 captions, a CLIP score (ViT-B/32 of OpenAI) from 31.68631873 to
31.81331801 and an FID from 23.01085758 to 23.95007626 (docs of github.com/mlcommons/inference). All that is needed
comes from local files, of which none is a pickle.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from jaxl.errors import CheckpointError, InputError, JaxlError
from jaxl.png import write_png

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # of its training data
TEXT_TOKENS = 77

Score = Callable[[str, Image.Image], float]


class Accuracy:
    """Keeps pictures in a folder by the index of their caption, and scores them, as far as there are files for that.

    clip_model: a folder with a CLIP checkpoint in transformers' layout. fid_stats: the mean `mu` and covariance `sigma`
    of real pictures' features in a .npz; inception: the network's weights. Raises InputError for what cannot be used.
    """

    def __init__(
        self,
        folder: Path,
        captions: Sequence[str],
        *,
        clip_model: Path | None = None,
        fid_stats: Path | None = None,
        inception: Path | None = None,
    ):
        for name, given, other in (("inception", fid_stats, inception), ("fid_stats", inception, fid_stats)):
            if given is not None and other is None:
                raise InputError(name, None, "the FID needs --fid-stats and --inception; give both")
        self.folder, self.captions = folder, captions
        self._kept: set[int] = set()
        self._clip = None if clip_model is None else open_clip(clip_model)
        self._real = None if fid_stats is None else read_statistics(fid_stats)
        self._features = None if inception is None else open_inception(inception)

    def keep(self, index: int, image: Image.Image) -> None:
        """Write a picture as its caption's number."""
        write_png(self._file(index), image, None)
        self._kept.add(index)

    @property
    def scored(self) -> bool:
        """Tell whether there are files for a score."""
        return self._clip is not None or self._features is not None

    def scores(self) -> dict[str, Any]:
        """`images`, and `clip_score` and `fid` where there are files for them.

        Writes captions.tsv beside the pictures, so that other programs can score them too.
        """
        kept = sorted(self._kept)
        with (self.folder / "captions.tsv").open("w", newline="", encoding="utf-8") as file:
            table = csv.writer(file, delimiter="\t")
            table.writerows([("file", "caption"), *((self._file(i).name, self.captions[i]) for i in kept)])
        clip_scores, found = [], []
        for index in kept:
            with Image.open(self._file(index), formats=["PNG"]) as opened:
                image = opened.convert("RGB")
            if self._clip is not None:
                clip_scores.append(self._clip(self.captions[index], image))
            if self._features is not None:
                found.append(self._features(image))
        scores: dict[str, Any] = {"images": len(kept)}
        if clip_scores:
            scores["clip_score"] = float(np.mean(clip_scores))
        if self._real is not None:
            scores["fid"] = frechet_distance(*statistics(np.stack(found)), *self._real)
        return scores

    def _file(self, index: int) -> Path:
        return self.folder / f"{index:05d}.png"


def open_clip(folder: Path) -> Score:
    """Return a function that scores a picture against its caption.

    The score is 100 times the cosine of their embeddings (Hessel et al. 2021).
    """
    try:
        import torch
        from transformers import CLIPModel, CLIPTokenizer
    except ImportError as error:
        raise InputError("clip_model", str(folder), f"it needs {error.name}; pip install torch transformers") from None
    try:
        model = CLIPModel.from_pretrained(folder, local_files_only=True, use_safetensors=True).eval()
        tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError) as error:
        remedy = f"no CLIP checkpoint with safetensors in transformers' layout ({' '.join(str(error).split())[:200]})"
        raise InputError("clip_model", str(folder), remedy) from None

    config: Any = model.config

    def score(caption: str, image: Image.Image) -> float:
        ids = tokenizer([caption], padding="max_length", truncation=True, max_length=TEXT_TOKENS, return_tensors="pt")
        pixels = torch.from_numpy(clip_pixels(image, config.vision_config.image_size)[None])
        with torch.inference_mode():
            out = model(pixel_values=pixels, **ids)
        return 100 * float((out.text_embeds * out.image_embeds).sum())

    return score


def clip_pixels(image: Image.Image, side: int) -> np.ndarray:
    """The middle of a picture as CLIP's networks see it, float32 [3, side, side]."""
    scale = side / min(image.size)
    width, height = (round(length * scale) for length in image.size)
    left, top = (width - side) // 2, (height - side) // 2
    small = image.resize((width, height), Image.Resampling.BICUBIC).crop((left, top, left + side, top + side))
    return ((np.asarray(small, np.float32) / 255 - CLIP_MEAN) / CLIP_STD).transpose(2, 0, 1).astype(np.float32)


def open_inception(file: Path) -> Callable[[Image.Image], np.ndarray]:
    """Return a function from a picture to its features [2048]."""
    from jaxl.bench.inception import features, read_inception

    try:
        params = read_inception(file)
    except CheckpointError as error:
        raise InputError("inception", str(file), str(error).removeprefix(f"{file}: ")) from None
    return lambda image: np.asarray(features(params, np.asarray(image)[None])[0])


def read_statistics(file: Path) -> tuple[np.ndarray, np.ndarray]:
    """The mean [D] and the covariance [D, D]. Raises InputError."""
    try:
        with np.load(file, allow_pickle=False) as found:
            mean, covariance = found["mu"].astype(np.float64), found["sigma"].astype(np.float64)
    except OSError as error:
        raise InputError("fid_stats", str(file), f"it cannot be read ({error.strerror or error})") from None
    except (ValueError, KeyError, AttributeError, TypeError):
        raise InputError("fid_stats", str(file), "give a .npz with mu and sigma, as pytorch-fid writes it") from None
    if mean.shape != (2048,) or covariance.shape != (2048, 2048):
        shapes = f"{mean.shape} and {covariance.shape}"
        raise InputError("fid_stats", str(file), f"mu and sigma have the shapes {shapes}, not (2048,) and (2048, 2048)")
    return mean, covariance


def statistics(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The mean and the covariance of features [N, D]. Raises JaxlError for less than two."""
    if len(features) < 2:
        raise JaxlError(f"an FID needs two pictures or more, and there is {len(features)}")
    return features.mean(0), np.cov(features.astype(np.float64), rowvar=False)


def frechet_distance(mean_a: np.ndarray, cov_a: np.ndarray, mean_b: np.ndarray, cov_b: np.ndarray) -> float:
    """Return the distance between two normal distributions: |m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2)).

    (Dowson and Landau 1982, doi:10.1016/0047-259X(82)90077-X.) The last trace is taken of the symmetric product
    C_b^(1/2) C_a C_b^(1/2), which has the same eigenvalues.
    """
    values, vectors = np.linalg.eigh(cov_b)
    root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    between = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ cov_a @ root), 0)).sum()
    return float(((mean_a - mean_b) ** 2).sum() + np.trace(cov_a) + np.trace(cov_b) - 2 * between)
