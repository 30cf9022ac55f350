-- What oban_check looks at in each schema with tables of Oban's names that the caller has any right on.
-- Its search_path is pg_catalog. It takes no lock on users' tables (pg_partition_tree would), so that no
-- session's lock holds it up.
WITH RECURSIVE prefixes AS (
    SELECT n.oid, n.nspname, jobs.oid AS jobs, jobs.relkind AS jobs_kind,
        peers.oid AS peers, peers.relpersistence AS persistence
    FROM pg_namespace n
    LEFT JOIN pg_class jobs
        ON jobs.relnamespace = n.oid AND jobs.relname = 'oban_jobs' AND jobs.relpersistence <> 't'
    LEFT JOIN pg_class peers
        ON peers.relnamespace = n.oid AND peers.relname = 'oban_peers' AND peers.relpersistence <> 't'
    WHERE (jobs.oid IS NOT NULL OR peers.oid IS NOT NULL)
      AND (
        has_schema_privilege(n.oid, 'USAGE')
        OR has_any_column_privilege(COALESCE(jobs.oid, peers.oid), 'SELECT, INSERT, UPDATE')
      )
), job_tables AS (
    -- oban_jobs, and every partition that can be inserted into directly.
    SELECT p.oid AS prefix, p.jobs AS oid FROM prefixes p
    UNION
    SELECT t.prefix, i.inhrelid
    FROM job_tables t
    JOIN pg_class c ON c.oid = t.oid AND c.relkind = 'p'
    JOIN pg_inherits i ON i.inhparent = t.oid
), ours AS (
    SELECT f.oid FROM pg_proc f JOIN pg_extension e ON e.extnamespace = f.pronamespace
    WHERE e.extname = 'obanrs' AND f.proname = 'obanrs_jobs_insert' AND f.pronargs = 0
), tables AS (
    -- Their triggers. Versions before 0.9.0 have made one for each INSERT statement, on each table.
    SELECT t.prefix, t.oid,
        count(g.oid) AS triggers,
        count(g.oid) FILTER (WHERE g.tgtype & 1 = 1) AS row_triggers,
        COALESCE(
            array_agg(g.tgname::text ORDER BY g.tgname) FILTER (WHERE g.tgenabled IN ('D', 'R')), '{}'
        ) AS off
    FROM job_tables t
    JOIN pg_class c ON c.oid = t.oid AND c.relkind IN ('r', 'p')
    LEFT JOIN pg_trigger g
        ON g.tgrelid = t.oid AND g.tgname IN ('obanrs_jobs_insert', 'obanrs_jobs_update')
        AND g.tgfoid IN (SELECT oid FROM ours)
    GROUP BY t.prefix, t.oid
)
SELECT
    p.nspname::text AS prefix,
    p.jobs::regclass::text AS jobs,
    p.jobs_kind IN ('r', 'p') AS jobs_is_table,
    -- Whether anything of obanrs' is on the tables.
    EXISTS (SELECT FROM tables t WHERE t.prefix = p.oid AND t.triggers > 0)
        OR peers_triggers.there > 0
        OR EXISTS (
            SELECT FROM pg_attribute a
            WHERE a.attrelid = p.peers AND a.attname IN ('term', 'boot') AND NOT a.attisdropped
        ) AS touched,
    p.jobs AS jobs_oid,
    -- Whether its jobs are staged: the trigger has the argument.
    EXISTS (
        SELECT FROM pg_trigger g
        WHERE g.tgrelid = p.jobs AND g.tgname = 'obanrs_jobs_insert' AND g.tgfoid IN (SELECT oid FROM ours)
          AND g.tgargs = convert_to('stage', 'SQL_ASCII') || decode('00', 'hex')
    ) AS stages,
    EXISTS (
        SELECT FROM pg_index i JOIN pg_class x ON x.oid = i.indexrelid
        WHERE i.indrelid = p.jobs AND x.relname = 'obanrs_jobs_due' AND i.indisvalid
    ) AS has_due_index,
    ARRAY(
        SELECT t.oid::regclass::text FROM tables t
        WHERE t.prefix = p.oid AND t.triggers = 0 ORDER BY t.oid
    ) AS without_trigger,
    -- Those with a trigger of a version before 0.9.0, and those with one trigger of the two.
    ARRAY(
        SELECT t.oid::regclass::text FROM tables t
        WHERE t.prefix = p.oid AND t.triggers > 0 AND t.row_triggers < 2 ORDER BY t.oid
    ) AS old_trigger,
    ARRAY(
        SELECT format('%s %s', t.oid::regclass, array_to_string(t.off, ','))
        FROM tables t
        WHERE t.prefix = p.oid AND t.off <> '{}' ORDER BY t.oid
    ) AS disabled,
    p.peers::regclass::text AS peers,
    -- The publications that take the table along, each with what ends that. An unlogged table is never published.
    -- (pg_publication_tables would lock tables.)
    ARRAY(
        SELECT b.pubname || ': ' || CASE
            WHEN b.puballtables THEN
                'it is FOR ALL TABLES: DROP it, and CREATE one FOR TABLE ... that lists the tables to replicate'
            WHEN r.oid IS NOT NULL THEN format('ALTER PUBLICATION %I DROP TABLE %s', b.pubname, p.peers::regclass)
            ELSE format(
                'ALTER PUBLICATION %I DROP TABLES IN SCHEMA %I, and ADD TABLE those of it to replicate',
                b.pubname, p.nspname
            )
        END
        FROM pg_publication b
        LEFT JOIN pg_publication_rel r ON r.prpubid = b.oid AND r.prrelid = p.peers
        LEFT JOIN pg_publication_namespace s ON s.pnpubid = b.oid AND s.pnnspid = p.oid
        WHERE p.persistence = 'p' AND (b.puballtables OR r.oid IS NOT NULL OR s.oid IS NOT NULL)
          AND (b.pubinsert OR b.pubupdate OR b.pubdelete OR b.pubtruncate)
        ORDER BY b.pubname
    ) AS publications,
    -- The subscriptions that write it.
    ARRAY(
        SELECT b.subname::text FROM pg_subscription_rel r JOIN pg_subscription b ON b.oid = r.srsubid
        WHERE r.srrelid = p.peers ORDER BY b.subname
    ) AS subscriptions,
    COALESCE(p.persistence = 'u', false) AS unlogged,
    peers_triggers.there = 3 AS peers_triggers_are_there,
    peers_triggers.off AS peers_triggers_off,
    -- What an application's role needs to use all of it.
    array_remove(ARRAY[
        CASE WHEN NOT has_schema_privilege(p.oid, 'USAGE')
            THEN format('GRANT USAGE ON SCHEMA %I TO %I', p.nspname, current_user) END,
        CASE WHEN NOT has_any_column_privilege(p.jobs, 'SELECT')
            THEN format('GRANT SELECT ON %s TO %I', p.jobs::regclass, current_user) END,
        CASE WHEN NOT has_table_privilege(p.jobs, 'INSERT')
            THEN format('GRANT INSERT ON %s TO %I', p.jobs::regclass, current_user) END,
        CASE WHEN NOT has_table_privilege(p.jobs, 'UPDATE')
            THEN format('GRANT UPDATE ON %s TO %I', p.jobs::regclass, current_user) END
    ], NULL) AS caller_lacks,
    -- One that only reads is none that lacks the rest.
    has_schema_privilege(p.oid, 'USAGE') AND has_any_column_privilege(p.jobs, 'SELECT')
        AND NOT has_any_column_privilege(p.jobs, 'INSERT, UPDATE') AS caller_reads_only
FROM prefixes p
CROSS JOIN LATERAL (
    SELECT count(*) AS there,
        COALESCE(array_agg(g.tgname::text ORDER BY g.tgname) FILTER (WHERE g.tgenabled IN ('D', 'R')), '{}') AS off
    FROM pg_trigger g
    JOIN pg_proc f ON f.oid = g.tgfoid AND f.proname = 'obanrs_peers'
    JOIN pg_extension e ON e.extname = 'obanrs' AND e.extnamespace = f.pronamespace
    WHERE g.tgrelid = p.peers AND g.tgname IN ('obanrs_peers_guard', 'obanrs_peers_rows', 'obanrs_peers_end')
) peers_triggers
ORDER BY p.nspname
