"""What all pruning shares: rounds of training again as fine-tuning does, gradients to judge by, what comes of it."""

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from ssl_ft.artifact import ModelCard
from ssl_ft.build.compressing import Compressed, Work
from ssl_ft.build.draft import Start
from ssl_ft.build.tasks import scale_of, trained_targets
from ssl_ft.build.teaching import distilled, num_images, open_pool, soft_targets, teacher_of
from ssl_ft.build.transfer import Trained, finetune_plan, train_classifier
from ssl_ft.compress.distilled import Distilled
from ssl_ft.compress.importance import add_gradients
from ssl_ft.config import FinetuneSettings
from ssl_ft.config.prune import PruneSettings
from ssl_ft.errors import UserError
from ssl_ft.models.encoders import EncoderSpec
from ssl_ft.models.timm_model import as_timm
from ssl_ft.objectives.target_losses import masked_binary_cross_entropy, masked_squared_error
from ssl_ft.seeding import derive_seed
from ssl_ft.transfer.number_head import fold_scale, unfold_scale
from ssl_ft.transfer.strategy import Prepared, head_of

# Training images that gradients are taken on, and how many at a time.
_MOST_IMAGES, _BATCH = 1024, 128
_LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "classes": nn.functional.cross_entropy,
    "multi_label": masked_binary_cross_entropy,
    "regression": masked_squared_error,
}


@dataclass(frozen=True)
class Round:
    """One of the times of pruning.

    Attributes:
        number: from 1.
        num_steps: of training that follow.
        done: steps done before.
    """

    number: int
    num_steps: int
    done: int


@dataclass(frozen=True, eq=False)
class Recovery:
    """How pruned models are trained again.

    Attributes:
        work: labels, how to train, and where.
        rounds: all together train as long as one training would; the last takes what does not divide.
        taught: what is minimised in a training of these settings; None: the loss of the labels alone.
    """

    work: Work
    rounds: list[Round]
    taught: Callable[[Prepared, FinetuneSettings], Distilled] | None


def plan_recovery(work: Work, settings: PruneSettings) -> Recovery:
    """The rounds, and what the model as it was given teaches in them.

    Raises:
        UserError: it is to teach another task than classes, or nothing is left of the pool.
    """
    pool, taught = None, None
    if settings.mix < 1:
        check_can_teach(settings, work.card, model=work.settings.model)
        pool = open_pool(settings.pool, work, setting="prune.pool")
        contract = work.card.contract
        teacher, teach = teacher_of(work, contract), soft_targets(settings.temperature)

        def taught(prepared: Prepared, training: FinetuneSettings) -> Distilled:
            return distilled(
                prepared, work, training, contract=contract, share=settings.mix, teach=teach, teacher=teacher, pool=pool
            )

    total, count = finetune_plan(work.training, num_train=num_images(work, pool)).num_steps, settings.steps
    each = max(1, total // count)
    done = [each * number for number in range(count)]
    lengths = [each] * (count - 1) + [max(1, total - done[-1])]
    return Recovery(work, [Round(k + 1, lengths[k], done[k]) for k in range(count)], taught)


def check_can_teach(settings: PruneSettings, card: ModelCard, *, model: str) -> None:
    """Refuse a teacher of another task.

    Raises:
        UserError: as said.
    """
    if settings.mix < 1 and card.task != "classes":
        raise UserError(
            f"prune.mix={settings.mix}: the model teaches classes alone, and {model} is one of task={card.task}; leave "
            "prune.mix out"
        )


def recover(
    plan: Recovery,
    model: nn.Module,
    spec: EncoderSpec,
    *,
    each: Round,
    extend: Callable[[Prepared], Prepared] = lambda prepared: prepared,
) -> Trained:
    """The model after training all of its weights, stopped and chosen on val.

    Args:
        plan: how.
        model: a timm classifier; not changed.
        spec: its architecture.
        each: how long.
        extend: adds to what is trained, such as zeros that are kept; sees the model as it starts.
    """
    work = plan.work
    encoder = copy.deepcopy(model)
    as_timm(encoder).reset_classifier(0)
    scale = scale_of(work.images, work.split.train)

    def begin(prepared: Prepared) -> Prepared:
        head = head_of(prepared.model)
        head.load_state_dict(head_of(model).state_dict())
        if scale is not None:
            unfold_scale(head, scale)
        return extend(prepared)

    # A seed of its own: no round sees again the batches and crops that another has seen.
    seed = derive_seed(work.training.seed, "round of pruning", each.number) >> 33
    training = work.training.model_copy(update={"strategy": "full", "seed": seed})
    taught = plan.taught
    return train_classifier(
        training,
        Start(encoder, spec, work.card.contract),
        work.images,
        work.split,
        device=work.device,
        num_steps=each.num_steps,
        extend=begin,
        taught=None if taught is None else lambda prepared: taught(prepared, training),
        should_stop=work.should_stop,
        on_row=lambda step, row: work.on_row(each.done + step, row),
    )


def judged_copy(work: Work, model: nn.Module, settings: PruneSettings) -> nn.Module:
    """A copy of the model to prune; for taylor with the gradients of its loss on training images."""
    own = copy.deepcopy(model)
    if settings.importance == "magnitude":
        return own
    train = work.split.train
    order = np.random.default_rng(derive_seed(work.training.seed, "pruning images")).permutation(len(train))
    inputs = work.images.inputs(np.sort(train[order[:_MOST_IMAGES]]), work.card.contract)
    task, scale = work.images.source.task, scale_of(work.images, train)
    if task == "classes":
        targets = torch.from_numpy(work.images.labels[inputs.indices])
    else:
        targets = torch.from_numpy(trained_targets(work.images, inputs.indices, scale=scale))
    if scale is not None:  # else the target of the largest unit alone would decide what goes
        unfold_scale(head_of(own), scale)
    batches = [work.card.contract.normalise(part) for part in torch.from_numpy(inputs.pixels).split(_BATCH)]
    add_gradients(own, batches, targets=list(targets.split(_BATCH)), loss=_LOSSES[task])
    if scale is not None:
        fold_scale(head_of(own), scale)
    return own


def compressed(work: Work, trained: list[Trained], card: ModelCard, *, what: str) -> Compressed:
    """What the rounds made, with a sentence on it in the card.

    Args:
        work: what was worked on.
        trained: of each round.
        card: of the pruned model.
        what: the sentence.
    """
    work.run.note(f"pruned: {what}")
    last = trained[-1]
    return Compressed(
        last.model.eval(),
        replace(card, about={"pruned": what}),
        steps=sum(each.step for each in trained),
        num_val=last.num_val,
        damages=tuple({damage.name: damage for each in trained for damage in each.damages}.values()),
    )
