"""Hostile inputs: files of a run, of a pipeline and of a table, changed at random, and what reads them.

    python tests/storm_inputs.py [--inputs 40] [--seed 0]

Each command has to end by itself within a minute's work, in a status of its own, without a traceback; nothing
outside the folder may change, and where it is refused no file in it may be lost. A child process for each,
forked after the slow imports.
"""
import argparse
import json
import os
import random
import resource
import shutil
import sys
import tempfile
from pathlib import Path

import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from storm_kills import Forked, as_command, small_set, start

import evaluate
import sample
import train

VALUES = [None, True, -1, 0, 10**9, 10**40, 1e308, 1e-300, float("nan"), "", "x", "\ud800", [], ["x"], {},
          {"a": 1}, "../../outside", "/etc/passwd", -0.5]
CELLS = ["", "nan", "x" * 10_000, "../outside.png", "/etc/passwd", "\0", '"', "a,b", "\n", "0.png", "漢"]
LIMIT = 60   # seconds of work, a fifth of those that may pass: other work may share the core


# ------------------------------------------------------------------------------------------------ mutations


def bytes_of(path: Path, chance: random.Random) -> None:
    """Truncated, with bytes changed, empty, doubled, or something else altogether."""
    old = path.read_bytes()
    where = chance.randrange(len(old) + 1)
    new = chance.choice([old[:where], b"", old + old, b"\xff\xfe" + old, b"\0" * 4096, chance.randbytes(512),
                         old[:where] + b"\xff" * 9 + old[where + 9:], b"[" * 100_000, b'{"a":' * 100_000])
    path.unlink()
    path.write_bytes(new)


def kind_of(path: Path, chance: random.Random) -> None:
    """No file any more: a pipe, a folder, a link to nothing or to something outside, or not there."""
    path.unlink()
    chance.choice([lambda: os.mkfifo(path), path.mkdir, lambda: path.symlink_to("nowhere"),
                   lambda: path.symlink_to("/dev/zero"), lambda: None])()


def json_of(path: Path, chance: random.Random) -> None:
    """One value, anywhere in it, is another, or its key is gone."""
    text = path.read_text()
    root = here = json.loads(text.splitlines()[0] if path.suffix == ".jsonl" else text)
    while True:
        key = chance.choice(list(here) if isinstance(here, dict) else range(len(here))) if here else None
        inner = here[key] if key is not None else None
        if not isinstance(inner, (dict, list)) or not inner or chance.random() < 0.3:
            break
        here = inner
    if key is not None and chance.random() < 0.2:
        del here[key]
    elif key is not None:
        here[key] = chance.choice(VALUES)
    path.unlink()
    path.write_text(json.dumps(root) + "\n")


def tensors_of(path: Path, chance: random.Random) -> None:
    """A tensor is gone, of another shape or type, not finite; one is added; the header is another."""
    tensors = load_file(path)
    with safe_open(path, "pt") as file:
        header = file.metadata() or {}
    key = chance.choice(list(tensors))
    old = tensors.pop(key)
    new = chance.choice([
        lambda: None, lambda: old[..., None].clone(), lambda: torch.full_like(old.float(), torch.nan),
        lambda: old.float().to(torch.float8_e4m3fn), lambda: old.float().to(torch.float8_e5m2),
        lambda: old.bool(), lambda: old.to(torch.int8), lambda: torch.zeros(0), lambda: old])()
    if new is not None:
        tensors[chance.choice([key, key, key, key + ".x"])] = new
    if header and chance.random() < 0.4:
        name = chance.choice(list(header))
        header[name] = chance.choice(["", "x", "-1", "nan", "[]", "{}", "[" * 50_000, "1e308"])
    path.unlink()
    save_file({k: v.contiguous() for k, v in tensors.items()}, path, chance.choice([header, header, None]))


def table_of(path: Path, chance: random.Random) -> None:
    """Cells of others, rows of another length."""
    lines = path.read_text().splitlines()
    for _ in range(chance.randint(1, 8)):
        row = chance.randrange(len(lines))
        cells = lines[row].split(",")
        cells[chance.randrange(len(cells))] = chance.choice(CELLS)
        lines[row] = ",".join(cells[:chance.randint(1, len(cells))] if chance.random() < 0.3 else cells)
    path.unlink()
    path.write_text("\n".join(lines), errors="surrogatepass")


def mutate(path: Path, chance: random.Random) -> str:
    meant = {".json": json_of, ".jsonl": json_of, ".safetensors": tensors_of, ".csv": table_of}
    how = chance.choice([meant.get(path.suffix, bytes_of)] * 3 + [bytes_of, kind_of])
    how(path, chance)
    return how.__name__


# ------------------------------------------------------------------------------------------------ cases


def copy_run(run: Path, folder: Path, without: str | None = None) -> Path:
    """A copy by links, for what writes replaces files; `without`: a mark, whose stage is then done again."""
    copy = Path(shutil.copytree(run, folder, copy_function=os.link))
    for name in ("log.jsonl", "config.json"):
        (copy / name).unlink()
        shutil.copy(run / name, copy / name)
    if without:
        (copy / without).unlink()
    return copy


