"""Keeps callers from reading the server's files, and removes old files. See `SECURITY.md`."""

import asyncio
import os
import re
import time
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from contextvars import ContextVar
from functools import wraps
from ipaddress import IPv6Address, ip_address
from pathlib import Path
from secrets import token_hex
from tempfile import gettempdir
from typing import IO, Any

import gradio as gr
import safehttpx
from fastapi import FastAPI
from fastapi.exceptions import HTTPException
from gradio import route_utils, routes, utils
from gradio.components import Component
from gradio.components.api_component import Api
from gradio.components.chatbot import ComponentMessage
from gradio.components.image_editor import EditorDataBlobs
from gradio.route_utils import GradioMultiPartParser
from gradio.utils import abspath, get_upload_folder, is_in_or_equal, is_static_file
from gradio_client.utils import (
    is_file_obj,
    is_file_obj_with_meta,
    is_http_url_like,
    value_is_file,
)
from ray._common.utils import get_default_ray_temp_dir
from ray._private import worker
from starlette.datastructures import FormData
from starlette.formparsers import MultiPartException
from starlette.requests import Request

from ..telemetry.logs import logger, where

NOT_UPLOADED = "The request names a file that was not uploaded. Upload it first."

MAX_LAYERS = 100
"""How many layers one edited picture may have."""
MAX_EDITS = 100
"""How many edited pictures an ImageEditor keeps until the calls that use them arrive."""
MAX_EDITED_BYTES = 2**28
"""How many bytes these pictures may take up together."""
MAX_FIELD_BYTES = 2**20
"""The largest text field that may come with a file. It is kept in memory."""

UPLOADED = re.compile("[0-9a-f]{32}")
CACHED = re.compile("[0-9a-f]{64}")
"""The names of the folders for uploads and for results."""
MAX_PAUSE_SECONDS = 3600.0
"""The longest time, in seconds, between two searches for old files."""

unreadable: ContextVar[list[BaseException]] = ContextVar("unreadable")
"""Why the inputs of a direct call cannot be read. Each request sets it to an empty list."""


def check_files(page: gr.Blocks) -> None:
    """Makes the page refuse every file in a request that was not uploaded.

    Gradio itself does not check a file without the `meta` mark.
    """
    # As `launch()` does. Only then does Gradio check the paths of files that a function returns.
    page.has_launched = True
    preprocess = page.preprocess_data

    async def check_and_preprocess(
        function: Any, inputs: list[Any], state: Any, explicit_call: bool = False
    ) -> list[Any]:
        try:
            if not explicit_call:
                for component, value in zip(function.inputs, inputs, strict=False):
                    if not (component.stateful or component.proxy_url):
                        is_file = is_file_obj if _reads_files(component) else is_file_obj_with_meta
                        _check(value, is_file)
            return list(await preprocess(function, inputs, state, explicit_call))
        except Exception as error:
            unreadable.get([]).append(error)
            raise

    page.preprocess_data = check_and_preprocess


def _reads_files(component: Component) -> bool:
    """Returns whether a path in the component's value is a file, even without the mark."""
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
        # Gradio fetches it if `is_public` allows it.
        return True
    uploaded = is_in_or_equal(path, get_upload_folder()) and not Path(path).is_dir()
    return uploaded or bool(is_static_file(path))


def is_public(address: str) -> bool:
    """Returns whether the page may fetch a caller's URL from this address."""
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


def remove_old_files(web: FastAPI, page: gr.Blocks, keep_seconds: float) -> None:
    """Makes the application remove files of visitors and functions after `keep_seconds`.

    It also removes those of replicas that are gone.
    """
    lifespan: Callable[[FastAPI], AbstractAsyncContextManager[Any]] = web.router.lifespan_context
    # Collected before the first call, so without any visitor's files.
    needed = _needed(page)

    async def remove_repeatedly() -> None:
        while True:
            try:
                await asyncio.to_thread(_remove_old, needed, keep_seconds)
            except OSError as error:
                logger.warning("Old files could not be removed: %s", where(error))
            await asyncio.sleep(min(keep_seconds / 4, MAX_PAUSE_SECONDS))

    @asynccontextmanager
    async def lifespan_with_removal(web: FastAPI) -> AsyncGenerator[Any]:
        async with lifespan(web) as state:
            looking = asyncio.create_task(remove_repeatedly())
            yield state
            looking.cancel()

    web.router.lifespan_context = lifespan_with_removal


