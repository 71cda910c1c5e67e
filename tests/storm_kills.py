"""A storm of kills: `python train.py` is killed again and again, at moments of its writing, until it ends.

    python tests/storm_kills.py [--storms 3] [--kills 1000] [--ranks 1 | --full] [--seed 0]

In each storm one run on a few images in a folder, all stages. A kill comes some file events after a start,
mostly SIGKILL, now and then SIGTERM or Ctrl-C; with --ranks 2 it hits one of torchrun's processes. With
--checkpoints SIGKILL comes also as soon as a stage has its first checkpoint, beside the --kills. With
--full it is no kill: from that moment on no file may grow beyond some size, as on a full disk, and the run
has to end in one line that names the file. In the end the run has to be the uninterrupted one's: weights,
evaluation, pictures and log bit for bit (times left out), nothing half written. A run of one process is
forked after the slow imports, which change nothing.
"""
import argparse
import json
import multiprocessing
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from conftest import ROOT, SMOKE
from PIL import Image
from safetensors.torch import load_file

import data
import evaluate
import train
from storage import command as commands

TIMES = {"time", "images_per_second", "seconds", "out"}   # what may differ
STATUS = {signal.SIGKILL: (-9, 137), signal.SIGTERM: (143,), signal.SIGINT: (130,)}
STAGES = {"vae", "text", "diffusion", "posture", "diagnosis", "consistency", "rwr", "rl"}   # with a state
FEW = ["--vae-steps", "4", "--vae-batch", "2", "--text-steps", "4", "--text-batch", "4", "--diffusion-steps",
       "4", "--diffusion-batch", "2", "--reward-steps", "3", "--reward-batch", "4", "--rwr-steps", "3",
       "--sample-steps", "2", "--rollout-steps", "2"]


def small_set(folder: Path) -> list[str]:
    """Writes a folder of 52 phantoms as a stranger's images -> the arguments of a run on it."""
    chests, lines = data.load("phantom", train_images=52)["train"], ["image,report,split"]
    folder.mkdir()
    for i, (image, report) in enumerate(zip(chests.images(range(52)), chests.reports, strict=True)):
        Image.fromarray(image[0].numpy()).save(folder / f"{i}.png")
        lines.append(f'{i}.png,"{report}",{"test" if i < 20 else "val" if i < 24 else "train"}')
    (folder / "metadata.csv").write_text("\n".join(lines) + "\n")
    return [*SMOKE, *FEW, "--data", str(folder)]


def as_command(main, arguments: list[str], out: Path) -> None:
    """In a child: main(arguments), ended and printed as a command's, through a process that writes it down
    even where this one may not."""
    with open(out, "wb") as file:
        writer = subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=file, start_new_session=True)
    for n in (1, 2):
        os.dup2(writer.stdin.fileno(), n)
    writer.stdin.close()
    sys.stdout, sys.stderr = streams = [open(n, "w", closefd=False) for n in (1, 2)]   # begin wraps
    status = 0
    try:
        commands.begin("again", 1)
        main(arguments)
    except BaseException as error:
        try:
            status = error.code if isinstance(error, SystemExit) else 1
            if not isinstance(error, SystemExit):
                sys.excepthook(type(error), error, error.__traceback__)
        except SystemExit as end:
            status = end.code
    finally:
        for stream in (sys.stdout, sys.stderr, *streams):
            stream.flush()
        os.close(1)
        os.close(2)
        writer.wait()
        os._exit(status if isinstance(status, int) else 1)


class Forked(multiprocessing.get_context("fork").Process):
    """As much of subprocess.Popen as a storm needs"""

    def poll(self) -> int | None:
        return self.exitcode

    def wait(self, timeout: float | None = None) -> int | None:
        """None: it hung, and was killed."""
        self.join(timeout)
        if self.exitcode is None:
            self.kill()
            self.join()
            return None
        return self.exitcode


def start(run: Path, out: Path, ranks: int, arguments: list[str]) -> subprocess.Popen | Forked:
    if ranks == 1:
        job = Forked(target=as_command, args=(train.main, ["--out", str(run), *arguments], out))
        job.start()
        return job
    many = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with open(out, "w") as file:
        return subprocess.Popen([sys.executable, *many, ROOT / "train.py", "--out", run, *arguments],
                                cwd=ROOT, stdout=file, stderr=subprocess.STDOUT, env=environment)


def moment(run: Path) -> list[int]:
    """Changes with every file that appears in the run folder, and with every line of its log."""
    folders = [run, *run.glob("*/"), *run.glob("*/*/")]
    times = [path.stat().st_mtime_ns for path in folders if path.exists()]
    return [*times, (run / "log.jsonl").stat().st_size if (run / "log.jsonl").exists() else 0]


def victim(job: subprocess.Popen, ranks: int, chance: random.Random) -> int | None:
    """The process that is killed: the job itself, or one of torchrun's."""
    if ranks == 1:
        return job.pid
    children = Path(f"/proc/{job.pid}/task/{job.pid}/children")
    pids = [int(pid) for pid in children.read_text().split()] if children.exists() else []
    return chance.choice(pids) if len(pids) == ranks else None


