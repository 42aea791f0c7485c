"""Sphinx for these pages: `make docs`. Warnings are errors there, so a link that leads nowhere fails the build.

To be run as `python -m sphinx` in the folder of the repository, where it finds the program.
"""

from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from policy_server import openapi
from release import reference
from tapfinger_hpc import __version__, cli, config_text

project = "TapFinger-HPC"
version = release = __version__
extensions = ["myst_parser"]
myst_heading_anchors = 3
nitpicky = True
highlight_language = "none"
html_theme = "furo"
html_title = f"TapFinger-HPC {__version__}"
html_show_copyright = False


class _Generated(SphinxDirective):
    """Puts in what ``text`` makes, as if it stood in the page."""

    @staticmethod
    def text() -> str:
        raise NotImplementedError

    def run(self):
        return self.parse_text_to_nodes(self.text(), allow_section_headings=True)


class Commands(_Generated):
    @staticmethod
    def text() -> str:
        return reference.commands(cli.tapfinger)


class Configuration(_Generated):
    @staticmethod
    def text() -> str:
        return reference.configuration(config_text.render())


class Routes(_Generated):
    @staticmethod
    def text() -> str:
        return reference.routes(openapi.document())


def setup(app: Sphinx) -> None:
    app.add_directive("commands", Commands)
    app.add_directive("configuration", Configuration)
    app.add_directive("routes", Routes)
