"""Packages that quantizing needs and a plain installation lacks, imported when they are first needed."""

import importlib.util

from ssl_ft.errors import UserError
from ssl_ft.transfer.extras import without_enum_warnings

_NEEDED = ("onnx", "onnxscript", "onnxruntime", "torchao")


def require_quantizers() -> None:
    """See that all packages are there, before anything is computed.

    Raises:
        UserError: one is not.
    """
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"method=quantize needs the package {missing[0]}; pip install '.[compress]'")


def import_torchao() -> None:
    """Import what of torchao captures and converts, without what torch says of its enumerations meanwhile."""
    with without_enum_warnings():
        import torchao.quantization.pt2e
        import torchao.quantization.pt2e.quantizer.x86_inductor_quantizer  # noqa: F401
