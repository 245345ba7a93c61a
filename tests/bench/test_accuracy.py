"""Scores of pictures: against transformers, against pytorch-fid's network, and against closed forms."""

import csv
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.linalg import sqrtm

from jaxl.bench.accuracy import Accuracy, clip_pixels, frechet_distance, open_clip, read_statistics, statistics
from jaxl.bench.inception import LAYERS, features, read_inception
from jaxl.errors import CheckpointError, InputError, JaxlError
from jaxl.weights.source import EMBEDDED
from jaxl.weights.store import write_safetensors

# [O, I, h, w] of the kinds of layers that torchvision's Inception v3 has
WIDTHS = {"5b": 192, "5c": 256, "5d": 288, "6a": 288, "7a": 768, "7b": 1280, "7c": 2048}
SQUARES = {"6b": 128, "6c": 160, "6d": 160, "6e": 192}


def inception_shape(layer: str) -> tuple[int, int, int, int]:
    """Of a convolution's weight."""
    single = {"1a": (32, 3, 3), "2a": (32, 32, 3), "2b": (64, 32, 3), "3b": (80, 64, 1), "4a": (192, 80, 3)}
    kind, _, name = layer.partition("_")
    if kind == "Conv2d":
        outputs, inputs, side = single[name[:2]]
        return outputs, inputs, side, side
    block, name = name.split(".branch")
    width = WIDTHS.get(block, 768)
    if block in SQUARES:
        c = SQUARES[block]
        if name in ("1x1", "_pool"):
            return 192, width, 1, 1
        first, last = name.endswith("_1"), name in ("7x7_3", "7x7dbl_5")
        wide = name in ("7x7_2", "7x7dbl_3", "7x7dbl_5")
        kernel = (1, 1) if first else (1, 7) if wide else (7, 1)
        return 192 if last else c, width if first else c, *kernel
    if block == "6a":
        return {
            "3x3": (384, 288, 3, 3),
            "3x3dbl_1": (64, 288, 1, 1),
            "3x3dbl_2": (96, 64, 3, 3),
            "3x3dbl_3": (96, 96, 3, 3),
        }[name]
    if block == "7a":
        kernel = {"1": (1, 1), "2": (1, 7), "3": (7, 1), "4": (3, 3)}[name[-1]] if "7x7x3" in name else (1, 1)
        if name == "3x3_2":
            return 320, 192, 3, 3
        return 192, width if name.endswith("_1") else 192, *kernel
    if block in ("7b", "7c"):
        return {
            "1x1": (320, width, 1, 1),
            "3x3_1": (384, width, 1, 1),
            "3x3dbl_1": (448, width, 1, 1),
            "3x3dbl_2": (384, 448, 3, 3),
            "_pool": (192, width, 1, 1),
        }.get(name) or (384, 384, *((1, 3) if name.endswith("a") else (3, 1)))
    return {
        "1x1": (64, width, 1, 1),
        "5x5_1": (48, width, 1, 1),
        "5x5_2": (64, 48, 5, 5),
        "3x3dbl_1": (64, width, 1, 1),
        "3x3dbl_2": (96, 64, 3, 3),
        "3x3dbl_3": (96, 96, 3, 3),
        "_pool": (32 if block == "5b" else 64, width, 1, 1),
    }[name]


