"""The application: a page with its models in the same process."""

from functools import partial

import gradio as gr
from ray.serve import Application

from .ingress import GradioServer
from .page import build_page
from .settings import Settings


def build(settings: Settings) -> Application:
    """Returns the application that a Serve config describes with its `args:`."""
    server = GradioServer.options(ray_actor_options={"num_cpus": 1})
    return server.bind(partial(page_with_models, settings))


def page_with_models(settings: Settings) -> gr.Blocks:
    # Here, so that a process which only binds the graph does without torch.
    from .engine import Engine

    models = [Engine(model, settings.limits.running_requests) for model in settings.models]
    return build_page(settings, models)


app = build(Settings())
