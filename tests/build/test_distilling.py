"""Distilling from settings: who may be a student, what it starts from, and that its rival is the very same student."""

import numpy as np
import pytest
import torch

from ssl_ft.artifact import InputContract, ModelCard, save_model
from ssl_ft.build.compressing import Work
from ssl_ft.build.distilling import distill
from ssl_ft.build.draft import with_head
from ssl_ft.build.students import make_student
from ssl_ft.config import CompressSettings, DistillSettings
from ssl_ft.errors import UserError
from ssl_ft.models.encoders import EncoderSpec, build_encoder
from ssl_ft.runlog import RunFolder
from tests.transfer.starts import CPU, SPECS, images_of, settings_of, split_of

CLASSES = ("class 0", "class 1", "class 2")


@pytest.fixture(autouse=True)
def _no_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    """A trial of writing it as ONNX takes seconds; that it is done is told in `tests/pipelines/test_compress.py`."""
    monkeypatch.setattr("ssl_ft.build.distilling.check_can_ship", lambda model, contract: None)


def teacher_of(family: str, *, task: str = "classes") -> tuple[torch.nn.Module, ModelCard]:
    spec, contract = SPECS[family], InputContract(32, 3, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    names = {"class_names": CLASSES} if task == "classes" else {"target_names": CLASSES}
    card = ModelCard("classifier", spec, contract, task=task, **names)
    return with_head(build_encoder(spec, seed=1), num_classes=3, seed=0).eval(), card


def work_of(folder, *, family: str = "resnet", task: str = "classes", **distill_settings) -> Work:
    model, card = teacher_of(family, task=task)
    settings = CompressSettings.model_validate({"model": "m", "distill": distill_settings})
    run = RunFolder(folder / "run", stage="compress", settings=settings.model_dump(mode="json"))
    return Work(settings, settings_of("full"), model, card, images_of(folder), split_of(18, 9, 9), CPU, run,
                lambda: False, lambda step, row: None)  # fmt: skip


def student(**given) -> object:
    model, card = teacher_of("resnet")
    return make_student(DistillSettings.model_validate(given), card, model, seed=0)


class TestStudent:
    def test_has_the_input_and_stem_of_its_teacher_unless_told(self):
        model, card = teacher_of("resnet")
        spec = EncoderSpec("test_resnet", 3, 32, stem_stride=1)
        card = ModelCard("classifier", spec, card.contract, CLASSES)
        own = make_student(DistillSettings(student="test_resnet"), card, model, seed=0)
        assert (own.start.spec, own.start.contract, own.origin) == (spec, card.contract, None)
        assert own.num_parameters == sum(p.numel() for p in model.parameters())
        told = make_student(DistillSettings(student="test_resnet", size=64, stem_stride=2), card, model, seed=0)
        assert (told.start.spec.size, told.start.spec.stem_stride, told.start.contract.size) == (64, 2, 64)
        assert told.start.contract.mean == card.contract.mean

    def test_with_more_parameters_than_its_teacher_is_refused_with_both_numbers(self):
        with pytest.raises(UserError, match=r"resnet10t has 4,924,027 parameters, more than the [\d,]+ of its teacher"):
            student()

    @pytest.mark.parametrize(
        ("given", "words"),
        [
            ({"student": "resnet10"}, r"distill.student='resnet10' is not an architecture of timm .*resnet10t"),
            ({"student": "test_vit", "size": 30}, r"distill.size=30 is not a multiple of the 16 pixels"),
            (
                {"encoder": "{folder}", "student": "test_vit"},
                "distill.student=test_vit: .* is a test_resnet; leave one",
            ),
            ({"encoder": "{folder}", "kind": "self"}, None),
            ({"encoder": "{other}", "kind": "self"}, "is a test_convnext, and kind=self has the model's own"),
            ({"encoder": "{grey}"}, "takes 1 channels, its teacher 3: both are to see the same images"),
            ({"encoder": "nowhere"}, "distill.encoder=nowhere is not there"),
            ({"encoder": "w.safetensors"}, "distill.encoder=w.safetensors: no such file"),
        ],
    )
    def test_starts_from_weights_that_fit_it(self, tmp_path, given, words):
        places = {"folder": SPECS["resnet"], "other": SPECS["convnext"], "grey": EncoderSpec("test_resnet", 1, 32)}
        for name, spec in places.items():
            if f"{{{name}}}" not in given.values():
                continue
            contract = InputContract(32, spec.channels, (0.5,) * spec.channels, (0.2,) * spec.channels)
            save_model(tmp_path / name / "encoder", build_encoder(spec, seed=7), ModelCard("encoder", spec, contract))
            given = {k: str(tmp_path / name) if v == f"{{{name}}}" else v for k, v in given.items()}
        if words is not None:
            with pytest.raises(UserError, match=words):
                student(**given)
            return
        own = student(**given)
        assert own.origin is not None
        wanted = build_encoder(SPECS["resnet"], seed=7).state_dict()
        assert all(torch.equal(value, wanted[name]) for name, value in own.start.encoder.state_dict().items())


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"kind": "hard", "temperature": 2}, "temperature concerns kind=soft and kind=self; kind=hard is set"),
        ({"kind": "features", "mix": 0.5}, "mix concerns kind=soft and kind=hard and kind=self"),
        ({"loss": "squared"}, "loss concerns kind=features; kind=soft is set"),
        ({"kind": "self", "student": "resnet18"}, "student: kind=self has the model's own architecture"),
        ({"kind": "self", "depth_weight": 2}, "depth_weight concerns teacher=depth and teacher=both"),
        ({"encoder": "runs/a", "size": 64}, "size: a run's encoder says itself how it is built"),
    ],
)
def test_settings_that_would_be_ignored_are_refused(given, words):
    with pytest.raises(ValueError, match=words):
        DistillSettings.model_validate(given)


