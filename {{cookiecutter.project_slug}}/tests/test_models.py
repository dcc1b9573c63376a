"""The models and their prompts. Change it with `models.py`."""

from pathlib import Path

import pytest

from {{ cookiecutter.__package }}.models import MODELS
from {{ cookiecutter.__package }}.serving import (
    GenerationOptions,
    Limits,
    ModelSettings,
)
from {{ cookiecutter.__package }}.serving.engine.engine import Engine

from .support.stand_ins import pieces_of, user


def test_each_model_has_a_unique_name() -> None:
    assert len({model.name for model in MODELS}) == len(MODELS)


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
async def test_each_model_answers_a_prompt(model: ModelSettings, tiny_decoder: Path) -> None:
    """Uses tiny weights instead of the real ones, which quickly answer nonsense."""
    engine = Engine(model.model_copy(update={"source": str(tiny_decoder)}), Limits())
    options = GenerationOptions(max_new_tokens=30)
    pieces = await pieces_of(engine.stream(user("The whale"), options))
    engine.stop()
    assert "".join(piece.text for piece in pieces)
    assert sum(piece.tokens for piece in pieces) <= 30
