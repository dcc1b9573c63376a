"""What the page and the models are served with. Import from here, and from nowhere below.

You never edit this folder: `cruft update` replaces it. You may rely on the names in
`__init__.pyi`, which changes announce in the template's changelog:

- **The graph**, in `app.py`: `GradioServer`, `deployments_of`, `PageOfModels`, `PageSettings`,
  and `Launch`, `middleware=` and `routes=` for what you add to the page.
- **Models**, in `models.py`: `ModelSettings`, and `DeploymentSettings` for its replicas. A class of your own is a `Model`: it takes
  `Message`s and `GenerationOptions`, and yields `Piece`s and one `End`.
- **The page**, in `page.py`: `panes_of`, `option_controls` and `connect`; `fan_out` asks models
  for a page of your own, and `check_prompt` refuses what none could answer.
- **The start**, in `__main__.py`: `main`. `StartError` and `PromptError` say what is wrong.
"""

import lazy_loader

# A name is loaded when it is used: a model's process goes without Gradio, the page's without torch.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
