"""The OpenAI wire: tools, and the shape that an answer must have."""

from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, JsonValue, model_validator
from pydantic_core import PydanticCustomError

from server.schema.messages import FUNCTION_NAME, Strict

MAX_TOOLS = 128
JsonObject = dict[str, JsonValue]


def _of_functions(value: object) -> object:
    if isinstance(value, dict) and value.get("type") in ("custom", "allowed_tools"):
        raise PydanticCustomError("unsupported", "tools other than functions are not supported", {"below": "type"})
    return value


class Function(Strict):
    name: Annotated[str, Field(pattern=FUNCTION_NAME)]
    description: str | None = None
    parameters: JsonObject | None = None
    strict: bool | None = None


class FunctionTool(Strict):
    type: Literal["function"]
    function: Function


def _choice(value: object) -> object:
    if isinstance(value, dict):
        return _of_functions(value)
    if value not in (None, "none", "auto", "required"):
        raise ValueError("tool_choice must be none, auto, required or a function")
    return value


Tool = Annotated[FunctionTool, BeforeValidator(_of_functions)]
Tools = Annotated[list[Tool], Field(max_length=MAX_TOOLS)]
ToolChoice = Annotated[Literal["none", "auto", "required"] | FunctionTool | None, BeforeValidator(_choice)]


def check_tools(tools: Tools | None, choice: ToolChoice) -> None:
    """Names are told apart, parameters describe objects, and what must be called is there. Raises PydanticCustomError."""
    names = [tool.function.name for tool in tools or ()]
    if len(set(names)) < len(names):
        raise PydanticCustomError("value", "two tools have the same name", {"param": "tools"})
    for index, tool in enumerate(tools or ()):
        if (tool.function.parameters or {}).get("type", "object") != "object":
            param = f"tools[{index}].function.parameters"
            raise PydanticCustomError("value", "parameters must be the schema of an object", {"param": param})
    if isinstance(choice, FunctionTool) and choice.function.name not in names:
        raise PydanticCustomError("value", "there is no tool of that name", {"param": "tool_choice.function.name"})
    if choice == "required" and not names:
        raise PydanticCustomError("value", "tool_choice needs tools", {"param": "tool_choice"})


class JsonSchema(Strict):
    name: Annotated[str, Field(pattern=FUNCTION_NAME)]
    description: str | None = None
    schema_: Annotated[JsonObject, Field(alias="schema")]
    strict: bool | None = None


class ResponseFormat(Strict):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    @model_validator(mode="after")
    def _has_its_schema(self) -> Self:
        if self.type == "json_schema" and self.json_schema is None:
            raise PydanticCustomError("value", "json_schema is missing", {"param": "response_format.json_schema"})
        return self
