"""Encoders from timm: any name, any number of channels, stems that fit small images, weights loaded in full or refused.

An encoder here is the plain timm module with its head removed: `encoder(images_BCHW) -> features_BD`.
Forward passes that timm does not offer (visible patches only) are in `visible.py`.
"""

import math
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import load_file
from timm.models.convnext import ConvNeXt
from timm.models.resnet import ResNet
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from ssl_ft.errors import UserError, said, system_sentence
from ssl_ft.models.cuts import Cut, apply_cut, cut_between
from ssl_ft.models.hub import hub_weights
from ssl_ft.models.timm_model import as_timm

# Arguments of `timm.create_model` that are no part of an architecture.
_NOT_FOR_ARGS = ("num_classes", "features_only", "scriptable", "exportable", "no_jit", "cache_dir", "model_name")


@dataclass(frozen=True)
class EncoderSpec:
    """Everything needed to build the same architecture again.

    Attributes:
        name: timm's name.
        channels: channels of the input.
        size: side of the input in pixels.
        stem_stride: total stride before the first stage of a ResNet or ConvNeXt: 4 is timm's own, 2 or 1 keep
            more of a small image; None for other families.
        patch_size: side of a ViT's patches in pixels; None keeps timm's own.
        args: further arguments of the timm constructor, such as `{"depth": 6}`.
        cut: how a pruned encoder is narrower than all that; None where it is not.
    """

    name: str
    channels: int
    size: int
    stem_stride: int | None = None
    patch_size: int | None = None
    args: dict[str, Any] = field(default_factory=dict)
    cut: Cut | None = None

    def timm_args(self) -> dict[str, Any]:
        """Keyword arguments with which `timm.create_model(name, …)` builds it, before `stem_edits`."""
        args: dict[str, Any] = {"num_classes": 0, "in_chans": self.channels, **self.args}
        if family(self.name) == "vit":
            # The mean of all patch tokens is what a masked objective trains; a class token it leaves untrained.
            args |= {"img_size": self.size, "global_pool": args.get("global_pool", "avg")}
            args |= {} if self.patch_size is None else {"patch_size": self.patch_size}
        if family(self.name) == "convnext" and self.stem_stride is not None:
            args["patch_size"] = self.stem_stride
        return args

    def to_json(self) -> dict[str, Any]:
        """Plain values for a JSON file; a whole architecture says nothing of cuts."""
        return {key: value for key, value in asdict(self).items() if key != "cut" or value is not None}

    @staticmethod
    def from_json(raw: Mapping[str, Any]) -> "EncoderSpec":
        """From what a JSON file holds.

        Raises:
            TypeError, KeyError, AttributeError: not the JSON of an architecture.
        """
        cut = {"cut": Cut.from_json(raw["cut"])} if "cut" in raw else {}
        return EncoderSpec(**{**raw, **cut})


def family(name: str, *, setting: str = "encoder.name=") -> str:
    """'vit', 'resnet', 'convnext' or 'other', read from timm's own entry point, without building weights.

    Args:
        name: timm's, with or without the tag of its weights.
        setting: how messages name the setting it comes from.

    Raises:
        UserError: timm does not know the name; close names are suggested.
    """
    import difflib

    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=3)
        hint = f"; close names: {', '.join(near)}" if near else ""
        raise UserError(f"{setting}{name!r} is not an architecture of timm {timm.__version__}{hint}")
    module = timm.model_entrypoint(name).__module__.rpartition(".")[2]
    return {"vision_transformer": "vit", "resnet": "resnet", "convnext": "convnext"}.get(module, "other")


def build_encoder(spec: EncoderSpec, *, seed: int, section: str = "encoder") -> nn.Module:
    """The encoder with fresh weights that depend on `seed` alone; torch's generator is left as it was.

    Args:
        spec: its architecture.
        seed: of its weights.
        section: of the settings that ask for it, as messages name it.

    Raises:
        UserError: unknown name, an argument the architecture does not take, or a stem it does not have.
    """
    check_stem(spec, section=section)
    _check_args(spec, section=section)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            encoder: nn.Module = timm.create_model(spec.name, pretrained=False, **spec.timm_args())
        except Exception as error:  # what wrong arguments raise inside of a constructor is anything
            if system_sentence(error) is not None:
                raise
            raise UserError(
                f"timm cannot build {section} {spec.name!r} with {spec.timm_args()} ({said(error, most=300)}); check "
                f"{section}.args against timm's {spec.name.partition('.')[0]}"
            ) from error
    edit_stem(encoder, spec)
    _check_stride(encoder, spec, section=section)
    if spec.cut is not None:
        apply_cut(encoder, spec.cut, example=torch.zeros(1, spec.channels, spec.size, spec.size))
    return encoder


