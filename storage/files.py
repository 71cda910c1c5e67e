"""JSON and tensors on disk. What is read is checked, and errors name the file; what is written lies under a
temporary name until it is whole: a reader sees the old file or the new one, never half."""
import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a fresh temporary name, which takes the place of `path` in the end. OSError names the file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.tmp")
    temporary.unlink(missing_ok=True)   # left by a kill, or a link: never written through
    try:
        yield temporary
        os.replace(temporary, path)
    except SafetensorError as error:    # a full disk
        raise OSError(f"{path}: cannot be written: {error}") from error
    finally:
        temporary.unlink(missing_ok=True)


def read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: cannot be read: {error}") from error


def write_text(path: Path, text: str) -> None:
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def read_json(path: Path, missing: dict | None = None) -> dict:
    """A JSON object; where the file is absent, `missing` if that is given."""
    if missing is not None and not path.exists():
        return missing
    try:
        value = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        message = str(error) if str(path) in str(error) else f"{path}: not JSON: {error}"
        raise ValueError(message) from error
    if not isinstance(value, dict):
        raise ValueError(f"{path}: expected a JSON object, not {type(value).__name__}")
    return value


def write_json(path: Path, value: dict) -> None:
    write_text(path, json.dumps(value, indent=2) + "\n")


def keep_tensors(path: Path, tensors: dict[str, Tensor], header: dict[str, str] | None = None) -> None:
    """Write a safetensors file; the old one stays until all is written."""
    with replacing(path) as temporary:
        save_file({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, temporary, header)


def git_revision() -> str:
    """The commit of the code that runs, for pictures and records."""
    command = ["git", "-C", Path(__file__).parent, "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True).stdout.strip() or "unknown"
    except OSError:
        return "unknown"   # git is not installed
