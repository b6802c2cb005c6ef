"""Access tokens for the mailbox by OAuth 2.0 client credentials (RFC 6749, section 4.4), as Microsoft 365 requires.

Source: Microsoft docs, "Authenticate an IMAP, POP or SMTP connection using OAuth".
"""

import re

import requests

from shared.config.schema import SmtpOAuth2
from shared.errors import MailDeferred
from shared.retry_policy import OAUTH2_LEEWAY_SECONDS, OAUTH2_TIMEOUT_SECONDS
from worker.http_session import failure_in_words, trusting

# RFC 6749, section 5.2, and what its section 4.1.2.1 names for a server in trouble.
_TEMPORARY = {"temporarily_unavailable", "server_error"}


class AccessTokens:
    """One token, kept in memory only. Raises ConfigError if the client secret is missing."""

    def __init__(self, config: SmtpOAuth2) -> None:
        # Imported here: the library takes 12 MB in each process, and most deployments do not need it.
        from authlib.integrations.requests_client import OAuth2Session

        self._session = OAuth2Session(
            config.client_id,
            config.client_secret.resolve(),
            scope=config.scope,
            token_endpoint=config.token_url,
            # In the body: a secret with special characters is encoded differently by servers in a Basic header.
            token_endpoint_auth_method="client_secret_post",  # noqa: S106  a method
            grant_type="client_credentials",
        )
        trusting(self._session)
        self._session.headers["User-Agent"] = "opt-out-bridge"

    @property
    def has_token(self) -> bool:
        """Whether a token is in memory that has not expired."""
        token = self._session.token
        return bool(token) and not token.is_expired(leeway=OAUTH2_LEEWAY_SECONDS)

    def forget(self) -> None:
        """Fetch another token next time: the mail server rejected this one."""
        self._session.token = None

    def get(self) -> str:
        """The token; fetched if necessary. Raises MailDeferred, without the server's text."""
        if not self.has_token:
            self.forget()
            self._fetch()
        return str(self._session.token["access_token"])

    def _fetch(self) -> None:
        try:
            # No redirects: they would send the client secret to another address.
            token = self._session.fetch_token(timeout=OAUTH2_TIMEOUT_SECONDS, allow_redirects=False)
            if not re.fullmatch(r"[!-~]+", token["access_token"]):
                raise ValueError
        except self._session.oauth_error_class as error:
            raise _rejection(str(error.error), str(error.description or "")) from None
        except requests.HTTPError as error:
            status = error.response.status_code
            kind = "oauth2_client_rejected" if status in {400, 401, 403} else "oauth2_unreachable"
            raise MailDeferred(kind, f"status {status}") from None
        except requests.RequestException as error:
            cause = failure_in_words(error, timeout_seconds=OAUTH2_TIMEOUT_SECONDS)
            raise MailDeferred("oauth2_unreachable", cause) from None
        except (ValueError, KeyError, TypeError):
            self.forget()
            raise MailDeferred("oauth2_unreachable", "the response contains no token") from None


def _rejection(code: str, text: str) -> MailDeferred:
    """The error with its code and, from Microsoft, the number that explains it; its text may contain anything."""
    known = code if re.fullmatch(r"[a-z_]{1,40}", code) else "an unknown error"
    number = re.match(r"AADSTS\d{1,10}", text)
    kind = "oauth2_unreachable" if code in _TEMPORARY else "oauth2_client_rejected"
    return MailDeferred(kind, " ".join(filter(None, (known, number and number[0]))))
