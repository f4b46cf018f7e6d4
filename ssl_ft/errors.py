"""Errors that mean "the user can mend this"; the command turns them into a sentence and exit code 2. No others."""

import errno
import os
import re


class UserError(ValueError):
    """A mistake its user can mend: says what was wrong, where, what is allowed and what to do.

    Everything else that is raised is a defect of ours and keeps its traceback.
    """


_ADVICE = {
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "free some space, or have the quota raised",
    errno.EROFS: "choose a place that can be written",
    errno.EACCES: "check its permissions, or choose another place",
    errno.EPERM: "check its permissions, or choose another place",
    errno.ENOENT: "check its spelling, or choose another place",
    errno.ENOTDIR: "a part of the path is a file; choose another place",
    errno.EEXIST: "a file stands where a folder is wanted; choose another place",
    errno.EISDIR: "a folder stands where a file is wanted; choose another place",
    errno.ENAMETOOLONG: "a name may have 255 bytes, a path some 4000; choose a shorter one",
    errno.EFBIG: "raise the limit on the size of files (`ulimit -f`)",
    errno.EIO: "check the disk",
    errno.EMFILE: "raise the limit on open files (`ulimit -n`), or lower data.workers",
}
# safetensors wraps the system's error into words of its own.
_SYSTEM_ERROR = re.compile(r"\(os error (\d+)\)")
_OUT_OF_MEMORY = re.compile(r"can't allocate memory|out of memory", re.IGNORECASE)
_MOST_OF_A_PATH = 80


def system_sentence(error: BaseException) -> str | None:
    """What a full or read-only disk, an unusable path or too little memory means to the user; None for other errors."""
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and _OUT_OF_MEMORY.search(str(error))):
        return "there is not enough memory: lower batch_size or size, or take a smaller encoder"
    number, place = None, ""
    if isinstance(error, OSError):
        number, place = error.errno, short_path(error.filename)
    elif type(error).__name__ == "SafetensorError" and (match := _SYSTEM_ERROR.search(str(error))):
        number = int(match[1])
    if number is None or number not in _ADVICE:
        return None
    return f"{place or 'a file'} cannot be read or written: {os.strerror(number)}; {_ADVICE[number]}"


def said(error: BaseException, *, most: int) -> str:
    """What an error says, on one line of `most` characters, and its kind: the words of a KeyError are a bare name."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:most]}"


def short_path(path: object) -> str:
    """A path in a sentence: one of thousands of characters would bury the rest."""
    text = "" if path is None else str(path)
    return text if len(text) <= _MOST_OF_A_PATH else f"{text[:40]}...{text[-37:]}"
