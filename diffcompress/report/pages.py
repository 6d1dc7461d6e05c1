"""Templates of the pages that a browser shows."""

from __future__ import annotations

from jinja2 import Environment, PackageLoader, StrictUndefined, Template, select_autoescape


def page(name: str) -> Template:
    """A template of this package; what is put into it is escaped, and what it lacks is an error."""
    environment = Environment(
        loader=PackageLoader("diffcompress.report"),
        autoescape=select_autoescape(["j2"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(name)
