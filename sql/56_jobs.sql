-- The rows come all at once, which pgrx can't declare.

CREATE FUNCTION @extschema@.oban_fetch(
    queues pg_catalog.text[],
    node pg_catalog.text,
    max_jobs pg_catalog.int4 DEFAULT 1,
    uuid pg_catalog.text DEFAULT NULL,
    prefix pg_catalog.text DEFAULT 'public'
) RETURNS TABLE (
    id pg_catalog.int8,
    state pg_catalog.text,
    queue pg_catalog.text,
    worker pg_catalog.text,
    args pg_catalog.jsonb,
    meta pg_catalog.jsonb,
    tags pg_catalog.text[],
    errors pg_catalog.jsonb,
    attempt pg_catalog.int4,
    max_attempts pg_catalog.int4,
    priority pg_catalog.int4,
    attempted_by pg_catalog.text[],
    inserted_at pg_catalog.timestamptz,
    scheduled_at pg_catalog.timestamptz,
    attempted_at pg_catalog.timestamptz
) VOLATILE PARALLEL UNSAFE LANGUAGE c AS 'MODULE_PATHNAME', 'oban_fetch_wrapper';
