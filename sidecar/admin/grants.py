"""What an administrator of one tenant may give to a key: nothing beyond its own reach."""

from collections.abc import Iterable, Iterator, Mapping

from sidecar.admin.auth import Admin
from sidecar.admin.problems import Flaw, pointer_of
from sidecar.config.settings import Config


def tenant_flaws(admin: Admin, tenant: str | None) -> Iterator[Flaw]:
    if not admin.sees(tenant):
        yield Flaw(pointer="/tenant", detail="this admin token is for keys of another tenant")


def scope_flaws(admin: Admin, scopes: Iterable[str], config: Config, *, held: Iterable[str] = ()) -> Iterator[Flaw]:
    """What the key has already (`held`) may stay."""
    given = list(scopes)
    beyond = {*admin.ungrantable(given, config.catalogue)} - {*held}
    for index, scope in enumerate(given):
        if scope in beyond:
            yield Flaw(pointer=f"/scopes/{index}", detail=f"this admin token may not grant {scope!r}")


def plan_flaws(admin: Admin, plan: str | None) -> Iterator[Flaw]:
    if not admin.may_plan(plan):
        offered = ", ".join(admin.plans or ()) or "none"
        yield Flaw(pointer="/plan", detail=f"this admin token may put keys on these plans only: {offered}")


def quota_flaws(admin: Admin, quotas: Mapping[str, int], plan: str | None, config: Config) -> Iterator[Flaw]:
    """A key's own limits win over its plan's, so that they are a way around it unless they are lower."""
    if admin.tenant is None:
        return
    planned = config.plans.get(plan or "", {})
    for name, limit in quotas.items():
        if name in config.quotas and limit > (most := planned.get(name, config.quotas[name].limit)):
            detail = f"this admin token may give {most} at most, which is what the plan gives"
            yield Flaw(pointer=pointer_of(("quotas", name)), detail=detail)
