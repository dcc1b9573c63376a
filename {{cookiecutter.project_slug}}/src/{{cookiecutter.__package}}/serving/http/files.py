"""No caller reads a file of the server by naming it. `SECURITY.md` says what this promises."""

from collections.abc import Callable
from ipaddress import IPv6Address, ip_address
from pathlib import Path
from secrets import token_hex
from typing import Any

import gradio as gr
import safehttpx
from gradio import routes
from gradio.components import Component
from gradio.components.api_component import Api
from gradio.utils import get_upload_folder, is_in_or_equal, is_static_file
from gradio_client.utils import (
    is_file_obj,
    is_file_obj_with_meta,
    is_http_url_like,
    value_is_file,
)

NOT_UPLOADED = "A file was named that was not uploaded. Upload it first."


def check_files(page: gr.Blocks) -> None:
    """Has the page refuse, wherever a caller names a file, all but what was uploaded.

    Gradio itself passes over a file that lacks the mark of its kind.
    """
    # `launch` sets it. Gradio looks only then at the paths of files that a function returns.
    page.has_launched = True
    preprocess = page.preprocess_data

    async def check_and_preprocess(
        function: Any, inputs: list[Any], state: Any, explicit_call: bool = False
    ) -> list[Any]:
        if not explicit_call:
            for component, value in zip(function.inputs, inputs, strict=False):
                if not (component.stateful or component.proxy_url):
                    _check(value, is_file_obj if _reads_files(component) else is_file_obj_with_meta)
        return list(await preprocess(function, inputs, state, explicit_call))

    page.preprocess_data = check_and_preprocess


def _reads_files(component: Component) -> bool:
    """Says whether a path in the component's value is that of a file, marked or not."""
    if isinstance(component, Api):
        return bool(value_is_file(component.api_info()))
    return component.data_model is not None


def _check(value: object, is_file: Callable[[object], bool]) -> None:
    unseen = [value]
    while unseen:
        each = unseen.pop()
        if isinstance(each, dict):
            if is_file(each) and not _is_uploaded(each["path"]):
                raise gr.Error(NOT_UPLOADED, print_exception=False)
            unseen.extend(each.values())
        elif isinstance(each, list):
            unseen.extend(each)


def _is_uploaded(path: str) -> bool:
    if is_http_url_like(path):
        # Gradio fetches it where `is_public` allows.
        return True
    uploaded = is_in_or_equal(path, get_upload_folder()) and not Path(path).is_dir()
    return uploaded or bool(is_static_file(path))


def is_public(address: str) -> bool:
    """Says whether the page may fetch from there what a caller names by its URL."""
    try:
        ip = ip_address(address)
    except ValueError:
        return False
    if isinstance(ip, IPv6Address):
        if inner := ip.ipv4_mapped or ip.sixtofour:
            return is_public(str(inner))
        if ip.is_site_local:
            return False
    return ip.is_global and not (ip.is_multicast or ip.is_reserved)


gradio_upload = routes.upload_fn


async def upload(request: object, folder: str, *args: Any, **options: Any) -> Any:
    """Keeps what a visitor uploads in a folder whose name nobody can guess.

    Gradio names it after the content: who knows that could name a file of another visitor.
    """
    return await gradio_upload(request, Path(folder) / token_hex(16), *args, **options)


# Gradio has a setting for neither. It would also fetch from 100.64.0.0/10, where clouds and
# clusters have addresses of their own.
routes.upload_fn = upload
safehttpx.is_public_ip = is_public
