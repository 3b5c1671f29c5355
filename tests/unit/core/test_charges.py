"""Which buckets a request takes from, for whom, and how large they are."""

import pytest

from sidecar.core.model import ApiKey, Bucket, Charge, Subject
from sidecar.core.quotas import buckets_for, depends_on_address, limit_of
from tests.unit.core.samples import api_key, quota

PLANS = {"pro": {"general": 100}, "enterprise": {"general": None}}


def buckets(*charges: Charge, key: ApiKey | None, address: str = "198.51.100.7") -> list[Bucket]:
    return buckets_for(charges, key=key, address=address, route="GET /a", plans=PLANS)


def subject(key: ApiKey | None, *by: Subject, address: str = "198.51.100.7") -> tuple[str, ...]:
    (bucket,) = buckets(Charge(quota=quota(by=by)), key=key, address=address)
    return bucket.subject


def test_a_quota_is_counted_by_what_it_says() -> None:
    key = api_key(tenant="acme")
    assert subject(key, Subject.KEY) == ("key_1",)
    assert subject(key, Subject.TENANT) == ("acme",)
    assert subject(key, Subject.ADDRESS) == ("198.51.100.7",)
    assert subject(key, Subject.ROUTE) == ("GET /a",)
    assert subject(api_key(environment="test"), Subject.ENVIRONMENT) == ("test",)
    assert subject(key, Subject.TENANT, Subject.ROUTE) == ("acme", "GET /a")


def test_a_plan_without_a_limit_is_not_counted_unless_the_key_has_one() -> None:
    charge = Charge(quota=quota())
    assert buckets(charge, key=api_key(plan="enterprise")) == []
    (bucket,) = buckets(charge, key=api_key(plan="enterprise", quotas={"general": 5}))
    assert bucket.limit == 5


def test_a_request_without_a_key_has_no_environment() -> None:
    assert buckets(Charge(quota=quota(by=(Subject.ENVIRONMENT,))), key=None) == []


def test_neighbours_in_an_ipv6_64_share_a_bucket() -> None:
    assert subject(None, Subject.ADDRESS, address="2001:db8::1") == subject(
        None, Subject.ADDRESS, address="2001:db8::ffff:2"
    )


def test_a_key_without_a_tenant_shares_no_quota() -> None:
    one, other = subject(api_key(), Subject.TENANT), subject(api_key(id="key_2"), Subject.TENANT)
    assert one != other
    assert subject(api_key(tenant="key_1"), Subject.TENANT) != one


@pytest.mark.parametrize("by", [(Subject.KEY,), (Subject.TENANT,), (Subject.ADDRESS, Subject.KEY)])
def test_without_a_key_nothing_is_counted_by_key_or_tenant(by: tuple[Subject, ...]) -> None:
    assert buckets(Charge(quota=quota(by=by)), key=None) == []


@pytest.mark.parametrize(("only", "with_key", "without"), [("all", 1, 1), ("key", 1, 0), ("anonymous", 0, 1)])
def test_a_quota_may_be_for_some_requests_only(only: str, with_key: int, without: int) -> None:
    charge = Charge(quota=quota(by=(Subject.ADDRESS,), only=only))
    assert len(buckets(charge, key=api_key())) == with_key
    assert len(buckets(charge, key=None)) == without


def test_the_keys_own_limit_wins_over_its_plans_and_that_over_the_quotas() -> None:
    general = quota(limit=10)
    assert limit_of(general, None, PLANS) == 10
    assert limit_of(general, api_key(), PLANS) == 10
    assert limit_of(general, api_key(plan="gone"), PLANS) == 10
    assert limit_of(general, api_key(plan="pro"), PLANS) == 100
    assert limit_of(general, api_key(plan="pro", quotas={"general": 7}), PLANS) == 7
    assert limit_of(general, api_key(plan="pro", quotas={"general": 0}), PLANS) == 0
    assert limit_of(quota("other", 5), api_key(plan="pro", quotas={"general": 7}), PLANS) == 5


def test_cost_and_limit_are_in_the_bucket() -> None:
    (bucket,) = buckets(Charge(quota=quota(), cost=5), key=api_key(plan="pro"))
    assert (bucket.cost, bucket.limit) == (5, 100)


def test_whether_an_address_matters_is_known_beforehand() -> None:
    assert depends_on_address([Charge(quota=quota()), Charge(quota=quota(by=(Subject.ROUTE, Subject.ADDRESS)))])
    assert not depends_on_address([Charge(quota=quota())])
    assert not depends_on_address([])
