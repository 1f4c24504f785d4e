"""The command ``genmodel``.

Each verb is a dataclass of settings and a function that takes it; tyro makes the options of the dataclass. Neither is
imported before its verb is asked for, so ``genmodel --help`` does not wait for torch. Settings may also come from a
TOML or JSON file, given as the first argument; options on the command line win over the file.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
import signal
import sys
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Union

from genmodel.errors import ConfigError, DataError, GenmodelError

__all__ = ["ShiftConfig", "from_mapping", "main", "read_config", "shift"]

OK, FAILED, USAGE = 0, 1, 2
INTERRUPTED = 128 + signal.SIGINT


@dataclass(frozen=True)
class Verb:
    """A verb: where its settings and function are, what the help says, and how its result is told."""

    name: str
    config: str
    run: str
    about: str
    positional: tuple[str, ...] = ()
    tell: Callable[[Any], None] | None = None
    progress: tuple[str, Callable[..., None]] | None = None
    """An argument of the function that takes its progress, and what is passed."""


ABOUT = """\
Images from text prompts, by a generator that was trained on images alone.

usage: genmodel VERB [CONFIG.toml] [ARGUMENTS] [OPTIONS]

"""

START = """
Every verb takes --help, and a TOML or JSON file of settings as its first argument; options win over the file.

  genmodel encode photos/ shards/ --tokenizer tokenizer/
  genmodel train train.toml
  genmodel sample run/ --prompt "a red apple" --mass 0.01
  genmodel evaluate run/ --prompts prompts.txt

Exit status: 0 done, 1 failed (the reason is on standard error), 2 a command line that makes no sense.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command line (default: ``sys.argv[1:]``) and returns its exit status.

    0: done. 1: an expected failure, told in one line on standard error. 2: a command line that makes no sense. 130:
    interrupted. Defects of genmodel itself are not caught: their traceback is what a report needs.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help", "help"):
        print(_help())
        return OK if words else USAGE
    if words[0] == "--version":
        from genmodel.version import __version__

        print(f"genmodel {__version__}")
        return OK
    verb, rest = _find(words)
    if verb is None:
        print(f"genmodel: error: expected one of {', '.join(VERBS)}, got {words[0]!r}", file=sys.stderr)
        return USAGE
    try:
        config = _parse(verb, rest)
    except SystemExit as stop:  # tyro has printed its help or its error
        return stop.code if isinstance(stop.code, int) else OK
    except GenmodelError as error:
        return _fail(_message(error), USAGE if isinstance(error, ConfigError) else FAILED)
    return _guarded(lambda: _work(verb, config))


def _work(verb: Verb, config: Any) -> None:
    options = dict([verb.progress]) if verb.progress else {}
    result = _named(verb.run)(config, **options)
    if verb.tell is not None:
        verb.tell(result)
    sys.stdout.flush()


def _guarded(work: Callable[[], None]) -> int:
    try:
        work()
    except KeyboardInterrupt:
        return _fail("interrupted", INTERRUPTED)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader has gone (| head)
        return FAILED
    except (GenmodelError, OSError, MemoryError) as error:
        return _fail(_message(error), FAILED)
    except Exception as error:
        # captree is imported only where it is needed; its errors are known by their module.
        if type(error).__module__ == "captree.errors":
            return _fail(_message(error), FAILED)
        raise
    return OK


def _find(words: list[str]) -> tuple[Verb | None, list[str]]:
    for length in (2, 1):
        name = " ".join(words[:length])
        if len(words) >= length and name in VERBS:
            return VERBS[name], words[length:]
    return None, words


def _help() -> str:
    width = max(len(name) for name in VERBS) + 2
    lines = [f"  {verb.name:{width}}{verb.about}" for verb in VERBS.values()]
    return ABOUT + "\n".join(lines) + "\n" + START.rstrip()


def _named(path: str) -> Any:
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)


def _parse(verb: Verb, words: list[str]) -> Any:
    import tyro

    kind = _named(verb.config)
    default: Any = None
    if words and words[0].lower().endswith((".toml", ".json")) and not words[0].startswith("-"):
        values, words = read_config(Path(words[0])), words[1:]
        default = from_mapping(kind, values, words)
    # Positional arguments cannot be left out, so what a file has given stays an option.
    given = set() if default is None else {n for n in verb.positional if getattr(default, n) is not tyro.MISSING}
    shown = _positional(kind, [name for name in verb.positional if name not in given])
    options: dict[str, Any] = {}
    if default is not None:
        options["default"] = shown(**{f.name: getattr(default, f.name) for f in dataclasses.fields(default) if f.init})
    made = tyro.cli(shown, args=_joined(kind, words), prog=f"genmodel {verb.name}", **options)
    return kind(**{f.name: getattr(made, f.name) for f in dataclasses.fields(kind) if f.init})