def with_cut(spec: EncoderSpec, model: nn.Module) -> EncoderSpec:
    """The description of a model some of whose layers were made narrower.

    Args:
        spec: of the model before it was cut, or before it was cut further.
        model: with a head or without.
    """
    encoder = deepcopy(model)
    as_timm(encoder).reset_classifier(0)
    return replace(spec, cut=cut_between(encoder, build_encoder(replace(spec, cut=None), seed=0)))


def _check_stride(encoder: nn.Module, spec: EncoderSpec, *, section: str) -> None:
    """Refuse ConvNeXts with overlapping stems, whose stride timm fixes at 4 whatever is asked for."""
    if not is_convnext(encoder) or spec.stem_stride is None:
        return
    strides = [part.stride[0] for part in encoder.stem.modules() if isinstance(part, nn.Conv2d)]  # type: ignore[union-attr]
    if math.prod(strides) != spec.stem_stride:
        raise UserError(
            f"{section}.stem_stride={spec.stem_stride}: the overlapping stem of {spec.name!r} has a stride of "
            f"{math.prod(strides)} only; leave it out, or take convnext_atto or another with a patch stem"
        )


def _check_args(spec: EncoderSpec, *, section: str) -> None:
    """Refuse arguments that load files or weights, which a foreign model could ask for, and those that we set."""
    ours = {"in_chans": "the channels of the data", "img_size": "size", "patch_size": f"{section}.patch_size"}
    if family(spec.name) != "vit":
        ours = {"in_chans": "the channels of the data"}
    for key in spec.args:
        if key in ours:
            raise UserError(f"{section}.args.{key} is set by {ours[key]}; leave it out of {section}.args")
        if key in _NOT_FOR_ARGS or key.startswith(("pretrained", "checkpoint")):
            raise UserError(f"{section}.args.{key} is not an argument of the architecture; leave it out")


def check_stem(spec: EncoderSpec, *, section: str = "encoder") -> None:
    """Refuse stem settings that the family of `spec.name` does not have; messages name their section."""
    kind = family(spec.name)
    if spec.stem_stride is not None and kind not in ("resnet", "convnext"):
        raise UserError(
            f"{section}.stem_stride={spec.stem_stride} is defined for ResNet and ConvNeXt encoders, not {spec.name!r}; "
            + (f"set {section}.patch_size instead" if kind == "vit" else "leave it out")
        )
    if spec.stem_stride not in (None, 1, 2, 4):
        raise UserError(f"{section}.stem_stride={spec.stem_stride} must be 1, 2 or 4")
    if spec.patch_size is not None and kind != "vit":
        raise UserError(f"{section}.patch_size is defined for ViT encoders, not {spec.name!r}")
    if spec.patch_size is not None and spec.size % spec.patch_size:
        raise UserError(f"size={spec.size} is not a multiple of {section}.patch_size={spec.patch_size}")


def stem_edits(spec: EncoderSpec) -> list[str]:
    """Lines of Python that turn timm's `model` into this encoder, where its constructor has no argument for that.

    A ResNet's stem has none for its stride; behind a ConvNeXt stem of stride 2, timm halves the map once more.
    """
    if spec.stem_stride == 2 and family(spec.name) == "convnext":
        return ["model.stages[0].downsample = torch.nn.Identity()"]
    if spec.stem_stride in (None, 4) or family(spec.name) != "resnet":
        return []
    lines = ["model.maxpool = torch.nn.Identity()"]
    if spec.stem_stride == 1:
        lines.append("first = model.conv1[0] if isinstance(model.conv1, torch.nn.Sequential) else model.conv1")
        lines.append("first.stride = (1, 1)")
    return lines


def edit_stem(encoder: nn.Module, spec: EncoderSpec) -> None:
    """Do what `stem_edits` says; a ResNet's weights keep their shapes, so pretrained ones still load."""
    if not stem_edits(spec):
        return
    if isinstance(encoder, ConvNeXt):
        encoder.stages[0].downsample = nn.Identity()
        return
    assert isinstance(encoder, ResNet)
    encoder.maxpool = nn.Identity()
    if spec.stem_stride == 1:
        first = encoder.conv1[0] if isinstance(encoder.conv1, nn.Sequential) else encoder.conv1
        first.stride = (1, 1)


