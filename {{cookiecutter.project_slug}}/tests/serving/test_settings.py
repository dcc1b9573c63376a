from typing import Any

import pytest
from pydantic import ValidationError

from {{ cookiecutter.__package }}.serving.deployments.settings import (
    ModelSettings,
)
from {{ cookiecutter.__package }}.serving.pages.settings import (
    Limits,
    PageSettings,
)
from {{ cookiecutter.__package }}.serving.protocol import (
    GenerationOptions,
    Message,
    PromptError,
)

THE_REST = {"title": "", "description": "", "models": [{"name": "a", "source": "b"}]}


def test_by_default_answers_have_up_to_100_sampled_tokens_and_no_minimum() -> None:
    options = GenerationOptions()
    assert (options.min_new_tokens, options.max_new_tokens) == (0, 100)
    assert ModelSettings(name="a", source="b").temperature > 0


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"modles": []}, "modles"),
        ({"models": []}, "Add at least one"),
        ({"models": [{"name": "a", "source": "gpt2", "temprature": 1}]}, "temprature"),
        ({"models": [{"name": "a", "source": "gpt2", "temperature": 3}]}, "less than or equal"),
        ({"models": [{"name": "a b", "source": "gpt2"}]}, "match pattern"),
        ({"models": [{"name": "GradioServer", "source": "gpt2"}]}, "the page's name"),
        ({"models": [{"name": "a", "source": "gpt2"}] * 2}, "two models have the same name"),
        ({"models": [{"name": "a", "source": "gpt2", "prompt": "Say"}]}, "must contain {prompt}"),
        ({"options": {"max_new_tokens": 600}}, "over limits.new_tokens"),
        ({"openai_api": "with-keys"}, "openai_api"),
        ({"openai_api": "without-keys", "login_user": "ada"}, "cannot be combined"),
        ({"limits": {"running_requests": 0}}, "greater than or equal to 1"),
    ],
)
def test_a_wrong_argument_is_refused_with_its_reason(
    arguments: dict[str, object], reason: str
) -> None:
    with pytest.raises(ValidationError, match=reason):
        PageSettings.model_validate(THE_REST | arguments)


class TeamsSettings(PageSettings):
    options: GenerationOptions = GenerationOptions(max_new_tokens=50, stop=("END",))


def test_options_omitted_in_a_config_keep_the_defaults_of_the_settings() -> None:
    said = TeamsSettings.model_validate(THE_REST | {"options": {"temperature": 0.3}}).options
    assert said == GenerationOptions(max_new_tokens=50, stop=("END",), temperature=0.3)
    said = TeamsSettings.model_validate(THE_REST | {"options": {"max_new_tokens": 9}}).options
    assert said == GenerationOptions(max_new_tokens=9, stop=("END",))
    whole = GenerationOptions(seed=1)
    assert TeamsSettings.model_validate(THE_REST | {"options": whole}).options == whole


def test_options_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(ValidationError, match="is above the maximum"):
        GenerationOptions(min_new_tokens=50, max_new_tokens=40)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"stop": [""]}, "at least 1 character"),
        ({"stop": ["a"] * 9}, "at most 8 items"),
        ({"seed": 2**63}, "less than"),
        ({"top_k": 51}, "less than or equal to 50"),
        ({"top_k": 0}, "greater than or equal to 1"),
    ],
)
def test_an_option_out_of_range_is_refused_with_its_range(
    options: dict[str, object], reason: str
) -> None:
    with pytest.raises(ValidationError, match=reason):
        GenerationOptions.model_validate(options)


@pytest.mark.parametrize(
    ("role", "content", "reason"),
    [
        ("tool", "Hi", "'tool' is not a message role. Use one of: system, user, assistant"),
        ("user", [{"type": "image_url"}], "may contain only text. Leave out images"),
        ("user", None, "may contain only text"),
        ("user", "half \ud83d", "an incomplete character. Remove it"),
    ],
)
def test_a_message_that_is_not_text_is_refused_in_one_line(
    role: Any, content: Any, reason: str
) -> None:
    with pytest.raises(PromptError, match=reason) as error:
        Message(role, content)
    assert "\n" not in str(error.value)


def test_a_model_needs_only_a_name_and_a_source() -> None:
    model = ModelSettings(name="mine", source="org/mine")
    assert (model.prompt, model.temperature, model.top_p) == ("{prompt}", 1.0, 1.0)


def test_updates_slow_down_under_load_to_at_most_half_a_second() -> None:
    pauses = [Limits().pause(running) for running in (1, 2, 4, 8, 100)]
    assert pauses == pytest.approx([0.1, 0.1, 0.2, 0.4, 0.5])
