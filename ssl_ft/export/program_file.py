"""A model as a torch.export program (`.pt2`), and what is compiled from one: AOTInductor, ExecuTorch.

A program as torch writes it holds its example inputs as a pickle, which its loader unpickles. Ours hold none, and
`check_no_pickle` refuses a file that does: with that, loading one runs no code of the file's.
"""

import importlib.util
import json
import os
import shutil
import zipfile
from pathlib import Path

import torch
from torch import Tensor, nn

from ssl_ft.errors import UserError
from ssl_ft.export.unwritable import refusing_layers


def write_program(model: nn.Module, path: Path, *, example: Tensor) -> None:
    """Write the program with a free batch size and without example inputs.

    Args:
        model: in evaluation mode, on the CPU: one tensor in, one out, batch first.
        path: the `.pt2` file.
        example: an input of two images.
    """
    save_program(_program(model, example), path)


def save_program(program: torch.export.ExportedProgram, path: Path) -> None:
    """Save a program without its example inputs."""
    program.example_inputs = None
    torch.export.save(program, path)
    check_no_pickle(path)


def load_program(path: Path) -> nn.Module:
    """The program of a file, ready to be called; nothing is unpickled.

    Raises:
        UserError: loading it would unpickle something, or it is no program.
    """
    import torch.ao.quantization.fx._decomposed  # what programs of 8 bits call is registered by it

    check_no_pickle(path)
    return torch.export.load(path).module()


def check_no_pickle(path: Path) -> None:
    """Make sure that loading the program unpickles nothing.

    Raises:
        UserError: it would, or the file is no program.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                folder = name.partition("/")[2]  # the first part is the archive's own name
                is_pickle = folder.startswith("data/sample_inputs/") and archive.getinfo(name).file_size > 0
                if folder.startswith("data/") and folder.endswith(".json"):
                    entries = json.loads(archive.read(name)).get("config", {})
                    is_pickle = is_pickle or any(entry.get("use_pickle") for entry in entries.values())
                if is_pickle:
                    raise UserError(
                        f"{path}: loading this program would unpickle {folder}, which can run code; export the model "
                        "again with `ssl-ft export`"
                    )
    except (OSError, zipfile.BadZipFile, ValueError, AttributeError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path} is no torch.export program ({error}); export the model again") from error


def require_compiler() -> None:
    """See that what compiles a program to machine code is there.

    Raises:
        UserError: it is not.
    """
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None:
        raise UserError(
            f"formats=inductor compiles C++, and the compiler {compiler!r} is not there: install it, or name another "
            "in the environment variable CXX"
        )


def require_executorch() -> None:
    """See that the package is there; it is not imported.

    Raises:
        UserError: it is not.
    """
    if importlib.util.find_spec("executorch") is None:
        raise UserError("formats=executorch needs the package executorch; pip install '.[executorch]'")


def write_inductor(model: nn.Module, path: Path, *, example: Tensor) -> None:
    """Compile the model into a package of machine code for this kind of processor.

    Raises:
        UserError: there is no C++ compiler.
    """
    require_compiler()
    program = _program(model, example)
    with refusing_layers(model, what="formats=inductor"):
        torch._inductor.aoti_compile_and_package(program, package_path=str(path))


def write_executorch(model: nn.Module, path: Path, *, example: Tensor) -> None:
    """Write a program for ExecuTorch, lowered to XNNPACK, that takes one image at a time.

    Its memory is planned ahead, so a free batch size would claim that of the largest.

    Raises:
        UserError: the package is not installed.
    """
    require_executorch()
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    with refusing_layers(model, what="formats=executorch"):
        program = torch.export.export(model, (example[:1],))
        lowered = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()]).to_executorch()
    path.write_bytes(lowered.buffer)


def _program(model: nn.Module, example: Tensor) -> torch.export.ExportedProgram:
    free = {0: torch.export.Dim("batch", min=1, max=65536)}
    with refusing_layers(model, what="a torch.export program"):
        return torch.export.export(model, (example,), dynamic_shapes=(free,))