def _positional(kind: type, names: Sequence[str]) -> type:
    """The dataclass again, with some fields as positional arguments of the command line."""
    import tyro

    hints = typing.get_type_hints(kind, include_extras=True)
    again = []
    for field in dataclasses.fields(kind):
        if field.name in names:
            same = dataclasses.field(default=field.default, default_factory=field.default_factory)
            shown = tyro.conf.arg(metavar=field.name.upper())
            again.append((field.name, Annotated[hints[field.name], tyro.conf.Positional, shown], same))
    # A subclass, so that the help still finds what is written beside the fields.
    frozen = kind.__dataclass_params__.frozen  # type: ignore[attr-defined]
    made = dataclasses.make_dataclass(kind.__name__, again, bases=(kind,), frozen=frozen)
    made.__doc__ = kind.__doc__
    return made


def _joined(kind: type, words: Sequence[str]) -> list[str]:
    """`words` with the values of options that take several joined: ``--prompt a --prompt b`` is ``--prompt a b``."""
    hints = typing.get_type_hints(kind)
    several = {f"--{name.replace('_', '-')}" for name, hint in hints.items() if typing.get_origin(hint) is tuple}
    kept: list[str] = []
    values: dict[str, list[str]] = {}
    current: list[str] | None = None
    for word in words:
        name, equals, value = word.partition("=")
        name = name.replace("_", "-")
        if name in several:
            current = values.setdefault(name, [])
            if equals:
                current.append(value)
        elif word.startswith("--") or current is None:
            current = None
            kept.append(word)
        else:
            current.append(word)
    return kept + [word for name, given in values.items() for word in (name, *given)]


# ---- settings from files


def read_config(path: Path) -> dict[str, Any]:
    """Settings of a TOML or JSON file.

    Raises:
        DataError: no such file, or not one of these.
    """
    try:
        if path.suffix.lower() == ".json":
            found = json.loads(path.read_text(encoding="utf-8"))
        else:
            import tomllib

            found = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}") from error
    except ValueError as error:
        raise DataError(f"{path}: expected TOML or JSON: {error}") from error
    if not isinstance(found, dict):
        raise DataError(f"{path}: expected a table of settings, got {type(found).__name__}")
    return found


def from_mapping(kind: type, values: Mapping[str, Any], words: Sequence[str] | None = None) -> Any:
    """A dataclass from plain values, such as those of TOML or JSON.

    Args:
        kind: a dataclass; its fields may be dataclasses, paths, tuples, numbers, texts.
        values: by field; a dash in a name stands for an underscore.
        words: on a command line: required fields that are missing here may still come from it.

    Raises:
        ConfigError: unknown or missing names, or values of another type.
    """
    hints = typing.get_type_hints(kind)
    fields = {field.name: field for field in dataclasses.fields(kind) if field.init}
    given = {name.replace("-", "_"): value for name, value in values.items()}
    unknown = sorted(given.keys() - fields.keys())
    if unknown:
        raise ConfigError(f"settings: expected some of {', '.join(fields)}; got {', '.join(unknown)}")
    made = {name: _converted(name, hints[name], value) for name, value in given.items()}
    missing = [
        name
        for name, field in fields.items()
        if name not in made and field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    ]
    if missing and words is None:
        raise ConfigError(f"settings: expected {', '.join(missing)}, got none")
    if not missing:
        return kind(**made)
    import tyro

    # The dataclass's own checks cannot run yet, so a bare one of the same fields holds what there is.
    bare = dataclasses.make_dataclass(kind.__name__, [(name, Any, dataclasses.field(default=None)) for name in fields])
    defaults = {}
    for name, field in fields.items():
        if field.default is not dataclasses.MISSING:
            defaults[name] = field.default
        elif field.default_factory is not dataclasses.MISSING:
            defaults[name] = field.default_factory()
    return bare(**{**dict.fromkeys(missing, tyro.MISSING), **defaults, **made})


