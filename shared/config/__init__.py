"""The configuration: one TOML file, checked as a whole, with errors that name the key and the fix.

The file contains no secrets, only references, `env:NAME` or `file:/path`. Only the process that needs a secret
resolves it: parsing this file reads no secret.
"""

import os
import tomllib
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from shared.config.messages import describe_errors
from shared.config.schema import Config, Project
from shared.config.secrets import Secret, refuse_published
from shared.config.urls import checked_url, redis_address
from shared.errors import ConfigError

__all__ = [
    "Config", "Project", "broker_url", "config_path", "load_config", "parse_config", "redis_url", "setting",
]  # fmt: skip

DEFAULT_PATH = "config.toml"
DEFAULT_REDIS_URL = "redis://127.0.0.1:6379/0"


def config_path() -> Path:
    """Path of the configuration: `OPTOUT_CONFIG`, or config.toml in the working directory."""
    return Path(os.environ.get("OPTOUT_CONFIG", DEFAULT_PATH))


def redis_url() -> str:
    """Address of the ledger: `OPTOUT_REDIS_URL`, or the content of the file that `OPTOUT_REDIS_URL_FILE` names."""
    return redis_address(setting("OPTOUT_REDIS_URL") or DEFAULT_REDIS_URL, "OPTOUT_REDIS_URL")


def broker_url() -> str:
    """Address of the Celery broker: `OPTOUT_BROKER_URL`, or the ledger's Redis."""
    url = setting("OPTOUT_BROKER_URL")
    return checked_url(url, "OPTOUT_BROKER_URL") if url else redis_url()


def setting(name: str) -> str:
    """An environment variable, or the content of the file that NAME_FILE names; empty if neither is set."""
    path = os.environ.get(f"{name}_FILE")
    value = Secret(f"file:{path}").resolve() if path else os.environ.get(name, "")
    refuse_published(value, name)
    return value


def load_config(path: Path | None = None) -> Config:
    """Read and check the configuration file. Raises ConfigError, which lists every problem at once."""
    path = path or config_path()
    try:
        document = tomllib.loads(
            path.read_text(encoding="utf-8-sig")
        )  # editors on Windows add a byte order mark
    except OSError as error:
        fix = "copy config.example.toml and edit it, or point OPTOUT_CONFIG at your file"
        raise ConfigError(str(path), [f"file: cannot be read ({error.strerror}); {fix}"]) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(str(path), [f"file: is not TOML ({error}); correct that line"]) from None
    return parse_config(document, str(path))


def parse_config(document: dict[str, Any], source: str = "the configuration") -> Config:
    """Check a parsed document. Raises ConfigError, which lists every problem at once."""
    try:
        return Config.model_validate(document)
    except ValidationError as error:
        raise ConfigError(source, list(describe_errors(error))) from None
