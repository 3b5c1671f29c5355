"""Operations of the API on keys."""

from typing import Final

import msgspec

from sidecar.admin.api.decoding import given
from sidecar.admin.api.operations import Call, Operation, Reply
from sidecar.admin.api.schemas import ChangeAsked, KeyQuery, NewKeyAsked, RotationAsked
from sidecar.admin.api.serializers import key_told
from sidecar.admin.api_told import IssuedTold, KeyPage, KeyTold, RotatedTold
from sidecar.admin.service import Desk
from sidecar.core.model import ApiKey
from sidecar.keys.ports import KeyFilter, Repeated
from sidecar.keys.records import etag_of
from sidecar.keys.transitions import KeyChange, Rotation
from sidecar.keys.validation import NewKey

_ONE: Final = "/keys/{id}"


async def list_keys(desk: Desk, call: Call) -> Reply:
    page = await desk.list(KeyFilter(**given(call.query)))
    return Reply(value=KeyPage(keys=tuple(key_told(key, desk.now) for key in page.keys), next=page.next))


async def issue_key(desk: Desk, call: Call) -> Reply:
    try:
        issued = await desk.issue(NewKey(**given(call.body)), once=call.once)
    except Repeated as repeated:
        key = await desk.get(repeated.key_id)
        return _reply(key, IssuedTold(key=key_told(key, desk.now), secret=None, repeated=True))
    told = IssuedTold(key=key_told(issued.key, desk.now), secret=issued.secret.text, repeated=False)
    return _reply(issued.key, told, status=201)


async def show_key(desk: Desk, call: Call) -> Reply:
    key = await desk.get(call.key_id)
    return _reply(key, key_told(key, desk.now))


async def change_key(desk: Desk, call: Call) -> Reply:
    key = await desk.change(call.key_id, KeyChange(**given(call.body)), etag=await _expected(desk, call))
    return _reply(key, key_told(key, desk.now))


async def disable_key(desk: Desk, call: Call) -> Reply:
    key = await desk.disable(call.key_id, etag=await _expected(desk, call))
    return _reply(key, key_told(key, desk.now))


async def enable_key(desk: Desk, call: Call) -> Reply:
    key = await desk.enable(call.key_id, etag=await _expected(desk, call))
    return _reply(key, key_told(key, desk.now))


async def revoke_key(desk: Desk, call: Call) -> Reply:
    key = await desk.revoke(call.key_id, etag=await _expected(desk, call))
    return _reply(key, key_told(key, desk.now))


async def rotate_key(desk: Desk, call: Call) -> Reply:
    overlap = desk.config.keys.rotation_overlap_seconds
    rotation = Rotation(**{"overlap_seconds": overlap, **given(call.body)})
    etag = await _expected(desk, call)
    try:
        rotated = await desk.rotate(call.key_id, rotation, etag=etag, once=call.once)
    except Repeated as repeated:
        key, old = await desk.get(repeated.key_id), await desk.get(call.key_id)
        told = RotatedTold(key=key_told(key, desk.now), old=key_told(old, desk.now), secret=None, repeated=True)
        return _reply(key, told)
    key, old = rotated.new.key, rotated.old
    secret = rotated.new.secret.text
    told = RotatedTold(key=key_told(key, desk.now), old=key_told(old, desk.now), secret=secret, repeated=False)
    return _reply(key, told, status=201)


def _reply(key: ApiKey, value: msgspec.Struct, status: int = 200) -> Reply:
    return Reply(value=value, status=status, headers={"ETag": f'"{etag_of(key)}"'})


async def _expected(desk: Desk, call: Call) -> str | None:
    """The entity tag that the key must still have; of several, the one that it has."""
    if not call.matches:
        return None
    if len(call.matches) > 1 and (now := etag_of(await desk.get(call.key_id))) in call.matches:
        return now
    return call.matches[0]


_CHANGES: Final = (404, 409, 412)

OPERATIONS: Final = (
    Operation(
        name="listKeys",
        method="GET",
        path="/keys",
        summary="List keys, the newest first",
        handle=list_keys,
        answer=KeyPage,
        query=KeyQuery,
        key_at="/keys/0/id",
        group="Keys",
    ),
    Operation(
        name="issueKey",
        method="POST",
        path="/keys",
        summary="Issue a key; its secret is in this answer and never again",
        handle=issue_key,
        answer=IssuedTold,
        body=NewKeyAsked,
        statuses=(201, 200),
        refusals=(409, 422),
        once=True,
        key_at="/key/id",
        group="Keys",
    ),
    Operation(
        name="showKey",
        method="GET",
        path=_ONE,
        summary="Show a key",
        handle=show_key,
        answer=KeyTold,
        refusals=(404,),
        group="Keys",
    ),
    Operation(
        name="changeKey",
        method="PATCH",
        path=_ONE,
        summary="Change what of a key may change",
        handle=change_key,
        answer=KeyTold,
        body=ChangeAsked,
        refusals=_CHANGES,
        tagged=True,
        group="Keys",
    ),
    Operation(
        name="rotateKey",
        method="POST",
        path=f"{_ONE}/rotate",
        summary="Issue a key in the place of this one, which retires after an overlap",
        handle=rotate_key,
        answer=RotatedTold,
        body=RotationAsked,
        body_needed=False,
        statuses=(201, 200),
        refusals=(*_CHANGES, 422),
        tagged=True,
        once=True,
        key_at="/key/id",
        group="Keys",
    ),
    *(
        Operation(
            name=f"{verb}Key",
            method="POST",
            path=f"{_ONE}/{verb}",
            summary=summary,
            handle=handle,
            answer=KeyTold,
            refusals=_CHANGES,
            tagged=True,
            group="Keys",
        )
        for verb, summary, handle in (
            ("disable", "Refuse a key until it is enabled again", disable_key),
            ("enable", "Take a disabled key again", enable_key),
            ("revoke", "Refuse a key for ever", revoke_key),
        )
    ),
)
