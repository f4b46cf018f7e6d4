"""A cut architecture: timm's, with some layers narrower than timm builds them. How they are chosen: `compress/`.

What is written down is the difference to timm's own module: numbers that its layers keep about themselves, and shapes
of tensors. With it the same timm class is built again, here or in plain PyTorch.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ssl_ft.errors import UserError

# What modules say of their own width. All are counts but `scale`, a factor, and `normalized_shape`, a tuple.
_COUNTS = (
    "in_channels", "out_channels", "groups", "in_features", "out_features", "num_features", "num_channels",
    "head_hidden_size", "num_heads", "head_dim", "attn_dim",
)  # fmt: skip
_KEYS = (*_COUNTS, "normalized_shape", "scale")
Number = int | float | tuple[int, ...]


@dataclass(frozen=True)
class Cut:
    """How an encoder without head differs from the one timm builds.

    Attributes:
        numbers: by name of a module ("" is the encoder itself), what it says of its width.
        shapes: by name of a parameter or buffer, its shape.
    """

    numbers: dict[str, dict[str, Number]] = field(default_factory=dict)
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)

    @staticmethod
    def from_json(raw: Mapping[str, Any]) -> "Cut":
        """From what a JSON file holds, tuples being lists there.

        Raises:
            TypeError, KeyError, AttributeError: not the JSON of a cut.
        """
        numbers = {
            name: {key: tuple(value) if isinstance(value, list) else value for key, value in own.items()}
            for name, own in raw["numbers"].items()
        }
        return Cut(numbers, {name: tuple(shape) for name, shape in raw["shapes"].items()})


# The lines of a card that cut timm's `model`; `config.json` lies beside the weights.
CUT_LINES = (
    'cut = json.load(open("config.json", encoding="utf-8"))["spec"]["cut"]',
    'for name, numbers in cut["numbers"].items():',
    "    for key, number in numbers.items():",
    "        setattr(model.get_submodule(name), key, tuple(number) if isinstance(number, list) else number)",
    "tensors = model.state_dict(keep_vars=True)",
    'for name, shape in cut["shapes"].items():',
    "    tensors[name].data = torch.empty(shape)",
)


def cut_between(encoder: nn.Module, whole: nn.Module) -> Cut:
    """What `apply_cut` must be told to make the shapes of `encoder` of those of `whole`.

    Args:
        encoder: without head.
        whole: the same as timm builds it, without head.
    """
    modules, tensors = dict(whole.named_modules()), whole.state_dict()
    numbers = {name: _changed(module, modules[name]) for name, module in encoder.named_modules() if name in modules}
    own = encoder.state_dict()
    assert own.keys() == tensors.keys(), "a cut makes layers narrower and takes none out"
    shapes = {name: tuple(tensor.shape) for name, tensor in own.items() if tensor.shape != tensors[name].shape}
    return Cut({name: changed for name, changed in numbers.items() if changed}, shapes)


def _changed(module: nn.Module, whole: nn.Module) -> dict[str, Number]:
    found: dict[str, Number] = {}
    for key in _KEYS:
        value, before = getattr(module, key, None), getattr(whole, key, None)
        if _is_number(key, value) and _is_number(key, before) and value != before:
            found[key] = tuple(value) if key == "normalized_shape" else value  # type: ignore[arg-type, assignment]
    return found


def _is_number(key: str, value: object) -> bool:
    if key == "normalized_shape":
        return isinstance(value, (tuple, list)) and all(type(each) is int for each in value)
    return type(value) is int or (key == "scale" and type(value) is float)


def apply_cut(encoder: nn.Module, cut: Cut, *, example: Tensor) -> None:
    """Make layers of a fresh encoder as narrow as the cut says, in place; what is left of its weights is kept.

    A weight keeps the first of its rows and columns, at the spread that timm draws for the wider layer.

    Args:
        encoder: without head, as timm builds it.
        cut: nowhere wider than that.
        example: [1, C, S, S], an input; of it the shape counts.

    Raises:
        UserError: a cut of another architecture, wider than it, or one that contradicts itself.
    """
    modules = dict(encoder.named_modules())
    for name, numbers in cut.numbers.items():
        for key, value in numbers.items():
            module = modules.get(name)
            before = getattr(module, key, None)
            if key not in _KEYS or not _is_number(key, before) or not _is_narrower(key, value, before):
                raise UserError(f"the cut of the architecture does not fit it: {name}.{key} = {value!r} for {before!r}")
            setattr(module, key, value)
    tensors: dict[str, Tensor] = encoder.state_dict(keep_vars=True)
    for name, shape in cut.shapes.items():
        tensor = tensors.get(name)
        if tensor is None or not _fits(shape, tensor.shape):
            had = None if tensor is None else tuple(tensor.shape)
            raise UserError(f"the cut of the architecture does not fit it: {name} of shape {shape!r} for {had!r}")
        tensor.data = tensor.data[tuple(slice(size) for size in shape)].clone()
    _try(encoder, example)


def _is_narrower(key: str, value: object, before: Any) -> bool:
    if key == "scale":
        return isinstance(value, float) and math.isfinite(value) and value > 0
    if key == "normalized_shape":
        return isinstance(value, tuple) and _fits(value, before)
    return type(value) is int and 1 <= value <= before


def _fits(shape: object, most: Any) -> bool:
    if not isinstance(shape, tuple) or len(shape) != len(most) or not all(type(size) is int for size in shape):
        return False
    return all(1 <= size <= limit for size, limit in zip(shape, most, strict=True))


def _try(encoder: nn.Module, example: Tensor) -> None:
    """Run the encoder once: a cut that contradicts itself is found before weights are read."""
    was_training = encoder.training
    try:
        with torch.no_grad():
            encoder.eval()(example)
    except (RuntimeError, ValueError, IndexError, AssertionError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"the cut of the architecture contradicts itself: {first}") from error
    encoder.train(was_training)


@torch.no_grad()
def correct_features(model: nn.Module, *, example: Tensor) -> None:
    """Correct what a model whose layers were cut says of the width of its features, in place.

    Args:
        model: in evaluation mode, with one linear layer as its head.
        example: [1, C, S, S], an input; of it the shape counts.
    """
    own: Any = model
    width = int(own.get_classifier().in_features)
    mapped = own.forward_features(example).shape
    is_last = len(mapped) == 3 or getattr(model, "output_fmt", "NCHW") == "NHWC"
    channels = int(mapped[-1] if is_last else mapped[1])
    has_both = type(getattr(own, "head_hidden_size", None)) is int
    own.num_features = channels if has_both else width
    if has_both:
        own.head_hidden_size = width
    head = getattr(own, "head", None)
    # timm's heads of several layers keep both numbers, by which they are given another last layer.
    if isinstance(head, nn.Module) and type(getattr(head, "num_features", None)) is int:
        head.in_features, head.num_features = channels, width  # type: ignore[assignment]
