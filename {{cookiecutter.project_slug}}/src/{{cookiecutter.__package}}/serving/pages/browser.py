"""What the page does in the browser alone, in JavaScript: it remembers, links and marks."""

import json
from collections.abc import Mapping, Sequence

import gradio as gr
from gradio.components import Component

from ..protocol import Model


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


def make_link(controls: Mapping[str, Component], models: Sequence[Model] = ()) -> str:
    """Puts the values of the controls into the address, and copies it where browsers allow.

    The chats of models, if there are any, come after the controls.

    They do over HTTPS and on their own machine. Returns what the button says afterwards.
    """
    write = """(...values) => {
        const pairs = NAMES.map((name, position) => [name, values[position]])
            .filter(([_, value]) => value != null)
        const chats = values.slice(NAMES.length)
        if (chats.some(chat => chat.length)) {
            const said = Object.fromEntries(MODELS.map((model, i) => [model, chats[i]]))
            pairs.push(["conversation", JSON.stringify(said)])
        }
        history.replaceState(null, "", "#" + new URLSearchParams(pairs))
        if (!navigator.clipboard) return "Copy it from the address bar"
        navigator.clipboard.writeText(location.href)
        return "Link copied"
    }"""
    return _named(write, controls).replace("MODELS", json.dumps([each.name for each in models]))


# Until the next run, because an update may be on its way when somebody stops.
MARK_STOPPED = """() => {
    const mark = () => document.querySelectorAll(".state.waiting, .state.writing").forEach(line => {
        line.className = "state stopped"
        line.textContent = line.textContent.replace(/Waiting|Thinking|Writing/, "Stopped")
    })
    mark()
    window.marking ??= new MutationObserver(mark)
    const changes = { attributeFilter: ["class"], childList: true, subtree: true }
    window.marking.observe(document.body, changes)
}"""
END_OF_MARKING = "(...values) => { window.marking?.disconnect(); return values }"

# An answer goes on to what was asked, whatever stands in the box by then.
KEEP_PROMPT = """(prompt, ...others) => {
    window.marking?.disconnect()
    window.asked = prompt
    return [prompt, ...others]
}"""
GO_ON = """(prompt, ...others) => {
    window.marking?.disconnect()
    return [window.asked ?? prompt, ...others]
}"""


def _named(script: str, controls: Mapping[str, Component]) -> str:
    return script.replace("NAMES", json.dumps(list(controls)))


# A question leaves its box as it is sent, and not by an answer of the server, which may come when
# the next one is being typed.
TAKE_PROMPT = """(prompt, ...others) => {
    window.marking?.disconnect()
    window.asked = prompt
    const box = document.querySelector(".prompt textarea")
    if (prompt.trim()) {
        box.value = ""
        box.dispatchEvent(new Event("input", { bubbles: true }))
        box.focus()
    }
    return [prompt, ...others]
}"""
GIVE_PROMPT_BACK = "prompt => prompt || window.asked"

# Gradio names each message on an element that has no role, and WAI-ARIA allows no such name.
GIVE_ROLES = """() => {
    const messages = '.talk :is([data-testid="bot"], [data-testid="user"]):not([role])'
    const give = () => document.querySelectorAll(messages)
        .forEach(message => message.setAttribute("role", "group"))
    new MutationObserver(give).observe(document.body, { childList: true, subtree: true })
}"""

# What `conversation.safe` put into a text is left out where it is copied.
_READ = r"""
    const plain = text => text.replaceAll("\u2060", "")
        .replaceAll(/\\lt\{\}(?=[A-Za-z\/!?])/g, "<").replaceAll("!{}[", "![")
"""


def take_turn_back(states: int) -> str:
    """Removes the last turn of each pane, and puts its question where nothing is being typed."""
    take = """(prompt, ...chats) => {
        const start = chat => chat.findLastIndex(message => message.role === "user")
        const asked = chats.map(chat => chat[start(chat)]?.content[0].text).find(text => text)
        const left = chats.map(chat => chat.slice(0, Math.max(start(chat), 0)))
        return [prompt || plain(asked ?? ""), ...left, ...Array(STATES).fill("")]
    }"""
    return take.replace("{", "{" + _READ, 1).replace("STATES", str(states))