@pytest.fixture(scope="module")
def inception_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Inception with random weights, each drawn from its name."""
    tensors = {}
    for layer in LAYERS:
        shape = inception_shape(layer)
        names = {"conv.weight": shape} | {f"bn.{name}": shape[:1] for name in ("weight", "bias")}
        names |= {f"bn.running_{name}": shape[:1] for name in ("mean", "var")}
        for name, size in names.items():
            key = f"{layer}.{name}"
            rng = np.random.default_rng([ord(letter) for letter in key])
            if name == "conv.weight":
                tensors[key] = rng.standard_normal(size, np.float32) * np.float32(np.sqrt(2 / np.prod(size[1:])))
            elif name in ("bn.weight", "bn.running_var"):
                tensors[key] = rng.uniform(0.5, 1.5, size).astype(np.float32)
            else:
                tensors[key] = rng.standard_normal(size, np.float32) * np.float32(0.1)
    file = tmp_path_factory.mktemp("inception") / "inception.safetensors"
    write_safetensors(file, {key: (each.dtype, each.shape) for key, each in tensors.items()}, tensors.__getitem__)
    return file


def test_inception_is_that_of_fid(inception_file: Path) -> None:
    """What `InceptionV3([3])` of pytorch-fid 0.3.0 gives for these weights and this picture, with PyTorch 2.13."""
    image = np.random.default_rng(1).integers(0, 256, (1, 20, 28, 3), np.uint8)
    found = np.asarray(features(read_inception(inception_file), image))
    assert found.shape == (1, 2048)
    some = [1.0715504, 0.2792587, 4.2390037, 0.0853142, 1.4999658]
    np.testing.assert_allclose(found[0, [0, 500, 1000, 1500, 2047]], some, rtol=1e-4)
    np.testing.assert_allclose([found.mean(), found.std(), found.max()], [2.2403951, 3.1128364, 23.032658], rtol=1e-5)


def test_the_distance_of_normal_distributions() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((50, 6)), rng.standard_normal((60, 6)) @ rng.standard_normal((6, 6)) + 1
    (mean_a, cov_a), (mean_b, cov_b) = statistics(a), statistics(b)
    wanted = ((mean_a - mean_b) ** 2).sum() + np.trace(cov_a + cov_b - 2 * np.real(sqrtm(cov_a @ cov_b)))
    assert frechet_distance(mean_a, cov_a, mean_b, cov_b) == pytest.approx(wanted)
    assert frechet_distance(mean_b, cov_b, mean_a, cov_a) == pytest.approx(wanted)
    assert frechet_distance(mean_a, cov_a, mean_a, cov_a) == pytest.approx(0, abs=1e-9)
    # with fewer pictures than features, where covariances are singular
    (mean_a, cov_a), (mean_b, cov_b) = statistics(a[:3]), statistics(b[:4])
    between = np.sqrt(np.maximum(np.real(np.linalg.eigvals(cov_a @ cov_b)), 0)).sum()
    wanted = ((mean_a - mean_b) ** 2).sum() + np.trace(cov_a + cov_b) - 2 * between
    assert frechet_distance(mean_a, cov_a, mean_b, cov_b) == pytest.approx(wanted, rel=1e-5)
    with pytest.raises(JaxlError, match="two pictures or more, and there is 1"):
        statistics(a[:1])


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small CLIP with random weights and tiny's vocabulary."""
    import torch
    from transformers import CLIPConfig, CLIPModel

    torch.manual_seed(0)
    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {**small, "vocab_size": 2048, "eos_token_id": 2047, "bos_token_id": 2046}
    config = CLIPConfig(text_config=text, vision_config={**small, "image_size": 32, "patch_size": 8}, projection_dim=16)
    folder = tmp_path_factory.mktemp("clip")
    CLIPModel(config).save_pretrained(folder)
    for file in (EMBEDDED["tiny"] / "tokenizer").iterdir():
        shutil.copy(file, folder)
    return folder


def test_clip_scores(clip_folder: Path) -> None:
    import torch
    from transformers import CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 80, 3), np.uint8))
    processor = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    pixels = processor(image, return_tensors="pt")["pixel_values"]
    np.testing.assert_allclose(clip_pixels(image, 32), pixels[0].numpy(), atol=1e-5)

    score = open_clip(clip_folder)
    model, tokenizer = CLIPModel.from_pretrained(clip_folder), CLIPTokenizer.from_pretrained(clip_folder)
    found = []
    for caption in ("a red apple", "a castle " * 60):
        tokens = tokenizer([caption], truncation=True, max_length=77, return_tensors="pt")
        with torch.no_grad():
            out = model(**tokens, pixel_values=pixels)
        cosine = torch.cosine_similarity(out.text_embeds, out.image_embeds).item()
        found.append(score(caption, image))
        assert found[-1] == pytest.approx(100 * cosine, abs=1e-3)
    assert found[0] != found[1]