def num_features(encoder: nn.Module) -> int:
    """D of the features the encoder gives."""
    return int(getattr(encoder, "head_hidden_size", None) or encoder.num_features)  # type: ignore[arg-type]


def feature_map(encoder: nn.Module, images_BCHW: Tensor) -> Tensor:
    """The last feature map of a convnet or hierarchical transformer, [B, D, h, w].

    D is `num_features` in most families; where the head widens the pooled map (MobileNetV3, VGG) it is smaller.

    Raises:
        UserError: the encoder has no map (a family of plain transformers other than timm's VisionTransformer).
    """
    features: Tensor = as_timm(encoder).forward_features(images_BCHW)
    if features.ndim != 4:
        raise UserError(
            f"masked imputation needs a ViT or an encoder with a feature map; {type(encoder).__name__} gives "
            f"{features.ndim}-dimensional features. Use objective=simclr with it, or another encoder"
        )
    return features.permute(0, 3, 1, 2) if _is_channels_last(encoder) else features


def pool_map(encoder: nn.Module, map_BDhw: Tensor) -> Tensor:
    """Features [B, D] from a feature map: the encoder's own head, as its plain forward would apply it."""
    own = map_BDhw.permute(0, 2, 3, 1) if _is_channels_last(encoder) else map_BDhw
    features: Tensor = as_timm(encoder).forward_head(own)
    return features


def _is_channels_last(encoder: nn.Module) -> bool:
    return getattr(encoder, "output_fmt", "NCHW") == "NHWC"


def is_vit(encoder: nn.Module) -> bool:
    """Whether the encoder can run on visible patches alone."""
    return isinstance(encoder, VisionTransformer)


def is_convnext(encoder: nn.Module) -> bool:
    """Whether the encoder is timm's ConvNeXt."""
    return isinstance(encoder, ConvNeXt)


def load_pretrained(encoder: nn.Module, spec: EncoderSpec, *, source: str, setting: str | None = None) -> str:
    """Fill the encoder with given weights, all of them or none.

    Args:
        encoder: built from `spec`.
        spec: its description.
        source: "timm" for the hub weights of `spec.name`, or the path of a `.safetensors` file.
        setting: how messages name the setting it comes from.

    Returns:
        A sentence for the log: n of n tensors loaded, and what was left over in the file.

    Raises:
        UserError: no such file, not safetensors, not to be fetched, or a tensor of the encoder is missing or of
            another shape.
    """
    setting = setting or f"encoder.pretrained={source}"
    if source == "timm":
        args = {k: v for k, v in spec.timm_args().items() if k != "patch_size"}
        weights = hub_weights(spec.name, args, setting=setting)
    else:
        weights = _read_weights(Path(source), setting=setting)
    wanted = encoder.state_dict()
    missing = sorted(k for k in wanted if k not in weights and not k.endswith("num_batches_tracked"))
    misfits = sorted(k for k in wanted if k in weights and weights[k].shape != wanted[k].shape)
    if missing or misfits:
        fits = len(wanted) - len(missing) - len(misfits)
        shapes = [f"{k}: file {tuple(weights[k].shape)}, encoder {tuple(wanted[k].shape)}" for k in misfits[:3]]
        raise UserError(
            f"{setting}: {fits} of {len(wanted)} tensors of {spec.name!r} fit, so none were loaded. "
            f"Missing: {missing[:3] or 'none'}; other shape: {shapes or 'none'}. Check the architecture's name, the "
            f"number of channels, size and patch_size against the file"
        )
    encoder.load_state_dict({k: weights.get(k, wanted[k]) for k in wanted})
    extra = sorted(k for k in weights if k not in wanted)
    left = f"; left out of the file: {', '.join(extra[:4])}{' …' if len(extra) > 4 else ''}" if extra else ""
    return f"loaded {len(wanted)} of {len(wanted)} tensors from {source}{left}"


def _read_weights(path: Path, *, setting: str) -> dict[str, Tensor]:
    if not path.is_file():
        raise UserError(f"{setting}: no such file; give a run of ours, a .safetensors file, or 'timm' for hub weights")
    try:
        return load_file(path)
    except Exception as error:
        raise UserError(
            f"{setting} is not a safetensors file ({error}). Other formats can run code when loaded; "
            "convert it with safetensors.torch.save_file first"
        ) from error
