"""One interface to all kinds of tokenizers."""

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
"""Packages that some tokenizers need. Their error message names the missing one."""


@dataclass(frozen=True)
class Vocabulary:
    """The functions of a tokenizer that prompts and answers need, fast or in pure Python."""

    encode: Callable[[str], list[int]]
    """Encodes text, including control tokens in it, and adds none around it."""
    encode_bare: Callable[[str], list[int]]
    """Encodes text without added tokens. Fast tokenizers have no option for this."""
    decode: Callable[[Sequence[int]], str]
    """Decodes tokens without special tokens."""
    frame: tuple[list[int], list[int]]
    """The tokens that the tokenizer adds before and after a text."""
    settled: bool
    """Whether later tokens never change earlier text, except for incomplete characters."""


def load_tokenizer(
    model: EngineSettings, directory: Path, gguf_file: str | None = None
) -> PreTrainedTokenizerBase:
    """Loads the tokenizer next to a model's weights, or from its GGUF file.

    Raises:
        ModelError: a package is missing, or there is no tokenizer that transformers can load.
    """
    # Imported here because it imports PyTorch.
    from transformers import AutoTokenizer

    options = {"gguf_file": gguf_file} if gguf_file else {}
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(directory, **options)
        # For files that it cannot read, transformers makes a tokenizer with an empty vocabulary.
        if not tokenizer(SOME_TEXT, add_special_tokens=False)["input_ids"]:
            raise ValueError("its vocabulary is empty")
    except Exception as error:
        raise _refusal(model, directory, error) from error
    if not isinstance(tokenizer, PreTrainedTokenizerFast | PreTrainedTokenizer):
        raise ModelError(
            f"Model {model.name!r}: {model.source!r} has a {type(tokenizer).__name__}, which is "
            "not supported. Add a tokenizer.json, as written by save_pretrained."
        )
    return tokenizer


def vocabulary_of(tokenizer: PreTrainedTokenizerBase) -> Vocabulary:
    if isinstance(tokenizer, PreTrainedTokenizerFast):
        return _fast(tokenizer)
    return _in_python(tokenizer)


def _fast(tokenizer: PreTrainedTokenizerFast) -> Vocabulary:
    backend = tokenizer.backend_tokenizer
    # A tokenizer.json may contain the truncation and padding of the training.
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
        # WordPiece joins a word's parts, and punctuation to the word before it.
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
            f"{named} has a tokenizer that needs a package. Run `uv add {missing[0]}`."
        )
    return ModelError(
        f"{named} has no tokenizer that transformers can load ({in_one_line(error)}). "
        "Put the tokenizer's files next to the weights, as written by its save_pretrained."
    )


def _packages(directory: Path) -> Iterator[str]:
    """Yields the packages that read the vocabularies in this directory."""
    for pattern in VOCABULARIES:
        for file in sorted(directory.glob(pattern)):
            with file.open("rb") as opened:
                # A SentencePiece file starts with the tag of its first field. tiktoken's is text.
                yield "sentencepiece" if opened.read(1) == b"\n" else "tiktoken"


def _named_packages(error: BaseException | None) -> Iterator[str]:
    while error is not None:
        yield from (package for package in OPTIONAL_PACKAGES if package in str(error).lower())
        error = error.__cause__ or error.__context__
