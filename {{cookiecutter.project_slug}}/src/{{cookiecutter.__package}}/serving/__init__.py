"""The template's code. Import only from here, not from its modules: updates replace this folder.

The names in `__init__.pyi` are public. The template's changelog lists changes to them.

- The application: `GradioServer` takes `Launch` options, your middleware and your routes.
  `ApiServer` has no page. Add your own fields to `PageSettings`. `main` starts the application.
- Models: `ModelSettings` with `DeploymentSettings`, `deployments_of`, `PageOfModels`. Your own
  class is a `Model`: from `Message`s and `GenerationOptions`, it yields `Piece`s and an `End`.
- The page: `panes_of`, `option_controls`, `connect`. For a chat: `chat_panes_of`, `connect_chat`.
  For your own page: `check_prompt`, `fan_out`.
"""

import lazy_loader

# Names are loaded on first use, so a model's process never loads Gradio, and the page never torch.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
