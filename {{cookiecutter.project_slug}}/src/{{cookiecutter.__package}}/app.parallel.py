"""The application: a page, and behind it one deployment for each model."""

from functools import partial

import gradio as gr
from ray.serve import Application
from ray.serve.handle import DeploymentHandle

from .deployments import RemoteModel, TextGenerationModel
from .ingress import GradioServer
from .page import build_page
from .settings import ModelSettings, Settings
from .telemetry import Metered


def build(settings: Settings) -> Application:
    """Returns the application that a Serve config describes with its `args:`."""
    models = [
        TextGenerationModel.options(
            name=model.name,
            max_ongoing_requests=settings.limits.running_requests,
            max_queued_requests=settings.limits.waiting_requests,
        ).bind(model, settings.limits, log_prompts=settings.log_prompts)
        for model in settings.models
        if model.base_url is None
    ]
    return GradioServer.bind(settings, partial(page_of_handles, settings), *models)


def page_of_handles(settings: Settings, *handles: DeploymentHandle) -> gr.Blocks:
    deployed = iter(handles)
    models = [
        model_on_server(model, settings)
        if model.base_url
        else RemoteModel(model.name, next(deployed))
        for model in settings.models
    ]
    return build_page(settings, models)


def model_on_server(model: ModelSettings, settings: Settings) -> Metered:
    # Here, because its client takes most of a second to import.
    from .openai_server import OpenAIServer

    return Metered(OpenAIServer(model), log_prompts=settings.log_prompts)


app = build(Settings())
