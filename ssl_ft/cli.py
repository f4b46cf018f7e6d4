"""The command: `ssl-ft STAGE [RECIPE] [key=value …]`. Parses, helps, runs the stage, turns mistakes into sentences.

Nothing heavy is imported before a stage is known, so that help comes at once. Settings are read in `recipe.py`.
"""

import errno
import sys
from collections.abc import Sequence

from ssl_ft import __version__
from ssl_ft.errors import UserError

# Name of each stage (its module in `pipelines`) and its line of help; read aloud by `--help` without importing it.
STAGES = {
    "demo": "the whole way on scikit-learn's digits, in minutes",
    "run": "pretrain, probe, finetune and report in one go",
    "index": "look at a data source: counts, sizes, channels, damaged files, duplicates",
    "pretrain": "train an encoder on unlabelled images",
    "probe": "judge an encoder: linear probe and kNN over label budgets, against baselines",
    "finetune": "train a classifier from an encoder and a few labels",
    "predict": "label a folder of images with a classifier",
    "report": "one offline page from run folders",
    "schema": "print the JSON schema of result.json",
}
# The disk is full, read-only, or not ours: the person can mend it, so it is told in a sentence.
_DISK_ERRORS = {errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EPERM, errno.EDQUOT, errno.ENAMETOOLONG, errno.EISDIR}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and give its exit code: 0 done, 2 a mistake of the user's, 130 or 143 interrupted."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        return _dispatch(words)
    except UserError as error:
        print(f"ssl-ft: {error}", file=sys.stderr)
    except OSError as error:
        if error.errno not in _DISK_ERRORS:
            raise
        place = f" ({error.filename})" if error.filename else ""
        print(
            f"ssl-ft: cannot write or read{place}: {error.strerror}. Free space or choose another out=", file=sys.stderr
        )
    except KeyboardInterrupt:
        print(
            "ssl-ft: interrupted; the same command goes on from the last checkpoint, if there is one", file=sys.stderr
        )
        return 130
    return 2


def _dispatch(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        print(_overview())
        return 0
    if words[0] == "--version":
        print(f"ssl-ft {__version__}")
        return 0
    stage, rest = words[0], words[1:]
    if stage not in STAGES:
        import difflib

        near = difflib.get_close_matches(stage, STAGES, n=1)
        hint = f"did you mean {near[0]}?" if near else f"stages are {', '.join(STAGES)}"
        raise UserError(f"there is no stage {stage!r}; {hint}")
    is_help = any(word in ("-h", "--help") for word in rest)
    is_dry = "--dry-run" in rest
    unknown = [word for word in rest if word.startswith("-") and word not in ("-h", "--help", "--dry-run")]
    if unknown:
        raise UserError(f"unknown option {unknown[0]}; settings are given as key=value, see `ssl-ft {stage} --help`")
    plain = [word for word in rest if not word.startswith("-") and "=" not in word]
    if len(plain) > 1:
        raise UserError(f"one recipe at most, got {' and '.join(plain)}; settings are given as key=value")
    return _run_stage(stage, plain[0] if plain else None, [w for w in rest if "=" in w], is_help=is_help, is_dry=is_dry)


def _run_stage(stage: str, word: str | None, overrides: list[str], *, is_help: bool, is_dry: bool) -> int:
    if stage == "schema":
        import json

        from ssl_ft.result import Result

        print(json.dumps(Result.model_json_schema(), indent=1))
        return 0
    from pipelines import stage_main, stage_settings
    from ssl_ft.recipe import describe, load_settings

    if is_help:
        rows = list(describe(stage_settings(stage)))
        width = max(len(name) for name, _, _ in rows)
        print(f"ssl-ft {stage} [RECIPE] [key=value ...] [--dry-run]\n\n{STAGES[stage]}\n")
        print("\n".join(f"  {name:<{width}}  {text} [{default}]" for name, default, text in rows))
        return 0
    # `predict FOLDER` and `report RUN` read better with their object in the place of a recipe.
    objects = {"predict": "images", "report": "runs", "index": "data"}
    if word is not None and stage in objects:
        overrides, word = [f"{objects[stage]}={word}", *overrides], None
    if stage == "demo" and word is None:
        word = "digits"
    settings = load_settings(stage_settings(stage), recipe=word, overrides=overrides)
    return stage_main(stage, settings, is_dry=is_dry)


def _overview() -> str:
    width = max(map(len, STAGES))
    stages = "\n".join(f"  {name:<{width}}  {text}" for name, text in STAGES.items())
    return f"""ssl-ft {__version__}: self-supervised pretraining on unlabelled images, judged on few labels.

usage: ssl-ft STAGE [RECIPE] [key=value ...] [--dry-run]

{stages}

`ssl-ft STAGE --help` lists a stage's settings. RECIPE is a YAML file or the name of one that comes along."""
