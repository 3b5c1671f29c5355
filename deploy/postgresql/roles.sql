-- The two roles of a key store in PostgreSQL 14 or later. Run it once, as a superuser or the owner of the database:
--
--   psql -d keys -v sidecar_password="$(cat sidecar.txt)" -v admin_password="$(cat admin.txt)" -f roles.sql
--
-- Then make the tables as the administration role, and grant the sidecars what they need (grants.sql):
--
--   sidecar store make --store postgresql://sidecar_admin@db/keys
--   psql -d keys -U sidecar_admin -f grants.sql

\set ON_ERROR_STOP on

-- Issues, changes and revokes keys, migrates the tables: for people, pipelines, and sidecars with `admin:`.
CREATE ROLE sidecar_admin LOGIN PASSWORD :'admin_password';
-- Reads keys, counts their use: for all other sidecars. It cannot issue a key.
CREATE ROLE sidecar LOGIN PASSWORD :'sidecar_password';

SELECT format('GRANT CREATE ON DATABASE %I TO sidecar_admin', current_database()) \gexec
