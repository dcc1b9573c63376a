"""Each command in a document names what there is: programs, options, files, settings, sessions."""

import ast
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from itertools import pairwise
from pathlib import Path

import pytest

from .answers import CHOICES, CONTEXT, TEMPLATE, Answers, every_pair_of_answers, in_words
from .conftest import Render
from .shell import blocks_in, commands_of
from .test_documents import documents

PACKAGE = "our_app"
ADOPTED = "my_app"
"""An app that the reader has, in a package."""
TEMPLATE_DOCUMENTS = [
    path
    for folder in (TEMPLATE, TEMPLATE / "docs")
    for path in sorted(folder.rglob("*.md") if folder.name == "docs" else folder.glob("*.md"))
]
HERE = Path(sys.executable).parent
DISTRIBUTIONS = {"lint-imports": "import-linter", "serve": "ray", "ray": "ray"}
"""Where a program comes from, if its distribution has another name."""
OPTIONS = {
    "cruft check": "",
    "cruft create": "",
    "cruft diff": "",
    "cruft link": "--checkout --extra-context --no-input",
    "cruft update": "--refresh-private-variables --skip-apply-ask",
    "docker build": "--tag",
    "docker buildx": "",
    "docker exec": "--env",
    "docker kill": "--signal",
    "docker logs": "",
    "docker ps": "--all",
    "docker push": "",
    "docker run": "--env --gpus --publish --rm --shm-size --stop-timeout --volume",
    "docker stop": "",
    "docker tag": "",
    "git add": "--all",
    "git apply": "--directory -3",
    "git checkout": "",
    "git clone": "",
    "git commit": "--message --no-verify",
    "git diff": "",
    "git init": "",
    "git push": "",
    "git reset": "--hard",
    "git rev-list": "-n",
    "git rev-parse": "--show-prefix",
    "git revert": "--abort --continue --no-edit",
    "git rm": "",
    "git show": "-R",
    "git tag": "",
    "kubectl apply": "--kustomize",
    "kubectl config": "--current --namespace",
    "kubectl create": "--cert --from-literal --key",
    "kubectl delete": "",
    "kubectl describe": "",
    "kubectl exec": "",
    "kubectl get": "--selector",
    "kubectl kustomize": "",
    "kubectl logs": "--follow --prefix --selector --tail -c",
    "kubectl port-forward": "",
    "kubectl rollout": "",
    "kubectl wait": "--for --timeout",
    "ray get-auth-token": "--generate",
    "ray start": "--address --head --metrics-export-port --port",
    "serve deploy": "",
    "serve run": "",
    "serve status": "",
}
"""The options in use of programs that these tests do not install, by their own documentation."""
OTHERS = {"cat", "cd", "cp", "curl", "cut", "eval", "grep", "ls", "openssl", "pip", "tail"}
OF_RAY_AND_UV = re.compile("RAY_|UV_|FORWARDED_ALLOW_IPS$|HF_TOKEN$")
MADE_LATER = {"uv.lock"}


class UnresolvedError(Exception):
    """A command names something that does not exist."""


@dataclass
class World:
    """What the commands of one document can refer to."""

    project: Path
    packages: set[str]
    made: set[str] = field(default_factory=set)
    variables: set[str] = field(default_factory=set)

    @property
    def declared(self) -> dict[str, dict[str, object]]:
        return tomllib.loads((self.project / "pyproject.toml").read_text("utf-8"))

    def check_path(self, name: str) -> None:
        of_the_project = name.replace("gradio_on_ray", PACKAGE)
        if name not in self.made | MADE_LATER and not (self.project / of_the_project).exists():
            raise UnresolvedError(f"no file {name}")

    def check_module(self, name: str) -> None:
        package, _, rest = name.partition(".")
        if package == ADOPTED:
            return
        folders = {"tests": self.project / "tests", "docs": TEMPLATE / "docs"}
        if package not in self.packages:
            raise UnresolvedError(f"no module {name}")
        inside = folders.get(package, self.project / "src" / PACKAGE)
        path = inside.joinpath(*rest.split(".") if rest else ["__main__"])
        if not path.with_suffix(".py").is_file():
            raise UnresolvedError(f"no module {name}")


@pytest.mark.parametrize("answers", every_pair_of_answers(), ids=in_words)
def test_every_command_in_a_projects_document_can_be_resolved(
    answers: Answers, rendered: Render
) -> None:
    project = rendered(project_slug="our-app", **answers)

    found = [
        (document.name, each)
        for document in documents(project)
        for each in unresolved(document, World(project, {PACKAGE, "tests"}))
    ]
    assert found == []


