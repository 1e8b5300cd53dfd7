"""What people install: the wheel has every file that the code needs, the source distribution all that makes it and tests it."""

import shutil
import subprocess
import sys
import tarfile
import tomllib
from pathlib import Path
from zipfile import ZipFile

import pytest
from packaging.metadata import Metadata
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[1]
# From a copy, as setuptools leaves folders of its own beside what it builds; the wheel from the source distribution.
BUILD = """
import os, pathlib, tarfile
from setuptools import build_meta
name = build_meta.build_sdist("dist")
tarfile.open(f"dist/{name}").extractall("unpacked", filter="data")
os.chdir(next(pathlib.Path("unpacked").iterdir()))
build_meta.build_wheel("../../dist")
"""


def files_of(folder: Path) -> set[str]:
    """All files below a folder but what running leaves, relative to the root."""
    found = (path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {str(path.relative_to(ROOT)) for path in found if ".egg-info" not in str(path)}


@pytest.fixture(scope="module")
def dist(tmp_path_factory) -> Path:
    copy = tmp_path_factory.mktemp("package") / "copy"
    left_out = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "build", "dist", "runs", "demo-*")
    shutil.copytree(ROOT, copy, ignore=left_out)
    subprocess.run([sys.executable, "-c", BUILD], cwd=copy, check=True, capture_output=True)
    return copy / "dist"


def test_the_wheel_has_every_file_of_the_package_and_nothing_else(dist):
    with ZipFile(next(dist.glob("*.whl"))) as wheel:
        names = {name for name in wheel.namelist() if ".dist-info/" not in name}
        assert names == {name.removeprefix("src/") for name in files_of(ROOT / "src")}
        assert {name for name in names if not name.endswith(".py")} >= {
            "prefinetune/py.typed", "prefinetune/native/kernels.cpp", "prefinetune/report/page.css", "prefinetune/report/page.js",
        }  # fmt: skip
        [points] = [name for name in wheel.namelist() if name.endswith("entry_points.txt")]
        assert "prefinetune = prefinetune.cli:main" in wheel.read(points).decode()


def test_the_metadata_is_valid_and_says_what_the_project_file_says(dist):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    with ZipFile(next(dist.glob("*.whl"))) as wheel:
        [name] = [name for name in wheel.namelist() if name.endswith(".dist-info/METADATA")]
        text = wheel.read(name)
    metadata = Metadata.from_email(text, validate=True)
    assert str(metadata.version) == project["version"]
    assert str(metadata.requires_python) == project["requires-python"]
    needed = {one.name for one in metadata.requires_dist if one.marker is None}
    assert needed == {text.partition(">")[0] for text in project["dependencies"]}
    assert metadata.description_content_type == "text/markdown"
    assert metadata.license_expression == "Apache-2.0"


def test_the_source_distribution_has_what_makes_and_tests_it(dist):
    with tarfile.open(next(dist.glob("*.tar.gz"))) as source:
        names = {name.partition("/")[2] for name in source.getnames()}
    for folder in ("src", "tests", "examples", "docs"):
        assert files_of(ROOT / folder) <= names
    assert {"README.md", "LICENSE", "Makefile", "constraints.txt", "pyproject.toml"} <= names


def test_the_lowest_versions_that_are_tested_are_the_lowest_that_are_accepted():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    accepted = dict(text.split(">=") for text in project["dependencies"])
    del accepted["torch"]
    lines = (ROOT / "constraints-lowest.txt").read_text(encoding="utf-8").splitlines()
    tested = {
        canonicalize_name(name): Version(version) for name, _, version in (line.partition("==") for line in lines if "==" in line)
    }
    assert {name: tested[canonicalize_name(name)] for name in accepted} == {
        name: Version(text) for name, text in accepted.items()
    }
