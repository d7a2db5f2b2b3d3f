"""Plain data on the wire: canonical JSON bytes, and named tuples read back from data that nobody has vouched for yet.
Anything may come in as bytes; what goes out has exactly the declared fields and types."""

from __future__ import annotations

import json
from typing import Any, NoReturn, TypeVar, get_args, get_origin, get_type_hints

from foedus.errors import WireError

R = TypeVar("R", bound=tuple[Any, ...])


def canonical(obj: object) -> bytes:
    """The one JSON text of `obj` as UTF-8: keys sorted by code point, no whitespace; tuples are lists.

    WireError for NaN and infinities, keys that are not text, lone surrogates, nesting too deep and other types.

    >>> canonical({"b": (1, 2.5), "a": "ü"}).decode()
    '{"a":"ü","b":[1,2.5]}'
    """
    try:
        _check_keys(obj)
        text = json.dumps(obj, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
        return text.encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise WireError(f"this has no canonical JSON form: {error}") from None


def _check_keys(obj: object) -> None:
    if isinstance(obj, dict):
        for key, value in obj.items():
            if not isinstance(key, str):  # json would write 1 and "1" alike
                raise TypeError(f"the key {key!r} is not text")
            _check_keys(value)
    elif isinstance(obj, list | tuple):
        for value in obj:
            _check_keys(value)


def parse(data: bytes) -> Any:
    """The value of a JSON text; WireError where it is not UTF-8 JSON, repeats a key, or holds NaN or an infinity."""
    try:
        return json.loads(data.decode(), object_pairs_hook=_unique, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise WireError(f"this is not JSON of ours: {error}") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key is repeated")
    return found


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def plain(record: tuple[Any, ...]) -> dict[str, Any]:
    """The fields of a named tuple as a dict, nested ones too: what `canonical` takes and `read` brings back."""
    return {name: _plain(getattr(record, name)) for name in getattr(record, "_fields")}  # noqa: B009


def _plain(value: Any) -> Any:
    if hasattr(value, "_fields"):
        return plain(value)
    return list(value) if isinstance(value, tuple) else value


def read(kind: type[R], data: object) -> R:
    """The named tuple `kind` from parsed JSON: exactly its fields, each of exactly its type, else WireError.

    Types are str, int, bool, dict, tuple[str, ...], other named tuples, and unions of these told apart by their fields.
    """
    hints = get_type_hints(kind)
    if not isinstance(data, dict) or data.keys() != hints.keys():
        raise WireError(f"{kind.__name__} needs exactly the fields {', '.join(hints)}")
    return kind(**{name: _value(hint, data[name], f"{kind.__name__}.{name}") for name, hint in hints.items()})


def _value(hint: Any, value: object, where: str) -> Any:
    for option in [hint] if get_origin(hint) in (None, tuple, dict) else get_args(hint):
        if hasattr(option, "_fields") and isinstance(value, dict) and value.keys() == set(option._fields):
            return read(option, value)
        if option == tuple[str, ...] and isinstance(value, list) and all(type(item) is str for item in value):
            return tuple(value)
        if type(value) is (get_origin(option) or option):  # exact: True is no int
            return value
    raise WireError(f"{where} is {type(value).__name__}, not {getattr(hint, '__name__', hint)}")
