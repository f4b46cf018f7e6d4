"""The command: `ssl-ft STAGE [RECIPE] [key=value …]`. Parses, helps, runs the stage, turns mistakes into sentences.

Nothing heavy is imported before a stage is known, so that help comes at once. Settings are read in `recipe.py`.
"""

import os
import sys
from collections.abc import Sequence

from ssl_ft import __version__
from ssl_ft.errors import UserError, system_sentence

# Name of each stage (its module in `pipelines`) and its line of help; read aloud by `--help` without importing it.
STAGES = {
    "demo": "the whole way on scikit-learn's digits, in minutes",
    "run": "pretrain, probe, finetune and report in one go",
    "index": "look at a data source: counts, sizes, channels, damaged files, duplicates",
    "pretrain": "train an encoder on unlabelled images",
    "probe": "judge an encoder: linear probe and kNN over label budgets, against baselines",
    "shift": "how far a target's images lie from the pool an encoder was pretrained on",
    "finetune": "train a classifier from an encoder and a few labels",
    "compare": "every strategy of finetune over label budgets and draws: which to take, and how sure that is",
    "tune": "search settings of finetune or pretrain: which are best on val, by how many trainings",
    "advise": "which strategy to start with, before any training, and how good such advice was",
    "selftrain": "finetune, then learn from the classifier's own labels on unlabelled images",
    "adapt": "a classifier for a target without labels, from a labelled source of another kind",
    "compress": "a classifier made smaller: distilled into a student, pruned, or in 8 bits",
    "export": "a model as ONNX, torch.export, a timm folder: each checked in a fresh process on real images",
    "predict": "label a folder of images with a classifier",
    "embed": "features of a folder of images, into Parquet, CSV or .npz",
    "neighbors": "the nearest images of a pool for each image: a table and contact sheets to look at",
    "suggest": "which images to label next, by coverage and uncertainty",
    "report": "one offline page from run folders",
    "doctor": "prove on this machine what is promised: ranks, resume, precision, decoders, disk",
    "bench": "speed and memory on this machine, beside what you would otherwise use",
    "schema": "print the JSON schema of result.json",
}
# `predict FOLDER`, `report RUN RUN` and the like read better with their object in the place of a recipe.
_OBJECTS = {
    "predict": ("FOLDER", "images"),
    "embed": ("IMAGES", "images"),
    "neighbors": ("QUERIES", "queries"),
    "report": ("RUN ...", "runs"),
    "index": ("SOURCE", "data.path"),
    "doctor": ("CHECK ...", "checks"),
    "bench": ("ROW ...", "rows"),
}
# Options that stand for a setting of a stage: one that takes a value for its key, a switch for the whole setting.
_SETTING_OPTIONS = {"bench": {"--json": "out", "--gpu": "gpu=true"}}
_OPTIONS = ("-h", "--help", "--dry-run")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and give its exit code: 0 done, 1 a fault found by doctor, 2 a mistake, 130, 138, 143 stopped.

    3: done, and what was to be handed over was refused by a limit (`max_drop`, `tolerance`).
    """
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        code = _dispatch(words)
        sys.stdout.flush()
        return code
    except UserError as error:
        sentence = str(error)
    except KeyboardInterrupt:
        print("ssl-ft: interrupted; the same command goes on from the last checkpoint, if any", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # Whoever read our output went away (`| head`); Python would complain about it once more on its way out.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        told = system_sentence(error)
        if told is None:
            raise
        sentence = told
    print(f"ssl-ft: {sentence}", file=sys.stderr)
    return 2


def _dispatch(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        print(_overview())
        return 0
    if words[0] == "--version":
        print(f"ssl-ft {__version__}")
        return 0
    stage, rest = words[0], _spelled_out(words[0], words[1:])
    _check_words(stage, rest)
    plain = [word for word in rest if not word.startswith("-") and "=" not in word]
    if any(word in ("-h", "--help") for word in rest):
        print(_stage_help(stage))
        return 0
    if stage == "schema":
        _print_schema(rest)
        return 0
    overrides = [word for word in rest if "=" in word]
    is_dry = "--dry-run" in rest
    if stage in _OBJECTS:
        return _run_stage(stage, None, [*_object_overrides(stage, plain), *overrides], is_dry=is_dry)
    if len(plain) > 1:
        raise UserError(f"one recipe at most, got {' and '.join(plain)}; settings are given as key=value")
    recipe = plain[0] if plain else "digits" if stage == "demo" else None
    return _run_stage(stage, recipe, overrides, is_dry=is_dry)


def _spelled_out(stage: str, rest: list[str]) -> list[str]:
    """The words with the stage's own options as the settings they stand for: `--json FILE` as `out=FILE`."""
    own, left, spelled = _SETTING_OPTIONS.get(stage, {}), list(rest), []
    while left:
        word = left.pop(0)
        option, equals, value = word.partition("=")
        meaning = own.get(option)
        if meaning is None:
            spelled.append(word)
        elif "=" in meaning:
            if equals:
                raise UserError(f"{option} takes no value; write {option} alone")
            spelled.append(meaning)
        else:
            if not equals and left and not left[0].startswith("-"):
                value = left.pop(0)
            if not value:
                raise UserError(f"{option} needs a value; write {option} FILE")
            spelled.append(f"{meaning}={value}")
    return spelled


