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

CREATE FUNCTION @extschema@.oban_insert_job(
    worker pg_catalog.text,
    args pg_catalog.jsonb DEFAULT '{}',
    queue pg_catalog.text DEFAULT 'default',
    scheduled_at pg_catalog.timestamptz DEFAULT NULL,
    schedule_in pg_catalog.interval DEFAULT NULL,
    priority pg_catalog.int4 DEFAULT 0,
    max_attempts pg_catalog.int4 DEFAULT 20,
    tags pg_catalog.text[] DEFAULT '{}',
    meta pg_catalog.jsonb DEFAULT '{}',
    unique_for pg_catalog.interval DEFAULT NULL,
    unique_keys pg_catalog.text[] DEFAULT NULL,
    unique_states pg_catalog.text[] DEFAULT NULL,
    prefix pg_catalog.text DEFAULT 'public'
) RETURNS TABLE (
    id pg_catalog.int8,
    conflict pg_catalog.bool
) VOLATILE PARALLEL UNSAFE LANGUAGE c AS 'MODULE_PATHNAME', 'oban_insert_job_wrapper';

CREATE FUNCTION @extschema@.oban_insert_jobs(
    jobs pg_catalog.jsonb,
    prefix pg_catalog.text DEFAULT 'public'
) RETURNS TABLE (
    id pg_catalog.int8,
    conflict pg_catalog.bool
) VOLATILE PARALLEL UNSAFE LANGUAGE c AS 'MODULE_PATHNAME', 'oban_insert_jobs_wrapper';
