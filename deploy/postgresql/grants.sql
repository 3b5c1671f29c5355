-- What the role of the sidecars may do. Run it as the administration role, after `sidecar store make` and after each
-- update that changed the tables; it may be run at any time.

\set ON_ERROR_STOP on
BEGIN;

REVOKE ALL ON ALL TABLES IN SCHEMA sidecar FROM sidecar;
GRANT USAGE ON SCHEMA sidecar TO sidecar;
GRANT SELECT ON ALL TABLES IN SCHEMA sidecar TO sidecar;
REVOKE SELECT ON sidecar.idempotency FROM sidecar;

-- Uses, quotas, unusual events.
GRANT INSERT, UPDATE, DELETE ON sidecar.usage, sidecar.usage_day, sidecar.key_network, sidecar.unusual,
    sidecar.quota_state TO sidecar;

-- The last use of a key; and, as triggers see to, a new hash of the same key or an earlier end of its overlap, each
-- with its audit row in the same transaction.
GRANT UPDATE (id, name, prefix, digest, algorithm, tenant, environment, scopes, plan, quotas, metadata, status,
    created_at, created_by, expires_at, disabled_at, revoked_at, replaced_at, retires_at, replaces,
    last_used_at, last_used_address, last_used_agent) ON sidecar.api_key TO sidecar;
GRANT INSERT ON sidecar.audit TO sidecar;
GRANT UPDATE (id, hash) ON sidecar.audit_head TO sidecar;

COMMIT;
