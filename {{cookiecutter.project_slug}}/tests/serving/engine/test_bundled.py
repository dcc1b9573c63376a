import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from {{ cookiecutter.__package }}.serving.deployments.settings import ModelSettings
from {{ cookiecutter.__package }}.serving.engine import bundled
from {{ cookiecutter.__package }}.serving.engine.bundled import BUNDLED
from {{ cookiecutter.__package }}.serving.engine.engine import Engine
from {{ cookiecutter.__package }}.serving.pages.settings import Limits
from {{ cookiecutter.__package }}.serving.protocol import GenerationOptions


async def test_the_bundled_model_answers_in_sensible_english() -> None:
    engine = Engine(
        ModelSettings(name="smollm2", source=BUNDLED, temperature=0), Limits(update_seconds=0)
    )
    pieces = [
        piece.text
        async for piece in engine.stream(
            "What is the capital of France?", GenerationOptions(max_new_tokens=20)
        )
    ]
    assert "Paris" in "".join(pieces)
    assert len(pieces) > 3


def test_several_processes_at_once_convert_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    conversions: list[Path] = []

    def convert(_gguf: Path, converted: Path) -> None:
        conversions.append(converted)
        converted.mkdir()

    monkeypatch.setattr(bundled, "HF_HOME", str(tmp_path))
    monkeypatch.setattr(bundled, "_convert", convert)
    with ThreadPoolExecutor(4) as threads:
        directories = set(threads.map(lambda _: bundled.bundled_weights(), range(8)))
    assert directories == set(conversions)
    assert len(conversions) == 1


def test_a_conversion_that_fails_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bundled, "HF_HOME", str(tmp_path))
    monkeypatch.setattr(bundled, "GGUF_FILE", "missing.gguf")
    with pytest.raises(OSError, match="missing"):
        bundled.bundled_weights()
    assert not [path for path in (tmp_path / "converted").iterdir() if path.is_dir()]


def test_finding_the_converted_weights_imports_no_torch() -> None:
    code = (
        "import sys; from {{ cookiecutter.__package }}.serving.engine.bundled import bundled_weights; "
        "bundled_weights(); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0
