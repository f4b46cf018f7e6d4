"""The pretraining of an encoder gone on with on a target's images: its settings, what is said of them, the plan.

What comes of it is trained and judged in `build/adapting.py`.
"""

import json
from pathlib import Path

from pydantic import ValidationError

from ssl_ft.artifact import InputContract
from ssl_ft.build.data import open_data, pool_of
from ssl_ft.config import AdaptSettings, PretrainSettings
from ssl_ft.errors import UserError
from ssl_ft.handover import open_labelled, plan_labelled

INSTEAD = "pretrain on the target yourself with encoder.pretrained="


def continued_settings(settings: AdaptSettings, model: Path, contract: InputContract, *, out: Path) -> PretrainSettings:
    """The pretraining that made the encoder, from its weights, on the target's images.

    Raises:
        UserError: the encoder does not lie in its run folder any more, its pretraining needs labels, or the target has
            fewer images than one of its batches.
    """
    manifest = model.parent / "manifest.json"
    assert settings.target is not None, "the target was opened"
    try:
        before = json.loads(manifest.read_text(encoding="utf-8"))["settings"]
        size, channels = contract.size, contract.channels
        own = before | {
            "data": settings.target.model_dump(mode="json") | {"channels": channels},
            "encoder": before["encoder"] | {"pretrained": str(model / "model.safetensors")},
            "size": size,
            "duration": settings.continued,
            "devices": 1,
            "sharding": "none",
            "slurm": None,
            "seed": settings.seed,
            "device": settings.device,
            "threads": settings.threads,
            "out": str(out),
        }
        made = PretrainSettings.model_validate(own)
    except (OSError, KeyError, TypeError, ValueError, ValidationError) as error:
        raise UserError(
            f"method=continue repeats the pretraining of {model}, but {manifest} does not tell its settings; name the "
            f"encoder in its run folder, or {INSTEAD}"
        ) from error
    if made.objective == "supervised":
        raise UserError(
            f"method=continue repeats the pretraining of {model}, which was objective=supervised: it would learn the "
            "target's labels, which adapt never looks at. Take another method, or an encoder pretrained without any"
        )
    pool, _ = pool_of(open_data(made.data), made.data)
    if len(pool) < made.batch_size:
        raise UserError(
            f"method=continue repeats the pretraining of {model}, whose batch_size={made.batch_size} is larger than "
            f"the target: {pool.location} has {len(pool)} images that may be looked at. Name more, or {INSTEAD} and a "
            "smaller batch_size"
        )
    return made


def continued_words(made: PretrainSettings) -> str:
    """What goes on, and what it keeps of the first pretraining, in a sentence."""
    return (
        f"pretraining goes on for {made.duration} with the settings of the first one, objective={made.objective}, "
        f"batch_size={made.batch_size}, optim.rate={made.optim.rate:g} and its views among them; adapt's own are for "
        "the classifier. Collapse is watched for, without any label"
    )


def plan_adaptation(settings: AdaptSettings) -> list[str]:
    """What would be trained on what, in sentences.

    Raises:
        UserError: no target named, or what `continued_settings` refuses.
    """
    lines = plan_labelled(settings)
    if settings.target is None:
        raise UserError("target= is missing: name the images of the other kind, whose test labels score the result")
    pool, test = pool_of(open_data(settings.target), settings.target)
    lines.append(
        f"target: {len(pool)} images of {pool.location} by method={settings.method}, no label looked at; {len(test)} "
        "others are held out, of which those with labels score"
    )
    if settings.method == "continue":
        origin = open_labelled(settings).origin
        model = origin.pretrained_folder(instead=INSTEAD)
        made = continued_settings(settings, model, origin.card.contract, out=Path("continued"))
        lines.append(continued_words(made))
    return lines
