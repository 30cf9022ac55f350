-- Tables that have triggers of obanrs for a table of jobs, and are neither an oban_jobs nor a partition of one: such as
-- a partition that was detached under an earlier version, or an oban_jobs that was renamed. The search_path is
-- pg_catalog.
WITH RECURSIVE ours AS (
    SELECT g.tgrelid, g.tgname
    FROM pg_trigger g
    JOIN pg_proc f ON f.oid = g.tgfoid AND f.proname = 'obanrs_jobs_insert' AND f.pronargs = 0
    JOIN pg_extension e ON e.extname = 'obanrs' AND e.extnamespace = f.pronamespace
    WHERE g.tgparentid = 0 AND g.tgname IN ('obanrs_jobs_insert', 'obanrs_jobs_update')
), ancestors AS (
    SELECT o.tgrelid AS oid, o.tgrelid AS relid FROM ours o
    UNION
    SELECT a.oid, i.inhparent
    FROM ancestors a
    JOIN pg_class c ON c.oid = a.relid AND c.relispartition
    JOIN pg_inherits i ON i.inhrelid = a.relid
)
SELECT o.tgrelid::regclass::text AS relation,
    string_agg(format('DROP TRIGGER %I ON %s', o.tgname, o.tgrelid::regclass), '; ' ORDER BY o.tgname) AS remedy
FROM ours o
JOIN pg_class t ON t.oid = o.tgrelid AND t.relpersistence <> 't'
WHERE (has_schema_privilege(t.relnamespace, 'USAGE') OR has_any_column_privilege(t.oid, 'SELECT, INSERT, UPDATE'))
  AND NOT EXISTS (
    SELECT FROM ancestors a
    JOIN pg_class c ON c.oid = a.relid
    WHERE a.oid = o.tgrelid AND c.relname = 'oban_jobs' AND NOT c.relispartition
)
GROUP BY o.tgrelid
ORDER BY o.tgrelid
