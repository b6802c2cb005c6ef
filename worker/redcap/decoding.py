"""Decoding of REDCap's answers, which may contain bytes that are not UTF-8."""

import codecs
import io

import requests

_READ_SIZE = 65_536
_REPLACE_CP1252 = "optout_cp1252"


def _decode_cp1252(error: UnicodeError) -> tuple[str, int]:
    """Read bytes that are not UTF-8 as Windows text: a lone A0 is its non-breaking space (redcapAPI #297).

    A phone number that contains it stays complete.
    """
    if not isinstance(error, UnicodeDecodeError):
        raise error
    return error.object[error.start : error.end].decode("cp1252", errors="replace"), error.end


codecs.register_error(_REPLACE_CP1252, _decode_cp1252)


def decode(body: bytes) -> str:
    """Return an answer's text. Stored values may contain bytes that are not UTF-8 (redcapAPI #290, REDCapR #391)."""
    return body.decode("utf-8-sig", errors=_REPLACE_CP1252)


# Answers have contained raw control characters in labels and values, which JSON forbids (PyCap 0.8.0). Between values
# a space means the same as they do, and in a value it is as good.
_CONTROL_TO_SPACE = dict.fromkeys(range(0x20), " ")


class Utf8Stream:
    """A stream that is decoded as `decode` does and encoded again, for a parser that accepts only valid UTF-8 and no
    control characters."""

    def __init__(self, body: io.BufferedReader) -> None:
        self._body = body
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")(errors=_REPLACE_CP1252)

    def read(self, size: int) -> bytes:
        """Return about `size` bytes; no bytes only at the end of the stream, or for a size of 0."""
        while chunk := self._body.read(size):
            # A chunk may end within a character: the decoder keeps the rest for the next chunk.
            if text := self._decoder.decode(chunk):
                return text.translate(_CONTROL_TO_SPACE).encode()
        return self._decoder.decode(b"", final=size != 0).encode()


def claims_html(response: requests.Response) -> bool:
    """Return whether the Content-Type announces HTML."""
    return "html" in response.headers.get("Content-Type", "").lower()


def open_stream(response: requests.Response) -> io.BufferedReader:
    """Return the body as a stream. The body of an answer that claims to be HTML has been read already."""
    if claims_html(response):
        return io.BufferedReader(io.BytesIO(response.content))
    response.raw.decode_content = True
    response.raw.auto_close = False  # otherwise urllib3 closes the stream before the buffer has been read
    return io.BufferedReader(response.raw, _READ_SIZE)
