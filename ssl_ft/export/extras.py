"""Packages that a plain installation lacks, imported when an exported file first needs them."""

import importlib.util
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


def require_packages(*names: str, what: str) -> None:
    """See that packages of the extra `compress` are there, before anything is computed; none is imported.

    Args:
        names: of the packages.
        what: needs them, as messages say.

    Raises:
        UserError: one is not installed.
    """
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"{what} needs the package {missing[0]}; pip install '.[compress]'")


def require_onnx(*, what: str) -> None:
    """See that ONNX files can be written and run.

    Raises:
        UserError: a package is not installed.
    """
    require_packages("onnx", "onnxscript", "onnxruntime", what=what)
