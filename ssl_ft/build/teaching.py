"""What a teacher's training on labels minimises, from settings: its views, its labels, unlabelled images beside them.

The loss itself is `compress/distilled.py`; a student's own heads and its rival are `distilling.py`.
"""

from functools import partial

import numpy as np
import torch

from ssl_ft.artifact import InputContract
from ssl_ft.build.compressing import Work
from ssl_ft.build.parts import label_views
from ssl_ft.build.selftraining import Unlabelled, without_copies
from ssl_ft.build.tasks import build_mixing, count_weights
from ssl_ft.build.unlabelled_views import unlabelled_views
from ssl_ft.compress.depth_heads import DepthHeads
from ssl_ft.compress.distill_losses import soft_target_loss
from ssl_ft.compress.distilled import Distilled, Teach
from ssl_ft.compress.teacher import Teacher
from ssl_ft.config import FinetuneSettings
from ssl_ft.config.parts import DataSettings
from ssl_ft.handover import record_data
from ssl_ft.transfer.strategy import Prepared


def open_pool(data: DataSettings | None, work: Work, *, setting: str) -> Unlabelled | None:
    """The unlabelled images of which the model alone speaks, without copies of labelled ones, recorded in the run.

    Args:
        data: where they are; None for none.
        work: whose labelled images they must not be.
        setting: how messages name the pool.

    Raises:
        UserError: nothing is left of it.
    """
    if data is None:
        return None
    pool = without_copies(data, work.images.source, work.split, run=work.run, setting=setting)
    record_data(work.run, pool.images.source, pool.images.source.subset(pool.rows), role="pool")
    return pool


def num_images(work: Work, pool: Unlabelled | None) -> int:
    """Images of an epoch: it is a pass over the larger of both."""
    return max(len(work.split.train), 0 if pool is None else len(pool.rows))


def teacher_of(work: Work, student: InputContract) -> Teacher:
    """The model that is made smaller, as it teaches a student of this input."""
    return Teacher(work.model, work.card.contract, student=student, device=work.device)


def soft_targets(temperature: float) -> Teach:
    """The teacher's probabilities at a temperature."""
    return partial(soft_target_loss, temperature=temperature)


def distilled(
    prepared: Prepared,
    work: Work,
    training: FinetuneSettings,
    *,
    contract: InputContract,
    share: float,
    teach: Teach,
    teacher: Teacher | None,
    pool: Unlabelled | None = None,
    depth: DepthHeads | None = None,
    depth_weight: float = 1.0,
) -> Distilled:
    """The loss of a student's training.

    Args:
        prepared: the student.
        work: labels, and where to train.
        training: views, mixing, smoothing, size of a batch and seed.
        contract: the student's input.
        share: of the labels in the loss.
        teach: the loss by the teacher's logits.
        teacher: None where none but the student's own last layer teaches.
        pool: unlabelled images, a batch beside each labelled one.
        depth: heads on the student's earlier layers.
        depth_weight: weight of their loss.
    """
    labels = work.images.labels[work.split.train]
    counts = np.bincount(labels, minlength=len(work.card.output_names)).tolist()
    more = None
    if pool is not None:
        more = unlabelled_views(
            training, pool.images, pool.rows, contract=contract, purpose="pool of the student", device=work.device
        )
    return Distilled(
        prepared.model,
        torch.from_numpy(labels),
        views=label_views(training.views, contract, seed=training.seed),
        class_weights_K=count_weights(training, counts),
        share=share,
        teach=teach,
        teacher=teacher,
        label_smoothing=training.label_smoothing,
        mixing=build_mixing(training),
        more=more,
        depth=depth,
        depth_weight=depth_weight,
    )
