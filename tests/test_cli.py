"""The dispatcher: every verb is there, and each kind of failure has its status."""

from importlib import import_module
from types import SimpleNamespace

import pytest

import rcnn
from rcnn import cli


@pytest.mark.parametrize("verb", cli.VERBS)
def test_every_verb_has_a_module_and_help(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert callable(import_module(f"rcnn.commands.{verb}").main)
    with pytest.raises(SystemExit) as stop:
        cli.main([verb, "--help"])
    assert stop.value.code == 0
    assert f"rcnn {verb}" in capsys.readouterr().out


def test_usage_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--help"]) == 0 and cli.main([]) == 2
    assert all(f"  {verb} " in cli.usage() for verb in cli.VERBS)
    assert cli.main(["--version"]) == 0
    assert rcnn.__version__ in capsys.readouterr().out


@pytest.mark.parametrize(
    ("error", "status"), [(ValueError("bad file"), 2), (OSError(28, "disk full"), 1), (KeyboardInterrupt(), 130)]
)
def test_failures_have_a_status_and_a_message(
    error: BaseException, status: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def main(argv: list[str]) -> int:
        raise error

    monkeypatch.setattr(cli, "import_module", lambda name: SimpleNamespace(main=main))
    assert cli.main(["train"]) == status
    message = capsys.readouterr().err
    assert "Traceback" not in message and (status == 130 or str(error) in message)


def test_a_bug_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def main(argv: list[str]) -> int:
        raise RuntimeError("a bug")

    monkeypatch.setattr(cli, "import_module", lambda name: SimpleNamespace(main=main))
    with pytest.raises(RuntimeError, match="a bug"):
        cli.main(["train"])
