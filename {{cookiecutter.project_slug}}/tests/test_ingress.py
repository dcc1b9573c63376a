"""What the ingress adds to Gradio and Ray: what is begun ends, whoever is lost."""

import asyncio

import gradio as gr
from ray.exceptions import RayActorError
from starlette.types import Message, Receive, Scope, Send

from {{ cookiecutter.__package }}.ingress import ProxyLoss, clean_to_the_end


async def test_calls_left_waiting_are_forgotten_though_the_stream_is_cancelled_meanwhile() -> None:
    with gr.Blocks() as page:
        gr.Button("Wait")
    clean_to_the_end(page)
    queue = page._queue
    queue.pending_event_ids_session["me"] = set()
    async with queue.delete_lock:
        stream = asyncio.create_task(queue.clean_events(session_hash="me"))
        await asyncio.sleep(0)
        stream.cancel()
        await asyncio.gather(stream, return_exceptions=True)
    await asyncio.sleep(0)
    assert "me" not in queue.pending_event_ids_session


async def test_a_request_of_a_dead_proxy_ends_as_if_its_client_had_left() -> None:
    heard: list[Message] = []
    sent: list[Message] = []

    async def app(_: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start"})
        heard.append(await receive())
        await send({"type": "http.response.body"})

    async def receive() -> Message:
        raise RayActorError

    async def send(message: Message) -> None:
        sent.append(message)

    await ProxyLoss(app)({"type": "http"}, receive, send)
    assert heard == [{"type": "http.disconnect"}]
    assert sent == [{"type": "http.response.start"}]
