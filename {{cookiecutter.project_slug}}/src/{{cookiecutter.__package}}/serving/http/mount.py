"""Mounts a page behind its guards, the same way on Ray and in the preview."""

from collections.abc import Sequence

import gradio as gr
from fastapi import FastAPI
from starlette.middleware import Middleware
from starlette.routing import BaseRoute

from ..telemetry.calls import meter_calls
from .files import check_files
from .guard import explain_refusals, guard, refuse_files
from .launch import Launch
from .settings import HttpSettings


def mount(
    page: gr.Blocks,
    settings: HttpSettings,
    launch: Launch = Launch(),  # noqa: B008 - it is frozen
    middleware: Sequence[Middleware] = (),
    routes: Sequence[BaseRoute] = (),
) -> FastAPI:
    """Returns the application that serves the page, behind what every request passes.

    Args:
        middleware: the first one meets a request first, after the guards.
        routes: are asked before the page.

    Raises:
        LoginError: a login is asked for, and the environment holds no password.
    """
    web = FastAPI(openapi_url=None)
    for each in reversed(middleware):
        web.add_middleware(each.cls, *each.args, **each.kwargs)
    guard(web, settings)
    web.router.routes.extend(routes)
    refuse_files(web, page)
    if settings.mcp:
        # Here, because it takes a second to import.
        from .mcp_server import offer_tools

        offer_tools(web, page)
    check_files(page)
    meter_calls(page)
    gr.mount_gradio_app(
        web,
        page,
        path="/",
        ssr_mode=False,
        run_history=False,
        mcp_server=False,
        max_file_size=settings.limits.request_bytes,
        **launch.options(),
    )
    explain_refusals(web)
    return web