@pytest.mark.parametrize("document", TEMPLATE_DOCUMENTS, ids=lambda path: path.name)
def test_every_command_in_the_templates_documents_can_be_resolved(
    document: Path, rendered: Render
) -> None:
    page = "chat" if document.name == "chat.md" else "compare"
    project = rendered(
        project_slug="our-app", page=page, votes=True, deploy="kubernetes", ci="github"
    )
    packages = {PACKAGE, "our_chat", "gradio_on_ray", "package", "tests", "docs"}

    assert list(unresolved(document, World(project, packages))) == []


@pytest.mark.parametrize(
    ("block", "complaint"),
    [
        ("uv run python -m our_app srve config/local.yaml", "no command srve"),
        ("uv run python -m our_app --metric-port 8080", "no option --metric-port"),
        ("uv run python -m our_app serve config/prod.yaml", "no file config/prod.yaml"),
        ("uv run python -m our_app.prewiew", "no module our_app.prewiew"),
        ("uv run python -m your_app", "no module your_app"),
        ("uv run --only-group loads locust --host URL", "no group loads"),
        ("uv sync --extra oidcs", "no extra oidcs"),
        ("uv sinc", "no command uv sinc"),
        ("uv run --no-devel pytest", "no option --no-devel"),
        ("uv run pytest -m 'not serving'", "no marker serving"),
        ("uv run pytest --ignored tests", "no option --ignored"),
        ("uv run pytest tests/test_pages.py", "no file tests/test_pages.py"),
        ("uv run pylint", "no dependency pylint"),
        ("uv run serve run our_app.app:page", "no page in our_app.app"),
        ("uv run serve redeploy config/local.yaml", "no command serve redeploy"),
        (
            "git show HEAD~1:config/local.yaml > old.yaml && uv run serve deploy new.yaml",
            "new.yaml",
        ),
        ("export PAGE_PASSWROD=whale", "no variable PAGE_PASSWROD"),
        ("PAGE_SECRETS=$(openssl rand -hex 32) uv run pytest", "no variable PAGE_SECRETS"),
        ("nox -s demos", "no session demos"),
        ("nox --sessions demo", ""),
        ("uvx cookiecutter gh:org/gradio-ray-template page=chart", "no answer page=chart"),
        ("uvx cookiecutter gh:org/gradio-ray-template pages=chat", "no question pages"),
        ("uvx cruft upgrade", "no command cruft upgrade"),
        ("kubectl apply --kustomize deploy/kubernetes/overlays/prod", "overlays/prod"),
        ("kubectl create secret tls their-tls --cert a --key b", "no their-tls in deploy/"),
        ("kubectl exec POD -- serve state", "no command serve state"),
        ("docker run --publish 8000:9000 our-app", "no port 9000"),
        ("docker compose up", "no command docker compose"),
        ("docker run --publsh 8000:8000 our-app", "no option --publsh of docker run"),
        ("sh deploy/kubernetes/aply.sh production", "no file deploy/kubernetes/aply.sh"),
        ("mke build", "no program mke"),
        ("""curl --data '{"prompt": }' $api/v2/generate""", "no JSON"),
        ("curl $api/v2/generates", "no endpoint generates"),
        ("curl $apis/v2/generate", "no variable apis"),
        ("uv run 'pytest", "No closing quotation"),
    ],
)
def test_a_command_that_names_what_does_not_exist_is_found(
    block: str, complaint: str, rendered: Render, tmp_path: Path
) -> None:
    project = rendered(project_slug="our-app", deploy="kubernetes")
    document = tmp_path / "page.md"
    document.write_text(f"```sh\napi=http://127.0.0.1\n{block}\n```\n", "utf-8")

    found = list(unresolved(document, World(project, {PACKAGE})))
    assert len(found) == bool(complaint)
    assert complaint in "".join(found)


def unresolved(document: Path, world: World) -> Iterator[str]:
    """Yields each block of commands that names what does not exist, with the reason."""
    for block in blocks_in(document):
        try:
            for command in commands_of(block):
                for name in command.variables:
                    check_variable(name, world)
                if command.words:
                    check(command.words, world)
                world.made.update([command.writes] if command.writes else [])
        except (UnresolvedError, ValueError) as error:
            yield f"{block.strip()}: {error}"


