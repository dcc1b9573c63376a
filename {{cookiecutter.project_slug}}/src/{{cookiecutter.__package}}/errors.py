"""Errors whose message is for the person in front of the page or the terminal."""


class PromptError(ValueError):
    """The text cannot be answered as it is; the message says what to change."""


class ModelError(RuntimeError):
    """A model cannot be loaded; the message names it and the way out."""


class LoginError(RuntimeError):
    """The login cannot be offered; the message says why and what to do."""


class BusyError(RuntimeError):
    """More is asked than the limits allow; the message says to come back later."""


class GenerationError(RuntimeError):
    """A model gave a text up half way; the message says why."""


class InterruptionError(RuntimeError):
    """An answer ended early, through no fault of the prompt; the message says what to do."""
