"""The command: what it prints, what it writes, and how it ends."""

import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from controlnets import write_folder
from ip_adapters import write as write_adapters
from lora_files import write_lora
from PIL import Image
from small_model import write_copy
from written_pictures import png

import jaxl
from jaxl import Control, Hires, ImagePrompt
from jaxl.cli import run
from jaxl.png import read_settings
from jaxl.weights.source import EMBEDDED
from jaxl.weights.store import write_safetensors

TINY = Path(jaxl.__file__).parent / "models" / "tiny"
UNET = Path("unet") / "diffusion_pytorch_model.safetensors"
SMALL = ("--size", "64x64", "--steps", "1")
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(jaxl.__file__).parents[1])}


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def model(small: Any) -> tuple[str, str]:
    """A flag for a model whose programs compile fast."""
    return ("--model", str(small[0].checkpoint.source))


def opened(model: str) -> tuple[Any, Any]:
    """As the command opens a model: (pipe, params)."""
    return jaxl.from_pretrained(model, dtype=jnp.float32)


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "jaxl", *arguments]


def model_like(replaced: Mapping[str, bytes | None]) -> None:
    """The folder `model`: tiny, with some files replaced, or left out where None."""
    shutil.copytree(TINY, "model", copy_function=os.symlink)
    for name, content in replaced.items():
        path = Path("model") / name
        path.unlink(missing_ok=True)
        if content is not None:
            path.write_bytes(content)


def index_of(name: str, **parts: str) -> bytes:
    return json.dumps({"_class_name": name, **{part: ["diffusers", kind] for part, kind in parts.items()}}).encode()


