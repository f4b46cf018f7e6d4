"""Weights of timm's hub: every tensor from there, or a sentence. Files of one's own are read in `encoders.py`."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import timm
import torch
from timm.models import _builder as builder
from torch import Tensor, nn

from ssl_ft.errors import UserError, system_sentence

_SHOWN = 4


def trained_pooling(name: str) -> str:
    """How the weights of a ViT of timm's hub were trained to pool: `token`, `avg`, `map`, …"""
    with torch.device("meta"):
        return str(timm.create_model(name, pretrained=False).global_pool)


def hub_weights(name: str, args: Mapping[str, Any], *, setting: str) -> dict[str, Tensor]:
    """The hub's weights of `name`, as timm fits them to the architecture with `args`.

    Args:
        name: timm's, with or without the tag of its weights.
        args: of `timm.create_model`.
        setting: how messages name the setting that asks for them.

    Raises:
        UserError: they cannot be fetched, do not fit, or leave tensors of the architecture as they were.
    """
    try:
        with _nan_before_loading():
            weights: dict[str, Tensor] = timm.create_model(name, pretrained=True, **args).state_dict()
    except Exception as error:
        if system_sentence(error) is not None:
            raise
        if _is_of_network(error):
            raise UserError(
                f"{setting}: the hub weights of {name!r} could not be fetched ({type(error).__name__}). Offline? Give "
                "a local .safetensors file instead"
            ) from error
        said = " ".join(str(error).split())[:300]
        raise UserError(
            f"{setting}: the hub weights of {name!r} do not load into the architecture with {dict(args)} ({said}); "
            "leave out the args that change it, or choose another name"
        ) from error
    fresh = sorted(key for key, value in weights.items() if value.is_floating_point() and bool(value.isnan().any()))
    if fresh:
        named = ", ".join(fresh[:_SHOWN]) + (" …" if len(fresh) > _SHOWN else "")
        advice = "leave out the args that change the architecture, or choose another name"
        if any(key.startswith("fc_norm.") for key in fresh):
            advice = (
                "they have their last norm before the pool: set args={global_pool: avg, fc_norm: false} to pool behind "
                "it, or leave global_pool out for the pooling they were trained with"
            )
        raise UserError(
            f"{setting}: the hub weights of {name!r} hold nothing for {len(fresh)} of {len(weights)} tensors "
            f"({named}), so none were loaded; {advice}"
        )
    return weights


@contextmanager
def _nan_before_loading() -> Iterator[None]:
    """While open, timm fills a fresh model with NaN before it loads weights: it loads what fits and drops the rest
    without an error wherever the number of classes differs, and what it did not load must not pass for loaded.
    """
    load = builder.load_pretrained

    def load_into_nan(model: nn.Module, *args: Any, **more: Any) -> None:
        with torch.no_grad():
            for value in model.state_dict().values():
                if value.is_floating_point():
                    value.fill_(float("nan"))
        load(model, *args, **more)

    builder.load_pretrained = load_into_nan
    try:
        yield
    finally:
        builder.load_pretrained = load


def _is_of_network(error: BaseException) -> bool:
    """Errors of sockets, `requests` and `urllib` are the system's; `httpx` and the hub have some of their own."""
    maker = type(error).__module__.partition(".")[0]
    return isinstance(error, OSError) or maker in ("httpx", "httpcore", "requests", "urllib3", "huggingface_hub")
