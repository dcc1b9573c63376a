"""What the page does in the browser alone, in JavaScript: it remembers, links and marks."""

import json
from collections.abc import Mapping, Sequence

import gradio as gr
from gradio.components import Component


def fill_at_start(
    page: gr.Blocks, controls: Mapping[str, Component], panes: Sequence[gr.Textbox]
) -> None:
    """Fills the controls with what a link says, and texts with what the browser's tab remembers.

    A link says it behind a `#`, which browsers do not send, so that no server logs a prompt.
    After a lost connection Gradio's page loads anew, so the tab keeps the prompt and the answers.
    """
    boxes = [*controls.values(), *panes]
    for position, box in enumerate(boxes):
        if isinstance(box, gr.Textbox):
            remember = f"text => sessionStorage.setItem(location.pathname + {position}, text)"
            box.change(None, box, js=remember, api_visibility="private")
    # Undefined leaves a box as it is: somebody may write in it before the page is ready.
    fill = """(...values) => {
        const said = new URLSearchParams(location.hash.slice(1))
        return values.map((value, position) => {
            const text = said.get(NAMES[position]) ?? undefined
            if (typeof value === "number")
                return Number.isFinite(Number(text)) ? Number(text) : undefined
            if (text !== undefined || value) return text
            return sessionStorage.getItem(location.pathname + position) ?? undefined
        })
    }"""
    page.load(None, boxes, boxes, js=_named(fill, controls), api_visibility="private")


def make_link(controls: Mapping[str, Component]) -> str:
    """Puts the values of the controls into the address, and copies it where browsers allow.

    They do over HTTPS and on their own machine. Returns what the button says afterwards.
    """
    write = """(...values) => {
        const pairs = values.map((value, position) => [NAMES[position], value])
        history.replaceState(null, "", "#" + new URLSearchParams(pairs))
        if (!navigator.clipboard) return "Copy it from the address bar"
        navigator.clipboard.writeText(location.href)
        return "Link copied"
    }"""
    return _named(write, controls)


# Until the next run, because an update may be on its way when somebody stops.
MARK_STOPPED = """() => {
    const mark = () => document.querySelectorAll(".state.waiting, .state.writing").forEach(line => {
        line.className = "state stopped"
        line.textContent = line.textContent.replace(/Waiting|Writing/, "Stopped")
    })
    mark()
    window.marking ??= new MutationObserver(mark)
    const changes = { attributeFilter: ["class"], childList: true, subtree: true }
    window.marking.observe(document.body, changes)
}"""
END_OF_MARKING = "(...values) => { window.marking?.disconnect(); return values }"


def _named(script: str, controls: Mapping[str, Component]) -> str:
    return script.replace("NAMES", json.dumps(list(controls)))
