"""The application: a page, and behind it one deployment for each model."""

from functools import partial

import gradio as gr
from ray.serve import Application
from ray.serve.handle import DeploymentHandle

from .deployments import RemoteModel, TextGenerationModel
from .ingress import GradioServer
from .page import build_page
from .settings import Settings


def build(settings: Settings) -> Application:
    """Returns the application that a Serve config describes with its `args:`."""
    models = [
        TextGenerationModel.options(
            name=model.name, max_ongoing_requests=settings.limits.running_requests
        ).bind(model, settings.limits)
        for model in settings.models
    ]
    return GradioServer.bind(settings, partial(page_of_handles, settings), *models)


def page_of_handles(settings: Settings, *handles: DeploymentHandle) -> gr.Blocks:
    models = [
        RemoteModel(model.name, handle)
        for model, handle in zip(settings.models, handles, strict=True)
    ]
    return build_page(settings, models)


app = build(Settings())