def check_variable(name: str, world: World) -> None:
    if name.islower():
        world.variables.add(name)
    elif not (
        OF_RAY_AND_UV.match(name)
        or name in text_below(world.project / "src")
        or f"_variable: {name}" in text_below(world.project, "*.md")
    ):
        raise UnresolvedError(f"no variable {name}")


def check(words: list[str], world: World) -> None:
    match words:
        case ["uv", "run", *rest]:
            check_uv_run(rest, world)
        case ["uv", command, *rest]:
            check_options(["uv", command], rest)
            check_groups(rest, world)
        case ["uvx", tool, *rest]:
            check([tool.partition("[")[0], *rest], world)
        case ["nox", *rest]:
            check_nox(rest)
        case ["cookiecutter", *rest]:
            check_options(["cookiecutter"], rest)
            check_answers(rest)
        case ["python", "-m", module, *rest]:
            world.check_module(module)
            if "." not in module:
                check_arguments(rest, world)
        case ["python", "-c", code]:
            ast.parse(code)
        case ["python", path, *_] if path.endswith(".py"):
            World(TEMPLATE, set()).check_path(path)
        case ["pytest", *rest]:
            check_pytest(rest, world)
        case ["sh", "-c", code]:
            for inner in commands_of(code):
                check(inner.words, world)
        case ["sh", path, *_]:
            world.check_path(path)
        case ["curl", *rest]:
            check_curl(rest, world)
        case ["docker" | "git" | "kubectl" | "ray" | "serve" | "cruft" as program, command, *rest]:
            check_known(program, command, rest, world)
        case [program, *_] if words != ["python", "-m"] and program not in OTHERS:
            raise UnresolvedError(f"no program {program}")


def check_uv_run(words: list[str], world: World) -> None:
    options, program = split_options(words, {"--only-group", "--group", "--extra", "--project"})
    check_options(["uv", "run"], options)
    check_groups(options, world)
    match program:
        case ["python" | "pytest", *_]:
            check(program, world)
        case [name, *_]:
            text = (world.project / "pyproject.toml").read_text("utf-8")
            if not re.search(rf'"{DISTRIBUTIONS.get(name, name)}[\[>]', text):
                raise UnresolvedError(f"no dependency {name}")
            if name in ("ray", "serve"):
                check(program, world)


def check_groups(words: list[str], world: World) -> None:
    declared = world.declared
    kinds = {
        "--extra": ("extra", declared["project"]["optional-dependencies"]),
        "--group": ("group", declared["dependency-groups"]),
        "--no-group": ("group", declared["dependency-groups"]),
        "--only-group": ("group", declared["dependency-groups"]),
    }
    for option, name in pairwise(words):
        kind, names = kinds.get(option, ("", ()))
        if kind and isinstance(names, dict) and name not in names:
            raise UnresolvedError(f"no {kind} {name}")


def check_nox(words: list[str]) -> None:
    nox, answers = split_at(words, "--")
    check_options(["nox"], nox)
    sessions = re.findall(r"(?m)^@nox\.session.*\ndef (\w+)", (TEMPLATE / "noxfile.py").read_text())
    named = [word for word in nox if not word.startswith("-")]
    for name in named:
        if name not in sessions:
            raise UnresolvedError(f"no session {name}")
    if named == ["demo"]:
        check_answers(answers)


def check_answers(words: list[str]) -> None:
    for word in words:
        question, is_answer, answer = word.partition("=")
        if not is_answer or word.startswith("-"):
            continue
        if question not in CONTEXT:
            raise UnresolvedError(f"no question {question}")
        if question in CHOICES and answer not in map(str, CHOICES[question]):
            raise UnresolvedError(f"no answer {word}")


def check_arguments(words: list[str], world: World) -> None:
    """Checks those of the project's own command."""
    declared = arguments_of(world.project / "src")
    for position, word in enumerate(words):
        if word.startswith("--") and word not in declared:
            raise UnresolvedError(f"no option {word}")
        if position == 0 and not word.startswith("-") and word not in declared:
            raise UnresolvedError(f"no command {word}")
        if word.endswith(".yaml"):
            world.check_path(word)


@cache
def arguments_of(source: Path) -> set[str]:
    """Returns the commands and options that the code below a folder declares to argparse."""
    commands = re.findall(r'add_parser\(\s*"(\w+)"', text_below(source))
    # Options may be declared in a loop, so each string of their form counts.
    return {*commands, *re.findall(r'"(--[a-z-]+)"', text_below(source))}


