"""README.md: short enough to be read, and nothing in it is out of date."""
import re
import shlex

import pytest
from conftest import ROOT

from training.options import parse

README = (ROOT / "README.md").read_text()
COMMANDS = [line for block in re.findall(r"```\n(.*?)```", README, re.S) for line in block.splitlines()]
# Which test runs a command of README in smoke size, by its script and first flag.
RUN_BY = {"train.py": "test_train.py", "train.py --data": "test_train.py", "sample.py": "test_train.py",
          "train.py --preset": "test_road.py", "evaluate.py": "test_train.py", "pytest": "test_readme.py"}


def words(command: str) -> list[str]:
    return shlex.split(command.split("&&")[-1])


def test_readme_is_read_in_a_few_minutes():
    """900 words, tables and commands included."""
    assert len(README.split()) <= 900


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_one_that_a_test_runs(command):
    """train.py takes its flags, and the test file named for it runs the like in smoke size."""
    script, *rest = [word for word in words(command) if word not in ("python", "-m")]
    flags = [word for word in rest if word.startswith("--")]
    key = f"{script} {flags[0]}" if flags and f"{script} {flags[0]}" in RUN_BY else script
    test = ROOT / "tests" / RUN_BY[key]
    assert script.removesuffix(".py") in test.read_text()
    if script == "train.py" and "--init" not in rest:
        parse(rest)


def test_every_file_named_is_there():
    """Paths in links and in code that look like the project's own."""
    named = set(re.findall(r"\]\(([^):]+)\)|`([a-z_/]+\.(?:py|md|txt))`", README))
    for path in filter(None, sum(named, ())):
        folders = ("", "chests/", "evaluation/", "training/", "storage/", "pretrained/")
        assert any((ROOT / folder / path).exists() for folder in folders), path
    assert set(re.findall(r"`([a-z]+)/`", README)) <= {p.name for p in ROOT.iterdir()} | {"cxrl"}
