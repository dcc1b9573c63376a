"""The public names, and what importing them loads."""

import subprocess
import sys

import psutil
import pytest

from {{ cookiecutter.__package }} import serving

from ..support.compare_page import MODELS
from ..support.processes import replicas_of

PACKAGE = "{{ cookiecutter.__package }}"
NAMES = """
    Answer ApiServer BusyError ChatControls CompareControls DeploymentSettings End
    GenerationError GenerationOptions GradioServer HttpSettings Launch Limits Message Model
    ModelError ModelSettings PANE_STYLES PageOfModels PageSettings Piece PromptError StartError
    State TextGenerationModel chat_panes_of check_prompt connect connect_chat deployments_of
    fan_out main option_controls panes_of readable
""".split()  # noqa: SIM905 - a line for each would bury the rest


def test_the_public_names_are_complete() -> None:
    assert sorted(dir(serving)) == sorted(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_each_public_name_can_be_imported(name: str) -> None:
    assert getattr(serving, name) is not None


@pytest.mark.parametrize(
    ("module", "left_out"),
    [
        ("serving", {"gradio", "ray", "torch", "transformers"}),
        ("serving.base", {"gradio", "ray", "torch", "transformers"}),
        ("serving.protocol", {"gradio", "ray", "torch", "transformers"}),
        ("serving.answers", {"gradio", "ray", "torch", "transformers"}),
        ("serving.engine.engine", {"gradio", "ray"}),
        ("serving.deployments.deployment", {"gradio", "torch", "transformers"}),
        ("app", {"torch", "transformers"}),
    ],
)
def test_importing_a_module_does_not_load_unneeded_libraries(
    module: str, left_out: set[str]
) -> None:
    code = f"import sys, {PACKAGE}.{module}; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert left_out & set(loaded.stdout.split()) == set()


@pytest.mark.served
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells what a process has mapped")
def test_on_ray_no_page_process_loads_torch(words: str) -> None:
    assert words
    pages, models = replicas_of("GradioServer"), replicas_of(MODELS[0])
    assert pages
    assert models
    assert not any(has_mapped("/torch/lib/", each) for each in pages)
    # Gradio is covered above: Ray may reuse the process that built the graph for a model.
    assert all(has_mapped("/torch/lib/", each) for each in models)


def has_mapped(library: str, process: psutil.Process) -> bool:
    return any(library in each.path for each in process.memory_maps())
