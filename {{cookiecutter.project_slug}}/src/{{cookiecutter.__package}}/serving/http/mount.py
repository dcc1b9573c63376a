"""Mounts a page behind its guards, the same way on Ray and in the preview."""

from collections.abc import Sequence

import gradio as gr
from fastapi import FastAPI
from starlette.middleware import Middleware
from starlette.routing import BaseRoute

from .files import check_files, remove_old_files
from .guard import explain_refusals, guard, refuse_files, takes_files
from .launch import Launch
from .login import logged_in
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
    files_are_taken = takes_files(page, launch)
    guard(web, settings, takes_files=files_are_taken)
    web.router.routes.extend(routes)
    refuse_files(web, takes_files=files_are_taken)
    if settings.mcp:
        # Here, because it takes a second to import.
        from .mcp_server import offer_tools

        offer_tools(web, page)
    check_files(page)
    options = launch.options()
    if settings.login_user is not None and options.get("auth") is None:
        options.setdefault("auth_dependency", logged_in)
    gr.mount_gradio_app(
        web,
        page,
        path="/",
        ssr_mode=False,
        run_history=False,
        mcp_server=False,
        max_file_size=settings.limits.file_bytes,
        **options,
    )
    explain_refusals(web)
    remove_old_files(web, page, settings.keep_files_seconds)
    return web