def test_scores_of_a_folder(clip_folder: Path, inception_file: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    images = {i: Image.fromarray(rng.integers(0, 256, (16, 16, 3), np.uint8)) for i in (2, 0)}
    mean = rng.standard_normal(2048)
    np.savez(tmp_path / "real.npz", mu=mean, sigma=np.eye(2048))
    captions = ["a red apple", "not drawn", "a llama"]
    files = {"clip_model": clip_folder, "fid_stats": tmp_path / "real.npz", "inception": inception_file}
    accuracy = Accuracy(tmp_path / "images", captions, **files)
    for index, image in images.items():
        accuracy.keep(index, image)
    scores = accuracy.scores()
    score, params = open_clip(clip_folder), read_inception(inception_file)
    assert scores["images"] == 2
    assert scores["clip_score"] == pytest.approx(np.mean([score(captions[i], images[i]) for i in images]))
    a, b = (np.asarray(features(params, np.asarray(image)[None]))[0] for image in images.values())
    spread = ((a - b) ** 2).sum() / 2  # the one variance of two pictures
    wanted = (((a + b) / 2 - mean) ** 2).sum() + spread + 2048 - 2 * np.sqrt(spread)
    assert scores["fid"] == pytest.approx(wanted, rel=1e-5)
    with (tmp_path / "images" / "captions.tsv").open(newline="") as file:
        assert list(csv.reader(file, delimiter="\t")) == [
            ["file", "caption"],
            ["00000.png", "a red apple"],
            ["00002.png", "a llama"],
        ]
    with Image.open(tmp_path / "images" / "00002.png") as kept:
        assert kept.tobytes() == images[2].tobytes()
    plain = Accuracy(tmp_path / "other", captions)
    plain.keep(0, images[0])
    assert plain.scores() == {"images": 1}


def test_files_that_cannot_be_used(tmp_path: Path, inception_file: Path) -> None:
    np.savez(tmp_path / "small.npz", mu=np.zeros(3), sigma=np.zeros((3, 3)))
    np.savez(tmp_path / "others.npz", a=np.zeros(3))
    np.savez(tmp_path / "pickle.npz", mu=np.array([{}]), sigma=np.zeros((2048, 2048)))
    np.save(tmp_path / "array.npz.npy", np.zeros(3))
    (tmp_path / "text.npz").write_text("mu")
    for name in ("small.npz", "others.npz", "pickle.npz", "array.npz.npy", "text.npz", "none.npz"):
        with pytest.raises(InputError, match=r"^fid_stats="):
            read_statistics(tmp_path / name)
    (tmp_path / "half.safetensors").write_bytes(inception_file.read_bytes()[:1000])
    write_safetensors(tmp_path / "other.safetensors", {"a": (np.dtype(np.float32), (1,))}, lambda _: np.ones(1, "f"))
    for name in ("half.safetensors", "other.safetensors", "none.safetensors"):
        with pytest.raises(CheckpointError):
            read_inception(tmp_path / name)
        with pytest.raises(InputError, match=r"^inception="):
            Accuracy(tmp_path, [], fid_stats=_statistics(tmp_path), inception=tmp_path / name)
    (tmp_path / "pickles").mkdir()
    (tmp_path / "pickles" / "config.json").write_text('{"model_type": "clip"}')
    (tmp_path / "pickles" / "pytorch_model.bin").write_bytes(b"PK")
    for name in ("pickles", "none"):
        with pytest.raises(InputError, match=r"^clip_model=.*no CLIP checkpoint with safetensors"):
            open_clip(tmp_path / name)


def _statistics(folder: Path) -> Path:
    file = folder / "fine.npz"
    np.savez(file, mu=np.zeros(2048), sigma=np.eye(2048))
    return file
