"""The page's JavaScript: saves texts and conversations, makes links, and marks stopped answers."""

import json
from collections.abc import Mapping, Sequence

import gradio as gr
from gradio.components import Component

from ..protocol import Model

# Browsers block storage entirely when cookies are blocked.
_STORAGE = """
    const storage = name => { try { return window[name] } catch { return null } }
"""


def fill_at_start(
    page: gr.Blocks, controls: Mapping[str, Component], panes: Sequence[gr.Textbox]
) -> None:
    """Fills the controls from the link, and the texts from the tab's session storage.

    A link has its values after a `#`. Browsers do not send that part, so no server logs a prompt.
    Gradio reloads the page after a lost connection, so the tab keeps the prompt and the answers.
    """
    boxes = [*controls.values(), *panes]
    for position, box in enumerate(boxes):
        if isinstance(box, gr.Textbox):
            remember = """text => {
                const put = store => store?.setItem(location.pathname + POSITION, text)
                try { put(storage("sessionStorage")) } catch (error) { console.warn(error) }
            }""".replace("POSITION", str(position))
            box.change(None, box, js=_with(_STORAGE, remember), api_visibility="private")
    # Undefined leaves a box unchanged: a visitor may type in it before the page is ready.
    fill = """(...values) => {
        const said = new URLSearchParams(location.hash.slice(1))
        return values.map((value, position) => {
            const text = said.get(NAMES[position]) ?? undefined
            if (typeof value === "number")
                return Number.isFinite(Number(text)) ? Number(text) : undefined
            if (text !== undefined || value) return text
            return storage("sessionStorage")?.getItem(location.pathname + position) ?? undefined
        })
    }"""
    fill = _with(_STORAGE, _named(fill, controls))
    page.load(None, boxes, boxes, js=fill, api_visibility="private")


def make_link(controls: Mapping[str, Component], models: Sequence[Model] = ()) -> str:
    """Puts the values of the controls into the page's address, and copies the address.

    The chats of the models, if there are any, come after the controls. Browsers allow copying
    over HTTPS and on localhost. The script returns the new label of the button.
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


# Keep marking until the next run, because an update may still arrive after a stop.
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
STOP_MARKING = "(...values) => { window.marking?.disconnect(); return values }"

# Continuing an answer uses the prompt that was asked, whatever is in the box by then.
KEEP_PROMPT = """(prompt, ...others) => {
    window.marking?.disconnect()
    window.asked = prompt
    return [prompt, ...others]
}"""
CONTINUE_ANSWER = """(prompt, ...others) => {
    window.marking?.disconnect()
    return [window.asked ?? prompt, ...others]
}"""


def _named(script: str, controls: Mapping[str, Component]) -> str:
    return script.replace("NAMES", json.dumps(list(controls)))


def _with(part: str, script: str) -> str:
    """Inserts a part at the start of a function's body."""
    start, brace, rest = script.partition("=> {")
    return start + brace + part + rest


# Empty the box when the question is sent, not when the server responds: the visitor may already
# be typing the next question by then.
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

# Gradio labels each message on an element without a role, which WAI-ARIA does not allow.
GIVE_ROLES = """() => {
    const messages = '.talk :is([data-testid="bot"], [data-testid="user"]):not([role])'
    const give = () => document.querySelectorAll(messages)
        .forEach(message => message.setAttribute("role", "group"))
    new MutationObserver(give).observe(document.body, { childList: true, subtree: true })
}"""

# In Gradio, the label of a text box with a Copy button names the button.
NAME_PANES = """() => document.querySelectorAll('[id^="pane-"] textarea').forEach(box =>
    box.setAttribute("aria-label", box.closest('[id^="pane-"]').id.slice("pane-".length)))"""

# Removes from copied text what `conversation.safe` added.
_READ = r"""
    const plain = text => text.replaceAll("\u2060", "")
        .replaceAll(/\\lt\{\}(?=[A-Za-z\/!?])/g, "<").replaceAll("!{}[", "![")
"""


def take_turn_back(states: int) -> str:
    """Removes the last turn of each pane, and puts its question into the box if that is empty."""
    take = """(prompt, ...chats) => {
        const start = chat => chat.findLastIndex(message => message.role === "user")
        const asked = chats.map(chat => chat[start(chat)]?.content[0].text).find(text => text)
        const left = chats.map(chat => chat.slice(0, Math.max(start(chat), 0)))
        return [prompt || plain(asked ?? ""), ...left, ...Array(STATES).fill("")]
    }"""
    return _with(_READ, take).replace("STATES", str(states))


# Copied text is the original, without the characters that make it safe to show.
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

