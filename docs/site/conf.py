"""How Sphinx builds the site. `docs/site/build.py` lays out the pages."""

project = "gradio-ray-template"
language = "en"
extensions = ["myst_parser"]
# Deep enough for every heading that a document links to.
myst_heading_anchors = 4
nitpicky = True

html_theme = "furo"
html_title = project
html_static_path = ["static"]
html_css_files = ["tables.css"]
html_copy_source = False
html_show_copyright = False
html_show_sphinx = False
pygments_style = "friendly"
pygments_dark_style = "native"
