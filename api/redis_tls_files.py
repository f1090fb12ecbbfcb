"""Whether the files of TLS to Redis can be used: asked at the start, so that a bad one is one clear line."""

from __future__ import annotations

import ssl

from api.errors import SettingsError


def check_tls_files(ca_file: str | None, cert_file: str | None, key_file: str | None) -> None:
    """Raises `SettingsError`, one line that names the variable."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if ca_file:
        try:
            context.load_verify_locations(cafile=ca_file)
        except ssl.SSLError:
            raise SettingsError(f"REDIS_CA_FILE: no certificate in PEM form in '{ca_file}'") from None
        except OSError as error:
            raise SettingsError(f"REDIS_CA_FILE: '{ca_file}': {error.strerror}") from None
    if key_file and not cert_file:
        raise SettingsError("REDIS_KEY_FILE: a key needs its certificate, REDIS_CERT_FILE")
    if cert_file:
        _check_readable("REDIS_CERT_FILE", cert_file)
        _check_readable("REDIS_KEY_FILE", key_file or cert_file)
        _check_pair(context, cert_file, key_file)


def _check_readable(variable: str, path: str) -> None:
    try:
        with open(path, "rb") as file:  # noqa: PTH123 - for what it says, not for what it reads
            file.read(1)
    except OSError as error:
        raise SettingsError(f"{variable}: '{path}': {error.strerror}") from None


def _check_pair(context: ssl.SSLContext, cert_file: str, key_file: str | None) -> None:
    try:
        context.load_cert_chain(cert_file, key_file, password="")
    except ssl.SSLError as error:
        reason = (
            "the key is not that of the certificate" if "MISMATCH" in str(error) else "not in PEM form, or encrypted"
        )
        given = f"'{cert_file}' with the key in '{key_file or cert_file}'"
        raise SettingsError(f"REDIS_CERT_FILE: {given} can not be used: {reason}") from None
