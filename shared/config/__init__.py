"""The configuration: TOML files, checked as a whole, with errors that name file, key and fix.

The files contain no secrets, only references, `env:NAME` or `file:/path`. Only the process that needs a secret
resolves it: reading them reads no secret.
"""

import os
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from shared.config.files import read_files
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
    value = Secret(f"file:{path}").resolve() if path else os.environ.get(name, "").strip()
    refuse_published(value, name)
    return value


def load_config(path: Path | None = None) -> Config:
    """Read and check the configuration and what it includes. Raises ConfigError, which lists every problem."""
    files = read_files(path or config_path())
    try:
        return Config.model_validate(files.document)
    except ValidationError as error:
        raise files.error(files.by_file(describe_errors(error))) from None


def parse_config(document: dict[str, Any], source: str = "the configuration") -> Config:
    """Check a parsed document. Raises ConfigError, which lists every problem at once."""
    try:
        return Config.model_validate(document)
    except ValidationError as error:
        raise ConfigError(source, list(describe_errors(error))) from None
