"""Prints, as pip constraints, the lowest version of each direct dependency that pyproject.toml allows (with extras that
are named as arguments)."""

import sys
import tomllib
from pathlib import Path

from packaging.requirements import Requirement

project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
wanted = list(project["dependencies"])
for extra in sys.argv[1:]:
    wanted += project["optional-dependencies"][extra]
for requirement in map(Requirement, wanted):
    floors = [bound.version for bound in requirement.specifier if bound.operator == ">="]
    if len(floors) != 1:
        sys.exit(f"pyproject.toml: {requirement}: one bound of the form >=VERSION is needed, the lowest that is tested")
    if not requirement.marker or requirement.marker.evaluate():
        print(f"{requirement.name}=={floors[0]}")
