"""Exported files against the models they were made from: ONNX, programs, timm folders, and what describes them."""

import json
from dataclasses import replace

import numpy as np
import pytest
import timm
import torch

from ssl_ft.artifact import InputContract
from ssl_ft.errors import UserError
from ssl_ft.export.check import check_file, compare
from ssl_ft.export.description import describe, read_description, write_description
from ssl_ft.export.inside import Normalised
from ssl_ft.export.memory import peak_in_own_process
from ssl_ft.export.onnx_file import strip_annotations, write_onnx, write_onnx_graph
from ssl_ft.export.program_file import check_no_pickle, write_executorch, write_inductor, write_program
from ssl_ft.export.running import normalised, open_runner, preparer
from ssl_ft.export.timing import eager_runner, seconds_in_turns, time_in_turns
from ssl_ft.export.timm_folder import check_timm, write_timm_folder
from tests.export.works import CONTRACT, make_model

PIXELS = np.random.default_rng(0).integers(0, 256, (7, 3, 32, 32), dtype=np.uint8)


@pytest.fixture(scope="module")
def model_and_card():
    return make_model()


@pytest.fixture(scope="module")
def expected(model_and_card):
    """By hand, in float64."""
    model, _ = model_and_card
    mean, std = (np.array(v).reshape(1, 3, 1, 1) for v in (CONTRACT.mean, CONTRACT.std))
    with torch.no_grad():
        outputs = model.double()(torch.from_numpy((PIXELS / 255.0 - mean) / std)).numpy()
        model.float()
    return outputs.astype(np.float32)


@pytest.fixture(scope="module")
def exported(model_and_card, tmp_path_factory):
    """A folder with the model as ONNX and its description."""
    model, card = model_and_card
    folder = tmp_path_factory.mktemp("exported")
    write_onnx(model, folder / "model.onnx", channels=3, size=32)
    write_description(folder, describe(card, parent="abc"))
    return folder


def test_preparing_gives_the_contracts_numbers():
    assert np.allclose(normalised(PIXELS, CONTRACT), CONTRACT.normalise(torch.from_numpy(PIXELS)).numpy(), atol=1e-6)
    grey = InputContract(32, 1, (0.25,), (0.5,))
    assert normalised(np.full((1, 1, 32, 32), 255, np.uint8), grey)[0, 0, 0, 0] == pytest.approx(1.5)


def test_onnx_takes_any_batch_and_agrees(exported, model_and_card, expected):
    model, _ = model_and_card
    runner = open_runner(exported / "model.onnx", read_description(exported), num_threads=1)
    for batch in (1, 3, 64):
        assert np.allclose(runner.outputs(PIXELS, batch_size=batch), expected, rtol=1e-4, atol=1e-4)
    speeds = time_in_turns(
        [eager_runner(model, CONTRACT), runner], [PIXELS[:1], PIXELS[:1]], num_threads=1, most_seconds=0.01
    )
    assert all(each.low_ms <= each.median_ms <= each.high_ms and each.rounds == 15 for each in speeds)


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
def test_a_model_that_normalises_itself_takes_bytes(tmp_path, model_and_card, expected, layout):
    model, card = model_and_card
    description = describe(card, parent="abc", preprocess="inside", layout=layout)
    prepared = preparer(description)(PIXELS)
    assert (prepared.dtype, prepared.shape[-1]) == (np.uint8, 3 if layout == "nhwc" else 32)
    inside = Normalised(model, CONTRACT, layout=layout).eval()
    with torch.no_grad():
        assert np.allclose(inside(torch.from_numpy(prepared)).numpy(), expected, rtol=1e-4, atol=1e-4)
    if layout == "nhwc":
        path = tmp_path / "model.onnx"
        write_onnx_graph(inside, path, example=torch.from_numpy(prepared[:2]))
        runner = open_runner(path, description, num_threads=1)
        assert np.allclose(runner.outputs(PIXELS), expected, rtol=1e-4, atol=1e-4)


