"""The questions in cookiecutter.json, and the values derived from the answers."""

import pytest

from .answers import CHOICES, CONTEXT, QUESTIONS
from .conftest import Answer, LoadHook

PROMPTS = CONTEXT["__prompts__"]


def test_only_questions_have_a_prompt() -> None:
    assert list(PROMPTS) == list(QUESTIONS)


@pytest.mark.parametrize("question", QUESTIONS)
def test_each_question_has_a_readable_prompt(question: str) -> None:
    prompt = PROMPTS[question]
    words = prompt["__prompt__"] if isinstance(prompt, dict) else prompt

    assert " " in words or question == "license"
    assert words[0].isupper()
    assert "_" not in words


@pytest.mark.parametrize("question", [q for q, v in QUESTIONS.items() if isinstance(v, list)])
def test_a_choice_has_a_label_for_each_answer(question: str) -> None:
    labels = dict(PROMPTS[question])
    del labels["__prompt__"]

    assert list(labels) == CHOICES[question]
    assert all(label.strip() for label in labels.values())


def test_no_yes_or_no_question_is_a_choice() -> None:
    for choices in CHOICES.values():
        assert not {"yes", "no", "y", "n", "true", "false"} & {
            str(c) for c in choices if c != bool(c)
        }


@pytest.mark.parametrize(("typed", "meant"), [("no", False), ("yes", True), ("false", False)])
def test_a_boolean_is_native(typed: str, meant: bool, answer: Answer) -> None:
    assert answer(parallel_models=typed)["parallel_models"] is meant


@pytest.mark.parametrize(
    ("slug", "package"),
    [
        ("app", "app"),
        ("my-app", "my_app"),
        ("my.app", "my_app"),
        ("my_app", "my_app"),
        ("My.Big-App", "my_big_app"),
    ],
)
def test_the_package_name_comes_from_the_slug(slug: str, package: str, answer: Answer) -> None:
    assert answer(project_slug=slug)["__package"] == package


@pytest.mark.parametrize(
    ("name", "slug"),
    [
        ("Gradio on Ray", "gradio-on-ray"),
        ("Café Zürich", "cafe-zurich"),
        ("  two   models ", "two-models"),
        ('R&D: it\'s "ours"', "r-d-it-s-ours"),
    ],
)
def test_the_slug_comes_from_the_name(name: str, slug: str, answer: Answer) -> None:
    assert answer(project_name=name)["project_slug"] == slug


@pytest.mark.parametrize("name", ["", "   ", "🎉", "!?", "word " * 40, "w" * 300], ids=ascii)
def test_the_hook_accepts_the_slug_of_any_name(
    name: str, answer: Answer, load_hook: LoadHook
) -> None:
    slug = answer(project_name=name)["project_slug"]

    assert list(load_hook("pre_gen_project").problems_of_slug(slug)) == []
