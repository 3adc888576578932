"""``python -m numbagrad`` is the command ``numbagrad``."""

from .cli import app

app(prog_name="numbagrad")
