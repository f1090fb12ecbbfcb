"""Connections that speak HTTP/1.1 and nothing else, whatever a client offers or forgets to end.

uvicorn drops the body of a request that offers another protocol, as Java's own client does at first (`Upgrade: h2c`);
and it keeps a head that never ends, however long.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import Final

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from worker_config.malformed_request import refusal

LONGEST_HEAD: Final = 1 << 16
"""Bytes of a head, or of what follows the last chunk, that may have come before its end has."""


class PlainProtocol(HttpToolsProtocol):
    """uvicorn's connection. An offer of another protocol is ignored (RFC 9110, section 7.8)."""

    _unfinished = 0
    """Bytes that came since the last that made sense by themselves."""

    def data_received(self, data: bytes) -> None:
        self._unset_keepalive_if_required()
        self._unfinished += len(data)
        try:
            while data:
                data = self._parse(data)
        except httptools.HttpParserError:
            self._refuse(HTTPStatus.BAD_REQUEST, "This is no HTTP request.")
        else:
            if self._unfinished > LONGEST_HEAD:
                self._refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "The head of the request has no end.")

    def on_headers_complete(self) -> None:
        self._unfinished = 0
        if not self._is_offered_another():
            super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._unfinished = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._unfinished = 0
        if not self._is_offered_another():
            super().on_message_complete()

    def _parse(self, data: bytes) -> bytes:
        """What is to be parsed next: after an offer, the same request without it."""
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as offer:
            if self._is_offered_another():
                head = self._head_without_the_offer()
                self.parser = _parser(self)  # the other one reads no more of a connection that is to close after this
                return head + data[offer.args[0] :]
        return b""

    def _is_offered_another(self) -> bool:
        """The parser then takes the head for the whole request. It does so after a CONNECT too, which is no offer."""
        return bool(self.parser.should_upgrade()) and self.parser.get_method() != b"CONNECT"

    def _head_without_the_offer(self) -> bytes:
        line = b"%b %b HTTP/%b" % (self.parser.get_method(), self.url, self.parser.get_http_version().encode())
        fields = [b"%b: %b" % field for field in self.headers if field[0] != b"upgrade"]
        return b"\r\n".join((line, *fields, b"", b""))

    def _refuse(self, status: HTTPStatus, detail: str) -> None:
        self.transport.write(refusal(status, detail, self.app_state["worker"].worker))
        self.transport.close()


def _parser(protocol: HttpToolsProtocol) -> httptools.HttpRequestParser:
    """As uvicorn makes it."""
    parser = httptools.HttpRequestParser(protocol)
    parser.set_dangerous_leniencies(lenient_data_after_close=True)
    return parser
