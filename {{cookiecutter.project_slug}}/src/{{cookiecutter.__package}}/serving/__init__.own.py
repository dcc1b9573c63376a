"""The machinery. Import from here, and from nothing below: updates replace this whole folder.

You may rely on the names in `__init__.pyi`. The template's changelog says which one a version changes.

- `GradioServer` serves the page that your function builds, and takes `Launch` options,
  middleware and routes of yours. You add fields to `HttpSettings`.
- `main` starts it. Checks of your own before that raise a `StartError`.
"""

import lazy_loader

# A name is loaded when it is used: what knows the settings alone goes without Gradio.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
