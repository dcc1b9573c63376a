"""A project with the newest release of each library, even above its upper bound."""

import re
import tomllib
from pathlib import Path

from packaging.requirements import Requirement


def lift_bounds(pyproject: Path) -> list[Requirement]:
    """Removes the upper bounds of the libraries, and returns the original requirements."""
    text = pyproject.read_text("utf-8")
    declared = tomllib.loads(text)
    pyproject.write_text(re.sub(r'(?m)^( +".*>=[^",<]+),<[^"]+"', r'\1"', text), "utf-8")
    return [
        Requirement(each)
        for listed in (declared["project"]["dependencies"], *declared["dependency-groups"].values())
        for each in listed
    ]


def versions_beyond(requirements: list[Requirement], lock: Path) -> list[str]:
    """Returns the locked versions that the original requirements did not allow."""
    packages = tomllib.loads(lock.read_text("utf-8"))["package"]
    locked = {each["name"]: each["version"] for each in packages if "version" in each}
    return [
        f"{each} became {locked[each.name]}"
        for each in requirements
        if not each.specifier.contains(locked[each.name], prereleases=True)
    ]
