"""A mail server that takes every mail, counts it and forgets it: as little work as SMTP allows.

The SMTP simulator of the tests parses and keeps every mail, which would be measured, too.

    python -m tests.benchmarks.mailbox PORT FILE      the number of mails is written into FILE
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path


class Mailbox:
    """Counts mails."""

    def __init__(self, figures: Path) -> None:
        self._figures = figures
        self.mails = 0
        self.note()

    def note(self) -> None:
        self._figures.write_text(str(self.mails))

    async def converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection: RFC 5321's least."""
        writer.write(b"220 mailbox ESMTP\r\n")
        while line := await reader.readline():
            verb = line[:4].upper()
            if verb == b"DATA":
                writer.write(b"354 go on\r\n")
                await writer.drain()
                while await reader.readline() != b".\r\n":
                    pass
                self.mails += 1
                self.note()
            writer.write(b"221 bye\r\n" if verb == b"QUIT" else b"250 ok\r\n")
            await writer.drain()
            if verb == b"QUIT":
                break
        writer.close()


async def serve(port: int, figures: Path) -> None:
    mailbox = Mailbox(figures)
    server = await asyncio.start_server(mailbox.converse, "127.0.0.1", port)
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1]), Path(sys.argv[2])))
