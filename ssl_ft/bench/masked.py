"""A masked step of a ViT against the same ViT encoding every patch, decoder and loss included in both."""

from collections.abc import Callable, Iterator
from typing import cast

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from ssl_ft.bench.pools import open_pool
from ssl_ft.bench.timing import Row, Work, at_most, compare, time_in_turns
from ssl_ft.bench.workload import Training, build_training, mixed, one_batch
from ssl_ft.config import EncoderSettings, PretrainSettings
from ssl_ft.data.batches import Batch
from ssl_ft.objectives.masked import Masked, imputation_loss
from ssl_ft.processor import faster_precision


def measure(
    *, rounds: int, encoder: str = "vit_small_patch16_224", size: int = 224, batch_size: int = 16
) -> Iterator[Row]:
    """One row: time of the masked step as a share of the unmasked one.

    Args:
        rounds: timed turns.
        encoder: timm name of a ViT.
        size: side of the input.
        batch_size: images a step.
    """
    device = torch.device("cpu")
    precision = faster_precision(device)
    settings = PretrainSettings(
        objective="masked",
        encoder=EncoderSettings(name=encoder),
        size=size,
        batch_size=batch_size,
        precision=precision,
    )
    training = build_training(settings, open_pool(None, size=size, count=batch_size), device)
    seconds = time_in_turns([masked_step(training), unmasked_step(training)], rounds=rounds)
    ours, peer = ([1000 * value for value in column] for column in seconds)
    hidden = f"{settings.masked.hidden_share:.0%}"
    yield compare(
        f"masked {encoder} at {size} px, {hidden} hidden: time of a step as a share of the unmasked one's",
        ours,
        peer,
        unit="ms",
        bar=at_most(0.40),
        note=f"batch {batch_size}, {precision}, threads: {torch.get_num_threads()}; views, decoder, update in both",
    )


def masked_step(training: Training) -> Work:
    """One step of the objective as it is."""
    batch = one_batch(training)
    return lambda: _step(training, lambda: training.objective(batch).total)


def unmasked_step(training: Training) -> Work:
    """The same step where the encoder sees all patches; views, masks, decoder and loss stay."""
    batch = one_batch(training)
    return lambda: _step(training, lambda: unmasked_loss(cast(Masked, training.objective), batch))


def unmasked_loss(masked: Masked, batch: Batch) -> Tensor:
    """The loss on hidden patches when the encoder, run as timm runs it, was shown everything."""
    encoder = cast(VisionTransformer, masked.encoder)
    images, mask = masked.views(batch, view=0), masked.mask(batch, view=0)
    tokens = encoder.fc_norm(encoder.forward_features(images))[:, encoder.num_prefix_tokens :]
    places = torch.arange(tokens.shape[1], device=images.device).expand(len(images), -1)
    return imputation_loss(masked.imputer.decoder(tokens, places), masked.target(images), mask)


def _step(training: Training, loss: Callable[[], Tensor]) -> None:
    training.optimizer.zero_grad(set_to_none=True)
    with mixed(training):
        total = loss()
    total.backward()
    training.optimizer.step()
