"""Sphinx configuration; `make docs` treats warnings as errors."""

from edda_engine import __version__

project = "edda-wsgi"
author = "The edda-wsgi authors"
copyright = "2026, the edda-wsgi authors"
release = version = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc"]
exclude_patterns = ["_build", "examples"]
myst_enable_extensions = ["deflist"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_class_signature = "mixed"
autodoc_preserve_defaults = True

html_theme = "furo"
html_title = f"edda-wsgi {release}"
html_copy_source = False