def test_features_look_at_no_label():
    with pytest.raises(ValueError, match=r"labels concerns labels or the audit by them, and distill.kind"):
        CompressSettings.model_validate({"distill": {"kind": "features"}, "labels": 5})
    with pytest.raises(ValueError, match=r"finetune.patience concerns labels"):
        CompressSettings.model_validate({"distill": {"kind": "features"}, "finetune": {"patience": 5}})


def test_another_task_than_classes_is_refused(tmp_path):
    with pytest.raises(UserError, match="method=distill teaches classes alone, and m is a model of task=regression"):
        distill(work_of(tmp_path, task="regression"))


def test_a_student_taught_by_labels_alone_is_its_rival(tmp_path):
    made = distill(work_of(tmp_path, student="test_resnet", mix=1.0))
    taught, alone = made.pair
    assert (taught.name, alone.name) == ("student", "student alone")
    assert taught.trained.num_steps == alone.trained.num_steps == 6
    for (name, one), other in zip(
        taught.trained.model.state_dict().items(), alone.trained.model.state_dict().values(), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4, msg=name)


@pytest.mark.parametrize(
    ("family", "given"),
    [
        ("resnet", {"kind": "soft", "student": "test_resnet", "args": {"channels": [16, 16, 32, 32]}}),
        ("vit", {"kind": "hard", "student": "test_vit", "args": {"depth": 3}}),
        ("convnext", {"kind": "self", "teacher": "both"}),
        pytest.param("vit", {"kind": "self", "teacher": "depth"}, marks=pytest.mark.slow),
    ],
)
def test_leaves_a_plain_model_beside_an_untouched_teacher(tmp_path, family, given):
    work = work_of(tmp_path, family=family, baseline=False, **given)
    before = {name: value.clone() for name, value in work.model.state_dict().items()}
    made = distill(work)
    assert made.pair is None
    assert made.num_val == 9
    assert made.card.class_names == CLASSES
    assert not any(module._forward_hooks for module in made.model.modules())
    plain = with_head(build_encoder(made.card.spec, seed=0), num_classes=3, seed=0)
    plain.load_state_dict(made.model.state_dict())
    assert all(torch.equal(value, before[name]) for name, value in work.model.state_dict().items())
    assert np.isfinite(made.model(torch.zeros(2, 3, 32, 32)).detach().numpy()).all()
