"""Packages that quantizing needs and a plain installation lacks, imported when they are first needed."""

from ssl_ft.export.extras import require_packages
from ssl_ft.transfer.extras import without_enum_warnings


def require_quantizers() -> None:
    """See that all packages are there, before anything is computed.

    Raises:
        UserError: one is not.
    """
    require_packages("onnx", "onnxscript", "onnxruntime", "torchao", what="method=quantize")


def import_torchao() -> None:
    """Import what of torchao captures and converts, without what torch says of its enumerations meanwhile."""
    with without_enum_warnings():
        import torchao.quantization.pt2e
        import torchao.quantization.pt2e.quantizer.x86_inductor_quantizer  # noqa: F401
