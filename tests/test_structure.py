"""The house: ten files at the door, and arrows between all files that run one way."""
import ast
from graphlib import TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DOOR = {"model", "vae", "text_encoder", "ace", "rewards", "rl", "data", "train", "sample", "evaluate"}
ROOMS = ("chests", "evaluation", "pretrained", "storage", "training")


def product() -> dict[str, Path]:
    """module -> file, of all that is imported at run time"""
    files = [*ROOT.glob("*.py"), *(file for room in ROOMS for file in (ROOT / room).glob("[!_]*.py"))]
    return {".".join(file.relative_to(ROOT).with_suffix("").parts): file for file in files}


def arrows() -> dict[str, set[str]]:
    """module -> the project's modules that it imports"""
    modules, found = product(), {}
    for module, file in modules.items():
        names = set()
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        found[module] = names & modules.keys()
    return found


def test_the_top_level_is_the_design_cards():
    assert {file.stem for file in ROOT.glob("*.py")} == DOOR


def test_imports_run_one_way():
    """No circle; the networks know nothing of sampling, and nothing knows of the scripts."""
    found = arrows()
    TopologicalSorter(found).prepare()   # raises CycleError
    for network in ("model", "vae", "text_encoder", "ace", "rewards", "data"):
        assert not found[network] & {"sample", "rl", "train", "evaluate"}, network
    users = {module for module, used in found.items() if "train" in used}
    assert not users and {m for m, used in found.items() if "evaluate" in used} <= {"train"}


def test_files_and_functions_are_short():
    """No file above 500 lines, no function above 60: each is read in one go."""
    for module, file in product().items():
        text = file.read_text()
        assert text.count("\n") <= 500, module
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno - node.lineno < 60, f"{module}.{node.name}"