def test_a_program_holds_no_pickle_and_agrees(tmp_path, model_and_card, expected):
    model, card = model_and_card
    path = tmp_path / "model.pt2"
    write_program(model, path, example=torch.zeros(2, 3, 32, 32))
    runner = open_runner(path, describe(card, parent="abc"), num_threads=1)
    assert np.allclose(runner.outputs(PIXELS, batch_size=4), expected, rtol=1e-4, atol=1e-4)
    free = ({0: torch.export.Dim("batch", min=1, max=64)},)
    plain = torch.export.export(model, (torch.zeros(2, 3, 32, 32),), dynamic_shapes=free)
    torch.export.save(plain, path)  # as torch writes it, with its example inputs
    with pytest.raises(UserError, match="would unpickle"):
        check_no_pickle(path)
    path.write_bytes(b"no archive")
    with pytest.raises(UserError, match=r"no torch\.export program"):
        check_no_pickle(path)


def test_a_timm_folder_says_what_is_ours(tmp_path, model_and_card, expected):
    model, card = model_and_card
    check_timm(model, card)
    write_timm_folder(model, card, tmp_path / "timm")
    loaded = timm.create_model(f"local-dir:{tmp_path / 'timm'}", pretrained=True).eval()
    with torch.no_grad():
        outputs = loaded(CONTRACT.normalise(torch.from_numpy(PIXELS))).numpy()
    assert np.allclose(outputs, expected, rtol=1e-4, atol=1e-4)
    settings = timm.data.resolve_model_data_config(loaded)
    assert (tuple(settings["mean"]), tuple(settings["std"])) == (CONTRACT.mean, CONTRACT.std)
    assert tuple(settings["input_size"]) == (3, 32, 32)
    assert (settings["crop_pct"], settings["interpolation"]) == (1.0, "bilinear")
    assert loaded.num_classes == 3
    assert loaded.pretrained_cfg["label_names"] == ["ant", "bee", "cat"]
    assert loaded.pretrained_cfg["license"] == "none"


def test_what_timm_cannot_build_is_refused(model_and_card):
    model, card = model_and_card
    edited = replace(card, spec=replace(card.spec, stem_stride=2))
    with pytest.raises(UserError, match="no argument for this model's stem"):
        check_timm(model, edited)
    with pytest.raises(UserError, match="other shapes than timm's test_resnet"):
        check_timm(model, replace(card, class_names=("ant", "bee")))


def test_differences_are_measured():
    one = np.array([[1.0, 2.0], [4.0, 0.0]], np.float32)
    other = np.array([[1.0, 2.0], [0.0, 4.0]], np.float32)
    same = compare(one, one, are_classes=True)
    assert (same.deviation, same.agreement, same.num_images) == (0, 1, 2)
    assert (compare(other, one, are_classes=True).deviation, compare(other, one, are_classes=True).agreement) == (
        1,
        0.5,
    )
    assert compare(one * np.nan, one, are_classes=False).deviation == np.inf
    with pytest.raises(UserError, match=r"shape \(2, 1\)"):
        compare(one[:, :1], one, are_classes=True)


def test_a_fresh_process_runs_the_file_or_says_why_not(tmp_path, exported, expected):
    path = tmp_path / "model.onnx"
    inputs = normalised(PIXELS, CONTRACT)
    assert (
        check_file("onnx", exported / "model.onnx", inputs=inputs, expected=expected, are_classes=True).deviation < 1e-5
    )
    path.write_bytes(b"nothing")
    with pytest.raises(UserError, match="cannot be run in a fresh process"):
        check_file("onnx", path, inputs=inputs, expected=expected, are_classes=True)
    with pytest.raises(UserError, match="cannot be loaded by ONNX Runtime"):
        open_runner(path, describe(make_model()[1], parent=""), num_threads=1)


def test_files_that_cannot_be_run_are_named(tmp_path, model_and_card):
    description = describe(model_and_card[1], parent="")
    with pytest.raises(UserError, match="is not there"):
        open_runner(tmp_path / "model.onnx", description, num_threads=1)
    (tmp_path / "model.pte").write_bytes(b"")
    with pytest.raises(UserError, match=r"only \.onnx and \.pt2"):
        open_runner(tmp_path / "model.pte", description, num_threads=1)


def test_missing_tools_are_sentences(tmp_path, model_and_card, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(UserError, match="the compiler 'no-such-compiler' is not there"):
        write_inductor(model_and_card[0], tmp_path / "m.pt2", example=torch.zeros(2, 3, 32, 32))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="needs the package executorch"):
        write_executorch(model_and_card[0], tmp_path / "m.pte", example=torch.zeros(2, 3, 32, 32))