def check_pytest(words: list[str], world: World) -> None:
    check_options(["pytest"], words)
    tool = world.declared["tool"]["pytest"]
    assert isinstance(tool, dict)
    markers = {each.partition(":")[0] for each in tool["ini_options"]["markers"]}
    for option, value in pairwise(["", *words]):
        if option == "-m":
            for name in set(re.findall(r"\w+", value)) - {"not", "and", "or"} - markers:
                raise UnresolvedError(f"no marker {name}")
        elif value.startswith("tests/"):
            world.check_path(value)


def check_curl(words: list[str], world: World) -> None:
    for option, value in pairwise(words):
        if option == "--data":
            try:
                json.loads(value)
            except ValueError as error:
                raise UnresolvedError(f"no JSON: {error}") from None
    for word in words:
        for name in re.findall(r"\$(\w+)", word):
            if name not in world.variables:
                raise UnresolvedError(f"no variable {name}")
        if called := re.match(r"\$api/(?:v2/)?(\w+)", word):
            source = text_below(world.project / "src") + text_below(world.project / "docs")
            if not re.search(rf'def {called[1]}\(|"{called[1]}"', source):
                raise UnresolvedError(f"no endpoint {called[1]}")


def check_known(program: str, command: str, words: list[str], world: World) -> None:
    name = f"{program} {command}"
    if name not in OPTIONS:
        raise UnresolvedError(f"no command {name}")
    words, inner = split_at(words, "--")
    if name == "docker exec":
        words, inner = split_at(words, "CONTAINER")
    if command == "exec":
        check(inner, world)
    known = OPTIONS[name].split()
    for option in (word.partition("=")[0] for word in words if re.match("--?[A-Za-z0-9]", word)):
        if option not in known and not re.fullmatch(r"-?\d+", option):
            raise UnresolvedError(f"no option {option} of {name}")
    deployed = text_below(world.project / "deploy")
    match [command, *words]:
        case ["apply" | "kustomize", "--kustomize", folder]:
            world.check_path(f"{folder}/kustomization.yaml")
        case ["create", "secret", "tls", secret, *_] if secret not in deployed:
            raise UnresolvedError(f"no {secret} in deploy/")
        case ["run", *_] if program == "docker":
            served = text_below(world.project / "config") + text_below(world.project, "Dockerfile")
            for port in re.findall(r"--publish (?:[\d.]+:)?\d+:(\d+)", " ".join(words)):
                if port not in served:
                    raise UnresolvedError(f"no port {port}")
        case ["run" | "deploy", target] if program == "serve":
            check_application(target, world)
        case ["show", revision, *_] if ":" in revision:
            world.check_path(revision.partition(":")[2])


def check_application(target: str, world: World) -> None:
    module, is_import, name = target.partition(":")
    if not is_import:
        world.check_path(target)
        return
    world.check_module(module)
    path = world.project / "src" / PACKAGE / f"{module.partition('.')[2]}.py"
    if not re.search(rf"(?m)^{name}\b.*=|^def {name}\(", path.read_text("utf-8")):
        raise UnresolvedError(f"no {name} in {module}")


def check_options(command: list[str], words: list[str]) -> None:
    """Checks the options of a program by what its own help says."""
    said = help_of(*command)
    for word in words:
        option = word.partition("=")[0]
        if word.startswith("-") and not re.search(rf"(?<![\w-]){re.escape(option)}(?![\w-])", said):
            raise UnresolvedError(f"no option {option}")


@cache
def help_of(program: str, *command: str) -> str:
    words = [str(HERE / program), *command, "--help"]
    asked = subprocess.run(words, capture_output=True, text=True, check=False, timeout=120)
    if asked.returncode:
        raise UnresolvedError(f"no command {' '.join((program, *command))}")
    return asked.stdout


def split_options(words: list[str], with_value: set[str]) -> tuple[list[str], list[str]]:
    """Splits the options in front of a program from it."""
    position = 0
    while position < len(words) and words[position].startswith("-"):
        position += 2 if words[position] in with_value else 1
    return words[:position], words[position:]


def split_at(words: list[str], mark: str) -> tuple[list[str], list[str]]:
    position = words.index(mark) if mark in words else len(words)
    return words[:position], words[position + 1 :]


@cache
def text_below(folder: Path, pattern: str = "*") -> str:
    return "\n".join(
        path.read_text("utf-8", errors="replace")
        for path in sorted(folder.rglob(pattern))
        if path.is_file()
    )