# Tries the link first, then the tab's storage, then the storage that all tabs share.
OPEN_CONVERSATION = _with(
    _STORAGE + _READ + _COPY,
    r"""async key => {
    const place = "conversation " + location.pathname
    const kept = { place, writes: 0, lock: null, stores: [], lasting: null }
    if (!key || window.isSecureContext) {
        kept.lasting = storage("localStorage")
        kept.stores = [storage("sessionStorage"), kept.lasting].filter(store => store)
    }
    if (key && window.isSecureContext) {
        const bytes = Uint8Array.from(key.match(/../g), pair => parseInt(pair, 16))
        const uses = ["encrypt", "decrypt"]
        kept.lock = await crypto.subtle.importKey("raw", bytes, "AES-GCM", false, uses)
    }
    kept.forget = () => {
        clearTimeout(kept.timer)
        kept.timer = null
        // Cancels a write that is still being encrypted.
        kept.writes += 1
        kept.stores.forEach(store => store.removeItem(place))
    }
    window.conversation = kept
    // The visitor asked something before this code ran. Keep that conversation.
    const early = window.early
    if (key) document.addEventListener("click", event => {
        const link = event.target.closest("a[href]")
        if (!link || !new URL(link.href).pathname.endsWith("/logout")) return
        window.conversation = null
        kept.forget()
    }, true)
    kept.link = new URLSearchParams(location.hash.slice(1)).get("conversation")
    if (early) {
        kept.link = null
        history.replaceState(null, "", location.pathname + location.search)
        early()
        return ""
    }
    if (kept.link) return kept.link
    const opened = async text => {
        if (!kept.lock) return JSON.stringify(JSON.parse(text))
        const [iv, data] = text.split(" ").map(part => Uint8Array.from(atob(part), each => each.charCodeAt(0)))
        return new TextDecoder().decode(await crypto.subtle.decrypt({ name: "AES-GCM", iv }, kept.lock, data))
    }
    for (const store of kept.stores) {
        const text = store.getItem(place)
        if (!text) continue
        try {
            return await opened(text)
        } catch {
            // It belongs to another user, or is from before a logout.
            store.removeItem(place)
        }
    }
    return ""
}""",
)

FORGET_CONVERSATION = """() => {
    window.conversation?.forget()
    history.replaceState(null, "", location.pathname + location.search)
    return []
}"""

NOT_KEPT = "Your browser can't save this conversation. It will be lost when you close this tab."


def keep_conversation(models: Sequence[Model]) -> str:
    """Saves the conversation in the browser shortly after the panes change.

    Further changes do not delay the save. If the browser cannot save it, the element `.unkept`
    says so.
    """
    keep = """function keep(...chats) {
        const kept = window.conversation
        if (kept === undefined)
            window.early = chats.some(chat => chat.length) ? () => keep(...chats) : null
        if (!kept) return
        kept.chats = chats
        kept.timer ??= setTimeout(async () => {
            kept.timer = null
            const write = ++kept.writes
            const say = text => document.querySelectorAll(".unkept p")
                .forEach(line => { if (line.textContent !== text) line.textContent = text })
            const said = Object.fromEntries(NAMES.map((name, i) => [name, kept.chats[i]]))
            let text = JSON.stringify(said)
            if (kept.link) {
                // A conversation from a link becomes the visitor's own when they continue it.
                kept.brought ??= text
                if (text === kept.brought) return
                kept.link = null
                history.replaceState(null, "", location.pathname + location.search)
            }
            if (kept.chats.every(chat => !chat.length)) {
                if (kept.some) kept.forget()
                say("")
                return
            }
            kept.some = true
            if (kept.lock) {
                const iv = crypto.getRandomValues(new Uint8Array(12))
                const data = new TextEncoder().encode(text)
                const locked = await crypto.subtle.encrypt({ name: "AES-GCM", iv }, kept.lock, data)
                if (write !== kept.writes) return
                const written = bytes => btoa(Array.from(bytes, each => String.fromCharCode(each)).join(""))
                text = written(iv) + " " + written(new Uint8Array(locked))
            }
            const stored = kept.stores.filter(store => {
                try {
                    store.setItem(kept.place, text)
                    return true
                } catch (error) {
                    // Browsers limit storage to a few megabytes, and may allow none in private windows.
                    console.warn(error)
                    return false
                }
            })
            say(stored.includes(kept.lasting) ? "" : NOT_KEPT)
        }, 200)
    }"""
    names = json.dumps([model.name for model in models])
    return keep.replace("NAMES", names).replace("NOT_KEPT", json.dumps(NOT_KEPT))
