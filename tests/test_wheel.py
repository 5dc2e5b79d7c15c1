"""What `make wheel` packs for the workers of a cluster."""

from __future__ import annotations

import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = ("features", "pipelines", "kernels", "model", "flows")


def test_the_wheel_has_every_module_and_every_file_beside_them() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    assert settings["packages"]["find"]["include"] == [f"{package}*" for package in PACKAGES]
    data = settings["package-data"]
    for package in PACKAGES:
        packed = {path for pattern in data.get(package, ()) for path in (ROOT / package).glob(pattern)}
        for path in (ROOT / package).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                assert path.suffix == ".py" or path in packed, path
