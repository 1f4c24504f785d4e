"""The command line: quick help, settings from files, exit statuses, messages without tracebacks."""

import importlib
import importlib.util
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from genmodel import cli
from genmodel.errors import ConfigError, DataError

SAMPLE = importlib.import_module("genmodel.sample")  # the name genmodel.sample is the function
PRESENT = [name for name, verb in cli.VERBS.items() if importlib.util.find_spec(verb.config.partition(":")[0])]


def test_help_names_every_verb_and_does_not_wait_for_torch():
    code = (
        "import sys; from genmodel import cli; status = cli.main(['--help']); "
        "heavy = {'torch', 'captree', 'numpy', 'tyro'} & set(sys.modules); sys.exit(heavy or status)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=_env(), check=False)
    assert ran.returncode == 0, ran.stderr
    for name in cli.VERBS:
        assert f"  {name} " in ran.stdout


def _env():
    return {**os.environ, "PYTHONPATH": os.pathsep.join(part for part in sys.path if part)}


def test_usage_errors(capsys):
    assert cli.main([]) == 2
    assert cli.main(["paint"]) == 2
    assert "expected one of encode" in capsys.readouterr().err
    assert cli.main(["sample"]) == 2
    assert cli.main(["sample", "run", "--nonsense", "1"]) == 2
    assert cli.main(["sample", "run", "--n", "many"]) == 2


def test_version(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("genmodel ")


@pytest.mark.parametrize("name", PRESENT)
def test_every_verb_has_help(name, capsys):
    assert cli.main([*name.split(), "--help"]) == 0
    shown = capsys.readouterr().out
    assert f"genmodel {name}" in shown
    for positional in cli.VERBS[name].positional:
        assert positional.upper() in shown


def test_failures_are_one_line_and_status_1(tmp_path, capsys):
    assert cli.main(["sample", str(tmp_path / "none"), "--out", str(tmp_path / "a.png")]) == 1
    error = capsys.readouterr().err
    assert error.startswith("genmodel: error: no checkpoint at")
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("raised", "status", "said"),
    [
        (ConfigError("expected a, got b"), 1, "expected a, got b"),
        (FileNotFoundError(2, "No such file or directory", "x"), 1, "x: No such file or directory"),
        (MemoryError(), 1, "MemoryError"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_what_is_raised_becomes_a_status(monkeypatch, capsys, raised, status, said):
    def fail(config):
        raise raised

    monkeypatch.setattr(SAMPLE, "sample", fail)
    assert cli.main(["sample", "run"]) == status
    assert said in capsys.readouterr().err


def test_errors_of_captree_are_told_too(monkeypatch, capsys):
    import captree

    def fail(config):
        captree.open("/nowhere")

    monkeypatch.setattr(SAMPLE, "sample", fail)
    assert cli.main(["sample", "run"]) == 1
    assert "/nowhere" in capsys.readouterr().err


def test_defects_are_not_hidden(monkeypatch):
    def fail(config):
        raise AssertionError("a defect")

    monkeypatch.setattr(SAMPLE, "sample", fail)
    with pytest.raises(AssertionError, match="a defect"):
        cli.main(["sample", "run"])


# ---- settings


@pytest.fixture
def seen(monkeypatch):
    """The configuration that the verb sample was called with."""
    caught = []
    monkeypatch.setattr(SAMPLE, "sample", caught.append)
    verb = cli.VERBS["sample"]
    monkeypatch.setitem(cli.VERBS, "sample", cli.Verb(verb.name, verb.config, verb.run, verb.about, verb.positional))
    return caught


def test_options_that_take_several(seen):
    words = ["sample", "run", "--prompt", "a", "--mass", "0.1", "--prompt", "b c", "d", "--mass=0.2", "--n", "3"]
    assert cli.main(words) == 0
    (config,) = seen
    assert config.prompt == ("a", "b c", "d")
    assert config.mass == (0.1, 0.2)
    assert config.n == 3
    assert config.checkpoint == Path("run")


def test_settings_from_a_file_and_options_over_them(tmp_path, seen):
    path = tmp_path / "sample.toml"
    path.write_text('checkpoint = "run"\nprompt = ["a", "b"]\nmass = [0.1]\nbest-of = 4\nguidance = 2\n')
    assert cli.main(["sample", str(path), "--mass", "0.3", "--seed", "7"]) == 0
    (config,) = seen
    assert (config.checkpoint, config.prompt, config.best_of) == (Path("run"), ("a", "b"), 4)
    assert (config.mass, config.seed) == ((0.3,), 7)
    assert config.guidance == 2.0
    assert isinstance(config.guidance, float)


def test_what_a_file_leaves_out_may_come_from_the_command_line(tmp_path, seen):
    path = tmp_path / "sample.json"
    path.write_text('{"prompt": ["a"], "n": 2}')
    assert cli.main(["sample", str(path), "run"]) == 0
    assert (seen[0].checkpoint, seen[0].prompt, seen[0].n) == (Path("run"), ("a",), 2)
    assert cli.main(["sample", str(path)]) == 2


@pytest.mark.parametrize(
    ("text", "status", "said"),
    [
        ("promt = ['a']", 2, "got promt"),
        ("n = 'three'", 2, "n: expected int, got 'three'"),
        ("n = true", 2, "n: expected int, got True"),
        ("prompt = 'a'", 2, "prompt: expected"),
        ("n = ", 1, "expected TOML or JSON"),
    ],
)
def test_files_that_make_no_sense(tmp_path, capsys, text, status, said):
    path = tmp_path / "sample.toml"
    path.write_text(text)
    assert cli.main(["sample", str(path), "run"]) == status
    assert said in capsys.readouterr().err


def test_a_missing_file(capsys):
    assert cli.main(["train", "/nowhere/train.toml"]) == 1
    assert "/nowhere/train.toml: No such file" in capsys.readouterr().err
    with pytest.raises(DataError):
        cli.read_config(Path("/nowhere/train.toml"))


@dataclass
class Inner:
    width: int = 3


@dataclass
class Outer:
    place: Path
    kind: Literal["a", "b"] = "a"
    pair: tuple[float, float] = (1.0, 0.5)
    inner: Inner = field(default_factory=Inner)
    limit: float | None = None
    other: str | None = None


def test_plain_values_become_a_dataclass():
    values = {"place": "x", "kind": "b", "pair": [1, 2], "inner": {"width": 5}, "limit": 2}
    assert cli.from_mapping(Outer, values) == Outer(Path("x"), "b", (1.0, 2.0), Inner(5), 2.0)
    for bad, said in (
        ({}, "expected place"),
        ({"place": 3}, "place: expected Path"),
        ({"place": "x", "kind": "c"}, "kind: expected one of"),
        ({"place": "x", "pair": [1]}, "pair: expected"),
        ({"place": "x", "inner": {"depth": 1}}, "got depth"),
        ({"place": "x", "limit": "wide"}, "limit: expected"),
    ):
        with pytest.raises(ConfigError, match=said):
            cli.from_mapping(Outer, bad)
