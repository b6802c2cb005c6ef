"""The files of the configuration: the one that `OPTOUT_CONFIG` names, and those that its `include` names."""

import glob
import os
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path
from typing import Any

from shared.errors import ConfigError

INCLUDE, PROJECTS = "include", "projects"
Table = dict[str, Any]


def included_files(path: Path, document: Mapping[str, Any]) -> list[Path]:
    """The files that a document includes, each once. Their names are relative to the document's file.

    As in a shell, `*` does not match names with a leading dot, such as an editor's temporary file or `..data`, to
    which the names in a Kubernetes ConfigMap are links.
    """
    found = {
        (path.parent / name).absolute(): path.parent / name
        for pattern in _patterns(document)
        # Path.glob takes no absolute pattern, and its `*` matches hidden names.
        for name in sorted(glob.glob(pattern, root_dir=path.parent, recursive=True))  # noqa: PTH207
    }
    return [name for absolute, name in found.items() if absolute != path.absolute()]


def _patterns(document: Mapping[str, Any]) -> list[str]:
    """The patterns, as far as they are valid; the schema reports others."""
    given = document.get(INCLUDE, [])
    return [each for each in (given if isinstance(given, list) else [given]) if isinstance(each, str)]


def include_patterns(path: Path) -> list[str]:
    """The patterns of a configuration file; none if it cannot be read."""
    try:
        return _patterns(_read_toml(path, ""))
    except ConfigError:
        return []


@dataclass(slots=True)
class Files:
    """What the files hold together."""

    path: Path
    document: Table = field(default_factory=dict)
    # In which included file each project is.
    origins: dict[str, Path] = field(default_factory=dict)
    problems: dict[str, list[str]] = field(default_factory=dict)

    def error(self, lines: Mapping[str, list[str]]) -> ConfigError:
        """An error with the problems of each file."""
        (first, problems), *others = lines.items()
        return ConfigError(first, problems, elsewhere=dict(others))

    def by_file(self, lines: Iterator[str]) -> dict[str, list[str]]:
        """Problems of the form "key: problem", by the file in which the key is."""
        found: dict[str, list[str]] = {}
        for line in lines:
            found.setdefault(str(self._file_of(line)), []).append(line)
        return found

    def _file_of(self, line: str) -> Path:
        key = f"{line.partition(': ')[0]}."
        named = (file for name, file in self.origins.items() if key.startswith(f"{PROJECTS}.{name}."))
        return next(named, self.path)

    def include(self, path: Path) -> None:
        """Add the projects of another file."""
        try:
            tables = _read_toml(path, "let this user read it, or remove it")
        except ConfigError as error:
            self.problems[str(path)] = error.problems
            return
        projects = tables.pop(PROJECTS, {})
        lines = [f"{key}: only [projects.NAME] tables can be here; move it to {self.path}" for key in tables]
        if not isinstance(projects, dict) or not projects:
            lines.append("projects: there is no [projects.NAME] table; add one, or remove the file")
            projects = {}
        lines += [line for name in projects if (line := self._duplicate(name))]
        if lines:
            self.problems[str(path)] = lines
        self.origins |= dict.fromkeys(projects, path)
        self.document.setdefault(PROJECTS, {}).update(projects)

    def _duplicate(self, name: str) -> str:
        if name not in self.document.get(PROJECTS, {}):
            return ""
        other = self.origins.get(name, self.path)
        return f"{PROJECTS}.{name}: {other} has a table of this name, too; rename or remove one of the two"


def read_files(path: Path) -> Files:
    """Read the configuration and what it includes. Raises ConfigError with the problems of every file."""
    fix = "copy config.example.toml and edit it, or point OPTOUT_CONFIG at your file"
    files = Files(path, _read_toml(path, fix))
    if not isinstance(files.document.get(PROJECTS, {}), dict):
        return files  # reported by the schema
    if missing := list(_missing(path, files.document)):
        files.problems[str(path)] = missing
    for each in included_files(path, files.document):
        files.include(each)
    if files.problems:
        raise files.error(files.problems)
    return files


def _missing(path: Path, document: Mapping[str, Any]) -> Iterator[str]:
    """A folder that is missing, such as one that is not mounted, must not pass for one without studies."""
    for pattern in _patterns(document):
        fixed = takewhile(lambda part: not glob.has_magic(part), Path(pattern).parts)
        if not (folder := path.parent.joinpath(*fixed)).exists():
            yield f'{INCLUDE}: {folder} does not exist; create it, or correct "{pattern}"'
        elif folder.is_dir() and not os.access(folder, os.R_OK | os.X_OK):
            yield f"{INCLUDE}: {folder} cannot be read; let this user read it"


def _read_toml(path: Path, fix: str) -> Table:
    """One file. Raises ConfigError if it cannot be read, or is not TOML."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))  # editors on Windows add a byte order mark
    except OSError as error:
        raise ConfigError(str(path), [f"file: cannot be read ({error.strerror}); {fix}"]) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(str(path), [f"file: is not TOML ({error}); correct that line"]) from None
