"""What an import costs: the command line starts without torch, and the core needs torch, numpy and jaxtyping only."""

import subprocess
import sys
from pathlib import Path

import pytest

import rcnn

SOURCE = Path(__file__).resolve().parents[1] / "src"

WITHOUT_TORCH = """
import sys
import rcnn, rcnn.cli
sys.argv = ["rcnn", "--help"]
try:
    rcnn.cli.main()
except SystemExit as end:
    assert not end.code, end.code
assert "torch" not in sys.modules
"""

ON_A_BARE_MACHINE = """
import importlib, importlib.abc, pkgutil, sys

class Absent(importlib.abc.MetaPathFinder):
    names = {"cv2", "safetensors", "faster_coco_eval", "scipy", "defusedxml", "tyro", "rich", "matplotlib", "msgspec"}
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in self.names:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
top = importlib.import_module(sys.argv[1])
for module in pkgutil.walk_packages(getattr(top, "__path__", []), top.__name__ + "."):
    if "_triton" not in module.name and not module.name.endswith("._native"):
        importlib.import_module(module.name)
"""


def run(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs a program in a fresh interpreter, in which only the working tree's rcnn is found."""
    start = f"import sys; sys.path.insert(0, {str(SOURCE)!r})\n"
    return subprocess.run([sys.executable, "-c", start + program, *arguments], capture_output=True, text=True)


def test_help_does_not_import_torch() -> None:
    done = run(WITHOUT_TORCH)
    assert done.returncode == 0, done.stderr
    assert "train" in done.stdout


@pytest.mark.parametrize("package", ["rcnn.structures", "rcnn.ops", "rcnn.models", "rcnn.training"])
def test_core_needs_torch_numpy_and_jaxtyping_only(package: str) -> None:
    done = run(ON_A_BARE_MACHINE, package)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", rcnn.__all__)
def test_public_names_exist_and_are_documented(name: str) -> None:
    assert getattr(rcnn, name) is not None
    assert name in dir(rcnn)


def test_public_api_is_small() -> None:
    assert len(rcnn.__all__) <= 12


def test_an_unknown_name_is_an_attribute_error_that_lists_the_known_ones() -> None:
    with pytest.raises(AttributeError, match=r"no attribute 'lode'.*load"):
        rcnn.lode  # noqa: B018
