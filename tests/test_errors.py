"""The exception hierarchy, parameter checks, and progress."""

from __future__ import annotations

import inspect
import io
import pickle

import numpy as np
import pytest
from helpers import random_units

import captree
from captree import _core, _params, _progress, errors
from captree.errors import InvalidParameterError, InvalidTypeError, InvalidVectorsError, MemoryLimitError

X = random_units(60, 5)

ALL = [value for _, value in inspect.getmembers(errors, inspect.isclass) if value.__module__ == "captree.errors"]


@pytest.mark.parametrize("error", ALL, ids=lambda error: error.__name__)
def test_hierarchy(error):
    assert issubclass(error, captree.CaptreeError)
    assert error.__doc__
    if error is not captree.CaptreeError:
        builtin = [base for base in error.__mro__ if base.__module__ == "builtins"]
        assert len(builtin) > 3, "also derives from the built-in that fits"
    again = pickle.loads(pickle.dumps(error("what came")))
    assert type(again) is error
    assert str(again) == "what came"


def test_errors_carry_what_they_say():
    error = InvalidParameterError("expected less, got more", parameter="fanout", advice="normalize")
    for same in (error, pickle.loads(pickle.dumps(error))):
        assert (same.problem, same.parameter, same.advice) == ("expected less, got more", "fanout", "normalize")
        assert str(same) == "fanout: expected less, got more; normalize=True scales rows"


def test_errors_of_the_core_carry_the_same():
    with pytest.raises(InvalidVectorsError, match=r"got 60 bad rows of 60.*; normalize=True") as got:
        captree.build(2 * X)
    assert got.value.advice == "normalize"
    with pytest.raises(MemoryLimitError, match=r"expected a memory limit of at least .*; with out=") as got:
        captree.build(X, memory_limit=10)
    assert got.value.advice == "out"
    with pytest.raises(MemoryLimitError):
        captree.build(X).sample((X[:1], [2.0]), 2**61)


def test_limits_are_those_of_the_core():
    limits = _core.limits()
    with pytest.raises(InvalidParameterError, match=f"fanout: .* and {limits['fanout']}, got"):
        captree.build(X, fanout=limits["fanout"] + 1)
    with pytest.raises(InvalidParameterError, match=f"threads: .* and {limits['threads']}, got"):
        captree.build(X, threads=limits["threads"] + 1)
    assert captree.build(X).stats()["leaf_size"] == limits["leaf_size"] == 512
    assert limits["tolerances"]["bfloat16"] == 2**-6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fanout": 1}, "fanout: expected an integer at least 2|fanout: expected an integer between 2"),
        ({"fanout": 0}, "fanout"),
        ({"leaf_size": 0}, "leaf_size: expected an integer at least 1, got 0"),
        ({"storage": "float64"}, 'storage: expected "float16" or "float32", got .*float64'),
        ({"storage": "int8"}, "storage"),
        ({"seed": -1}, "seed: expected an integer between 0"),
        ({"seed": 2**64}, "seed"),
        ({"threads": 0}, "threads: expected an integer between 1"),
        ({"memory_limit": 0}, "memory_limit"),
        ({"memory_limit": "lots"}, r'memory_limit: expected bytes .*"8GiB", got .lots'),
        ({"memory_limit": "8XB"}, "memory_limit"),
        ({"out": ""}, "out: expected a path"),
        ({"out": "a\0b"}, "out: expected a path"),
    ],
)
def test_build_parameters(options, message):
    with pytest.raises(InvalidParameterError, match=message):
        captree.build(X, **options)


@pytest.mark.parametrize(
    "options",
    [
        {"fanout": 4.0},
        {"fanout": True},
        {"leaf_size": "10"},
        {"seed": 0.5},
        {"seed": None},
        {"threads": "2"},
        {"memory_limit": 1.5},
        {"out": 3},
        {"progress": 3},
        {"column": 3},
    ],
    ids=repr,
)
def test_build_parameter_types(options):
    with pytest.raises(InvalidTypeError, match="expected"):
        captree.build(X, **options)


def test_accepted_parameters():
    seed, fanout = np.uint64(2**64 - 1), np.int8(4)
    tree = captree.build(X, seed=seed, fanout=fanout, storage=np.float32, memory_limit="1GiB", threads=np.int64(1))
    assert tree.stats()["seed"] == 2**64 - 1
    assert tree.storage == "float32"
    assert tree.fanout == 4


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1", 1),
        ("1024", 1024),
        ("8GiB", 8 << 30),
        ("8G", 8 << 30),
        ("8 gib", 8 << 30),
        ("8GB", 8 * 10**9),
        (" 1.5KiB ", 1536),
        ("500 MB", 500_000_000),
        ("2T", 2 << 40),
        ("12B", 12),
    ],
)
def test_sizes(text, size):
    assert _params.size_in_bytes("x", text) == size


