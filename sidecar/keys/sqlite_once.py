"""Requests that are carried out once, remembered with what they made."""

from sidecar.keys.ports import ONCE_SECONDS, Misused, Once, Repeated
from sidecar.store.connection import Line


async def check_once(line: Line, once: Once | None, at: int) -> None:
    """Raises Repeated and Misused where the request's key was seen within ONCE_SECONDS before `at`."""
    if once is None:
        return
    await line.rows("DELETE FROM idempotency WHERE at <= ?", (at - ONCE_SECONDS * 1_000_000,))
    seen = await line.rows(
        "SELECT fingerprint, key_id FROM idempotency WHERE token_name = ? AND idempotency_key = ?",
        (once.token, once.key),
    )
    for fingerprint, key_id in seen:
        if fingerprint != once.fingerprint:
            raise Misused("this idempotency key was used before for another request: use a new one")
        raise Repeated(key_id)


async def remember_once(line: Line, once: Once | None, key_id: str, at: int) -> None:
    """In the transaction that carries the request out."""
    if once is not None:
        await line.rows(
            "INSERT INTO idempotency (token_name, idempotency_key, fingerprint, key_id, at) VALUES (?, ?, ?, ?, ?)",
            (once.token, once.key, once.fingerprint, key_id, at),
        )
