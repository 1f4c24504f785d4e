"""What is installed and what is shipped: the typed package, its data, its licences, and nothing else.

The archives are looked for in the folder named by CAPTREE_DIST, or else where `make test` packs its wheel.
"""

import email
import os
import subprocess
import sys
import tarfile
import zipfile
from importlib import metadata, resources
from pathlib import Path

import pytest

import captree

ROOT = Path(__file__).parents[1]
DIST = ROOT / os.environ.get("CAPTREE_DIST", "build/wheel")


def archive(pattern: str) -> Path:
    found = sorted(DIST.glob(pattern))
    if not found:
        pytest.skip(f"no {pattern} in {DIST.name}/: `make wheel` makes one")
    return found[-1]


def test_one_version() -> None:
    from captree import _core

    assert captree.__version__ == _core.__version__ == metadata.version("captree")


def test_every_public_name_exists_and_is_documented() -> None:
    assert captree.__all__
    for name in captree.__all__:
        value = getattr(captree, name)
        if callable(value):
            assert value.__doc__, f"captree.{name} has no docstring"


def test_typing_markers_and_data_are_installed() -> None:
    package = resources.files("captree")
    for name in ("py.typed", "_core.pyi", "data/wordnet30k.npz", "data/LICENSES.md"):
        assert package.joinpath(name).is_file(), f"{name} is missing"


def test_numpy_is_the_only_requirement() -> None:
    requirements = metadata.requires("captree") or []
    needed = [r for r in requirements if "extra ==" not in r]
    assert [r.split(">")[0] for r in needed] == ["numpy"]


def test_import_needs_nothing_but_numpy() -> None:
    """Optional packages are imported where they are used; a plain `import captree` must not pull them in."""
    optional = ["pyarrow", "matplotlib", "torch", "cupy", "scipy", "hypothesis", "ml_dtypes"]
    code = f"import sys, captree; print([name for name in {optional} if name in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_import_works_where_the_optional_packages_are_missing() -> None:
    blocked = "import sys; sys.modules.update(dict.fromkeys(['pyarrow', 'matplotlib', 'torch', 'cupy']))"
    code = f"{blocked}; import captree.testing; print(len(captree.build(captree.testing.clip_like(50, 8, seed=0))))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert out.stderr == ""
    assert out.stdout.strip() == "50"


def test_wheel_holds_what_it_should() -> None:
    wheel = archive("*.whl")
    assert "cp311-abi3" in wheel.name
    with zipfile.ZipFile(wheel) as file:
        names = set(file.namelist())
        info = next(name for name in names if name.endswith(".dist-info/METADATA"))
        entry_points = file.read(info.replace("METADATA", "entry_points.txt")).decode()
        described = email.message_from_bytes(file.read(info))
    for name in ("__init__.py", "py.typed", "_core.pyi", "data/wordnet30k.npz", "data/LICENSES.md"):
        assert f"captree/{name}" in names
    assert sum(name.startswith("captree/_core.") and name.endswith((".so", ".pyd")) for name in names) == 1
    for licence in ("LICENSE-MIT", "LICENSE-APACHE"):
        assert any(name.endswith(f"licenses/{licence}") for name in names), f"{licence} is missing"
    assert "captree=captree.cli:main" in entry_points.replace(" ", "")
    assert described["License-Expression"] == "MIT OR Apache-2.0"
    assert described["Requires-Python"] == ">=3.11"
    assert described.get_payload(), "the readme is the long description"

    top = {name.split("/")[0] for name in names}
    assert top == {"captree", info.split("/")[0]}, "only the package itself is installed"
    assert not [name for name in names if "__pycache__" in name or name.endswith(".pyc")]


def test_sdist_can_be_built_from() -> None:
    with tarfile.open(archive("*.tar.gz")) as file:
        names = {name.partition("/")[2] for name in file.getnames()}
    for name in ("Cargo.toml", "Cargo.lock", "pyproject.toml", "README.md", "LICENSE-MIT", "LICENSE-APACHE"):
        assert name in names
    for name in ("captree-core/Cargo.toml", "captree-core/src/lib.rs", "python/captree/__init__.py"):
        assert name in names
    assert not [name for name in names if name.endswith(".so") or "__pycache__" in name]
