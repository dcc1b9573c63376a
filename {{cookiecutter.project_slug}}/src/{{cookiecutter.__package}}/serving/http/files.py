"""No caller reads a file of the server by naming it. `SECURITY.md` says what this promises."""

from collections.abc import Callable, Sequence
from functools import wraps
from ipaddress import IPv6Address, ip_address
from pathlib import Path
from secrets import token_hex
from typing import Any

import gradio as gr
import safehttpx
from fastapi.exceptions import HTTPException
from gradio import routes, utils
from gradio.components import Component
from gradio.components.api_component import Api
from gradio.components.chatbot import ComponentMessage
from gradio.components.image_editor import EditorDataBlobs
from gradio.utils import abspath, get_upload_folder, is_in_or_equal, is_static_file
from gradio_client.utils import (
    is_file_obj,
    is_file_obj_with_meta,
    is_http_url_like,
    value_is_file,
)

NOT_UPLOADED = "A file was named that was not uploaded. Upload it first."

LAYERS = 100
"""The most layers of one edited picture."""
EDITS = 100
"""Edited pictures that an ImageEditor keeps until the calls that bring them."""
EDITED_BYTES = 2**28
"""What these may have together."""


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


gradio_preprocess_content = gr.Chatbot._preprocess_content


def preprocess_content(chatbot: gr.Chatbot, message: Any) -> Any:
    """Makes the component in a message without the arguments that the caller chose for it.

    Among them are paths and addresses that a component opens: an icon, a watermark, subtitles.
    """
    if not isinstance(message, ComponentMessage):
        return gradio_preprocess_content(chatbot, message)
    if message.component.casefold() == "label" and _names_json(message.value):
        raise gr.Error(NOT_UPLOADED, print_exception=False)
    plain = message.model_copy(update={"constructor_args": {}})
    made = gradio_preprocess_content(chatbot, plain)
    return {**made, "constructor_args": message.constructor_args}


def _names_json(value: object) -> bool:
    """Says whether a gr.Label that is made with the value would open a file."""
    label = value.get("label") if isinstance(value, dict) else value
    return isinstance(label, str) and label.endswith(".json")


gradio_accept_blobs = gr.ImageEditor.accept_blobs


@wraps(gradio_accept_blobs)
def accept_blobs(editor: gr.ImageEditor, data: Any) -> None:
    """Keeps a part of an edited picture, and of all of them no more than the bounds allow."""
    edit, index = data.data["id"], data.data["index"]
    if index not in ("", "null") and not 0 <= int(index) < LAYERS:
        raise HTTPException(400, f"A picture has at most {LAYERS} layers.")
    gradio_accept_blobs(editor, data)
    kept = editor.blob_storage
    sizes = {name: len(name) + _size(blobs) for name, blobs in list(kept.items())}
    # Gradio forgets one with the call that brings it, and that may never come.
    for oldest in list(sizes):
        if len(sizes) <= EDITS and sum(sizes.values()) <= EDITED_BYTES:
            break
        del sizes[oldest]
        kept.pop(oldest, None)
    if edit not in sizes:
        raise HTTPException(413, f"An edited picture may have {EDITED_BYTES:,} bytes. Send less.")


def _size(blobs: EditorDataBlobs) -> int:
    return sum(len(blob or b"") for blob in (blobs.background, blobs.composite, *blobs.layers))


gradio_is_allowed_file = utils.is_allowed_file


def is_allowed_file(path: Path, blocked_paths: Sequence[str | Path], **others: Any) -> Any:
    """Refuses what is blocked by the place where it is, whichever links lead there.

    Gradio follows the links of a path whose letters it has made small.
    """
    if any(_is_below(path, blocked) for blocked in blocked_paths):
        return False, "in_blocklist"
    return gradio_is_allowed_file(path, blocked_paths, **others)


def _is_below(path: str | Path, folder: str | Path) -> bool:
    # A disk may take capital and small letters for the same.
    place, blocked = (Path(str(abspath(each).resolve()).lower()) for each in (path, folder))
    return place.is_relative_to(blocked)


# Gradio has a setting for none of these. It would also fetch from 100.64.0.0/10, where clouds
# and clusters have addresses of their own.
routes.upload_fn = upload
safehttpx.is_public_ip = is_public
gr.Chatbot._preprocess_content = preprocess_content
gr.ImageEditor.accept_blobs = accept_blobs
utils.is_allowed_file = is_allowed_file