def _needed(page: gr.Blocks) -> set[str]:
    """Returns the page's own files, such as examples and icons, in the folder of visitors' files.

    Gradio marks only some of them.
    """
    needed = set[str]().union(*page.temp_file_sets)
    for block in page.blocks.values():
        for each in (block, *getattr(block, "_components", ())):
            needed |= each.temp_files | each.keep_in_cache
    return needed


def _remove_old(needed: set[str], keep_seconds: float) -> None:
    for needed_path in needed:
        # So that other replicas, which may serve other pages, do not treat it as old.
        with suppress(FileNotFoundError):
            os.utime(needed_path)
    oldest = time.time() - keep_seconds
    for folder in Path(get_upload_folder()).glob("*"):
        if not (UPLOADED.fullmatch(folder.name) or CACHED.fullmatch(folder.name)):
            continue
        # The deepest paths first, so that each folder is empty when it comes up.
        for path in sorted(folder.rglob("*"), reverse=True):
            with suppress(OSError):
                # Gradio updates this time when it returns a file again.
                if path.lstat().st_ctime < oldest and not path.is_dir():
                    path.unlink()
        # Names of uploads are unique, but a result may be written again at any moment.
        if UPLOADED.fullmatch(folder.name) and folder.lstat().st_ctime < oldest:
            _remove_empty(folder)


def _remove_empty(folder: Path) -> None:
    for path in [*sorted(folder.rglob("*"), reverse=True), folder]:
        with suppress(OSError):
            path.rmdir()


gradio_upload = routes.upload_fn


async def upload(request: object, folder: str, *args: Any, **options: Any) -> Any:
    """Saves a visitor's upload in a folder whose name nobody can guess.

    Gradio names the folder after the content. Anybody who knows the content could then read the
    file of another visitor.
    """
    return await gradio_upload(request, Path(folder) / token_hex(16), *args, **options)


gradio_parse = GradioMultiPartParser.parse


async def parse(parser: GradioMultiPartParser) -> FormData:
    """Removes the files of an upload that is interrupted or refused."""
    try:
        form: FormData = await gradio_parse(parser)
    except BaseException:
        _remove(parser._files_to_close_on_error)
        raise
    return form


def _remove(begun: Iterable[IO[bytes]]) -> None:
    for file in begun:
        file.close()
        Path(file.name).unlink(missing_ok=True)


gradio_on_part_data = GradioMultiPartParser.on_part_data


def on_part_data(parser: GradioMultiPartParser, data: bytes, start: int, end: int) -> None:
    part = parser._current_part
    if part.file is None:
        if len(part.data) + end - start > MAX_FIELD_BYTES:
            # Gradio responds with 413 if it finds "exceeded maximum allowed size" in the message.
            reason = f"A text field exceeded maximum allowed size of {MAX_FIELD_BYTES:,} bytes."
            raise MultiPartException(reason)
        # With an `upload_id`, Gradio would look for a file name, which a text field does not have.
        part.data += data[start:end]
    else:
        gradio_on_part_data(parser, data, start, end)


gradio_root_url = route_utils.get_root_url


def root_url(request: Request, route_path: str, root_path: str | None) -> str:
    """Returns the page's address as its visitor sees it.

    Gradio drops the path of a mounted page in direct calls, and if a proxy sends its host. Here,
    `hosts.py` has already applied the headers of proxies to the request.
    """
    mounted = request.scope.get("root_path", "")
    if root_path not in ("", "/", None, mounted):
        # From GRADIO_ROOT_PATH.
        return str(gradio_root_url(request, route_path, root_path))
    return str(request.url.replace(path=mounted, query="")).rstrip("/")


gradio_preprocess_content = gr.Chatbot._preprocess_content


