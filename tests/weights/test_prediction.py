"""What a single file says that its network predicts."""

from pathlib import Path

import pytest

from jaxl.diffusion.diffusers_config import read_scheduler_config
from jaxl.diffusion.schedule import Flow
from jaxl.errors import InputError
from jaxl.weights.prediction import MAX_YAML_BYTES, find_prediction, with_prediction
from jaxl.weights.source import open_checkpoint


@pytest.mark.parametrize(
    ("metadata", "found"),
    [
        ({"modelspec.predict_key": "v"}, ("v_prediction", "its metadata, modelspec.predict_key")),
        ({"modelspec.prediction_type": "v"}, ("v_prediction", "its metadata, modelspec.prediction_type")),
        ({"modelspec.prediction_type": "V_Prediction "}, ("v_prediction", "its metadata, modelspec.prediction_type")),
        ({"modelspec.prediction_type": "epsilon"}, ("epsilon", "its metadata, modelspec.prediction_type")),
        ({"modelspec.predict_key": "noise"}, ("epsilon", "its metadata, modelspec.predict_key")),
        ({"modelspec.prediction_type": "x0"}, ("sample", "its metadata, modelspec.prediction_type")),
        ({"modelspec.prediction_type": "rectified_flow"}, ("flow", "its metadata, modelspec.prediction_type")),
        ({"modelspec.predict_key": "?", "modelspec.title": "v"}, ("epsilon", "nothing that says otherwise")),
    ],
)
def test_metadata(metadata: dict[str, str], found: tuple[str, str]) -> None:
    assert find_prediction(Path("sdxl.safetensors"), (), metadata) == found


@pytest.mark.parametrize("value", ["v", '"v"', "'v'", "v  # velocity"])
def test_a_yaml_beside_the_file(tmp_path: Path, value: str) -> None:
    (tmp_path / "a.yaml").write_text(f"model:\n  params:\n    parameterization: {value}\n    scale: 1\n")
    assert find_prediction(tmp_path / "a.safetensors", (), {}) == ("v_prediction", "a.yaml")
    assert find_prediction(tmp_path / "b.safetensors", (), {})[0] == "epsilon"


@pytest.mark.parametrize("text", ["model: 1", "# parameterization: v", " " * MAX_YAML_BYTES + "\nparameterization: v"])
def test_other_yamls_say_nothing(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.yaml").write_text(text)
    assert find_prediction(tmp_path / "a.safetensors", (), {})[0] == "epsilon"
    (tmp_path / "b.yaml").mkdir()
    assert find_prediction(tmp_path / "b.safetensors", (), {})[0] == "epsilon"


def test_names_and_tensors() -> None:
    assert find_prediction(Path("sdxl_lightning_1step_x0.safetensors"), (), {}) == ("sample", "its name")
    assert find_prediction(Path("sdxl_lightning_1step.safetensors"), (), {})[0] == "epsilon"
    assert find_prediction(Path("a.safetensors"), ("v_pred",), {}) == ("v_prediction", "its tensor v_pred")


@pytest.mark.parametrize(("value", "known"), [("v", "v_prediction"), ("sample", "sample"), ("eps", "epsilon")])
def test_what_the_caller_says(value: str, known: str) -> None:
    checkpoint = with_prediction(open_checkpoint("tiny"), value)
    assert (checkpoint.configs["scheduler"]["prediction_type"], checkpoint.predicts_by) == (known, "the caller")


def test_a_straight_path_has_a_scheduler_of_its_own() -> None:
    flow = with_prediction(open_checkpoint("tiny"), "flow")
    noise = read_scheduler_config(flow.configs["scheduler"]).noise
    assert (noise.prediction_type, noise.flow) == ("flow", Flow(shift=1.0))
    assert with_prediction(flow, "rf").configs["scheduler"] is flow.configs["scheduler"]
    with pytest.raises(InputError, match="prediction_type='epsilon': the checkpoint's scheduler is for straight paths"):
        with_prediction(flow, "epsilon")


def test_what_is_no_prediction_type() -> None:
    with pytest.raises(InputError, match="prediction_type='v_predictoin': did you mean 'v_prediction'"):
        with_prediction(open_checkpoint("tiny"), "v_predictoin")