class _Undecided(torch.nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.mean((2, 3)) if images.sum() > 0 else images.amax((2, 3))


def test_what_a_format_has_no_words_for_is_a_sentence(tmp_path):
    example = torch.zeros(2, 3, 8, 8)
    for write in (write_onnx_graph, write_program):
        with pytest.raises(UserError, match=r"this _Undecided cannot be written as .*take another format"):
            write(_Undecided(), tmp_path / "model", example=example)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_file_tells_nothing_of_the_machine_it_was_made_on(tmp_path, model_and_card):
    size = CONTRACT.size
    write_onnx(model_and_card[0], tmp_path / "plain.onnx", channels=3, size=size)
    write_onnx(model_and_card[0], tmp_path / "annotated.onnx", channels=3, size=size, is_annotated=True)
    contents = [(tmp_path / f"{name}.onnx").read_bytes() for name in ("plain", "annotated")]
    assert b"stack_trace" not in contents[0]
    assert b"site-packages" not in contents[0]
    assert b"stack_trace" in contents[1]
    strip_annotations(tmp_path / "annotated.onnx")
    assert (tmp_path / "annotated.onnx").stat().st_size == len(contents[0])


def test_each_takes_its_turn_at_being_first():
    order = list[str]()
    seconds = seconds_in_turns([lambda name=name: order.append(name) for name in "abc"], most_seconds=0.0)
    rounds = ["".join(order[start : start + 3]) for start in range(15, len(order), 3)]  # behind five to warm up
    assert rounds[:4] == ["abc", "bca", "cab", "abc"]
    assert [len(own) for own in seconds] == [15, 15, 15]


def test_a_description_is_read_back_or_refused(tmp_path, model_and_card):
    _, card = model_and_card
    description = describe(card, parent="abc", preprocess="inside", layout="nhwc")
    path = write_description(tmp_path, description)
    assert read_description(tmp_path) == description
    content = json.loads(path.read_text())
    assert content["input"]["shape"] == "[batch, 32, 32, 3]"
    assert "int(32 * long / short)" in " ".join(content["input"]["steps"])
    for change, told in (
        ({"format": 2}, "reads format 1"),
        ({"task": "poetry"}, "is unknown"),
        ({"output_names": []}, "a classifier has output_names"),
        ({"contract": {**content["contract"], "std": [0, 1, 1]}}, "std positive"),
        ({"contract": {**content["contract"], "mean": [0.5]}}, "one number for each channel"),
        ({"input": {"preprocess": "outside", "layout": "nhwc"}}, "do not go together"),
        ({"input": {}}, "it has no 'preprocess'"),
    ):
        path.write_text(json.dumps(content | change))
        with pytest.raises(UserError, match=told):
            read_description(tmp_path)
    with pytest.raises(UserError, match=r"holds no model\.json"):
        read_description(tmp_path / "nowhere")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["torch", "timm", "inductor"])
def test_other_formats_run_in_a_fresh_process(tmp_path, model_and_card, expected, kind):
    model, card = model_and_card
    path, example = tmp_path / "model", torch.zeros(2, 3, 32, 32)
    if kind == "torch":
        path = tmp_path / "model.pt2"
        write_program(model, path, example=example)
    elif kind == "timm":
        write_timm_folder(model, card, path)
    else:
        path = tmp_path / "model.pt2"
        write_inductor(model, path, example=example)
    inputs = normalised(PIXELS, CONTRACT)
    checked = check_file(kind, path, inputs=inputs, expected=expected, are_classes=True)
    assert checked.deviation < 1e-5
    assert checked.agreement == 1


def test_memory_is_that_of_a_process_of_its_own(tmp_path, exported):
    held = peak_in_own_process(exported / "model.onnx", batch=4, num_threads=1)
    # A process that carried torch would hold some 300 MiB.
    assert held is not None
    assert 0 < held.own_mb < held.total_mb < 200
    (tmp_path / "model.onnx").write_bytes(b"nothing")
    assert peak_in_own_process(tmp_path / "model.onnx", batch=4, num_threads=1) is None
