"""A page with votes on two stand-ins, which answer with their process ID."""

import os
from functools import partial

import gradio as gr
from ray.serve import Application

from {{ cookiecutter.__package }}.serving import GradioServer
from {{ cookiecutter.__package }}.serving.votes.settings import PageSettings

from .compare_page import LAUNCH, build_page
from .stand_ins import StandIn


def build(settings: PageSettings) -> Application:
    return GradioServer.bind(settings, partial(voting_page, settings), launch=LAUNCH)


def voting_page(settings: PageSettings) -> gr.Blocks:
    process = f"{os.getpid()}"
    return build_page(settings, [StandIn(model.name, [process]) for model in settings.models])
