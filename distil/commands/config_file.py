"""Flags from a TOML file and from `DISTIL_*` variables, and such a file written.

The command line wins over the environment, the environment over the file. A key is in none of them.
"""

from __future__ import annotations

import argparse
import json
import os
import tomllib
import urllib.parse
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

from distil.commands.flags import Flag, flag_text, stated_flags
from distil.commands.usage import closest, suggestion
from distil.errors import UsageError

_PREFIX = "DISTIL_"
_OTHERS = frozenset({"cache", "config"})  # variables that are no flags
_SECRETS = frozenset({"api_key", "openai_api_key", "key", "token", "password"})
_YES, _NO = frozenset({"1", "true", "yes", "on"}), frozenset({"0", "false", "no", "off"})
_SURE = 0.85  # how alike a variable and a flag must be for the variable to be a slip of ours
_HEAD = """\
# For `distil {command} --config FILE`. Flags win over DISTIL_… variables, and those over this file.
# No key belongs here: it is read from OPENAI_API_KEY alone.
"""


def read_layers(flags: object, known: Collection[str], path: str | None) -> dict[str, object]:
    """What environment and file say of a command's flags; `known` are the flags of all commands.

    `path` is the file that the command line names. Raises UsageError, naming file or variable, and the value.
    """
    path = path or os.environ.get(_PREFIX + "CONFIG")
    from_file = {} if path is None else _read_file(Path(path), flags, known)
    return from_file | _read_environment(os.environ, flags, known)


def config_text(command: str, flags: object, defaults: object) -> str:
    """The file that says what flags say: what is as by default stands there as a comment."""
    lines = [_HEAD.format(command=command)]
    by_default = {name: value for name, _, value, _ in stated_flags(defaults)}
    title_before = None
    for name, flag, value, title in stated_flags(flags):
        if flag.is_positional or name == "dry_run":
            continue
        if title != title_before:
            lines.append(f"# --- {title} ---\n")
            title_before = title
        if flag.help:
            lines.append(f"# {flag_text(flag.help, by_default[name])}")
        lines.append(_line(name, flag, value, is_default=value == by_default[name]) + "\n")
    return "\n".join(lines).rstrip("\n") + "\n"


def _line(name: str, flag: Flag, value: object, *, is_default: bool) -> str:
    if name == "api_base" and _holds_secret(str(value)):
        return f"# {name}: holds a user name, password or query, which stay out of files"
    if value is None:
        return f"# {name} = {_toml(flag.metavar or name.upper())}"
    return f"{'# ' if is_default else ''}{name} = {_toml(value)}"


def _toml(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")


def _read_file(path: Path, flags: object, known: Collection[str]) -> dict[str, object]:
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"--config {path}: {error.strerror}") from None
    except ValueError as error:
        raise UsageError(f"--config {path} is no TOML: {error}") from None
    ours = dict(_settable(flags))
    found: dict[str, object] = {}
    for key, value in values.items():
        name = key.replace("-", "_")
        if name in _SECRETS:
            raise UsageError(f"{path}: {key}: a key is never read from a file: export OPENAI_API_KEY")
        if name not in known:
            raise UsageError(
                f"{path}: unknown key {key}{suggestion(name, known, 'distil run --dump_config')}"
            )
        if name in ours:
            found[name] = _value_of_file(
                *ours[name], value, f"{path}: {key} = {json.dumps(value, default=str)}"
            )
            if name == "api_base" and _holds_secret(str(value)):
                raise UsageError(
                    f"{path}: {key} holds a user name, password or query: "
                    f"leave it out and export {_PREFIX}API_BASE"
                )
    return found


def _value_of_file(flag: Flag, default: object, value: object, where: str) -> object:
    if isinstance(default, bool):
        if not isinstance(value, bool):
            raise UsageError(f"{where}: must be true or false")
        return value
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise UsageError(f"{where}: must be a text or a number")
    return _parsed(flag, str(value), where)


def _read_environment(
    variables: Mapping[str, str], flags: object, known: Collection[str]
) -> dict[str, object]:
    ours = dict(_settable(flags))
    found: dict[str, object] = {}
    for variable, text in sorted(variables.items()):
        name = variable.removeprefix(_PREFIX).lower()
        if not variable.startswith(_PREFIX) or not text or name in _OTHERS:
            continue
        if name in _SECRETS:
            raise UsageError(f"{variable} is not read: export OPENAI_API_KEY")
        if name in ours:
            found[name] = _value_of_variable(*ours[name], text, f"{variable}={text}")
        elif name not in known and (meant := closest(name, known, _SURE)) is not None:
            raise UsageError(f"{variable} names no flag: did you mean {_PREFIX}{meant.upper()}?")
    return found


def _value_of_variable(flag: Flag, default: object, text: str, where: str) -> object:
    if not isinstance(default, bool):
        return _parsed(flag, text, where)
    if text.lower() not in _YES | _NO:
        raise UsageError(f"{where}: must be 1 or 0, true or false, yes or no")
    return text.lower() in _YES


def _settable(flags: object) -> Iterator[tuple[str, tuple[Flag, object]]]:
    for name, flag, default, _ in stated_flags(flags):
        if not flag.is_positional:
            yield name, (flag, default)


def _parsed(flag: Flag, text: str, where: str) -> object:
    try:
        value = flag.read(text)
    except (ValueError, argparse.ArgumentTypeError) as error:
        raise UsageError(f"{where}: {error}") from None
    choices = None if flag.choices is None else list(map(str, flag.choices))
    if choices is not None and value not in choices:
        raise UsageError(f"{where}: must be one of {', '.join(choices)}")
    return value


def _holds_secret(api_bases: str) -> bool:
    """Whether an address has a part that `shown_url` leaves out."""
    try:
        parts = [urllib.parse.urlsplit(each) for each in api_bases.split(",")]
    except ValueError:
        return "@" in api_bases or "?" in api_bases
    return any("@" in part.netloc or part.query for part in parts)
