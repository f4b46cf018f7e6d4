"""A model as a folder that timm loads by itself, from disk or from its hub: `timm.create_model("local-dir:FOLDER")`.

timm's own writer copies what it knows of the architecture's published weights: their licence, tag, mean and std. This
one writes ours.
"""

import json
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import save_file
from torch import nn

from ssl_ft.artifact import ModelCard
from ssl_ft.errors import UserError
from ssl_ft.models.encoders import family, num_features, stem_edits

_WEIGHTS = "model.safetensors"


def check_timm(model: nn.Module, card: ModelCard) -> None:
    """Make sure that timm's constructor alone can build the model.

    Raises:
        UserError: its stem was edited, or layers have other shapes than the constructor gives.
    """
    advice = "leave timm out of formats; README.md of the model folder has the lines that load it"
    edits = stem_edits(card.spec)
    if edits:
        raise UserError(
            f"formats=timm: timm's constructor has no argument for this model's stem ({'; '.join(edits)}): {advice}"
        )
    with torch.device("meta"):
        plain = timm.create_model(_architecture(card), pretrained=False, **_args(card), num_classes=_num_classes(card))
    shapes = {name: weight.shape for name, weight in plain.state_dict().items()}
    own = {name: weight.shape for name, weight in model.state_dict().items()}
    if shapes != own:
        odd = sorted(name for name in shapes.keys() | own.keys() if shapes.get(name) != own.get(name))
        raise UserError(
            f"formats=timm: {len(odd)} tensors have other shapes than timm's {_architecture(card)} (the first: "
            f"{odd[0]}): {advice}"
        )


def write_timm_folder(model: nn.Module, card: ModelCard, folder: Path) -> None:
    """Write weights, config and card.

    Args:
        model: a plain timm module that `check_timm` passed.
        card: what it is.
        folder: is made.
    """
    folder.mkdir(parents=True)
    weights = {name: value.detach().cpu().contiguous().clone() for name, value in model.state_dict().items()}
    save_file(weights, folder / _WEIGHTS, metadata={"format": "pt"})
    (folder / _WEIGHTS).chmod(0o644)
    config = json.dumps(_config(model, card), indent=2, ensure_ascii=False) + "\n"
    (folder / "config.json").write_text(config, encoding="utf-8")
    (folder / "README.md").write_text(_readme(card), encoding="utf-8")


def _config(model: nn.Module, card: ModelCard) -> dict[str, Any]:
    contract, names = card.contract, card.output_names
    return {
        "architecture": _architecture(card),
        "num_classes": len(names),
        "num_features": num_features(model),
        **({"label_names": list(names)} if names else {}),
        "model_args": _args(card),
        "pretrained_cfg": {
            "tag": "",
            "custom_load": False,
            "input_size": [contract.channels, contract.size, contract.size],
            "fixed_input_size": family(card.spec.name) == "vit",
            "interpolation": contract.interpolation,
            "crop_pct": 1.0,
            "crop_mode": "center",
            "mean": list(contract.mean),
            "std": list(contract.std),
            "num_classes": len(names),
            "license": _licence(card),
        },
    }


def _readme(card: ModelCard) -> str:
    about = "\n".join(f"- {key}: {value}" for key, value in card.about.items())
    task = {"classes": "image-classification", "multi_label": "image-classification"}.get(card.task, "other")
    tag = task if card.kind == "classifier" else "image-feature-extraction"
    return f"""---
library_name: timm
license: other
license_name: see-below
tags:
- timm
- {tag}
---
# {card.spec.name}, {card.kind}

Licence: {_licence(card)}

```python
import timm

model = timm.create_model("local-dir:FOLDER", pretrained=True).eval()  # or "hf-hub:OWNER/NAME" once it is there
settings = timm.data.resolve_model_data_config(model)
transform = timm.data.create_transform(**settings, is_training=False)
```

Task: {card.task}. Outputs, in this order: {", ".join(card.output_names) or "features"}.

## Where it comes from

{about}
"""


def _architecture(card: ModelCard) -> str:
    return card.spec.name.partition(".")[0]


def _args(card: ModelCard) -> dict[str, Any]:
    return {key: value for key, value in card.spec.timm_args().items() if key != "num_classes"}


def _num_classes(card: ModelCard) -> int:
    return len(card.output_names)


def _licence(card: ModelCard) -> str:
    return str(card.about.get("licence", "that of the images and of any weights it started from"))
