"""A model's tokenizer: text to tokens and back, whatever it is made of."""

import importlib.util
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from ..protocol import ModelError
from .settings import EngineSettings
from .weights import in_one_line

VOCABULARIES = ("*.model", "*.spm")
SOME_TEXT = "Some text, 1 of many."
OPTIONAL_PACKAGES = ("sacremoses", "rjieba", "sudachipy")
"""What some tokenizers ask for when they are made, by an error that names it."""


@dataclass(frozen=True)
class Vocabulary:
    """What prompts and answers need of a tokenizer, fast or written in Python."""

    encode: Callable[[str], list[int]]
    """Finds control tokens in the text, and puts none around it."""
    encode_bare: Callable[[str], list[int]]
    """Looks for no added tokens, which no option of a fast tokenizer turns off."""
    decode: Callable[[Sequence[int]], str]
    """Leaves out special tokens."""
    frame: tuple[list[int], list[int]]
    """What the tokenizer puts before and after a text of its own accord."""
    settled: bool
    """Whether tokens that follow leave a text as it is, half characters apart."""


def load_tokenizer(
    model: EngineSettings, directory: Path, gguf_file: str | None = None
) -> PreTrainedTokenizerBase:
    """Reads the tokenizer beside a model's weights, or out of its GGUF file.

    Raises:
        ModelError: a package is missing, or there is no tokenizer that transformers can load.
    """
    # Here, because it imports PyTorch.
    from transformers import AutoTokenizer

    options = {"gguf_file": gguf_file} if gguf_file else {}
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(directory, **options)
        # Of files that it cannot read, transformers makes one without words.
        if not tokenizer(SOME_TEXT, add_special_tokens=False)["input_ids"]:
            raise ValueError("it has no words")
    except Exception as error:
        raise _refusal(model, directory, error) from error
    if not isinstance(tokenizer, PreTrainedTokenizerFast | PreTrainedTokenizer):
        raise ModelError(
            f"Model {model.name!r}: {model.source!r} has a {type(tokenizer).__name__}, whose "
            "control tokens are not known here. Add a tokenizer.json, as save_pretrained writes it."
        )
    return tokenizer


def vocabulary_of(tokenizer: PreTrainedTokenizerBase) -> Vocabulary:
    if isinstance(tokenizer, PreTrainedTokenizerFast):
        return _fast(tokenizer)
    return _in_python(tokenizer)


def _fast(tokenizer: PreTrainedTokenizerFast) -> Vocabulary:
    backend = tokenizer.backend_tokenizer
    # A tokenizer.json may hold how its model was trained: cut off after so many tokens.
    backend.no_truncation()
    backend.no_padding()

    def encode_bare(text: str) -> list[int]:
        normalizer, pre_tokenizer = backend.normalizer, backend.pre_tokenizer
        if normalizer is not None:
            text = normalizer.normalize_str(text)
        words = [text]
        if pre_tokenizer is not None:
            words = [word for word, _ in pre_tokenizer.pre_tokenize_str(text)]
        return [token.id for word in words for token in backend.model.tokenize(word)]

    framed = backend.encode("x")
    inner = [position for position, added in enumerate(framed.special_tokens_mask) if not added]
    start, end = (inner[0], inner[-1] + 1) if inner else (len(framed.ids), len(framed.ids))
    decoder = json.loads(backend.to_str())["decoder"] or {}
    return Vocabulary(
        encode=lambda text: backend.encode(text, add_special_tokens=False).ids,
        encode_bare=encode_bare,
        decode=lambda tokens: backend.decode(tokens, skip_special_tokens=True),
        frame=(framed.ids[:start], framed.ids[end:]),
        # It joins a word to its parts, and a sign to the word before it.
        settled=decoder.get("type") != "WordPiece",
    )


def _in_python(tokenizer: PreTrainedTokenizer) -> Vocabulary:
    text = -1
    framed = tokenizer.build_inputs_with_special_tokens([text])
    place = framed.index(text)
    return Vocabulary(
        encode=lambda text: tokenizer.encode(text, add_special_tokens=False),
        encode_bare=lambda text: tokenizer.convert_tokens_to_ids(
            tokenizer.tokenize(text, split_special_tokens=True)
        ),
        decode=lambda tokens: tokenizer.decode(
            tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False
        ),
        frame=(framed[:place], framed[place + 1 :]),
        settled=False,
    )


def _refusal(model: EngineSettings, directory: Path, error: Exception) -> ModelError:
    named = f"Model {model.name!r}: {model.source!r}"
    missing = [
        package
        for package in [*_packages(directory), *_named_packages(error)]
        if importlib.util.find_spec(package) is None
    ]
    if missing:
        return ModelError(
            f"{named} has a tokenizer that needs a package: run `uv add {missing[0]}`."
        )
    return ModelError(
        f"{named} has no tokenizer that transformers can load ({in_one_line(error)}). "
        "Put the tokenizer's files beside the weights, as its save_pretrained writes them."
    )


def _packages(directory: Path) -> Iterator[str]:
    """Yields what reads the vocabularies that lie there."""
    for pattern in VOCABULARIES:
        for file in sorted(directory.glob(pattern)):
            with file.open("rb") as opened:
                # SentencePiece's begins with the mark of its first field; tiktoken's is text.
                yield "sentencepiece" if opened.read(1) == b"\n" else "tiktoken"


def _named_packages(error: BaseException | None) -> Iterator[str]:
    while error is not None:
        yield from (package for package in OPTIONAL_PACKAGES if package in str(error).lower())
        error = error.__cause__ or error.__context__
