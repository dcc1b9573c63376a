"""An application that imports only Serve, to measure how long Ray and Serve take to start."""

from ray import serve


@serve.deployment(ray_actor_options={"num_cpus": 0})
class Empty:
    async def __call__(self) -> str:
        return "empty"


app = Empty.bind()
