"""What can be mended in an agent's code without a model, before a container is spent on it."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from packaging.requirements import InvalidRequirement, Requirement

from executor.experiment import Experiment
from executor.imports import SourceReport, check_source, needed_imports, read_apart
from orchestrator.agents.answers import strip_fences
from sandbox_images.lock import Flavour, canonical, distribution_of, locked, stated_requirements

_MAX_REQUIREMENTS = 50
_ENDS_COMMAND = {"&&", "||", ";", "|", "&", ">", ">>", "2>&1"}
_TAKES_VALUE = {
    "-r", "--requirement", "-c", "--constraint", "-e", "--editable", "-t", "--target", "-i", "--index-url",
    "--extra-index-url", "-f", "--find-links", "--trusted-host", "--timeout", "--retries", "--prefix", "--root", "--src",
}  # fmt: skip

# Runs in a process of its own. `pip install` lines of notebooks become comments; calls that run pip become a value such
# as they would have returned. What they install is listed word by word, "" for a word that only running would tell.
_LIFT = r"""
import ast, json, re, shlex, sys, warnings
warnings.simplefilter("ignore")
source = sys.stdin.buffer.read().decode("utf-8", "surrogatepass")
installs, lines = [], source.split("\n")
magic = re.compile(r"^([ \t]*)[!%][ \t]*(?:python3?[ \t]+-m[ \t]+)?pip3?[ \t]+install\b(.*)$")
for number, line in enumerate(lines):
    found = magic.match(line)
    if found:
        try:
            installs.append(shlex.split(found[2], comments=True))
        except ValueError:
            installs.append(found[2].split())
        lines[number] = found[1] + "pass  # installed beforehand:" + found[2]
source = "\n".join(lines)
DONE = '__import__("types").SimpleNamespace(returncode=0, stdout="", stderr="", wait=lambda: 0, communicate=lambda: ("", ""))'
VALUES = {"system": "0", "call": "0", "check_call": "0", "check_output": 'b""', "run": DONE, "Popen": DONE,
          "getoutput": '""', "main": "0"}

def text_of(node):
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(text_of(part) if isinstance(part, ast.Constant) else "\0" for part in node.values)
    return "\0"

def words_of(node):
    if isinstance(node, (ast.List, ast.Tuple)):
        return [text_of(part) for part in node.elts]
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return words_of(node.left) + words_of(node.right)
    text = text_of(node)
    try:
        return shlex.split(text)
    except ValueError:
        return text.split()

def installed(call):
    words = [word for part in call.args[:1] for word in words_of(part)]
    for index in range(len(words) - 1):
        if re.fullmatch(r"(.*/)?pip3?", words[index]) and words[index + 1] == "install":
            return words[index + 2:]
    direct = isinstance(call.func, ast.Attribute) and call.func.attr == "main"
    return words[1:] if direct and words[:1] == ["install"] else None

try:
    tree = ast.parse(source)
    raw, spans = source.encode("utf-8", "surrogatepass").split(b"\n"), []
    offsets = [0]
    for line in raw:
        offsets.append(offsets[-1] + len(line) + 1)
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Call):
            func = node.func
            name = func.attr if isinstance(func, ast.Attribute) else func.id if isinstance(func, ast.Name) else ""
            words = installed(node) if name in VALUES else None
            if words is not None:
                installs.append(["" if "\0" in word else word for word in words])
                start, end = (offsets[l - 1] + c for l, c in
                              ((node.lineno, node.col_offset), (node.end_lineno, node.end_col_offset)))
                spans.append((start, end, VALUES[name].encode()))
                continue
        waiting += ast.iter_child_nodes(node)
    whole = b"\n".join(raw)
    for start, end, value in sorted(spans, reverse=True):
        whole = whole[:start] + value + whole[end:]
    source = whole.decode("utf-8", "surrogatepass")
except (SyntaxError, ValueError, RecursionError, MemoryError):
    pass
print(json.dumps({"code": source, "installs": installs}))
"""


@dataclass(frozen=True)
class Mended:
    """Code that can be tried."""

    code: str
    requirements: tuple[str, ...]
    """What the code would have installed by itself."""
    notes: tuple[str, ...]
    """What was done to it, one line each."""


def mend(answer: str) -> Mended:
    """Takes code out of Markdown, and its own calls of pip out of the code."""
    code, notes = strip_fences(answer), []
    if "```" in answer and check_source(answer).error is None:
        code = answer.strip("\r\n") + "\n"  # a program that speaks of Markdown
    elif "```" in answer:
        notes.append("taken out of Markdown")
    if not re.search(r"\bpip3?\b", code):
        return Mended(code, (), tuple(notes))
    said = read_apart(_LIFT, code)
    if not said or not said.get("installs"):
        return Mended(code, (), tuple(notes))
    requirements = tuple(_requirements(said["installs"]))
    notes.append(
        f"its own calls of pip were taken out; they named {', '.join(requirements) or 'nothing that is a package'}"
    )
    return Mended(str(said["code"]), requirements, tuple(notes))


def experiment_of(
    mended: Mended, report: SourceReport, stated: Iterable[str], flavour: Flavour, seed: int
) -> Experiment:
    """What is to be run of a program: with what its agent states and what it would have installed by itself, as far as a
    sandbox of that flavour does not hold it.

    A module that it installs a package of another name for is not looked up by its own name: whoever owns that name on
    the index would be asked in.
    """
    named = {text: canonical(Requirement(text).name) for text in mended.requirements}
    lifted = [text for text, name in named.items() if name not in locked(flavour)]
    known = {distribution_of(module) for module in report.imports}
    strangers = [text for text in lifted if named[text] not in known]
    believed = stated_requirements([*stated, *lifted], report.imports, flavour)
    return Experiment(
        code=mended.code,
        seed=seed,
        requirements=tuple(dict.fromkeys([*believed, *strangers]))[:_MAX_REQUIREMENTS],
        imports=() if strangers else needed_imports(report),
    )


def _requirements(installs: Iterable[list[str]]) -> list[str]:
    """The packages among pip's arguments: no options, no files, no addresses."""
    found: dict[str, None] = {}
    for words in installs:
        skip = False
        for word in words:
            if word in _ENDS_COMMAND:
                break
            if skip or word.startswith("-"):
                skip = not skip and word in _TAKES_VALUE
                continue
            try:
                requirement = Requirement(word)
            except InvalidRequirement:
                continue
            if not requirement.url and len(word) <= 200:
                found[word] = None
    return list(found)[:_MAX_REQUIREMENTS]
