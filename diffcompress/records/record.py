"""What every record of ours has in common: frozen, read leniently, written as it was made, told in a JSON Schema."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, GetJsonSchemaHandler, WithJsonSchema
from pydantic_core import CoreSchema

# As JSON has it: what was a whole number stays one.
Number = Annotated[int | float, WithJsonSchema({"type": "number"})]
Sha256 = Annotated[str, WithJsonSchema({"type": "string", "pattern": "^[0-9a-f]{64}$"})]


class Record(BaseModel):
    """A record knows what every version of diffcompress may leave out, and keeps what later versions may add.

    A field with a default may be missing in a file of an earlier version. What was not given is not written.

    closed: our files hold nothing else (told by the schema alone); always: fields with a default that our files hold.
    """

    model_config = ConfigDict(frozen=True, extra="allow", populate_by_name=True)
    closed: ClassVar[bool] = False
    always: ClassVar[tuple[str, ...]] = ()

    def to_json(self) -> dict[str, Any]:
        return self.model_dump(mode="json", by_alias=True, exclude_unset=True)

    @classmethod
    def __get_pydantic_json_schema__(cls, core: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        told = handler(core)
        schema = handler.resolve_ref_schema(told)
        properties = schema.get("properties", {})
        required = {*schema.get("required", ()), *cls.always}
        schema["required"] = [name for name in properties if name in required]
        if cls.closed:
            schema["additionalProperties"] = False
        elif schema.get("additionalProperties") is True:
            del schema["additionalProperties"]
        return told


class Empty(Record):
    """A record of which nothing is known: `{}` in JSON."""

    model_config = ConfigDict(extra="forbid")
    closed = True

    def __bool__(self) -> Literal[False]:
        return False


Plain = TypeVar("Plain")


def plain(value: Any) -> Any:
    """Records, also in a list, as JSON has them."""
    if isinstance(value, list):
        return [plain(one) for one in value]
    return value.to_json() if isinstance(value, Record) else value
