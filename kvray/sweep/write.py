"""Writes a sweep as YAML that :mod:`kvray.sweep.yaml` reads back to an equal sweep."""

from typing import Any

import yaml

from kvray.sweep.check import unused
from kvray.sweep.document import from_values
from kvray.sweep.model import Sweep
from kvray.sweep.yaml import is_text


def sweep_text(sweep: Sweep) -> str:
    """Return the text of a sweep file, without defaults and without unused knobs, for which a file is refused."""
    written = sweep.written()
    for problem in unused(from_values(written)):
        section, name = map(str, problem.path)
        del written[section][name]
    ordered = {name: written[name] for name in Sweep.model_fields if written.get(name) not in (None, {}, [])}
    return _dump(ordered, None)


def value_text(value: Any) -> str:
    """Return a value as one line of YAML, for ``--set key=``."""
    return _dump([value], True)[1:].rstrip()[:-1]


def _dump(value: Any, flow: bool | None) -> str:
    return yaml.dump(
        _escaped(value), Dumper=_Dumper, default_flow_style=flow, sort_keys=False, allow_unicode=True, width=110
    )


def _escaped(value: Any) -> Any:
    """Escape texts that would be read as environment variables (keys never are)."""
    if isinstance(value, dict):
        return {name: _escaped(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_escaped(item) for item in value]
    return value.replace("${", "$${") if isinstance(value, str) else value


class _Dumper(yaml.SafeDumper):
    """Writes no anchors, and quotes texts that our reader (YAML 1.2) would not read as text."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text(dumper: _Dumper, value: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=None if is_text(value) else "'")


_Dumper.add_representer(str, _text)
