"""The guide's "original approach": a Gradio app that asks both models in turn."""

import os

import gradio as gr
from transformers import pipeline

MODEL = os.environ["BENCHMARK_MODEL"]
DTYPE = os.environ["BENCHMARK_DTYPE"]
NEW_TOKENS = int(os.environ["BENCHMARK_NEW_TOKENS"])

generator1 = pipeline("text-generation", model=MODEL, dtype=DTYPE)
generator2 = pipeline("text-generation", model=MODEL, dtype=DTYPE)


def model1(text: str) -> str:
    generated_list = generator1(
        text, do_sample=True, min_new_tokens=NEW_TOKENS, max_new_tokens=NEW_TOKENS
    )
    generated: str = generated_list[0]["generated_text"]
    return generated


def model2(text: str) -> str:
    generated_list = generator2(
        text, do_sample=True, min_new_tokens=NEW_TOKENS, max_new_tokens=NEW_TOKENS
    )
    generated: str = generated_list[0]["generated_text"]
    return generated


demo = gr.Interface(
    lambda text: f"{model1(text)}\n------------\n{model2(text)}",
    "textbox",
    "textbox",
    api_name="generate",
)
demo.launch(server_port=int(os.environ["BENCHMARK_PORT"]))
