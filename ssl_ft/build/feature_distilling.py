"""Compress by method=distill with kind=features: a student encoder learns a teacher's features of unlabelled images."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from ssl_ft.artifact import InputContract
from ssl_ft.build.data import build_order, limited, open_data, pool_of
from ssl_ft.build.judging import parent_data
from ssl_ft.build.labels import Indices, LabelledImages
from ssl_ft.build.origins import Origin, find_origin, load_origin, with_measured_contract
from ssl_ft.build.parts import label_views, optimizer_for
from ssl_ft.build.students import Student, make_student
from ssl_ft.build.transfer import finetune_plan
from ssl_ft.compress.distill_losses import cosine_loss, squared_loss
from ssl_ft.compress.feature_distilled import FeatureDistilled
from ssl_ft.compress.teacher import Teacher
from ssl_ft.config import CompressSettings, DataSettings, DistillSettings, SourceSettings
from ssl_ft.data.batches import batches
from ssl_ft.data.listing import evenly_spread
from ssl_ft.data.source import Source
from ssl_ft.data.store import Damage
from ssl_ft.errors import UserError
from ssl_ft.evaluate.features import compute_outputs
from ssl_ft.loop import LoopCalls, run_steps
from ssl_ft.models.encoders import num_features
from ssl_ft.optim import parameter_groups
from ssl_ft.progress import ProgressLine
from ssl_ft.result import Parent

# Images whose teacher's features give their mean, and images held out to tell how well features agree.
_MEAN_IMAGES = 2048
_MOST_HELD_OUT = 1000
_LOSSES = {"cosine": cosine_loss, "squared": squared_loss}


@dataclass(frozen=True, eq=False)
class EncoderTeaching:
    """A teacher, and the images it teaches on.

    Attributes:
        origin: where it comes from.
        data: how the images are read.
        source: all of them.
        pool: those that may be trained on.
        test: int64, held out of the pool.
    """

    origin: Origin
    data: DataSettings
    source: Source
    pool: Source
    test: NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class TaughtEncoder:
    """What came of it.

    Attributes:
        student: whose encoder is trained, in evaluation mode, on the CPU.
        parent: what to record of the teacher.
        step: steps done.
        cosine: mean over held-out images between mapped and teacher's features, both about the teacher's mean.
        explained: share of the variance of the teacher's features of held-out images that the mapped ones explain.
        num_held_out: those images.
        damages: training images that could not be read.
    """

    student: Student
    parent: Parent
    step: int
    cosine: float
    explained: float
    num_held_out: int
    damages: tuple[Damage, ...]


def open_teaching(settings: CompressSettings) -> EncoderTeaching:
    """Find the teacher and open the images.

    Raises:
        UserError: no encoder there, or images that are not named and that it does not tell of.
    """
    origin = _find_teacher(settings.model)
    if settings.data is None and origin.folder is None:
        raise UserError(f"model={settings.model} tells of no data: name the unlabelled images with data=")
    data = settings.data or parent_data(origin.folder)  # type: ignore[arg-type]  # it has one: see above
    source = open_data(data)
    pool, test = pool_of(source, data)
    origin = with_measured_contract(origin, pool, np.arange(len(pool)), data)
    if len(pool) < 2:
        raise UserError(
            f"data={source.location} has {len(pool)} images to train on, and one more is held out; name more"
        )
    return EncoderTeaching(origin, data, source, pool, test)


def _find_teacher(location: str) -> Origin:
    if location.endswith(".safetensors"):
        raise UserError(
            f"model={location}: a file of weights does not say its architecture; give a run, a model folder, timm:NAME"
        )
    return find_origin(location, SourceSettings(), setting="model")


def teach_encoder(
    settings: CompressSettings,
    teaching: EncoderTeaching,
    images: LabelledImages,
    *,
    device: torch.device,
    should_stop: Callable[[], bool],
    on_row: Callable[[int, dict[str, float]], None],
) -> TaughtEncoder:
    """Train the student; the last weights are kept, for nothing is chosen.

    Args:
        settings: of compress.
        teaching: teacher and images.
        images: the pool and how it is read; no label of it is looked at.
        device: where to compute.
        should_stop: whether the person wants to stop.
        on_row: called with the steps done and rows for the log.

    Raises:
        UserError: a student that cannot be had, or images that cannot be read.
    """
    own, training, seed = settings.distill or DistillSettings(), settings.finetune, settings.seed
    model, parent = load_origin(teaching.origin)
    card = teaching.origin.card
    student = make_student(own, card, model, seed=seed)
    start = student.start
    encoder, contract = start.encoder, start.contract
    train, held_out = _cut(len(images.source), seed=seed)
    teacher = Teacher(model, card.contract, student=contract, device=device)
    few = train[evenly_spread(len(train), most=_MEAN_IMAGES)]
    features = partial(compute_outputs, device=device, batch_size=256)
    mean = features(model, _pixels(images, card.contract, few), card.contract).mean(0)
    truth = features(model, _pixels(images, card.contract, held_out), card.contract) - mean
    own_pixels = _pixels(images, contract, held_out)  # read once: the student is looked at again and again
    objective = FeatureDistilled(
        encoder,
        views=label_views(training.views, contract, seed=seed),
        teacher=teacher,
        mean_E=torch.from_numpy(mean),
        width=num_features(encoder),
        loss=_LOSSES[own.loss],
        seed=seed,
    ).to(device)
    rate = 1.0 if student.origin is None else training.encoder_rate_share
    groups = parameter_groups([(objective.map, 1.0), (encoder, rate)], weight_decay=training.optim.weight_decay)
    batch_size, plan = min(training.batch_size, len(train)), finetune_plan(training, num_train=len(train))
    store = images.store(train, contract, seed=seed)

    def agreement() -> tuple[float, float]:
        found = torch.from_numpy(features(encoder, own_pixels, contract)).to(device)
        with torch.no_grad():
            mapped = objective.map(found).double().cpu()
        objective.train()
        known = torch.from_numpy(truth).double()
        return 1 - cosine_loss(mapped, known).item(), 1 - squared_loss(mapped, known).item()

    def evaluate(step: int) -> bool:
        cosine, explained = agreement()
        on_row(step, {"val_loss": 1 - (cosine if own.loss == "cosine" else explained), "val_cosine": cosine})
        return False

    stream = batches(
        store, batch_size=batch_size, seed=seed, start_step=0, num_steps=plan.num_steps, workers=2,
        order=build_order(images.source.subset(train), images.data),
    )  # fmt: skip
    with ProgressLine("student", total=plan.num_steps) as line:

        def log(step: int, row: dict[str, float]) -> None:
            on_row(step, row)
            line.update(step, f"loss {row['loss']:.3f}")

        step = run_steps(
            objective.train(), optimizer_for(training.optim, groups, batch_size=batch_size), stream, plan=plan,
            calls=LoopCalls(log, evaluate, lambda step: None, should_stop), device=device, start_step=0, seed=seed,
        )  # fmt: skip
    cosine, explained = agreement()
    encoder.to("cpu").eval()
    return TaughtEncoder(student, parent, step, cosine, explained, len(truth), tuple(store.damages))


def _cut(count: int, *, seed: int) -> tuple[Indices, Indices]:
    """Images to train on, and a seeded tenth, at most 1000, that is held out."""
    wanted = DataSettings(limit=max(1, min(_MOST_HELD_OUT, count // 10)), split_seed=seed)
    held_out = limited(np.arange(count), wanted)
    return np.setdiff1d(np.arange(count), held_out), held_out


def _pixels(images: LabelledImages, contract: InputContract, rows: Indices) -> NDArray[np.uint8]:
    pixels = images.inputs(rows, contract).pixels
    if not len(pixels):
        raise UserError(
            f"{images.source.location}: not one of {len(rows)} images looked at can be read; mend them first"
        )
    return pixels