def _converted(name: str, hint: Any, value: Any) -> Any:
    """`value` as the type `hint` says; only what a file cannot say (paths, tuples, dataclasses) is converted."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return _converted(name, inner[0], value)
    if origin in (Union, types.UnionType):
        if value is None and type(None) in inner:
            return None
        for choice in inner:
            if choice is not type(None):
                try:
                    return _converted(name, choice, value)
                except ConfigError:
                    continue
    elif origin is typing.Literal:
        if value in inner:
            return value
        raise ConfigError(f"{name}: expected one of {inner}, got {value!r}")
    elif origin is tuple:
        if isinstance(value, (list, tuple)):
            kinds = [inner[0]] * len(value) if inner[-1] is Ellipsis else list(inner)
            if len(kinds) == len(value):
                return tuple(_converted(name, kind, part) for kind, part in zip(kinds, value, strict=True))
    elif origin is not None:
        return value
    elif dataclasses.is_dataclass(hint) and isinstance(hint, type):
        if isinstance(value, Mapping):
            return from_mapping(hint, value)
    elif hint is Path:
        if isinstance(value, str):
            return Path(value)
    elif hint is float:
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return float(value)
    elif hint is Any or (isinstance(hint, type) and type(value) is hint):
        return value
    wanted = getattr(hint, "__name__", str(hint)) if origin is None else str(hint)
    raise ConfigError(f"{name}: expected {wanted}, got {value!r}")


# ---- telling results


def _line(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _step(step: int, loss: float) -> None:
    _line(f"step {step}: loss {loss:.4f}")


def _told_report(report: Any) -> None:
    values = dataclasses.asdict(report) if dataclasses.is_dataclass(report) and not isinstance(report, type) else report
    if isinstance(values, Mapping):
        print(json.dumps(values, indent=1, default=str))


def _told_samples(result: Any) -> None:
    for i, prompt in enumerate(result.prompts):
        inside, cosine = result.in_cap()[i], result.cosines()[i]
        limit = float(result.max_cos_distance[i])
        print(
            f"{prompt.label}: max_cos_distance {limit:.4f}, {int(inside.sum())} of {len(inside)} in the cap, "
            f"mean cosine {cosine.mean():.3f}"
        )
    print(f"{result.path}: {len(result)} images" if result.path else f"{len(result)} images")


def _told_evaluation(report: dict[str, Any]) -> None:
    from genmodel.reports import markdown

    print(markdown(report), end="")


@dataclass
class ShiftConfig:
    """Settings of ``genmodel shift``: the vector from the images to the texts of an embedding space.

    Attributes:
        data: shards of ``genmodel encode``: their embeddings are the images.
        out: the file that is written, .npy.
        prompts: a file with a text per line, of the kind that will be asked for. They need not describe the images.
        encoder: another name or place for the encoder than the one in the shards.
        device: "cpu", "cuda".
    """

    data: Path
    out: Path
    prompts: Path
    encoder: str | None = None
    device: str = "cpu"


def shift(config: ShiftConfig) -> dict[str, Any]:
    """Fits the gap shift and writes it; returns what it is."""
    import numpy as np

    from genmodel import prompts
    from genmodel.encoders import load_encoder
    from genmodel.evaluate import read_prompts
    from genmodel.shards import open_shards

    shards, texts = open_shards(config.data), read_prompts(config.prompts)
    encoder = load_encoder(config.encoder or shards.meta["encoder"], config.device)
    embedded = prompts.unit(encoder.text(list(texts)))
    vector = prompts.fit_shift(embedded, shards.embeddings)
    prompts.save_shift(config.out, vector)
    images = np.asarray(shards.embeddings, np.float64).mean(axis=0)
    return {
        "out": str(config.out),
        "texts": len(texts),
        "images": len(shards.embeddings),
        "length": float(np.linalg.norm(vector)),
        "mean_cosine_before": float((embedded @ images).mean()),
        "mean_cosine_after": float((prompts.shifted(embedded, vector, -1.0) @ images).mean()),
    }


def _message(error: BaseException) -> str:
    """One line: an error's own words; a bare operating system error without its number."""
    if isinstance(error, OSError) and not isinstance(error, GenmodelError) and error.strerror:
        text = f"{error.filename}: {error.strerror}" if error.filename is not None else error.strerror
    else:
        text = str(error) or type(error).__name__
    return " ".join(text.split())


def _fail(message: str, status: int) -> int:
    print(f"genmodel: {message}" if status == INTERRUPTED else f"genmodel: error: {message}", file=sys.stderr)
    return status


VERBS = {
    verb.name: verb
    for verb in (
        Verb(
            "encode",
            "genmodel.encode:EncodeConfig",
            "genmodel.encode:encode",
            "images -> embeddings and image tokens, in Parquet shards",
            ("images", "out"),
            _told_report,
        ),
        Verb(
            "tokenizer train",
            "genmodel.tokenizers.train:TokenizerConfig",
            "genmodel.tokenizers.train:train_tokenizer",
            "a small image tokenizer of your own",
            ("images", "out"),
            _told_report,
        ),
        Verb(
            "train",
            "genmodel.train:TrainConfig",
            "genmodel.train:train",
            "the generator, on caps that are drawn while it trains",
            (),
            _told_report,
        ),
        Verb(
            "sample",
            "genmodel.sample:SampleConfig",
            "genmodel.sample:sample",
            "images for texts and images, as a PNG grid",
            ("checkpoint",),
            _told_samples,
        ),
        Verb(
            "evaluate",
            "genmodel.evaluate:EvaluateConfig",
            "genmodel.evaluate:evaluate",
            "in-cap rate, prompt accuracy, FID, KID, nearest training images",
            ("checkpoint",),
            _told_evaluation,
            ("say", _line),
        ),
        Verb("demo", "genmodel.demo:DemoConfig", "genmodel.demo:demo", "the whole story on a small set of emoji"),
        Verb(
            "second-stage train",
            "genmodel.second_stage:SecondStageConfig",
            "genmodel.second_stage:train_second_stage",
            "a small network that draws an embedding from a cap",
            ("tree", "out"),
            _told_report,
            ("report", _step),
        ),
        Verb(
            "shift",
            "genmodel.cli:ShiftConfig",
            "genmodel.cli:shift",
            "the vector between the images and the texts of an embedding space",
            ("data", "out"),
            _told_report,
        ),
    )
}


if __name__ == "__main__":
    sys.exit(main())