def _check_words(stage: str, rest: list[str]) -> None:
    if stage not in STAGES:
        import difflib

        near = difflib.get_close_matches(stage, STAGES, n=1)
        hint = f"did you mean {near[0]}?" if near else f"stages are {', '.join(STAGES)}"
        raise UserError(f"there is no stage {stage!r}; {hint}")
    for word in rest:
        if word.startswith("-") and word not in _OPTIONS:
            raise UserError(f"unknown option {word}; settings are given as key=value, see `ssl-ft {stage} --help`")
        try:
            word.encode()
        except UnicodeEncodeError as error:  # bytes of a file name that are no text cannot be kept in JSON
            shown = word.encode(errors="backslashreplace").decode()
            raise UserError(f"{shown} is not valid UTF-8; rename the file or folder it names") from error
        if "\0" in word:
            raise UserError(f"{word!r} holds a zero byte, which no path or setting can")


def _object_overrides(stage: str, plain: list[str]) -> list[str]:
    """Words without `=` as the setting they stand for."""
    name, key = _OBJECTS[stage]
    if name.endswith("...") and plain:
        import json

        return [f"{key}={json.dumps(plain, ensure_ascii=False)}"]
    if len(plain) > 1:
        raise UserError(f"one {name} at most, got {' and '.join(plain)}; settings are given as key=value")
    return [f"{key}={word}" for word in plain]


def _run_stage(stage: str, recipe: str | None, overrides: list[str], *, is_dry: bool) -> int:
    from pipelines import stage_main, stage_settings
    from ssl_ft.recipe import load_settings

    settings = load_settings(stage_settings(stage), recipe=recipe, overrides=overrides)
    return stage_main(stage, settings, is_dry=is_dry)


def _print_schema(rest: list[str]) -> None:
    import json

    from ssl_ft.result import Result

    if rest:
        raise UserError(f"schema takes no settings, got {' '.join(rest)}")
    print(json.dumps(Result.model_json_schema(), indent=1))


def _overview() -> str:
    width = max(map(len, STAGES))
    stages = "\n".join(f"  {name:<{width}}  {text}" for name, text in STAGES.items())
    return f"""ssl-ft {__version__}: self-supervised pretraining on unlabelled images, judged on few labels.

usage: ssl-ft STAGE [RECIPE] [key=value ...] [--dry-run]

{stages}

`ssl-ft STAGE --help` lists a stage's settings. RECIPE is a YAML file or the name of one that comes along.
--dry-run prints settings and plan and writes nothing."""


def _stage_help(stage: str) -> str:
    if stage == "schema":
        return f"ssl-ft schema\n\n{STAGES[stage]}"
    from pipelines import stage_settings
    from ssl_ft.recipe import describe, recipe_names

    rows = list(describe(stage_settings(stage)))
    width = max(len(name) for name, _, _ in rows)
    word = f"[{_OBJECTS[stage][0]}]" if stage in _OBJECTS else "[RECIPE]"
    own = _SETTING_OPTIONS.get(stage, {})
    options = "".join(f" [{name}{'' if '=' in meaning else ' FILE'}]" for name, meaning in own.items())
    recipes = "" if stage in _OBJECTS else f"\n\nrecipes that come along: {', '.join(recipe_names())}"
    settings = "\n".join(f"  {name:<{width}}  {text} [{default}]" for name, default, text in rows)
    return f"ssl-ft {stage} {word} [key=value ...]{options} [--dry-run]\n\n{STAGES[stage]}{recipes}\n\n{settings}"
