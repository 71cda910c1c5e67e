"""JSON and tensors on disk. What is read is checked, and errors name the file; what is written lies under a
temporary name until it is whole: a reader sees the old file or the new one, never half."""
import json
import math
import os
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

try:
    import fcntl
except ImportError:   # Windows has none
    fcntl = None


RUN = ("anchor", "cxrl", "rewards", "samples", "state")      # the folders of a run
# Names of `replacing`, and of safetensors
TEMPORARY = re.compile(r".+\.(?:jsonl?|safetensors|png|csv|npy|html|txt)\.\d+\.tmp|\.tmp[0-9A-Za-z]{6}")


@contextmanager
def holding(folder: Path, name: str = "") -> Iterator[None]:
    """Make a folder this process's own so long as the block runs: another process is refused, by `name`.
    Temporary files that killed ones left go at once, in the folder and where a run has them. A folder that
    nothing was written to goes in the end."""
    path, name = folder / ".lock", name or str(folder)
    made = not folder.exists() or [*folder.glob("*")] == [path]   # that one by a process that was killed
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if os.path.lexists(path) and (path.is_symlink() or not path.is_file()):
            raise OSError(0, ".lock is not a regular file")   # a pipe: open would never end
        lock = open(path, "a")
    except OSError as error:
        raise ValueError(f"{name}: cannot be written: {error.strerror}") from error
    with lock:
        try:
            if fcntl is not None:   # of the process, not of the file as flock: its workers do not inherit it
                fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            raise ValueError(f"{name}: another process is at work in it") from error
        except OSError as error:   # of the file system, on networks
            print(f"{name}: cannot be locked ({error.strerror}); start no other process on it")
        parts = RUN if (folder / "config.json").is_file() else ()   # else what lies below is others'
        own = [folder / part for part in parts if not (folder / part).is_symlink()]
        for left in [*folder.iterdir(), *(path for part in own for path in part.rglob("*"))]:
            if TEMPORARY.fullmatch(left.name) and left.is_file():
                left.unlink()
        try:
            yield
        finally:
            if made and [*folder.iterdir()] == [path]:
                path.unlink()
                folder.rmdir()


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields the name of a fresh temporary file, which takes the place of `path` in the end. OSError names
    the file, as what a full disk raises does not."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.unlink(missing_ok=True)
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))   # never through a link
        mode = temporary.stat().st_mode & 0o777
        yield temporary
        os.chmod(temporary, mode)   # safetensors puts a file there that is its owner's alone
        os.replace(temporary, path)
    except (OSError, SafetensorError) as error:
        raise OSError(f"{path}: cannot be written: {error}") from error
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def naming(prefix: str, *kinds: type[Exception]) -> Iterator[None]:
    """What is raised inside, of these kinds, becomes a ValueError that begins so: it names file or flag."""
    try:
        yield
    except kinds as error:
        raise ValueError(f"{prefix}{error}") from error


def append_line(path: Path, line: str) -> None:
    """In one write, so that the end alone can lack: then OSError is raised."""
    with open(path, "ab", buffering=0) as file:
        try:
            if file.write(line.encode() + b"\n") <= len(line.encode()):
                raise OSError("no space left for a whole line")
        except OSError as error:
            raise OSError(f"{path}: cannot be written: {error}") from error


def read_text(path: Path) -> str:
    with naming(f"{path}: cannot be read: ", OSError, UnicodeDecodeError):
        if not path.is_file():   # a pipe would never end
            raise FileNotFoundError("no such file" if not path.exists() else "not a regular file")
        return path.read_text(encoding="utf-8")


def write_text(path: Path, text: str) -> None:
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def read_json(path: Path, missing: dict | None = None) -> dict:
    """A JSON object; where the file is absent, `missing` if that is given."""
    if missing is not None and not path.exists():
        return missing
    text = read_text(path)
    with naming(f"{path}: not JSON: ", ValueError, RecursionError):
        value = json.loads(text)
    if not isinstance(value, dict):
        raise ValueError(f"{path}: expected a JSON object, not {type(value).__name__}")
    return value


def strict(value: object) -> object:
    """Numbers that are not finite, for which JSON has no word, become None."""
    if isinstance(value, dict):
        return {key: strict(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [strict(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def to_json(value: object, indent: int | None = None) -> str:
    return json.dumps(strict(value), indent=indent, allow_nan=False)


def write_json(path: Path, value: dict) -> None:
    write_text(path, to_json(value, indent=2) + "\n")


def keep_tensors(path: Path, tensors: dict[str, Tensor], header: dict[str, str] | None = None) -> None:
    """Write a safetensors file; the old one stays until all is written."""
    with replacing(path) as temporary:
        save_file({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, temporary, header)


def git_revision() -> str:
    """The commit of the code that runs, for pictures and records; "-dirty" behind it: as changed since."""
    command = ["git", "-C", Path(__file__).parent, "describe", "--always", "--dirty", "--abbrev=40",
               "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True).stdout.strip() or "unknown"
    except OSError:
        return "unknown"   # git is not installed