# Copies get what a text says, without what makes it safe to show.
_COPY = """
    if (!window.copies) {
        window.copies = true
        const write = navigator.clipboard?.writeText.bind(navigator.clipboard)
        if (write) navigator.clipboard.writeText = text => write(plain(text))
        document.addEventListener("copy", event => {
            const text = getSelection().toString()
            if (plain(text) === text || event.target.matches("input, textarea")) return
            event.clipboardData.setData("text/plain", plain(text))
            event.preventDefault()
        })
    }
"""

# A link comes first, then what the tab has kept, then what the last tab has.
OPEN_CONVERSATION = (
    """async key => {"""
    + _READ
    + _COPY
    + r"""
    const place = "conversation " + location.pathname
    const kept = { place, asked: "", lock: null, stores: [sessionStorage, localStorage] }
    if (key && !window.isSecureContext) kept.stores = []
    else if (key) {
        const bytes = Uint8Array.from(key.match(/../g), pair => parseInt(pair, 16))
        const uses = ["encrypt", "decrypt"]
        kept.lock = await crypto.subtle.importKey("raw", bytes, "AES-GCM", false, uses)
    }
    window.conversation = kept
    if (key) document.addEventListener("click", event => {
        const link = event.target.closest("a[href]")
        if (!link || !new URL(link.href).pathname.endsWith("/logout")) return
        clearTimeout(kept.timer)
        window.conversation = null
        kept.stores.forEach(store => store.removeItem(place))
    }, true)
    kept.link = new URLSearchParams(location.hash.slice(1)).get("conversation")
    if (kept.link) return kept.link
    const text = kept.stores.map(store => store.getItem(place)).find(each => each)
    if (!text) return ""
    try {
        if (!kept.lock) return JSON.stringify(JSON.parse(text))
        const [iv, data] = text.split(" ").map(part => Uint8Array.from(atob(part), each => each.charCodeAt(0)))
        return new TextDecoder().decode(await crypto.subtle.decrypt({ name: "AES-GCM", iv }, kept.lock, data))
    } catch {
        // It is somebody else's, or from before a logout.
        kept.stores.forEach(store => store.removeItem(place))
        return ""
    }
}"""
)

FORGET_CONVERSATION = """() => {
    const kept = window.conversation
    clearTimeout(kept?.timer)
    kept?.stores.forEach(store => store.removeItem(kept.place))
    history.replaceState(null, "", location.pathname + location.search)
    return []
}"""


def keep_conversation(models: Sequence[Model]) -> str:
    """Keeps what the panes show, a moment after a change of it."""
    keep = """(...chats) => {
        const kept = window.conversation
        if (!kept) return
        clearTimeout(kept.timer)
        kept.timer = setTimeout(async () => {
            const empty = chats.every(chat => !chat.length)
            let text = JSON.stringify(Object.fromEntries(NAMES.map((name, i) => [name, chats[i]])))
            if (kept.link) {
                // What a link brought is its reader's as soon as they go on with it.
                kept.brought ??= text
                if (text === kept.brought) return
                kept.link = null
                history.replaceState(null, "", location.pathname + location.search)
            }
            if (empty) {
                if (kept.some) kept.stores.forEach(store => store.removeItem(kept.place))
                return
            }
            kept.some = true
            if (kept.lock) {
                const iv = crypto.getRandomValues(new Uint8Array(12))
                const data = new TextEncoder().encode(text)
                const locked = await crypto.subtle.encrypt({ name: "AES-GCM", iv }, kept.lock, data)
                const written = bytes => btoa(Array.from(bytes, each => String.fromCharCode(each)).join(""))
                text = written(iv) + " " + written(new Uint8Array(locked))
            }
            try {
                kept.stores.forEach(store => store.setItem(kept.place, text))
            } catch (error) {
                // A browser keeps some megabytes.
                console.warn("This conversation is too long to be kept.", error)
            }
        }, 200)
    }"""
    return keep.replace("NAMES", json.dumps([model.name for model in models]))
