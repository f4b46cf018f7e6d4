"""The strategies that keep the encoder and train something small in it: `adapter`, `lora`, `dora`, `qlora`.

Batch norms of the frozen encoder keep their statistics, as all that is frozen does. The formulas are in
`transfer/adapters.py`, `low_rank.py` and `quantized.py`.
"""

from typing import Literal

from torch import nn

from ssl_ft.config import AdapterSettings, FinetuneSettings, LowRankSettings
from ssl_ft.seeding import derive_seed
from ssl_ft.transfer.adapters import add_adapters, merge_adapters
from ssl_ft.transfer.low_rank import add_low_rank, low_rank_layers, merge_low_rank
from ssl_ft.transfer.quantized import quantize_layers
from ssl_ft.transfer.strategy import Prepared, head_names, scaled_groups


def prepare_adapter(settings: FinetuneSettings, model: nn.Module) -> Prepared:
    """Linear adapters and the head move.

    Raises:
        UserError: the encoder has no place for adapters.
    """
    chosen = settings.adapter or AdapterSettings()
    add_adapters(model, width=chosen.width, seed=derive_seed(settings.seed, "adapters") >> 1)
    groups = _beside_head(model, chosen.rate_share, weight_decay=settings.optim.weight_decay)
    return Prepared(model, groups, merge=lambda: merge_adapters(model))


def prepare_low_rank(
    settings: FinetuneSettings, model: nn.Module, *, kind: Literal["lora", "dora", "qlora"]
) -> Prepared:
    """Low-rank updates and the head move; for `qlora` beside a base in 4 bits.

    Raises:
        UserError: a package is missing, or the encoder has no layers for it.
    """
    names = low_rank_layers(model, strategy=kind)
    if kind == "qlora":
        quantize_layers(model, names)
    chosen = settings.low_rank or LowRankSettings()
    add_low_rank(
        model,
        names,
        kind=kind,
        rank=chosen.rank,
        alpha=chosen.alpha,
        dropout=chosen.dropout,
        seed=derive_seed(settings.seed, "low-rank updates") >> 1,
    )
    groups = _beside_head(model, chosen.rate_share, weight_decay=settings.optim.weight_decay)
    return Prepared(model, groups, merge=lambda: merge_low_rank(model))


def _beside_head(model: nn.Module, share: float, *, weight_decay: float) -> list[dict[str, object]]:
    in_head = head_names(model)
    scales = {name: 1.0 if name in in_head else share for name, _ in model.named_parameters()}
    return scaled_groups(model, scales, weight_decay=weight_decay)
