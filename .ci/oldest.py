"""Prints the lower bounds of pyproject.toml as constraints for pip."""

import pathlib
import re
import tomllib

project = tomllib.loads(pathlib.Path("pyproject.toml").read_text())["project"]
extras = project["optional-dependencies"]
names = [*project["dependencies"]]
for extra in ("data", "molecules", "plots", "sklearn"):
    names += extras[extra]
for requirement in names:
    name, bound = re.match(r"([\w.-]+)>=([\w.]+)", requirement).groups()
    print(f"{name}=={bound}")
