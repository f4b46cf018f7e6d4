"""Runs an exported file on given inputs in a process that knows nothing of this package.

`python -I reload.py KIND PATH INPUTS.npy OUTPUTS.npy`: started by `check.py`, never imported. What it needs is the
file's own runtime and numpy.
"""

import sys
from collections.abc import Callable
from typing import Any

Call = Callable[[Any], Any]


def _main(kind: str, path: str, inputs: str, outputs: str) -> None:
    import numpy as np

    images = np.load(inputs, allow_pickle=False)
    call = {"onnx": _onnx, "torch": _torch, "timm": _timm, "inductor": _inductor, "executorch": _executorch}[kind](path)
    block = 1 if kind == "executorch" else 64
    answers = [call(images[start : start + block]) for start in range(0, len(images), block)]
    np.save(outputs, np.concatenate(answers))


def _onnx(path: str) -> Call:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda images: session.run(None, {name: images})[0]


def _of_torch(model: Any) -> Call:
    import torch

    def call(images: Any) -> Any:
        with torch.no_grad():
            return model(torch.from_numpy(images)).numpy()

    return call


def _torch(path: str) -> Call:
    import torch

    return _of_torch(torch.export.load(path).module())


def _timm(path: str) -> Call:
    import timm

    return _of_torch(timm.create_model(f"local-dir:{path}", pretrained=True).eval())


def _inductor(path: str) -> Call:
    import torch

    return _of_torch(torch._inductor.aoti_load_package(path))


def _executorch(path: str) -> Call:
    import torch
    from executorch.runtime import Runtime

    method = Runtime.get().load_program(path).load_method("forward")
    return lambda images: method.execute([torch.from_numpy(images)])[0].numpy()


if __name__ == "__main__":
    sys.modules["ssl_ft"] = None  # type: ignore[assignment]  # an import of it would fail from here on
    _main(*sys.argv[1:])
