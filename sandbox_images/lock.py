"""The locked set of packages inside the sandbox, and how imports map to it."""

import re
import sys
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

if TYPE_CHECKING:
    from packaging.requirements import Requirement

HERE = Path(__file__).parent
Flavour = Literal["cpu", "gpu"]
FLAVOURS: tuple[Flavour, ...] = get_args(Flavour)

# Modules whose distribution has another name; what is not here is named like its module.
_DISTRIBUTIONS = {
    "Levenshtein": "levenshtein",
    "PIL": "pillow",
    "attr": "attrs",
    "bs4": "beautifulsoup4",
    "cv2": "opencv-python-headless",
    "dateutil": "python-dateutil",
    "docx": "python-docx",
    "dotenv": "python-dotenv",
    "faiss": "faiss-cpu",
    "fitz": "pymupdf",
    "git": "gitpython",
    "jwt": "pyjwt",
    "mpl_toolkits": "matplotlib",
    "pkg_resources": "setuptools",
    "skimage": "scikit-image",
    "sklearn": "scikit-learn",
    "umap": "umap-learn",
    "yaml": "pyyaml",
}
_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?")
"""Of a distribution (PEP 508); modules may have others."""
_OURS = frozenset({"lab", "ml_utils"})


def canonical(name: str) -> str:
    """A distribution's name as indexes have it (PEP 503); `packaging`, which has this too, takes 10 ms to load."""
    return re.sub(r"[-_.]+", "-", name).lower()


def lock_file(flavour: str) -> Path:
    """The pinned requirements of an image flavour, `cpu` or `gpu`."""
    return HERE / f"{flavour}.txt"


@cache
def locked(flavour: Flavour) -> dict[str, str]:
    """Canonical distribution name → pinned version."""
    lines = lock_file(flavour).read_text().splitlines()
    pins = (re.match(r"([A-Za-z0-9_.-]+)==(\S+)", line) for line in lines)
    return {canonical(pin[1]): pin[2] for pin in pins if pin}


def distribution_of(module: str) -> str | None:
    """The distribution that provides a top-level module; None for the standard library, our own, and what can be none."""
    name = _DISTRIBUTIONS.get(module, module)
    if module in _OURS or module in sys.stdlib_module_names or not _NAME.fullmatch(name):
        return None
    return canonical(name)


def locked_requirements(imports: Iterable[str], flavour: Flavour) -> list[str]:
    """`name==version` of every imported distribution; a bare name where a sandbox of that flavour does not hold it."""
    pins = locked(flavour)
    names = {name for module in imports if (name := distribution_of(module))}
    return [f"{name}=={pins[name]}" if name in pins else name for name in sorted(names)]


def requirements_text(imports: Iterable[str], fetched: Iterable[str], flavour: Flavour) -> str:
    """A requirements.txt of what ran: what was imported from the locked set, and what was `fetched`, with hashes."""
    fetched = list(fetched)
    names = {canonical(re.split("[=<>! ]", line)[0]) for line in fetched}
    held = [line for line in locked_requirements(imports, flavour) if canonical(line.partition("==")[0]) not in names]
    return "".join(f"{line}\n" for line in [*held, *fetched])


def check_requirements(requirements: Iterable[str]) -> None:
    """Raises ValueError on one that is malformed, or names an address: what comes from there is nobody's index to vouch
    for, and pip would build it if it is a source."""
    for text in requirements:
        _requirement(text)


def unmet(requirements: Iterable[str], flavour: Flavour) -> list[str]:
    """Those of `requirements` that the locked set does not satisfy. Raises ValueError as `check_requirements` does."""
    pins = locked(flavour)
    missing = []
    for text in requirements:
        requirement = _requirement(text)
        version = pins.get(canonical(requirement.name))
        if requirement.marker is not None and not requirement.marker.evaluate():
            continue
        if version is None or not requirement.specifier.contains(version, prereleases=True):
            missing.append(text)
    return missing


def _requirement(text: str) -> "Requirement":
    from packaging.requirements import InvalidRequirement, Requirement

    try:
        requirement = Requirement(text)
    except InvalidRequirement as error:
        raise ValueError(f"not a requirement: {text!r} ({str(error).splitlines()[0]})") from None
    if requirement.url or "@" in text:
        raise ValueError(f"not a requirement of an index, but an address: {text!r}")
    if not text.isprintable():
        raise ValueError(f"not a requirement: {text!r} (it is not one line)")
    return requirement


def unmet_imports(imports: Iterable[str], requirements: Iterable[str], flavour: Flavour) -> list[str]:
    """Distributions of `imports` that neither the locked set nor `requirements` name, sorted."""
    named = {canonical(_requirement(text).name) for text in requirements}
    wanted = {name for module in imports if (name := distribution_of(module))}
    return sorted(wanted - locked(flavour).keys() - named)


def stated_requirements(stated: Iterable[str], imports: Iterable[str], flavour: Flavour) -> tuple[str, ...]:
    """Of what an agent says that its code needs, that which can be believed: well-formed, imported, not held already.

    Agents list packages that the code never imports, under names that no index knows, with pins of another year.
    """
    from packaging.requirements import InvalidRequirement, Requirement

    wanted = {distribution_of(module) for module in imports} - locked(flavour).keys()
    found = {}
    for text in stated:
        try:
            requirement = Requirement(text)
        except InvalidRequirement:
            continue
        name = canonical(requirement.name)
        if name in wanted and not requirement.url and len(text) <= 200:
            found[name] = text
    return tuple(found[name] for name in sorted(found))[:50]
