"""The template's code. Import only from here, not from its modules: updates replace this folder.

The names in `__init__.pyi` are public. The template's changelog lists changes to them.

- `GradioServer` serves the page that your function builds. It takes `Launch` options, your
  middleware and your routes. Add your own fields to `HttpSettings`.
- `main` starts the application. Your own startup checks raise a `StartError`.
"""

import lazy_loader

# Names are loaded on first use, so code that only needs the settings never loads Gradio.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