def test_generate(capsys: pytest.CaptureFixture[str], small: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The report, the file and its settings agree, and the settings give the library the same image.

    The model is the default one, under whose name there is a small one here.
    """
    monkeypatch.setitem(EMBEDDED, "tiny", Path(small[0].checkpoint.source))
    prompt = 'a "llama", 城 🏰\n--on a <green> background'
    options = ("--seed", "11", "--guidance", "7.5", "--negative", "", "--scheduler", "euler_a", "--json", "--quiet")
    assert run(["generate", *SMALL, *options, "--", prompt]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    report = json.loads(out.splitlines()[-1])
    timings = report.pop("timings")
    assert report == {
        "images": ["jaxl-11.png"],
        "seeds": [11],
        "size": "64x64",
        "steps": 1,
        "guidance": 7.5,
        "scheduler": "euler_a",
        "model": "tiny",
        "dtype": "float32",
        "version": jaxl.__version__,
    }
    assert set(timings) == {"load", "compile", "text", "picture", "denoise", "decode", "write", "total"}
    assert 0 < timings["denoise"] < timings["total"]

    settings = read_settings("jaxl-11.png")
    assert settings["prompt"] == prompt
    facts = {name: settings.pop(name) for name in ("version", "model", "dtype")}
    assert facts == {"version": jaxl.__version__, "model": "tiny", "dtype": "float32"}
    pipe, params = opened("tiny")
    again = pipe.generate(params, **settings).images[0]
    with Image.open("jaxl-11.png") as image:
        np.testing.assert_array_equal(np.asarray(image), np.asarray(again))
        assert image.info["parameters"].startswith(f"{prompt}\nSteps: 1, Sampler: Euler a, ")


def test_wildcards_and_styles(capsys: pytest.CaptureFixture[str], model: tuple[str, str]) -> None:
    """Each image has the prompts that its seed chooses; its file says them."""
    Path("wild").mkdir()
    Path("wild", "animal.txt").write_text("cat\ndog\nllama\n")
    Path("styles.csv").write_text('name,prompt,negative_prompt\nfilm,"photo of {prompt}","__animal__"\n')
    how = (*model, *SMALL, "--guidance", "1", "--seed", "0", "--quiet")
    files = ("--wildcards", "wild", "--styles-file", "styles.csv", "--prompt-style", "film")
    assert run(["generate", "a __animal__", *how, *files, "-n", "2"]) == 0
    made = [read_settings(f"jaxl-{seed}.png") for seed in range(2)]
    assert len({each["prompt"] for each in made} & {f"photo of a {name}" for name in ("cat", "dog", "llama")}) == 2
    assert {each["negative_prompt"] for each in made} <= {"cat", "dog", "llama"}
    assert run(["generate", "a __plant__", *how, *files]) == 2
    assert "PROMPT '__plant__': " in capsys.readouterr().err


def test_several_images_and_a_random_seed(capsys: pytest.CaptureFixture[str], model: tuple[str, str]) -> None:
    assert run(["generate", "a cat", *model, *SMALL, "-n", "2", "--guidance", "1", "--output", "new/cat.png"]) == 0
    out, err = capsys.readouterr()
    assert out == "new/cat-1.png\nnew/cat-2.png\n"
    first, second = (read_settings(name)["seed"] for name in out.split())
    assert second == first + 1
    assert err.startswith(f"jaxl: 2 images, seeds {first} to {second}: 64x64, 1 steps of euler, guidance 1, float32, ")
    assert err.count("\n") == 1


def test_files_are_replaced_only_by_name(capsys: pytest.CaptureFixture[str], model: tuple[str, str]) -> None:
    Path("jaxl-5.png").write_text("mine")
    Path("named.png").write_text("old")
    for output in (".", "named.png", "folder/"):
        assert run(["generate", "", *model, *SMALL, "--seed", "5", "--quiet", "--output", output]) == 0
    assert capsys.readouterr() == ("jaxl-5-2.png\nnamed.png\nfolder/jaxl-5.png\n", "")
    assert Path("jaxl-5.png").read_text() == "mine"
    assert read_settings("named.png") == read_settings("jaxl-5-2.png")
    assert read_settings("named.png")["prompt"] == ""


def test_a_prompt_that_is_cut_is_one_line(capsys: pytest.CaptureFixture[str], model: tuple[str, str]) -> None:
    long = "a dog\n" + "and another " * 80
    assert run(["generate", long, *model, *SMALL, "--quiet", "--prompt-syntax", "plain"]) == 0
    err = capsys.readouterr().err
    assert err.startswith("jaxl: warning: prompt is cut at 77 tokens; lost: ")
    assert err.count("\n") == 1


# arguments, and what the one line says
BAD_ARGUMENTS = [
    (["generate"], "PROMPT '': say what to draw, or give a picture that says it, as --like"),
    (["generate", "--like", "missing.png"], "--like 'missing.png': No such file or directory; give a picture's file"),
    (["generate", "--like", "file"], "--like 'file': not a PNG, JPEG or WebP picture"),
    (["generate", "x", "--sede", "3"], "No such option: --sede"),
    (["generate", "x", "y"], "unexpected extra argument"),
    (["draw", "x"], "No such command 'draw'"),
    (["generate", "x", "--steps"], "--steps"),
    (["generate", "x", "--steps", "many"], "Invalid value for '--steps'"),
    (["generate", "x", "--dtype", "float16"], "'auto', 'bfloat16', 'float32'"),
    (["generate", "x", "--steps", "0"], "--steps 0: must be a whole number from 1 to 1000"),
    (["generate", "x", "--steps", "1001"], "--steps 1001: must be a whole number from 1 to 1000"),
    (["generate", "x", "--guidance", "nan"], "--guidance nan: give a finite number"),
    (["generate", "x", "-n", "0"], "--count 0: give a whole number of at least 1"),
    (["generate", "x", "-n", "-2"], "--count -2: give a whole number of at least 1"),
    (["generate", "x", "--seed", "-1"], "--seed -1: give a whole number from 0"),
    (["generate", "x", "--seed", str(2**64)], f"--seed {2**64}: give a whole number from 0"),
    (["generate", "x", "--size", "250x256"], "--size, width 250: give a positive multiple of 8, such as 248 or 256"),
    (["generate", "x", "--size", "256x0"], "--size, height 0: give a positive multiple of 8"),
    (["generate", "x", "--size", "-8x8"], "--size '-8x8': give WIDTHxHEIGHT in pixels, such as 1024x768"),
    (["generate", "x", "--size", "256"], "--size '256': give WIDTHxHEIGHT in pixels, such as 1024x768"),
    (["generate", "x", "--scheduler", "eulr"], "--scheduler 'eulr': did you mean 'euler'?"),
    (["generate", "\udcff", *SMALL], r"PROMPT '\udcff': "),
    (["generate", "x", "--model", "missing/"], "missing/: no such file or folder"),
    (["generate", "x", "--model", "./no\nsuch.safetensors"], "such.safetensors: no such file or folder"),
    (["generate", "x", "--model", "./old.ckpt"], "jaxl does not open pickles"),
    (["generate", "x", "--model", "owner/none"], "owner/none: "),
    (["generate", "x", "--output", "a.jpg"], "--output 'a.jpg': only PNG is written; give 'a.png', or a folder"),
    (["generate", "x", "--output", "file"], "--output 'file': Not a directory; choose another place"),
    (["generate", "x", "--output", "file/a.png"], "--output 'file/a.png': Not a directory; choose another place"),
    (["generate", "smile :)"], "text, or give --prompt-syntax lenient"),
    (["generate", "x", "--prompt-syntax", "comfy"], "'a1111', 'lenient', 'comfyui', 'literal', 'plain'"),
    (["inspect"], "Missing argument 'MODEL'"),
    (["inspect", "missing/"], "missing/: no such file or folder"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD_ARGUMENTS, ids=[" ".join(a)[:50] for a, _ in BAD_ARGUMENTS])
def test_bad_arguments(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("file").touch()
    refused(arguments, message, capsys)
    assert os.listdir() == ["file"]


def refused(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit status 2, with one line that holds `message`."""
    assert run(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("jaxl: error: ")
    assert message in err
    assert err.index("\n") == len(err) - 1


WEIGHTS = (TINY / UNET).read_bytes()

BAD_MODELS: dict[str, tuple[dict[str, bytes | None], str]] = {
    "Stable Diffusion 1.5": (
        {
            "model_index.json": index_of(
                "StableDiffusionPipeline",
                unet="UNet2DConditionModel",
                vae="AutoencoderKL",
                text_encoder="CLIPTextModel",
            )
        },
        "model: StableDiffusionPipeline is not SDXL",
    ),
    "Flux": (
        {"model_index.json": index_of("FluxPipeline", transformer="FluxTransformer2DModel", vae="AutoencoderKL")},
        "model: FluxPipeline is not SDXL",
    ),
    "no index": ({"model_index.json": None}, "model: no model_index.json"),
    "truncated": ({str(UNET): WEIGHTS[:-1000]}, f"model/{UNET}: truncated"),
    "truncated header": ({str(UNET): WEIGHTS[:1000]}, f"model/{UNET}: truncated"),
    "empty": ({str(UNET): b""}, f"model/{UNET}: empty"),
    "corrupt header": ({str(UNET): WEIGHTS[:8] + b"?" + WEIGHTS[9:]}, f"model/{UNET}: corrupt"),
    "pickle": ({str(UNET): None, "unet/diffusion_pytorch_model.bin": b"\x80\x02"}, "jaxl does not open pickles"),
    "no weights": ({str(UNET): None}, f"model: no {UNET}"),
    "other weights": ({str(UNET): (TINY / "vae" / UNET.name).read_bytes()}, "model: "),
}


@pytest.mark.parametrize(("replaced", "message"), BAD_MODELS.values(), ids=BAD_MODELS)
def test_bad_models(replaced: dict[str, bytes | None], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    model_like(replaced)
    refused(["generate", "x", *SMALL, "--model", "model"], message, capsys)
    assert os.listdir() == ["model"]


def test_nan_is_a_failure(capsys: pytest.CaptureFixture[str], small: Any) -> None:
    write_copy(Path(small[0].checkpoint.source), Path("model"), 0, **{"conv_out.bias": np.full(4, np.nan, np.float32)})
    assert run(["generate", "x", *SMALL, "--seed", "3", "--model", "model"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("jaxl: error: ")
    assert "NaN" in err
    assert err.count("\n") == 1
    assert os.listdir() == ["model"]


def test_inspect(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["inspect", "tiny", "--json"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    report = json.loads(out)
    components = {part["name"]: part["parameters"] for part in report["components"]}
    assert components == {"unet": 11213444, "vae": 2360743, "text_encoder": 867072, "text_encoder_2": 2224704}
    assert report["parameters"] == sum(components.values())
    assert report["bytes"] == 2 * report["parameters"]
    assert report["dtypes"] == ["float16"]
    assert (report["size"], report["prediction_type"], report["scheduler"]) == ("256x256", "epsilon", "euler")
    assert report["prediction_type_by"] == "its scheduler config"
    assert report["preset"].startswith("sdxl, by the checkpoint's configs: 25 steps, guidance 5, ")
    assert sorted(Path(file).relative_to(TINY).parts[0] for file in report["files"]) == sorted(components)

    assert run(["inspect", "tiny"]) == 0
    out = capsys.readouterr().out
    assert "unet                 11,213,444      22,426,888  float16" in out
    assert str(TINY / UNET) in out


def test_inspect_names_karras_sigmas(capsys: pytest.CaptureFixture[str]) -> None:
    config = json.loads((TINY / "scheduler" / "scheduler_config.json").read_text())
    model_like({"scheduler/scheduler_config.json": json.dumps({**config, "use_karras_sigmas": True}).encode()})
    assert run(["inspect", "model", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["scheduler"] == "euler_karras"


def test_devices(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["devices", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["platform"], report["count"], len(report["devices"])) == ("cpu", 8, 8)
    assert report["devices"][7] == {"id": 7, "kind": "cpu", "memory_bytes": None}
    assert run(["devices"]) == 0
    assert capsys.readouterr().out.startswith(f"8 on cpu, jax {report['jax']}\n  0  cpu\n")


def test_help_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["--version"], [], ["--help"], ["generate", "-h"], ["inspect", "--help"], ["devices", "--help"]):
        assert run(arguments) == 0
        out, err = capsys.readouterr()
        assert err == ""
        assert out == f"jaxl {jaxl.__version__}\n" if arguments == ["--version"] else "Usage: jaxl" in out


def test_the_process_ends_with_the_status(model: tuple[str, str]) -> None:
    done = subprocess.run(command("generate", "x", "--size", "9x8"), env=ENVIRONMENT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "jaxl: error: --size, width 9: give a positive multiple of 8, such as 8 or 16\n"
    done = subprocess.run(
        command("generate", "x", *model, *SMALL, "--json"), env=ENVIRONMENT, capture_output=True, text=True, check=True
    )
    assert os.listdir() == json.loads(done.stdout.splitlines()[-1])["images"]
    assert done.stderr.startswith("jaxl: seed ")
    assert done.stderr.count("\n") == 1


def test_no_such_platform() -> None:
    environment = {**ENVIRONMENT, "JAX_PLATFORMS": "abacus"}
    done = subprocess.run(command("generate", "x"), env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("jaxl: error: jax finds no device for JAX_PLATFORMS=abacus (")
    assert done.stderr.count("\n") == 1


def test_no_space_left(model: tuple[str, str]) -> None:
    """A file that outgrows its limit fails as on a full disk; the old one stays."""
    Path("a.png").write_text("old")
    generate = command("generate", "x", *model, *SMALL, "--output", "a.png")
    limited = ["sh", "-c", 'ulimit -f 1 && exec "$@"', "sh", *generate]
    done = subprocess.run(limited, env=ENVIRONMENT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")
    # before it there are warnings where programs were compiled and could not be kept
    assert done.stderr.splitlines()[-1] == "jaxl: error: a.png: cannot be written (File too large)"
    assert "Traceback" not in done.stderr
    assert os.listdir() == ["a.png"]
    assert Path("a.png").read_text() == "old"


@pytest.fixture
def interruptible() -> Iterator[None]:
    """What is started hears of SIGINT, as it does not in a shell that ignores it: `make test &`, nohup."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("stage", ["Loading", "Compiling", "Drawing"])
def test_interrupted(stage: str, model: tuple[str, str]) -> None:
    """Ctrl-C on a terminal, while progress shows the stage, with nothing compiled before."""
    ours, theirs = pty.openpty()
    # a shell that ignores the signal, as for `make test &`, would hand that down
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(
        command("generate", "x", *model, "--steps", "1000", "--output", "a.png"),
        env={**ENVIRONMENT, **({} if stage == "Drawing" else {"JAX_ENABLE_COMPILATION_CACHE": "false"})},
        stdout=subprocess.PIPE,
        stderr=theirs,
    )
    signal.signal(signal.SIGINT, before)
    os.close(theirs)
    seen = read_until(ours, lambda text: stage in text)
    process.send_signal(signal.SIGINT)
    seen += read_until(ours, lambda _: False)
    out, _ = process.communicate()
    os.close(ours)
    assert (process.returncode, out) == (130, b"")
    assert seen.endswith("jaxl: interrupted\r\n")
    assert "Traceback" not in seen
    assert os.listdir() == []


def read_until(terminal: int, found: Callable[[str], bool]) -> str:
    """What a terminal shows until something is found, or its last writer is gone."""
    seen = b""
    while not found(seen.decode(errors="replace")):
        try:
            seen += os.read(terminal, 4096)
        except OSError:  # the other side is closed
            break
    return seen.decode(errors="replace")


def test_nobody_reads() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(command("inspect", "tiny"), env=ENVIRONMENT, stdout=writing, stderr=subprocess.PIPE)
    os.close(writing)
    assert (done.returncode, done.stderr) == (1, b"")


def test_standard_output_is_full() -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(command("inspect", "tiny"), env=ENVIRONMENT, stdout=full, stderr=subprocess.PIPE)
    assert done.returncode == 1
    assert done.stderr == b"jaxl: error: standard output: No space left on device\n"


def test_every_mode(capsys: pytest.CaptureFixture[str], small: Any) -> None:
    """Image-to-image, inpainting, a refiner, another VAE and previews, each as the library does it."""
    model = small[0].checkpoint.source
    pipe, params = opened(model)
    settings: dict[str, Any] = {"steps": 4, "width": 64, "height": 64, "seed": 5}
    flags = ("--model", model, "--steps", "4", "--size", "64x64", "--seed", "5", "--quiet")
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
    picture.save("picture.png")
    mask = Image.new("L", (64, 64))
    mask.paste(255, (8, 8, 40, 40))
    mask.save("mask.png")
    start = ("--init-image", "picture.png")
    less = ("--freeu", "0.6,0.4,1.1,1.2", "--speed", "balanced", "--cache-interval", "2")
    half = pipe.generate(params, "a cat", **settings, denoising_end=0.8, output="latents").latents
    modes: dict[tuple[str, ...], dict[str, Any]] = {
        (*start, "--strength", "0.7"): {"image": picture, "strength": 0.7},
        (*start, "--mask", "mask.png", "--mask-padding", "4"): {"image": picture, "mask": mask, "padding_mask_crop": 4},
        ("--refiner", model): {"image": half, "denoising_start": 0.8},
        ("--vae", model, "--preview", "preview.png"): {},
        ("--guidance-interval", "0:0.5", "--guidance-rescale", "0.5", "--pag", "2", *less): {
            "guidance_interval": (0, 0.5),
            "guidance_rescale": 0.5,
            "pag_scale": 2.0,
            "freeu": (0.6, 0.4, 1.1, 1.2),
            "speed": "balanced",
            "cache_interval": 2,
        },
        ("--scheduler", "DPM++ SDE Karras", "--eta", "0.5"): {"scheduler": "dpm++sde_karras", "eta": 0.5},
    }
    for options, mode in modes.items():
        assert run(["generate", "a cat", *flags, *options, "-o", "out.png"]) == 0, capsys.readouterr().err
        (wanted,) = pipe.generate(params, "a cat", **settings, **mode).images
        with Image.open("out.png") as got:
            difference = np.abs(np.asarray(got, np.int16) - np.asarray(wanted, np.int16))
        assert np.mean(difference <= 1) > 0.999, options
    with Image.open("preview.png") as shown:
        assert (shown.size, shown.text) == ((8, 8), {})  # pyright: ignore[reportAttributeAccessIssue]
    assert run(["generate", "a cat", *flags, *start, "--strength", "0.7", "-o", "out.png"]) == 0
    written = read_settings("out.png")
    assert (written["strength"], written["image"]) == (0.7, "picture.png")
    with Image.open("out.png") as got:
        assert "Denoising strength: 0.7, " in got.text["parameters"]  # pyright: ignore[reportAttributeAccessIssue]


def test_textual_inversions(capsys: pytest.CaptureFixture[str], small: Any) -> None:
    """The picture is the one that the library draws, its file says what was in the prompt, and a folder warns."""
    model = small[0].checkpoint.source
    pipe, params = opened(model)
    rng, widths = np.random.default_rng(0), {"clip_l": 16, "clip_g": 32}
    for name in ("one", "two", "more/three"):
        file = Path(f"{name}.safetensors")
        file.parent.mkdir(exist_ok=True)
        entries = {key: (np.dtype(np.float32), (2, width)) for key, width in widths.items()}
        write_safetensors(file, entries, lambda key: rng.standard_normal((2, widths[key]), np.float32))
        pipe.add_embedding(None, file)
    (Path("more") / "old.pt").write_bytes(b"\x80\x02" * 8)
    flags = ("--model", model, *SMALL, "--seed", "5", "--negative", "embedding:three", "-o", "out.png", "--quiet")
    files = ("--embedding", "one.safetensors", "--embedding", "two.safetensors", "--embedding-dir", "more")
    assert run(["generate", "a Two cat", *flags, *files]) == 0
    assert re.fullmatch(r"jaxl: warning: not loaded: .*old\.pt: .*a pickle.*\n", capsys.readouterr().err)
    settings: dict[str, Any] = {"steps": 1, "width": 64, "height": 64, "seed": 5, "negative_prompt": "embedding:three"}
    (wanted,) = pipe.generate(params, "a two cat", **settings).images
    with Image.open("out.png") as got:
        np.testing.assert_array_equal(np.asarray(got), np.asarray(wanted))
        assert re.search(r'TI hashes: "two: [0-9a-f]{12}, three: [0-9a-f]{12}"', got.info["parameters"])
    assert list(read_settings("out.png")["embeddings"]) == ["two", "three"]
    assert run(["generate", "a cat", *flags]) == 2
    assert "--negative 'embedding:three': no embedding has this name; none is loaded; " in capsys.readouterr().err
    assert run(["generate", "a cat", *flags, *files, "--refiner", model, "--embedding", "out.png"]) == 2
    assert "out.png: a picture (PNG), not weights" in capsys.readouterr().err


def write_networks(pipe: Any) -> tuple[str, ...]:
    """Files of adapters and a ControlNet for a small model, and a picture, `lines.png`; the flags that know them."""
    for seed, name in enumerate(("pencil", "loras/ink")):
        Path(name).parent.mkdir(exist_ok=True)
        write_lora(Path(f"{name}.safetensors"), pipe.model, seed, 4)
    write_folder(Path("edges"), dict(pipe.checkpoint.configs["unet"]), pipe.model, 1)
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save("lines.png")
    adapter = write_adapters(Path("adapters"), pipe.model.unet)["plus"]
    return ("--lora-dir", "loras", "--controlnet", "edges=edges", "--ip-adapter", f"like={adapter}")


def test_networks(model: tuple[str, str]) -> None:
    """LoRAs, by a flag or a tag, a ControlNet and an IP-Adapter: the picture is the one that the library draws.

    Its file says what it was drawn with, but for the pictures.
    """
    pipe, params = opened(model[1])
    flags = (*model, *SMALL, "--seed", "5", "-o", "out.png", "--quiet", *write_networks(pipe))
    loras, pictures = ("--lora", "pencil.safetensors:-0.8"), ("--control", "edges:lines.png:0.8")
    pictures += ("--image-prompt", "like:lines.png")
    assert run(["generate", "a <lora:ink:0.5> cat", *flags, *loras, *pictures]) == 0
    pipe.loras.folders.append(Path("loras"))
    pipe.add_lora("pencil", "pencil.safetensors")
    pipe.add_control("edges", "edges")
    pipe.add_ip_adapter("like", flags[-1].removeprefix("like="))
    wanted: dict[str, Any] = {"steps": 1, "width": 64, "height": 64, "seed": 5, "loras": {"ink": 0.5, "pencil": -0.8}}
    wanted |= {"controls": [Control("edges", "lines.png", 0.8)], "image_prompts": [ImagePrompt("like", "lines.png")]}
    (same,) = pipe.generate(params, "a  cat", **wanted).images
    with Image.open("out.png") as got:
        assert np.abs(np.asarray(got).astype(int) - np.asarray(same)).max() <= 1
        text = got.info["parameters"]
    assert text.startswith("a <lora:ink:0.5> cat <lora:pencil:-0.8>\n")
    assert re.search(r'Lora hashes: "pencil: [0-9a-f]{12}, ink: [0-9a-f]{12}"', text)
    written = read_settings("out.png")
    assert written["loras"] == {"pencil": -0.8}
    assert written["controls"] == [{"name": "edges", "strength": 0.8, "start": 0.0, "end": 1.0}]
    assert written["image_prompts"] == [{"name": "like", "strength": 1.0, "start": 0.0, "end": 1.0}]


def test_networks_that_cannot_be(capsys: pytest.CaptureFixture[str], model: tuple[str, str], small: Any) -> None:
    flags = (*model, *SMALL, "--quiet", *write_networks(small[0]))
    capsys.readouterr()
    for more, message in (
        (["--lora", "missing.safetensors"], "missing.safetensors: no such file"),
        (["--lora", "pencil.safetensors", "--lora", "loras/../pencil.safetensors:2"], "two are called 'pencil'"),
        (["--lora", "pencil.safetensors:nan"], "--lora nan: give a finite number"),
        (["--lora-dir", "none"], "--lora-dir 'none': there is no such folder"),
        (["--negative", "<lora:ink:1>"], "--negative '<lora:ink:1>'"),
        (["--control", "edges"], "--control 'edges': give a name and a picture"),
        (["--control", "edges:none.png"], "none.png"),
        (["--control", "depth:lines.png"], "no ControlNet of this name is loaded"),
        (["--controlnet", "depth"], "--controlnet 'depth': give a name and a model"),
        (["--image-prompt", "unlike:lines.png"], "no IP-Adapter of this name is loaded"),
        (["--controlnet", "edges=edges"], "give a name without colons that no other ControlNet has"),
    ):
        refused(["generate", "a cat", *flags, *more], message, capsys)


def test_like_another_picture(capsys: pytest.CaptureFixture[str], small: Any) -> None:
    """Flags win, what the picture has besides is told, and the file says what was drawn."""
    model = small[0].checkpoint.source
    text = "a cat <lora:pencil:0.8>\nNegative prompt: rain\nSteps: 2, Sampler: Euler, CFG scale: 4, Seed: 5"
    text += ", Size: 512x512, Denoising strength: 0.4, Model: base, Version: v1.10.1"
    Path("theirs.png").write_bytes(png({"parameters": text}))
    flags = ("--model", model, *SMALL, "--negative", "fog", "-o", "out.png", "--json")
    assert run(["generate", "--like", "theirs.png", *flags]) == 0
    out, err = capsys.readouterr()
    taken, *lacking, summary = err.splitlines()
    names = "guidance_scale, noise, prompt, prompt_syntax, scheduler, seed, style"
    assert taken == f"jaxl: settings of theirs.png, by A1111 v1.10.1: {names}"
    lines = [
        "the checkpoint base; draw with it, as --model",
        "the LoRA pencil (0.8); load it, as one of --lora, or take it out of PROMPT",
        "the picture that it was drawn from; give it as --init-image",
    ]
    assert lacking == [f"jaxl: not taken: {line}" for line in lines]
    assert "seed 5: 64x64, 1 steps of euler_uniform, guidance 4" in summary
    assert json.loads(out)["like"] == {"program": "A1111", "lacking": lines}
    made = read_settings("out.png")
    told = {"prompt": "a cat ", "negative_prompt": "fog", "steps": 1, "guidance_scale": 4.0, "seed": 5, "noise": "cuda"}
    assert made.items() >= (told | {"scheduler": "euler_uniform", "width": 64, "prompt_syntax": "lenient"}).items()

    # jaxl's own says all, and another prompt and scheduler replace what belongs to them
    assert run(["generate", "--like", "out.png", "--model", model, "-o", "same.png"]) == 0
    assert "not taken" not in capsys.readouterr().err
    with Image.open("out.png") as first, Image.open("same.png") as second:
        np.testing.assert_array_equal(np.asarray(first), np.asarray(second))
    more = ("--scheduler", "euler_a", "--seed", "6", "--quiet")
    assert run(["generate", "a dog", "--like", "out.png", "--model", model, *more, "-o", "other.png"]) == 0
    other = read_settings("other.png")
    assert other.items() >= {"prompt": "a dog", "height": 64, "seed": 6, "negative_prompt": "fog", "steps": 1}.items()
    assert other["noise"] == "cuda"


def test_second_passes(capsys: pytest.CaptureFixture[str], small: Any) -> None:
    """As the library draws them; a file says all, and flags replace parts of it."""
    model = small[0].checkpoint.source
    pipe, params = opened(model)
    flags = ("--model", model, "--steps", "2", "--size", "64x64", "--seed", "5", "--quiet", "-o", "out.png")
    more = ("--hires", "96x64", "--hires-steps", "3", "--hires-strength", "0.5", "--hires-negative", "fog")
    assert run(["generate", "a cat", *flags, *more]) == 0, capsys.readouterr().err
    hires = Hires(size=(96, 64), steps=3, strength=0.5, negative_prompt="fog")
    (wanted,) = pipe.generate(params, "a cat", steps=2, seed=5, hires=hires).images
    with Image.open("out.png") as got:
        assert np.abs(np.asarray(got, np.int16) - np.asarray(wanted, np.int16)).max() <= 1
        assert "Hires resize: 96x64, Hires steps: 3" in got.text["parameters"]  # pyright: ignore[reportAttributeAccessIssue]
    written = read_settings("out.png")
    assert (Hires(**written["hires"]), written["width"]) == (hires, 64)
    again = ("--model", model, "--quiet", "-o", "same.png")
    assert run(["generate", "--like", "out.png", *again]) == 0
    with Image.open("out.png") as first, Image.open("same.png") as second:
        np.testing.assert_array_equal(np.asarray(first), np.asarray(second))
    assert run(["generate", "--like", "out.png", "--hires-upscaler", "Lanczos", *again]) == 0
    assert Hires(**read_settings("same.png")["hires"]) == replace(hires, upscaler="lanczos")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--hires", "much"], "--hires 'much': give a number, such as 1.5, or WIDTHxHEIGHT"),
        (["--hires", "0.5"], "--hires 0.5: give a number from 1 to 16"),
        (["--hires", "2", "--hires-upscaler", "latnet"], "--hires-upscaler 'latnet': did you mean 'latent'?"),
        (["--hires", "2", "--hires-strength", "0"], "--hires-strength 0.0: give a number above 0, up to 1"),
        (["--hires-negative", "fog"], "--hires-negative 'fog': there is no second pass; give --hires too"),
        (["--init-image", "missing.png"], "--init-image 'missing.png': No such file"),
        (["--strength", "0.5"], "--strength 0.5: needs a picture"),
        (["--guidance-interval", "0.2"], "--guidance-interval [0.2]: give two numbers"),
        (["--guidance-interval", "a:b"], "--guidance-interval 'a:b': give numbers with ':' between them"),
        (["--freeu", "1,2"], "--freeu [1.0, 2.0]: give four numbers"),
        (["--cache-interval", "0"], "--cache-interval 0: give a whole number of at least 1"),
        (["--speed", "faster"], "--speed 'faster': did you mean 'fast'"),
        (["--preview", "preview.gif"], "--preview 'preview.gif': give the name of a .png file"),
        (["--vae", "missing"], "missing: no such file or folder"),
        (["--refiner", "missing"], "missing: no such file or folder"),
        (["--refiner", "tiny", "--refiner-at", "2"], "--refiner-at 2.0: give a number from 0 to 1"),
        (["--preset", "fast"], "--preset 'fast': known: dmd2, hyper"),
        (["--size", "9:1"], "--size '9:1': SDXL's sizes go from 1:4 to 4:1"),
        (["--negative", "(a"], "--negative '(a'"),
        (["--vae-tile", "100"], "--vae-tile 100: give a positive multiple of 8, such as 96 or 104"),
    ],
)
def test_bad_modes(capsys: pytest.CaptureFixture[str], flags: list[str], message: str) -> None:
    assert run(["generate", "a cat", "--quiet", *flags]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"jaxl: error: {message}")
    assert err.count("\n") == 1