STAGES = {"vae": "anchor/vae/config.json", "text": "anchor/model_index.json",
          "diffusion": "anchor/model_index.json", "posture": "rewards/posture/config.json",
          "consistency": "rewards/consistency/config.json", "rl": "cxrl/model_index.json"}


def case(run: Path, folder: Path, chance: random.Random,
         options: list[str]) -> tuple[str, Path, object, list[str]]:
    """-> its name, the file that is changed, and what reads it: a script's main and its arguments."""
    kind = chance.choice(["pipeline", "pipeline", "state", "run", "rewards", "table"])
    if kind == "state":
        name = chance.choice(list(STAGES))
        copy = copy_run(run, folder / "run", STAGES[name])
        stage = {"text": "diffusion", "posture": "rewards", "consistency": "rewards"}.get(name, name)
        return (kind, copy / "state" / f"{name}.safetensors", train.main,
                ["--out", str(copy), *options, "--stage", stage])
    if kind == "table":
        data = folder / "data"
        data.mkdir()
        lines = ["image,report,patient_id,split"]
        for i in range(8):
            Image.effect_noise((32, 32), 40 + i).save(data / f"{i}.png")
            lines.append(f"{i}.png,{'Large left effusion.' if i % 2 else 'No acute disease.'},p{i},")
        (data / "metadata.csv").write_text("\n".join(lines) + "\n")
        file = data / chance.choice(["metadata.csv"] * 4 + ["3.png"])
        return kind, file, train.main, ["--data", str(data), "--out", str(folder / "run"), *options,
                                        "--stage", "vae", "--vae-steps", "1"]
    copy = copy_run(run, folder / "run", "cxrl/model_index.json" if kind == "rewards" else None)
    if kind == "run":
        file = copy / chance.choice(["config.json", "log.jsonl"])
        main, arguments = chance.choice([
            (train.main, ["--out", str(copy), *options, "--stage", "vae"]),
            (evaluate.main, [str(copy), "--reports", "5"]),
            (sample.main, ["No acute disease.", "--run", str(copy), "--out", str(folder / "a.png")])])
        return kind, file, main, arguments
    part = copy / ("rewards" if kind == "rewards" else chance.choice(["anchor", "cxrl"]))
    file = chance.choice(sorted(path for path in part.rglob("*") if path.is_file()))
    if kind == "rewards":
        return kind, file, train.main, ["--out", str(copy), *options, "--stage", "rl", "--rounds", "3"]
    return kind, file, sample.main, ["No acute disease.", "--run", str(copy), "--n", "1", "--steps", "2",
                                     "--out", str(folder / "a.png"), *["--anchor"] * (part.name == "anchor")]


def outcome(main, arguments: list[str], out: Path) -> tuple[int | None, str]:
    """Run main(arguments) as a command in a child -> its status (None: it hung), and what it printed."""
    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (2**34, 2**34))
        resource.setrlimit(resource.RLIMIT_CPU, (LIMIT, LIMIT))
        as_command(main, arguments, out)

    job = Forked(target=limited)
    job.start()
    return job.wait(5 * LIMIT), out.read_text(errors="replace")


def inputs(run: Path, folder: Path, count: int, seed: int, options: list[str]) -> list[str]:
    """A run and the options that made it -> what went wrong with `count` hostile inputs, a line each"""
    wrong = []
    canary = folder / "outside"
    canary.write_text("precious")
    for i in range(seed, seed + count):
        chance, place = random.Random(i), folder / f"case{i}"
        place.mkdir()
        kind, file, main, arguments = case(run, place, chance, options)
        name = f"input {i}, {kind} {file.relative_to(place)}"
        name += f" ({mutate(file, chance)})"
        before = {path for path in place.rglob("*") if path.is_file() and path != file}
        status, text = outcome(main, arguments, folder / "out.txt")
        faults = [fault for fault, true in [
            ("hangs", status is None), ("traceback", "Traceback" in text),
            (f"status {status}", status not in (0, 1, 2, None)),
            ("wrote outside", canary.read_text() != "precious"),
            ("temporary file left", any(place.rglob("*.tmp"))),
            ("lost files", status and any(not path.exists() for path in before))] if true]
        if faults:
            wrong.append(f"{name}: {', '.join(faults)}: {text.strip().splitlines()[-1:]}")
            print(wrong[-1], flush=True)
        shutil.rmtree(place)
    return wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.optim.AdamW([torch.zeros(1)])   # imports for seconds, too
    with tempfile.TemporaryDirectory() as folder:
        run, options = Path(folder, "whole"), small_set(Path(folder, "data"))
        for stage in train.STAGES[:-1]:
            assert start(run, Path(folder, "out.txt"), 1, [*options, "--stage", stage]).wait() == 0
        wrong = inputs(run, Path(folder), args.inputs, args.seed, options)
    print(f"{args.inputs - len(wrong)} of {args.inputs} hostile inputs answered well")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
