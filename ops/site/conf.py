"""Sphinx's settings for the manuals as one searchable site: `tox -e docs`, then .tox/site/index.html.

The pages are the Markdown files where they are, which read as well without it.
"""

project = "traksense"
html_title = "traksense"
html_theme = "furo"
html_show_sphinx = False
html_copy_source = False

extensions = ["myst_parser"]
root_doc = "ops/site/index"
# Leads from the top of the site to that page.
html_extra_path = ["index.html"]
include_patterns = ["*.md", "ops/*.md", "ops/**/*.md"]
# As GitHub makes them.
myst_heading_anchors = 4
