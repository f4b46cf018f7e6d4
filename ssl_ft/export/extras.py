"""Packages that a plain installation lacks, imported when an exported file first needs them."""

from typing import Any

from ssl_ft.errors import UserError


def import_onnxruntime() -> Any:
    """The package onnxruntime.

    Raises:
        UserError: it is not installed.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise UserError("an ONNX file needs the package onnxruntime; pip install '.[compress]'") from error
    return onnxruntime


def check_onnx() -> None:
    """Make sure that ONNX files can be written.

    Raises:
        UserError: a package is not installed.
    """
    for name in ("onnx", "onnxscript"):
        try:
            __import__(name)
        except ImportError as error:
            raise UserError(f"writing an ONNX file needs the package {name}; pip install '.[compress]'") from error
