"""The last valid configuration, kept in Redis for a process that starts while the files are invalid.

It has references, never secrets, and is signed with the hash key: an address from Redis must not receive a token.
"""

import base64
import hashlib
import hmac
import json
import re
import zlib
from contextlib import suppress

from redis.exceptions import RedisError

from shared.config import Config, config_path, parse_config
from shared.config.secrets import Secret
from shared.errors import ConfigError
from shared.ledger import keys
from shared.redis_client import RedisClient

_HASH_KEY = re.compile(r'^\s*hash_key\s*=\s*["\']([^"\']+)["\']', re.MULTILINE)


def keep(redis: RedisClient, config: Config) -> None:
    """Keep a configuration that a process has loaded. A process without the hash key cannot."""
    content = json.dumps(config.model_dump(exclude={"include"}), sort_keys=True, default=_reference)
    packed = base64.b64encode(zlib.compress(content.encode())).decode()  # 500 studies are half a megabyte
    with suppress(ConfigError):
        signed = f"{_signature(packed, config.hash_key)} {packed}"
        redis.set(keys.CONFIGURATION, signed)


def is_kept(redis: RedisClient) -> bool:
    """Whether a configuration is kept; a restored or emptied Redis may have none."""
    return bool(redis.exists(keys.CONFIGURATION))


def last_valid(redis: RedisClient, *, signed: bool = True) -> Config | None:
    """The configuration that was kept, or None; with `signed` also if its signature is wrong.

    The signature's key is the one that the file on disk refers to, not one that Redis names.
    """
    try:
        signature, _, packed = (redis.get(keys.CONFIGURATION) or "").partition(" ")
        if signed and not hmac.compare_digest(signature, _signature(packed, _hash_key_on_disk())):
            return None
        return parse_config(json.loads(zlib.decompress(base64.b64decode(packed))))
    except (RedisError, ConfigError, ValueError, zlib.error):
        return None


def _reference(value: object) -> str:
    if isinstance(value, Secret):
        return value.reference
    raise TypeError


def _signature(packed: str, key: Secret) -> str:
    return hmac.new(key.resolve().encode(), b"configuration " + packed.encode(), hashlib.sha256).hexdigest()


def _hash_key_on_disk() -> Secret:
    """The reference in the main file, whatever else is wrong with it; the default if there is none."""
    try:
        text = config_path().read_text(encoding="utf-8-sig", errors="replace")
    except OSError:
        text = ""
    found = _HASH_KEY.search(text)
    default: Secret = Config.model_fields["hash_key"].default
    try:
        return Secret(found[1]) if found else default
    except ValueError:
        return default