def preprocess_content(chatbot: gr.Chatbot, message: Any) -> Any:
    """Makes the component in a message without the caller's constructor arguments.

    They may contain paths and addresses that a component opens: an icon, a watermark, subtitles.
    """
    if not isinstance(message, ComponentMessage):
        return gradio_preprocess_content(chatbot, message)
    if message.component.casefold() == "label" and _names_json(message.value):
        raise gr.Error(NOT_UPLOADED, print_exception=False)
    plain = message.model_copy(update={"constructor_args": {}})
    made = gradio_preprocess_content(chatbot, plain)
    return {**made, "constructor_args": message.constructor_args}


def _names_json(value: object) -> bool:
    """Returns whether a gr.Label with this value would open a file."""
    label = value.get("label") if isinstance(value, dict) else value
    return isinstance(label, str) and label.endswith(".json")


gradio_accept_blobs = gr.ImageEditor.accept_blobs


@wraps(gradio_accept_blobs)
def accept_blobs(editor: gr.ImageEditor, data: Any) -> None:
    """Keeps a part of an edited picture, and limits the number and size of all of them."""
    edit, index = data.data["id"], data.data["index"]
    if index not in ("", "null") and not 0 <= int(index) < MAX_LAYERS:
        raise HTTPException(400, f"A picture may have at most {MAX_LAYERS} layers. Send fewer.")
    gradio_accept_blobs(editor, data)
    kept = editor.blob_storage
    sizes = {name: len(name) + _size(blobs) for name, blobs in list(kept.items())}
    # Gradio removes a picture with the call that uses it, but that call may never come.
    for oldest in list(sizes):
        if len(sizes) <= MAX_EDITS and sum(sizes.values()) <= MAX_EDITED_BYTES:
            break
        del sizes[oldest]
        kept.pop(oldest, None)
    if edit not in sizes:
        reason = (
            f"An edited picture may have at most {MAX_EDITED_BYTES:,} bytes. Send a smaller one."
        )
        raise HTTPException(413, reason)


def _size(blobs: EditorDataBlobs) -> int:
    return sum(len(blob or b"") for blob in (blobs.background, blobs.composite, *blobs.layers))


gradio_is_allowed_file = utils.is_allowed_file


def is_allowed_file(
    path: Path,
    blocked_paths: Sequence[str | Path],
    allowed_paths: Sequence[str | Path],
    **others: Any,
) -> Any:
    """Refuses a file in a blocked folder, even if the path goes through links.

    Gradio converts a path to lower case before it follows the links.
    """
    if any(_is_below(path, blocked) for blocked in blocked_paths):
        return False, "in_blocklist"
    ray = ray_folder()
    if _is_below(path, ray):
        # Ray's folder is among the temporary files, which Gradio would allow.
        allowed_paths = [allowed for allowed in allowed_paths if _is_below(allowed, ray)]
    return gradio_is_allowed_file(path, blocked_paths, allowed_paths, **others)


def ray_folder() -> str:
    """Returns the folder of Ray on this node, with its logs and the code that it received."""
    node = worker._global_node
    return str(node.get_temp_dir_path() if node else get_default_ray_temp_dir())


def _is_below(path: str | Path, folder: str | Path) -> bool:
    # A file system may ignore case.
    place, blocked = (Path(str(abspath(each).resolve()).lower()) for each in (path, folder))
    return place.is_relative_to(blocked)


# A separate folder, because other programs may keep old files in Gradio's default one.
os.environ.setdefault(
    "GRADIO_TEMP_DIR", str(Path(gettempdir()).resolve() / __package__.partition(".")[0])
)

# Gradio has no settings for these. By default, it would also fetch from 100.64.0.0/10, which clouds
# and clusters use internally.
route_utils.get_root_url = root_url
routes.upload_fn = upload
GradioMultiPartParser.parse = parse
GradioMultiPartParser.on_part_data = on_part_data
safehttpx.is_public_ip = is_public
gr.Chatbot._preprocess_content = preprocess_content
gr.ImageEditor.accept_blobs = accept_blobs
utils.is_allowed_file = is_allowed_file
