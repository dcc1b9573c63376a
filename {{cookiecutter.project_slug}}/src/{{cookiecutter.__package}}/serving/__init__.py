"""The machinery. Import from here, and from nothing below: updates replace this whole folder.

You may rely on the names in `__init__.pyi`. The template's changelog says which one a version changes.

- The application: `GradioServer`, which takes `Launch` options, middleware and routes of yours,
  or `ApiServer`, without a page. You add fields to `PageSettings`. `main` starts it.
- The models: `ModelSettings` with `DeploymentSettings`, `deployments_of`, `PageOfModels`. A class
  of yours is a `Model`: it takes `Message`s and `GenerationOptions`, and yields `Piece`s and one `End`.
- The page: `panes_of`, `option_controls`, `connect`; of a chat `chat_panes_of`, `connect_chat`;
  `check_prompt`, `fan_out` for another page.
"""

import lazy_loader

# A name is loaded when it is used: a model's process goes without Gradio, the page's without torch.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