def fill_disk(pid: int, log: Path, chance: random.Random) -> None:
    """From here on no file of the process grows beyond a size, of any kind of its files; a quarter cut a line
    of the log."""
    size = int(10**chance.uniform(0, 6.5))
    if log.exists() and chance.random() < 0.25:
        size = log.stat().st_size + 10
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (size, size))


def checkpoints(run: Path) -> set[str]:
    """Of stages that are begun, or done: their names"""
    return {path.stem for path in run.glob("state/*.safetensors")}


def storm(run: Path, seed: int, args: argparse.Namespace, arguments: list[str]) -> int:
    """Start, kill (or fill the disk), start ... until the run has ended; at most args.kills times, and once
    for each checkpoint -> how many. AssertionError where a process ends otherwise than it should."""
    ranks, full, met, done = args.ranks, args.full, set(), 0
    chance, kills, out = random.Random(seed), args.kills, run.with_name(f"{run.name}.txt")
    while True:
        job, events, before = start(run, out, ranks, arguments), chance.randint(1, 60), []
        number = chance.choice([signal.SIGKILL] * 6 + [signal.SIGTERM, signal.SIGINT] * (ranks == 1))
        first = set()   # checkpoints of stages that had none
        while job.poll() is None and not first and (events or not kills):
            now = moment(run)
            events, before = max(events - (now != before), 0), now
            first = checkpoints(run) - met if args.checkpoints else first
            time.sleep(0.001)
        pause = chance.random() * 0.03
        if first:
            number = signal.SIGKILL
        else:
            time.sleep(pause)
        target = victim(job, ranks, chance) if job.poll() is None else None
        if target is not None and full:
            fill_disk(target, run / "log.jsonl", chance)
        elif target is not None:
            os.kill(target, number)
        status, text = job.wait(timeout=600), out.read_text()
        assert "Traceback" not in text or ranks > 1, text[-3000:]   # torchrun prints its own
        if status == 0:
            assert not args.checkpoints or STAGES <= met, f"met no kill at a checkpoint: {STAGES - met}"
            return done
        if full:
            last = text.splitlines()[-1]
            assert status == 1 and last.startswith("error: ") and str(run) in last, text[-3000:]
            assert not [*run.rglob("*.tmp")], "temporary files are left"
            print("   ", last[7:140])
        assert target is not None, f"ended by itself with {status}: {text[-3000:]}"
        assert full or ranks > 1 or status in STATUS[number], f"{number.name}: {status}: {text[-3000:]}"
        met, done, kills = met | first, done + 1, kills - (not first)


def without_times(value: object) -> object:
    if isinstance(value, dict):
        return {key: without_times(part) for key, part in value.items() if key not in TIMES}
    return value


def content(path: Path) -> object:
    """What has to be equal of a file: tensors, JSON without times, or bytes."""
    if path.suffix == ".safetensors":
        return {key: value.numpy().tobytes() for key, value in load_file(path).items()}
    if path.suffix == ".json":
        return without_times(json.loads(path.read_text()))
    if path.suffix == ".jsonl":
        return [without_times(json.loads(line)) for line in path.read_text().splitlines()]
    if path.suffix == ".html":   # made of what is compared above, times included
        return "</html>" in path.read_text()
    return path.read_bytes()


def differences(run: Path, other: Path) -> list[str]:
    """Names of the files that are not equal in two runs; of state/, which is scratch, temporary files."""
    left = [str(path) for path in (*run.rglob("*.tmp"), *other.rglob("*.tmp"))]
    ours, theirs = ({str(path.relative_to(root)) for path in root.rglob("*")
                     if path.is_file() and path.relative_to(root).parts[0] not in ("state", ".lock")}
                    for root in (run, other))
    return left + sorted(ours ^ theirs) + [name for name in sorted(ours & theirs)
                                           if content(run / name) != content(other / name)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--storms", type=int, default=3)
    parser.add_argument("--kills", type=int, default=1000, help="at most, in a storm")
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--checkpoints", action="store_true", help="kills at these, too")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.optim.AdamW([torch.zeros(1)])   # imports for seconds, too
    evaluate.FID_RESAMPLES, evaluate.SSIM_REPORTS = 20, 4   # of 200 and 64
    with tempfile.TemporaryDirectory() as folder:
        whole, arguments = Path(folder, "whole"), small_set(Path(folder, "data"))
        out = Path(folder, "whole.txt")
        assert start(whole, out, args.ranks, arguments).wait() == 0, out.read_text()
        equal = kills = 0
        for seed in range(args.seed, args.seed + args.storms):
            run = Path(folder, f"storm{seed}")
            try:
                count = storm(run, seed, args, arguments)
                wrong = differences(run, whole)
            except AssertionError as error:
                count, wrong = 0, [str(error)]
            kills, equal = kills + count, equal + (not wrong)
            print(f"storm {seed}: {count} kills, {'equal' if not wrong else wrong}", flush=True)
    print(f"{equal} of {args.storms} runs bit for bit after {kills} kills")
    sys.exit(equal < args.storms)


if __name__ == "__main__":
    main()
