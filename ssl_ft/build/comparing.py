"""A comparison from settings: its encoders, data and strategies, refused before anything runs where they do not fit.

Working through its cells is in `build/comparison_work.py`.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import ValidationError

from ssl_ft.build.cells import budget_sizes
from ssl_ft.build.data import open_data, roles_of
from ssl_ft.build.draft import Draft, Start, with_head
from ssl_ft.build.grids import GRIDS, candidates, refuse_settled
from ssl_ft.build.judging import parent_data
from ssl_ft.build.labels import LabelledImages
from ssl_ft.build.origins import Origin, find_origin, with_measured_contract
from ssl_ft.build.strategies import STRATEGIES
from ssl_ft.build.tasks import check_classes
from ssl_ft.build.transfer import check_views, load_start
from ssl_ft.config import CompareSettings, DataSettings
from ssl_ft.config.compare import ComparedEncoder
from ssl_ft.data.source import Source
from ssl_ft.data.splits import Roles, label_budget
from ssl_ft.errors import UserError
from ssl_ft.evaluate.cells import MOST_CLASSES, CellKey, all_keys
from ssl_ft.evaluate.summary import LeftOut
from ssl_ft.models.timm_model import as_timm
from ssl_ft.result import Parent
from ssl_ft.runlog import default_folder
from ssl_ft.transfer.exact_head import FeatureStatistics

Indices = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Comparison:
    """What is compared on what.

    Attributes:
        settings: of the stage.
        data: of the labelled source, resolved.
        source: the labelled images.
        roles: of them; test is the part that is scored.
        origins: where each encoder comes from, by its name.
        parents: what to record of each, in that order.
        strategies: those compared.
        left_out: those not defined, with the reason.
    """

    settings: CompareSettings
    data: DataSettings
    source: Source
    roles: Roles
    origins: dict[str, Origin]
    parents: tuple[Parent, ...]
    strategies: tuple[str, ...]
    left_out: tuple[LeftOut, ...]

    @property
    def keys(self) -> list[CellKey]:
        """Every cell."""
        keys = all_keys(
            list(self.origins),
            self.strategies,
            self.settings.labels,
            draws=self.settings.draws,
            seeds=range(self.settings.seeds),
        )
        undefined = {(each.encoder, each.strategy) for each in self.left_out}
        return [key for key in keys if (key.encoder, key.strategy) not in undefined]

    def images(self, folder: Path) -> LabelledImages:
        """The labelled images."""
        # One file of decoded pixels cannot serve cells that train on different images at once.
        cache = "memory" if self.data.cache == "disk" else self.data.cache
        return LabelledImages(self.source, self.data.model_copy(update={"cache": cache}), self.roles.train, folder)


def open_comparison(settings: CompareSettings) -> Comparison:
    """Find encoders and data, and refuse what cannot be compared before anything is computed.

    A strategy that is named must be defined for every encoder; where none is named, those not defined are left out.

    Raises:
        UserError: no encoder, data they do not take, budgets the data cannot pay, or a strategy without definition.
    """
    if not settings.encoders:
        raise UserError("compare needs encoders: `ssl-ft compare encoders=runs/pretrain-...`")
    origins = _named(settings.encoders)
    data = settings.data or _common_data(origins)
    check_classes(data, stage="compare")
    source = open_data(data)
    roles = roles_of(source, data)
    assert source.labels is not None, "roles need labels"
    if len(source.class_names) > MOST_CLASSES:
        raise UserError(
            f"{source.location} has {len(source.class_names)} classes; compare takes {MOST_CLASSES} at most"
        )
    budget_sizes(settings.labels, roles, source.labels, seed=settings.seed, class_names=source.class_names)
    test = _part_of_test(source, roles, most=settings.test_images, seed=data.split_seed)
    roles = replace(roles, test=test)
    origins = {name: with_measured_contract(each, source, roles.train, data) for name, each in origins.items()}
    return _with_strategies(Comparison(settings, data, source, roles, origins, (), (), ()))


def plain_settings(comparison: Comparison) -> dict[str, object]:
    """Settings for the run folder: data resolved, and what the cells depend on besides, so that no two are mixed."""
    source, roles = comparison.source, comparison.roles
    return comparison.settings.model_dump(mode="json") | {
        "data": comparison.data.model_dump(mode="json"),
        "strategies": list(comparison.strategies),
        "encoder_weights": [parent.sha256 for parent in comparison.parents],
        "grids": {name: [dict(each) for each in GRIDS[name]] for name in comparison.strategies},
        "labelled_images": source.subset(np.sort(np.concatenate([roles.train, roles.val, roles.test]))).fingerprint(),
    }


def comparison_path(comparison: Comparison) -> Path:
    """The run folder: the one named, or one told by data and settings."""
    out = comparison.settings.out
    name = Path(comparison.data.path).name
    return Path(out) if out else default_folder("compare", name, plain_settings(comparison))


def _named(encoders: Sequence[str | ComparedEncoder]) -> dict[str, Origin]:
    """Where each encoder comes from, by the name given or that of its run folder, its file or its architecture.

    Raises:
        UserError: no such encoder, or two of one name, which their cells could not be told apart by.
    """
    named: dict[str, Origin] = {}
    for each in encoders:
        one = ComparedEncoder(encoder=each) if isinstance(each, str) else each
        origin = find_origin(one.encoder, one.source)
        name = one.name or _own_name(origin)
        name = "".join(c if c.isalnum() or c in "-_." else "-" for c in name)[:80]
        if name in named:
            raise UserError(
                f"encoders={named[name].location} and {origin.location} are both called {name!r}; rename one of the "
                "folders, or give a name of its own: {encoder: ..., name: ...}"
            )
        named[name] = origin
    return named


def _own_name(origin: Origin) -> str:
    if origin.folder is not None:
        folder = origin.folder
        return (folder.parent if folder.name in ("encoder", "classifier") else folder).resolve().name
    return Path(origin.location).stem if origin.kind == "weights" else origin.location


def _common_data(origins: dict[str, Origin]) -> DataSettings:
    found = {
        name: parent_data(origin.pretrained_folder(instead="name the labelled set with data="))
        for name, origin in origins.items()
    }
    first, *others = found.values()
    if any(other != first for other in others):
        raise UserError(
            f"the encoders {', '.join(found)} were pretrained on different data; name the labelled set with data="
        )
    return first


def _part_of_test(source: Source, roles: Roles, *, most: int | None, seed: int) -> Indices:
    """Test, or a stratified seeded part of it: comparisons on one set are scored on the same images."""
    assert source.labels is not None, "roles need labels"
    if most is None or most >= len(roles.test):
        return roles.test
    return label_budget(source.labels, roles.test, per_class=most / len(roles.test), draw=0, seed=seed)


def _with_strategies(comparison: Comparison) -> Comparison:
    """The comparison with its strategies, each tried out on each encoder.

    Raises:
        UserError: a strategy that was named, or the baseline, is not defined for an encoder.
    """
    settings = comparison.settings
    wanted = settings.strategies or tuple(name for name in STRATEGIES if name in GRIDS)
    refuse_settled(settings.finetune, wanted)
    left_out, parents = [], []
    for encoder, origin in comparison.origins.items():
        start, parent = load_start(origin)
        check_views(settings.finetune.views, start)
        parents.append(parent)
        for strategy, reason in _undefined(comparison, start, wanted).items():
            if strategy in (*settings.strategies, settings.baseline):
                raise UserError(f"strategy {strategy} is not defined for the encoder {encoder}: {reason}")
            left_out.append(LeftOut(encoder, strategy, reason))
    kept = tuple(s for s in wanted if sum(each.strategy == s for each in left_out) < len(comparison.origins))
    return replace(comparison, parents=tuple(parents), strategies=kept, left_out=tuple(left_out))


def _undefined(comparison: Comparison, start: Start, strategies: Sequence[str]) -> dict[str, str]:
    """Strategies that refuse an encoder, with their reason; tried with a few images and without a step.

    Raises:
        UserError: the encoder does not take these images at all.
    """
    settings, roles, source = comparison.settings, comparison.roles, comparison.source
    images = comparison.images(Path())
    smallest = min(comparison.settings.labels, key=lambda budget: (isinstance(budget, str), budget))
    assert source.labels is not None, "roles need labels"
    few = roles.train if isinstance(smallest, str) else label_budget(
        source.labels, roles.train, per_class=smallest, draw=0, seed=settings.seed
    )  # fmt: skip
    few = few[np.unique(source.labels[few], return_index=True)[1]]
    images.inputs(few, start.contract)
    # Any will do to see whether a solver is defined; the true ones take thousands of images.
    width = as_timm(start.encoder).num_features
    known = FeatureStatistics(np.zeros(width), np.ones(width))
    found = {}
    for strategy in strategies:
        own = settings.finetune.model_copy(update={"strategy": strategy, "labels": 1})
        try:
            candidates(own, strategy)
        except ValidationError as error:
            found[strategy] = error.errors()[0]["msg"].removeprefix("Value error, ")
            continue
        model = with_head(copy.deepcopy(start.encoder), num_classes=len(source.class_names), seed=0)
        draft = Draft(model, replace(start, statistics=known), images, few, few[:0], torch.device("cpu"))
        try:
            STRATEGIES[strategy](own, draft)
        except UserError as error:
            found[strategy] = str(error)
    return found
