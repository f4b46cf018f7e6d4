"""What compress works on and what comes of it. The methods are files beside this one, their table is `methods.py`."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from ssl_ft.artifact import ModelCard
from ssl_ft.build.labels import LabelledImages, LabelSplit
from ssl_ft.build.pairs import Contender
from ssl_ft.config import CompressSettings, FinetuneSettings
from ssl_ft.data.store import Damage
from ssl_ft.result import LabelsUsed
from ssl_ft.runlog import RunFolder


@dataclass(frozen=True, eq=False)
class Work:
    """A model to make smaller, with all a method may use.

    Attributes:
        settings: of compress.
        training: how a student or a pruned model is trained, with the budget in place.
        model: the classifier, float32, in evaluation mode, on the CPU; not to be changed, methods copy it.
        card: what its folder says of it.
        images: the labelled images.
        split: the labels that may be used; no method looks at test.
        device: where to train.
        run: for notes and logged rows.
        should_stop: whether the person wants to stop.
        on_row: called with the steps done and rows for the log.
    """

    settings: CompressSettings
    training: FinetuneSettings
    model: nn.Module
    card: ModelCard
    images: LabelledImages
    split: LabelSplit
    device: torch.device
    run: RunFolder
    should_stop: Callable[[], bool]
    on_row: Callable[[int, dict[str, float]], None]


@dataclass(frozen=True, eq=False)
class Compressed:
    """What a method made.

    Attributes:
        model: in evaluation mode, on the CPU: saved as a model folder where nothing else is written of it.
        card: of that model; `about` says what the method did, the stage adds where it comes from.
        write: writes the exported file that is audited into a folder and gives its path; None: the model in ONNX.
        steps: of training.
        num_val: images of val chosen on.
        damages: training images that could not be read.
        num_earlier: labels that weights it started from, other than the model's, were trained on.
        uses_labels: whether any label of the budget had a part in it; else they are those of the model it came from.
        pair: the model, and the same trained without what the method adds, to be scored on test side by side; None
            where there is no such rival.
    """

    model: nn.Module
    card: ModelCard
    write: Callable[[Path], Path] | None = None
    steps: int = 0
    num_val: int = 0
    damages: tuple[Damage, ...] = ()
    num_earlier: int = 0
    uses_labels: bool = True
    pair: tuple[Contender, Contender] | None = None

    @property
    def is_loadable(self) -> bool:
        """Whether a model folder can hold it; what writes its own file, as a quantized model, lives in that alone."""
        return self.write is None


def labels_of(made: Compressed, split: LabelSplit, card: ModelCard, *, earlier: int) -> LabelsUsed:
    """Labels that had a part in what was made; those of test are counted by the audit.

    Args:
        made: by a method.
        split: labels it could use.
        card: of the model it was made from.
        earlier: labels that model was trained on beside those of the split.
    """
    if not made.uses_labels:
        return LabelsUsed(earlier=card.num_labels)
    return LabelsUsed(train=len(split.train), val=made.num_val, earlier=earlier + made.num_earlier)
