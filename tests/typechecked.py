"""How calls are checked under pytest: jaxtyping's shapes by beartype, an int being good for a float."""

from __future__ import annotations

from beartype import BeartypeConf, beartype

checked = beartype(conf=BeartypeConf(is_pep484_tower=True))
