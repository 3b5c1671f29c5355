"""The operations of the API on keys, and their handlers."""

from typing import Final

import msgspec

from sidecar.admin.api.operations import ONE_KEY, B, Bare, Call, NoBody, NoQuery, Operation, Q, Reply
from sidecar.admin.api.requests import (
    KeyCreate,
    KeyQuery,
    KeysChange,
    KeyUpdate,
    RotationRequest,
)
from sidecar.admin.api.schemas import (
    ChangedKeys,
    IssuedKey,
    KeyPage,
    RotatedKey,
)
from sidecar.admin.api.serializers import (
    key_change,
    key_filter,
    new_key,
    rotation,
    selection,
)
from sidecar.admin.service import AdminService
from sidecar.core.model import ApiKey
from sidecar.keys.ports import AlreadyProcessed, KeyFilter
from sidecar.keys.records import PublicKey, etag_of, public_key


async def list_keys(service: AdminService, call: Call[KeyQuery, NoBody]) -> Reply:
    wanted = key_filter(call.query, service.now)
    page, total = await service.list(wanted), await service.total(wanted)
    keys = tuple(public_key(key, service.now) for key in page.keys)
    return Reply(value=KeyPage(keys=keys, next=page.next, total=total))


async def issue_key(service: AdminService, call: Call[NoQuery, KeyCreate]) -> Reply:
    try:
        issued = await service.issue(new_key(call.body), idempotency_key=call.idempotency_key)
    except AlreadyProcessed as processed:
        key = await service.get(processed.key_id)
        return _reply(key, IssuedKey(key=public_key(key, service.now), secret=None, repeated=True))
    response = IssuedKey(key=public_key(issued.key, service.now), secret=issued.secret.text, repeated=False)
    return _reply(issued.key, response, status=201)


async def show_key(service: AdminService, call: Bare) -> Reply:
    return _shown(await service.get(call.key_id), service.now)


async def change_key(service: AdminService, call: Call[NoQuery, KeyUpdate]) -> Reply:
    return _shown(
        await service.change(call.key_id, key_change(call.body), etag=await _expected(service, call)), service.now
    )


async def disable_key(service: AdminService, call: Bare) -> Reply:
    return _shown(await service.disable(call.key_id, etag=await _expected(service, call)), service.now)


async def enable_key(service: AdminService, call: Bare) -> Reply:
    return _shown(await service.enable(call.key_id, etag=await _expected(service, call)), service.now)


async def revoke_key(service: AdminService, call: Bare) -> Reply:
    return _shown(await service.revoke(call.key_id, etag=await _expected(service, call)), service.now)


async def rotate_key(service: AdminService, call: Call[NoQuery, RotationRequest]) -> Reply:
    wanted = rotation(call.body, service.config.keys.rotation_overlap_seconds)
    etag = await _expected(service, call)
    try:
        rotated = await service.rotate(call.key_id, wanted, etag=etag, idempotency_key=call.idempotency_key)
    except AlreadyProcessed as processed:
        key, old = await service.get(processed.key_id), await service.get(call.key_id)
        response = RotatedKey(
            key=public_key(key, service.now), old=public_key(old, service.now), secret=None, repeated=True
        )
        return _reply(key, response)
    key, old = rotated.new.key, rotated.old
    secret = rotated.new.secret.text
    response = RotatedKey(
        key=public_key(key, service.now), old=public_key(old, service.now), secret=secret, repeated=False
    )
    return _reply(key, response, status=201)


async def change_keys(service: AdminService, call: Call[NoQuery, KeysChange]) -> Reply:
    service.must_write()
    body, wanted = call.body, selection(call.body, service.now)
    keys = await service.open_to(body.action, wanted)
    if keys and not body.dry_run:
        since = wanted.unused_since if isinstance(wanted, KeyFilter) else None
        keys = await service.change_all(body.action, [key.id for key in keys], unused_since=since)
    shown = tuple(public_key(key, service.now) for key in keys)
    return Reply(value=ChangedKeys(action=body.action, dry_run=body.dry_run, keys=shown))


def _shown(key: ApiKey, now: int) -> Reply:
    return _reply(key, public_key(key, now))


def _reply(key: ApiKey, value: msgspec.Struct, status: int = 200) -> Reply:
    return Reply(value=value, status=status, headers={"ETag": f'"{etag_of(key)}"'})


async def _expected(service: AdminService, call: Call[Q, B]) -> str | None:
    """The entity tag that the key must still have. If several are given, its current one."""
    if not call.matches:
        return None
    if len(call.matches) > 1 and (now := etag_of(await service.get(call.key_id))) in call.matches:
        return now
    return call.matches[0]


_CHANGES: Final = (404, 409, 412)

KEY_OPERATIONS: Final = (
    Operation(
        name="listKeys",
        method="GET",
        path="/keys",
        summary="List keys, by default the newest first",
        query=KeyQuery,
        body=NoBody,
        handle=list_keys,
        response=KeyPage,
        group="Keys",
    ),
    Operation(
        name="issueKey",
        method="POST",
        path="/keys",
        summary="Issue a key; its secret is in this response only",
        query=NoQuery,
        body=KeyCreate,
        handle=issue_key,
        response=IssuedKey,
        statuses=(201, 200),
        problems=(409, 422),
        takes_idempotency_key=True,
        key_at="/key/id",
        group="Keys",
    ),
    Operation(
        name="changeKeys",
        method="POST",
        path="/bulk",
        summary="Disable or revoke many keys, all or none; or list which",
        query=NoQuery,
        body=KeysChange,
        handle=change_keys,
        response=ChangedKeys,
        problems=(404, 409),
        group="Keys",
    ),
    Operation(
        name="showKey",
        method="GET",
        path=ONE_KEY,
        summary="Show a key",
        query=NoQuery,
        body=NoBody,
        handle=show_key,
        response=PublicKey,
        problems=(404,),
        group="Keys",
    ),
    Operation(
        name="changeKey",
        method="PATCH",
        path=ONE_KEY,
        summary="Change fields of a key",
        query=NoQuery,
        body=KeyUpdate,
        handle=change_key,
        response=PublicKey,
        problems=_CHANGES,
        takes_if_match=True,
        group="Keys",
    ),
    Operation(
        name="rotateKey",
        method="POST",
        path=f"{ONE_KEY}/rotate",
        summary="Replace this key with a new one; it retires after an overlap",
        query=NoQuery,
        body=RotationRequest,
        handle=rotate_key,
        response=RotatedKey,
        body_required=False,
        statuses=(201, 200),
        problems=(*_CHANGES, 422),
        takes_if_match=True,
        takes_idempotency_key=True,
        key_at="/key/id",
        group="Keys",
    ),
    *(
        Operation(
            name=f"{verb}Key",
            method="POST",
            path=f"{ONE_KEY}/{verb}",
            summary=summary,
            query=NoQuery,
            body=NoBody,
            handle=handle,
            response=PublicKey,
            problems=_CHANGES,
            takes_if_match=True,
            group="Keys",
        )
        for verb, summary, handle in (
            ("disable", "Disable a key until it is enabled again", disable_key),
            ("enable", "Re-enable a disabled key", enable_key),
            ("revoke", "Revoke a key for good", revoke_key),
        )
    ),
)