QUERIES = [
    ("sample", {"k": -1}, InvalidParameterError, "k: expected an integer between 0"),
    ("sample", {"k": 1.0}, InvalidTypeError, "k: expected an integer, got float"),
    ("sample", {"seed": -1}, InvalidParameterError, "seed"),
    ("sample", {"seed": 2**64}, InvalidParameterError, "seed"),
    ("sample", {"seed": "x"}, InvalidTypeError, "seed"),
    ("sample", {"seed": 1.0}, InvalidTypeError, "seed"),
    ("sample", {"method": "fast"}, InvalidParameterError, 'method: expected "exact" or "approximate"'),
    ("sample", {"density_samples": 0, "method": "approximate"}, InvalidParameterError, "density_samples"),
    ("sample", {"threads": 0}, InvalidParameterError, "threads"),
    ("count", {"threads": -1}, InvalidParameterError, "threads"),
    ("count", {"threads": 1.5}, InvalidTypeError, "threads"),
    ("search", {"limit": -1}, InvalidParameterError, "limit"),
    ("search", {"limit": 2.5}, InvalidTypeError, "limit"),
    ("estimate", {"samples": 0}, InvalidParameterError, "samples"),
    ("estimate", {"confidence": 1}, InvalidParameterError, "confidence: expected a number strictly between 0 and 1"),
    ("estimate", {"confidence": 0.0}, InvalidParameterError, "confidence"),
    ("estimate", {"confidence": "0.9"}, InvalidTypeError, "confidence"),
    ("estimate", {"confidence": float("nan")}, InvalidParameterError, "confidence"),
]


@pytest.mark.parametrize(("method", "options", "error", "message"), QUERIES)
def test_query_parameters(tree, caps, method, options, error, message):
    with pytest.raises(error, match=message):
        getattr(tree, method)(caps, **options)


# --- progress ------------------------------------------------------------------------------------------------------


class Terminal(io.StringIO):
    def isatty(self):
        return True


def ticking():
    times = iter(range(10**6))
    return lambda: float(next(times))


def test_plain_lines_off_a_terminal():
    stream = io.StringIO()
    report = _progress.Reporter(stream, every=3, clock=ticking())
    for done in range(0, 11):
        report("split", done, 10)
    report("write", 1, 0)
    report("write", 5, 0)
    report.close()
    lines = stream.getvalue().splitlines()
    assert lines[0].startswith("split    0%  0 / 10")
    assert len([line for line in lines if line.startswith("split")]) == 5
    assert "100%  10 / 10" in stream.getvalue()
    assert lines[-1].startswith("write  5")
    assert "\r" not in stream.getvalue()
    assert "\x1b" not in stream.getvalue()


def test_a_bar_on_a_terminal():
    stream = Terminal()
    report = _progress.Reporter(stream, clock=ticking())
    report("split", 1, 2)
    report("split", 2, 2)
    report("write", 1, 7)
    report.close()
    report.close()
    text = stream.getvalue()
    assert "[============            ]" in text
    assert "[========================]" in text
    assert text.count("\n") == 2
    assert text.startswith("\r\x1b[K")


@pytest.mark.parametrize("kind", [io.StringIO, Terminal])
def test_rate_and_time_left_are_of_this_run(kind):
    """Half of the work was there before: it took no time."""
    stream = kind()
    now = [0.0]
    report = _progress.Reporter(stream, every=3, clock=lambda: now[0])
    for seconds, done in ((0, 5000), (1, 5250), (4, 6000), (10, 7500)):
        now[0] = float(seconds)
        report("pairs", done, 10_000)
    report("reading", 100, 0)
    now[0] = 15.0
    report("reading", 101, 0)
    report.close()
    text = stream.getvalue()
    assert "50%  5,000 / 10,000  0:00\n" in text.replace("\r", "\n")
    assert "60%  6,000 / 10,000  0:04, 250 per second, 0:16 left" in text
    assert "75%  7,500 / 10,000  0:10, 250 per second, 0:10 left" in text
    assert "101  0:05, 0.2 per second" in text


def test_a_broken_stream_does_not_stop_the_work():
    stream = io.StringIO()
    report = _progress.Reporter(stream)
    stream.close()
    report("split", 1, 2)
    report.close()


def test_progress_true_writes_to_standard_error(capsys):
    captree.build(X, progress=True)
    out, err = capsys.readouterr()
    assert out == ""
    assert "reading  100%  60 / 60" in err


def test_progress_false_is_silent(capfd):
    captree.build(X)
    captree.build(X, progress=None)
    assert capfd.readouterr() == ("", "")


def test_progress_callable():
    calls = []
    captree.build(iter([X, X]), progress=lambda *call: calls.append(call))
    assert calls[:2] == [("reading", 60, 0), ("reading", 120, 0)]
    assert all(isinstance(phase, str) and done >= 0 for phase, done, _ in calls)


def test_errors_of_a_progress_callable_come_through():
    def broken(phase, done, total):
        raise ZeroDivisionError("in the callback")

    with pytest.raises(ZeroDivisionError, match="in the callback"):
        captree.build(X, progress=broken)


def test_keyboard_interrupt_from_a_progress_callable():
    def stop(phase, done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        captree.build(X, progress=stop)
