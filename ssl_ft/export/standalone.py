"""Label images with the model beside this file: `python predict.py FOLDER [predictions.csv]`.

Needs onnxruntime, numpy and pillow, and nothing else: `model.onnx` and `model.json` lie in the folder of this file. It
writes path, label, probability and a column a class (or a column a label or target), as a CSV.
"""

import csv
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

ENDINGS = {".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".webp", ".ppm", ".pgm", ".pnm"}
BATCH = 64


def read_image(path: Path, *, channels: int, size: int, white_level: int) -> Any:
    """uint8 [channels, size, size]: upright, over white where transparent, short side to size, centre cut out."""
    with Image.open(path) as opened:
        upright = ImageOps.exif_transpose(opened)
    if upright.mode.startswith("I") or upright.mode == "F":
        values = np.asarray(upright).astype(np.float64) * (255.0 if upright.mode == "F" else 255.0 / white_level)
        image = Image.fromarray(np.clip(np.rint(values), 0, 255).astype(np.uint8))
    elif upright.has_transparency_data or upright.mode in ("LA", "La", "PA", "RGBa"):
        pixels = np.asarray(upright.convert("RGBA")).astype(np.uint16)
        colour, alpha = pixels[..., :3], pixels[..., 3:]
        flat = ((colour * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)
        image = Image.fromarray(flat[..., 0] if upright.mode in ("LA", "La") else flat)
    else:
        image = upright.convert("L" if upright.mode in ("1", "L") else "RGB")
    image = image.convert("L" if channels == 1 else "RGB")
    short, long = sorted(image.size)
    if long > 32 * short:  # the ends of a strip are left out, as much of each: enlarged whole it would fill memory
        ends = (long - 32 * short) // 2
        across, down = (ends, 0) if image.width > image.height else (0, ends)
        image = image.crop((across, down, image.width - across, image.height - down))
        short, long = sorted(image.size)
    sides = (size, int(size * long / short))
    width, height = sides if image.width <= image.height else sides[::-1]
    resized = image.resize((width, height), Image.Resampling.BILINEAR)
    left, top = round((width - size) / 2), round((height - size) / 2)
    cut = np.asarray(resized.crop((left, top, left + size, top + size)))
    return cut[None] if cut.ndim == 2 else cut.transpose(2, 0, 1)


def prepare(images: Any, model: dict[str, Any]) -> Any:
    """What the model takes from uint8 [N, C, size, size]."""
    if model["input"]["preprocess"] == "inside":
        return np.ascontiguousarray(images.transpose(0, 2, 3, 1)) if model["input"]["layout"] == "nhwc" else images
    mean, std = (np.asarray(model["contract"][key], np.float32).reshape(1, -1, 1, 1) for key in ("mean", "std"))
    return (images.astype(np.float32) / np.float32(255) - mean) / std


def meaning(outputs: Any, task: str) -> Any:
    """Shares of classes, probability of each label, or numbers, from the model's outputs [N, K]."""
    if task == "classes":
        raised = np.exp(outputs - outputs.max(1, keepdims=True))
        return raised / raised.sum(1, keepdims=True)
    return 1 / (1 + np.exp(-outputs)) if task == "multi_label" else outputs


def label_folder(folder: Path, here: Path) -> Iterator[list[object]]:
    """One row an image below `folder` that can be read, in the order of their paths."""
    import onnxruntime

    model = json.loads((here / "model.json").read_text(encoding="utf-8"))
    contract, task, names = model["contract"], model["task"], model["output_names"]
    session = onnxruntime.InferenceSession(str(here / "model.onnx"), providers=["CPUExecutionProvider"])
    shape = {key: contract[key] for key in ("channels", "size", "white_level")}
    paths = [path for path in folder.rglob("*") if path.suffix.lower() in ENDINGS and path.is_file()]
    paths = sorted((path for path in paths), key=lambda path: path.relative_to(folder).as_posix())
    for start in range(0, len(paths), BATCH):
        images, kept = [], []
        for path in paths[start : start + BATCH]:
            try:
                images.append(read_image(path, **shape))
                kept.append(path)
            except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
                print(f"left out: {path} ({error})", file=sys.stderr)
        if not images:
            continue
        given = prepare(np.stack(images), model)
        answers = meaning(session.run(None, {session.get_inputs()[0].name: given})[0], task)
        for path, answer in zip(kept, answers, strict=True):
            best = [names[int(answer.argmax())], f"{answer.max():.6f}"] if task == "classes" else []
            numbers = [f"{value:.7g}" if task == "regression" else f"{value:.6f}" for value in answer]
            yield [path.relative_to(folder).as_posix(), *best, *numbers]


def main(words: list[str]) -> int:
    """Write the CSV and give the exit code."""
    here = Path(__file__).resolve().parent
    if len(words) not in (1, 2) or not Path(words[0]).is_dir():
        print("usage: python predict.py FOLDER [predictions.csv]; FOLDER holds images", file=sys.stderr)
        return 2
    names = json.loads((here / "model.json").read_text(encoding="utf-8"))
    rows = list(label_folder(Path(words[0]), here))
    if not rows:
        print(f"{words[0]} holds no image that can be read; nothing was written", file=sys.stderr)
        return 2
    first = ["path", "label", "probability"] if names["task"] == "classes" else ["path"]
    # A class called `label` would name a column twice; then all outputs' columns get a prefix.
    is_twice = set(first) & set(names["output_names"])
    prefix = ("value_" if names["task"] == "regression" else "share_") if is_twice else ""
    out = Path(words[1] if len(words) == 2 else "predictions.csv")
    with out.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([[*first, *(prefix + name for name in names["output_names"])], *rows])
    print(out)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
