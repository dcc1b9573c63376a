"""Ray's guide, "Scaling your Gradio app with Ray Serve", fixed only as far as needed to run.

Fixes: the page is mounted, since GradioIngress alone responds with 500; the deployments have
names and together request two CPUs; text lengths are counted in new tokens.
"""

import asyncio
import os
from collections.abc import Callable

import gradio as gr
from fastapi import FastAPI
from ray import serve
from ray.serve.gradio_integrations import GradioIngress
from ray.serve.handle import DeploymentHandle
from transformers import pipeline

MODEL = os.environ["BENCHMARK_MODEL"]
DTYPE = os.environ["BENCHMARK_DTYPE"]
NEW_TOKENS = int(os.environ["BENCHMARK_NEW_TOKENS"])


class Mounted(GradioIngress):
    def __init__(self, builder: Callable[[], gr.Blocks]) -> None:
        web = gr.mount_gradio_app(FastAPI(), builder(), path="/", ssr_mode=False)
        super(GradioIngress, self).__init__(web)


@serve.deployment(ray_actor_options={"num_cpus": 0.8})
class TextGenerationModel:
    def __init__(self, model_name: str) -> None:
        self.generator = pipeline("text-generation", model=model_name, dtype=DTYPE)

    def __call__(self, text: str) -> str:
        generated_list = self.generator(
            text, do_sample=True, min_new_tokens=NEW_TOKENS, max_new_tokens=NEW_TOKENS
        )
        generated: str = generated_list[0]["generated_text"]
        return generated


@serve.deployment(ray_actor_options={"num_cpus": 0.4})
class MyGradioServer(Mounted):
    def __init__(
        self, downstream_model_1: DeploymentHandle, downstream_model_2: DeploymentHandle
    ) -> None:
        self._d1 = downstream_model_1
        self._d2 = downstream_model_2
        super().__init__(
            lambda: gr.Interface(self.fanout, "textbox", "textbox", api_name="generate")
        )

    async def fanout(self, text: str) -> str:
        [result1, result2] = await asyncio.gather(self._d1.remote(text), self._d2.remote(text))
        return f"[Generated text version 1]\n{result1}\n\n[Generated text version 2]\n{result2}"


app = MyGradioServer.bind(
    TextGenerationModel.options(name="first").bind(MODEL),
    TextGenerationModel.options(name="second").bind(MODEL),
)
