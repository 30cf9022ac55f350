\echo Use "ALTER EXTENSION obanrs UPDATE TO '0.9.0'" to load this file. \quit

-- A new argument makes another function of the same name, and two of a name could not be called without it. So the
-- old function goes. What depends on it, such as a view, is an error that names it.

CREATE FUNCTION @extschema@.oban_install(
    prefix pg_catalog.text DEFAULT 'public',
    stage pg_catalog.bool DEFAULT NULL,
    on_replica pg_catalog.bool DEFAULT NULL
) RETURNS void
VOLATILE PARALLEL UNSAFE LANGUAGE c AS 'MODULE_PATHNAME', 'oban_install_with_wrapper';

-- The new functions take over owners, rights and settings. These are copied in the catalogs. A GRANT in an extension's
-- script would count as the extension's own, and pg_dump would leave the user's GRANTs and REVOKEs out.

CREATE TEMPORARY TABLE pg_temp.obanrs_replaced AS
    SELECT old::pg_catalog.oid AS old, new::pg_catalog.oid AS new
    FROM (VALUES
        (
            '@extschema@.oban_install(text, boolean)'::pg_catalog.regprocedure,
            '@extschema@.oban_install(text, boolean, boolean)'::pg_catalog.regprocedure
        )
    ) AS replaced (old, new);

UPDATE pg_catalog.pg_proc AS new
    SET proowner = old.proowner, proacl = old.proacl, proconfig = old.proconfig
    FROM pg_temp.obanrs_replaced AS r, pg_catalog.pg_proc AS old
    WHERE new.oid OPERATOR(pg_catalog.=) r.new AND old.oid OPERATOR(pg_catalog.=) r.old;

-- Which roles a function depends on: its owner, and those in its rights.
DELETE FROM pg_catalog.pg_shdepend AS d
    USING pg_temp.obanrs_replaced AS r, pg_catalog.pg_database AS own
    WHERE d.dbid OPERATOR(pg_catalog.=) own.oid AND own.datname OPERATOR(pg_catalog.=) pg_catalog.current_database()
        AND d.classid OPERATOR(pg_catalog.=) 'pg_catalog.pg_proc'::pg_catalog.regclass
        AND d.objid OPERATOR(pg_catalog.=) r.new;
UPDATE pg_catalog.pg_shdepend AS d
    SET objid = r.new
    FROM pg_temp.obanrs_replaced AS r, pg_catalog.pg_database AS own
    WHERE d.dbid OPERATOR(pg_catalog.=) own.oid AND own.datname OPERATOR(pg_catalog.=) pg_catalog.current_database()
        AND d.classid OPERATOR(pg_catalog.=) 'pg_catalog.pg_proc'::pg_catalog.regclass
        AND d.objid OPERATOR(pg_catalog.=) r.old;

DROP TABLE pg_temp.obanrs_replaced;

DROP FUNCTION @extschema@.oban_install(text, boolean);

CREATE FUNCTION @extschema@.oban_watch(
    queue_table pg_catalog.regclass,
    channel pg_catalog.text,
    queue_column pg_catalog.name DEFAULT NULL,
    events pg_catalog.text[] DEFAULT '{insert}',
    payload_column pg_catalog.name DEFAULT NULL,
    condition pg_catalog.text DEFAULT NULL
) RETURNS void
VOLATILE PARALLEL UNSAFE LANGUAGE c AS 'MODULE_PATHNAME', 'oban_watch_wrapper';

CREATE FUNCTION @extschema@.oban_unwatch(queue_table pg_catalog.regclass) RETURNS void
VOLATILE PARALLEL UNSAFE LANGUAGE c AS 'MODULE_PATHNAME', 'oban_unwatch_wrapper';

-- Not search_path: names in a condition mean what the caller's search_path says.
ALTER FUNCTION @extschema@.oban_watch(regclass, text, name, text[], name, text) SET lock_timeout = '2s';
ALTER FUNCTION @extschema@.oban_unwatch(regclass) SET lock_timeout = '2s';

CREATE FUNCTION @extschema@.obanrs_watched() RETURNS trigger
LANGUAGE c AS 'MODULE_PATHNAME', 'obanrs_watched_wrapper';

CREATE FUNCTION @extschema@.obanrs_watches() RETURNS TABLE (
    queue_table pg_catalog.oid,
    channel pg_catalog.text,
    content pg_catalog.text,
    column_name pg_catalog.text,
    condition pg_catalog.text,
    event pg_catalog.text,
    ok pg_catalog.bool
) STRICT VOLATILE PARALLEL UNSAFE LANGUAGE c AS 'MODULE_PATHNAME', 'obanrs_watches_wrapper';

CREATE VIEW @extschema@.oban_watches AS
    SELECT
        w.queue_table::pg_catalog.regclass AS queue_table,
        w.channel,
        CASE WHEN w.content OPERATOR(pg_catalog.=) 'queue' THEN w.column_name END::pg_catalog.name AS queue_column,
        pg_catalog.array_agg(w.event ORDER BY w.ordinality) AS events,
        CASE WHEN w.content OPERATOR(pg_catalog.=) 'payload' THEN w.column_name END::pg_catalog.name AS payload_column,
        CASE WHEN w.condition OPERATOR(pg_catalog.<>) '' THEN w.condition END AS condition,
        pg_catalog.bool_and(w.ok) AS ok
    FROM @extschema@.obanrs_watches() WITH ORDINALITY w
    GROUP BY w.queue_table, w.channel, w.content, w.column_name, w.condition;

GRANT SELECT ON @extschema@.oban_watches TO PUBLIC;

CREATE FUNCTION @extschema@.oban_notify_text(
    channel pg_catalog.text,
    payload pg_catalog.text DEFAULT ''
) RETURNS void VOLATILE PARALLEL UNSAFE LANGUAGE c AS 'MODULE_PATHNAME', 'oban_notify_text_wrapper';

-- Queue signals.

CREATE FUNCTION @extschema@.oban_pause_queue(
    queue pg_catalog.text,
    node pg_catalog.text DEFAULT NULL,
    name pg_catalog.text DEFAULT 'Oban',
    prefix pg_catalog.text DEFAULT 'public'
) RETURNS void VOLATILE PARALLEL UNSAFE LANGUAGE c AS 'MODULE_PATHNAME', 'oban_pause_queue_wrapper';

CREATE FUNCTION @extschema@.oban_resume_queue(
    queue pg_catalog.text,
    node pg_catalog.text DEFAULT NULL,
    name pg_catalog.text DEFAULT 'Oban',
    prefix pg_catalog.text DEFAULT 'public'
) RETURNS void VOLATILE PARALLEL UNSAFE LANGUAGE c AS 'MODULE_PATHNAME', 'oban_resume_queue_wrapper';

CREATE FUNCTION @extschema@.oban_stop_queue(
    queue pg_catalog.text,
    node pg_catalog.text DEFAULT NULL,
    name pg_catalog.text DEFAULT 'Oban',
    prefix pg_catalog.text DEFAULT 'public'
) RETURNS void VOLATILE PARALLEL UNSAFE LANGUAGE c AS 'MODULE_PATHNAME', 'oban_stop_queue_wrapper';

CREATE FUNCTION @extschema@.oban_scale_queue(
    queue pg_catalog.text,
    queue_limit pg_catalog.int4,
    node pg_catalog.text DEFAULT NULL,
    name pg_catalog.text DEFAULT 'Oban',
    prefix pg_catalog.text DEFAULT 'public'
) RETURNS void VOLATILE PARALLEL UNSAFE LANGUAGE c AS 'MODULE_PATHNAME', 'oban_scale_queue_wrapper';

CREATE FUNCTION @extschema@.oban_start_queue(
    queue pg_catalog.text,
    queue_limit pg_catalog.int4,
    node pg_catalog.text DEFAULT NULL,
    name pg_catalog.text DEFAULT 'Oban',
    prefix pg_catalog.text DEFAULT 'public'
) RETURNS void VOLATILE PARALLEL UNSAFE LANGUAGE c AS 'MODULE_PATHNAME', 'oban_start_queue_wrapper';

CREATE FUNCTION @extschema@.oban_pkill_job(
    job_id pg_catalog.int8,
    prefix pg_catalog.text DEFAULT 'public'
) RETURNS void VOLATILE PARALLEL UNSAFE LANGUAGE c AS 'MODULE_PATHNAME', 'oban_pkill_job_wrapper';

CREATE FUNCTION @extschema@.oban_queue_state(
    queue pg_catalog.text,
    node pg_catalog.text DEFAULT NULL,
    name pg_catalog.text DEFAULT 'Oban',
    prefix pg_catalog.text DEFAULT 'public'
) RETURNS TABLE (
    paused pg_catalog.bool,
    queue_limit pg_catalog.int4,
    since pg_catalog.timestamptz
) VOLATILE PARALLEL RESTRICTED LANGUAGE c AS 'MODULE_PATHNAME', 'oban_queue_state_wrapper';

CREATE FUNCTION @extschema@.obanrs_queue_signals() RETURNS TABLE (
    prefix pg_catalog.text,
    name pg_catalog.text,
    queue pg_catalog.text,
    node pg_catalog.text,
    paused pg_catalog.bool,
    queue_limit pg_catalog.int4,
    since pg_catalog.timestamptz
) STRICT VOLATILE PARALLEL RESTRICTED LANGUAGE c AS 'MODULE_PATHNAME', 'obanrs_queue_signals_wrapper';

CREATE VIEW @extschema@.oban_queue_signals AS
    SELECT prefix, name, queue, node, paused, queue_limit, since
    FROM @extschema@.obanrs_queue_signals();
GRANT SELECT ON @extschema@.oban_queue_signals TO PUBLIC;

CREATE FUNCTION @extschema@.oban_rescue(
    prefix pg_catalog.text DEFAULT 'public',
    grace pg_catalog.interval DEFAULT '60s',
    term pg_catalog.int8 DEFAULT NULL,
    name pg_catalog.text DEFAULT 'Oban',
    include_unknown pg_catalog.bool DEFAULT false
) RETURNS TABLE (
    id pg_catalog.int8,
    state pg_catalog.text
) VOLATILE PARALLEL UNSAFE LANGUAGE c AS 'MODULE_PATHNAME', 'oban_rescue_wrapper';

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

CREATE PROCEDURE @extschema@.oban_take(
    queues pg_catalog.text[],
    node pg_catalog.text,
    max_jobs pg_catalog.int4 DEFAULT 1,
    timeout pg_catalog.interval DEFAULT '5s',
    uuid pg_catalog.text DEFAULT NULL,
    prefix pg_catalog.text DEFAULT 'public',
    INOUT jobs pg_catalog.jsonb DEFAULT NULL
) LANGUAGE c AS 'MODULE_PATHNAME', 'oban_take_wrapper';

CREATE FUNCTION @extschema@.oban_complete_job(
    id pg_catalog.int8,
    attempt pg_catalog.int4,
    prefix pg_catalog.text DEFAULT 'public'
) RETURNS pg_catalog.bool VOLATILE PARALLEL UNSAFE LANGUAGE c AS 'MODULE_PATHNAME', 'oban_complete_job_wrapper';

CREATE FUNCTION @extschema@.oban_fail_job(
    id pg_catalog.int8,
    attempt pg_catalog.int4,
    error pg_catalog.text,
    retry_in pg_catalog.interval DEFAULT NULL,
    prefix pg_catalog.text DEFAULT 'public'
) RETURNS pg_catalog.text VOLATILE PARALLEL UNSAFE LANGUAGE c AS 'MODULE_PATHNAME', 'oban_fail_job_wrapper';

CREATE FUNCTION @extschema@.oban_snooze_job(
    id pg_catalog.int8,
    attempt pg_catalog.int4,
    snooze_for pg_catalog.interval,
    prefix pg_catalog.text DEFAULT 'public'
) RETURNS pg_catalog.bool VOLATILE PARALLEL UNSAFE LANGUAGE c AS 'MODULE_PATHNAME', 'oban_snooze_job_wrapper';

CREATE FUNCTION @extschema@.oban_cancel_job(
    id pg_catalog.int8,
    attempt pg_catalog.int4 DEFAULT NULL,
    reason pg_catalog.text DEFAULT NULL,
    prefix pg_catalog.text DEFAULT 'public'
) RETURNS pg_catalog.bool VOLATILE PARALLEL UNSAFE LANGUAGE c AS 'MODULE_PATHNAME', 'oban_cancel_job_wrapper';

CREATE FUNCTION @extschema@.oban_discard_job(
    id pg_catalog.int8,
    attempt pg_catalog.int4 DEFAULT NULL,
    error pg_catalog.text DEFAULT NULL,
    prefix pg_catalog.text DEFAULT 'public'
) RETURNS pg_catalog.bool VOLATILE PARALLEL UNSAFE LANGUAGE c AS 'MODULE_PATHNAME', 'oban_discard_job_wrapper';

CREATE FUNCTION @extschema@.oban_retry_job(
    id pg_catalog.int8,
    prefix pg_catalog.text DEFAULT 'public'
) RETURNS pg_catalog.bool VOLATILE PARALLEL UNSAFE LANGUAGE c AS 'MODULE_PATHNAME', 'oban_retry_job_wrapper';

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

CREATE FUNCTION @extschema@.oban_prune(
    prefix pg_catalog.text DEFAULT 'public',
    max_age pg_catalog.interval DEFAULT '1 day',
    max_jobs pg_catalog.int4 DEFAULT 10000
) RETURNS pg_catalog.int4 VOLATILE PARALLEL UNSAFE LANGUAGE c AS 'MODULE_PATHNAME', 'oban_prune_wrapper';

CREATE FUNCTION @extschema@.obanrs_stagers() RETURNS TABLE (
    database pg_catalog.oid,
    pid pg_catalog.int4,
    state pg_catalog.text,
    started_at pg_catalog.timestamptz,
    restarts pg_catalog.int4,
    last_error pg_catalog.text,
    prefix pg_catalog.text
) STRICT VOLATILE PARALLEL RESTRICTED LANGUAGE c AS 'MODULE_PATHNAME', 'obanrs_stagers_wrapper';

CREATE OR REPLACE VIEW @extschema@.oban_workers AS
    SELECT w.kind, d.datname AS database, w.pid, w.state, w.started_at, w.restarts, w.last_error, w.prefix
    FROM (
        SELECT kind, database, pid, state, started_at, restarts, last_error, NULL::pg_catalog.text AS prefix
        FROM @extschema@.obanrs_workers()
        UNION ALL
        SELECT 'stager', database, pid, state, started_at, restarts, last_error, prefix
        FROM @extschema@.obanrs_stagers()
    ) w
    LEFT JOIN pg_catalog.pg_database d ON d.oid OPERATOR(pg_catalog.=) w.database;

-- The comments, word for word those of 90_finish.sql: tools/comments writes them. Nothing comes after them.

COMMENT ON FUNCTION @extschema@.oban_version() IS
'Returns the version of the obanrs library that this session runs.

Result: the version, such as 0.9.0.

pg_extension has the version of the extension in this database. It differs until ALTER EXTENSION obanrs UPDATE.
Rights: none.';

COMMENT ON FUNCTION @extschema@.oban_check() IS
'Lists what keeps obanrs from working in this database, and what to do about it.

Result: one row for each thing that was looked at.
item: what was looked at, such as preload, keeper or ring.
ok: false when it keeps something from working.
detail: what was found. Where ok is false, it says what to do.

It looks at the preload, versions, workers and settings.
It looks at each prefix on which the calling role has any right.
There it looks at tables, columns, triggers, rights, staging, publications, and what elections need.
It finds what elections need also before the first member joins.
A schema with Oban''s tables and nothing of obanrs is ok.
It is not ok when no schema that the calling role may use is installed.
It changes nothing, and it works without preload and in recovery.
The owner of oban_jobs sees why its stager failed.
Rights: none. Only superusers and members of pg_read_all_stats see another worker''s last error.';

COMMENT ON FUNCTION @extschema@.oban_install(text, boolean, boolean) IS
'Installs a prefix: creates or adopts Oban''s tables in a schema, adds triggers.

Arguments:
prefix: schema of the job tables, at most 51 bytes and without a dot. A schema that does not exist is created.
stage: true: jobs become available when they are due. NULL: true where it creates oban_jobs, else as it is.
on_replica: true: also rows that logical replication brings wake their queues on this server. NULL: as it is.

Result: nothing.

It creates what is missing: oban_jobs, as Oban''s migration 14 makes it, and oban_peers, as a logged table.
It adds two triggers to oban_jobs, for INSERT and UPDATE of each row. Postgres gives them to each partition.
It replaces the trigger of a version before 0.9.0. Until then that trigger works as it did.
It adds the columns term and boot and three triggers to oban_peers.
It creates obanrs_queue_signals, in which queue signals are remembered.
With stage, it adds the index obanrs_jobs_due to oban_jobs. stage => false drops that index.
A stager, which is a background worker, then makes due jobs available, as the owner of oban_jobs.
It runs no code of a table''s owner, and evaluates none of the table''s expressions. A stager does.
When nothing is missing, it changes nothing and takes no lock.
It waits at most 2 s for a lock.
A trigger that was disabled stays disabled. on_replica => true enables it, except on a partition alone.
Run it again after an update of the extension. A new partition of oban_jobs has the triggers by itself.
ALTER TABLE ... ATTACH PARTITION of a table that has the triggers already is 42710: DROP them on that table first.
A WARNING names what keeps the prefix from holding elections or sending wake-ups.
A rollback takes everything back.
Rights: ownership of the tables that exist. To create: CREATE on the schema, or on the database for a new schema.

Errors:
42501: the role does not own a table that exists, or may not create what is missing.
22023: prefix is empty, is too long or has a dot; or a table or the type oban_job_state is of another kind than Oban''s, and the message names the columns; or the table is of an Oban migration before 11; or a name that it needs is taken.
55P03: another transaction held a lock on a table for more than 2 s.
22004: prefix is NULL.
42939: prefix is a schema of Postgres'' own.
40001: the schema or a table was renamed, dropped or replaced meanwhile. Run it again.
25006: the transaction is read-only, even if nothing is missing.
55000: the server is in recovery, even if nothing is missing; or the extension was dropped. For stage => true also: the owner of oban_jobs has NOLOGIN, before Postgres 17. Or the table is too large to build the index at once: the hint has the command to run first.
42P07: another session created a relation of that name meanwhile. Run it again.
23505: another session created a type of that name meanwhile. Run it again.';

COMMENT ON FUNCTION @extschema@.oban_uninstall(text) IS
'Removes what oban_install added to a prefix, never a table of Oban''s.

Arguments:
prefix: schema of the job tables.

Result: nothing.

It removes the triggers, the columns term and boot of oban_peers, and the table obanrs_queue_signals.
When nothing of it is there, it changes nothing.
It waits at most 2 s for a lock.
A rollback takes everything back.
Rights: ownership of the tables.

Errors:
42501: the role does not own one of the tables.
3F000: prefix does not exist.
55P03: another transaction held a lock on a table for more than 2 s.
22004: prefix is NULL.
22023: prefix is empty or over 63 bytes, or oban_peers has inherited the columns or passed them on.
2BP01: another object, such as a view, depends on obanrs_queue_signals or on a column that it would drop.
40001: the schema or a table was renamed, dropped or replaced meanwhile. Run it again.
25006: the transaction is read-only.
55000: the server is in recovery, or the extension was dropped.';

COMMENT ON FUNCTION @extschema@.oban_watch(regclass, text, name, text[], name, text) IS
'Sends a wake-up on a channel whenever rows of a table of any kind change.

Arguments:
queue_table: a table or a partitioned table of the caller, of any job system.
channel: name of the channel as LISTEN has it, 1 to 63 bytes. It is sent as it is, without a prefix.
queue_column: column whose value is sent as {"queue": "value"}, as a JSON string. A row with NULL sends {"queue":null}.
events: some of insert, update and delete. For delete the old row counts, otherwise the new one.
payload_column: column whose value is sent as plain text, as value::text has it. A row with NULL sends the empty text.
condition: expression over NEW and OLD, as in WHEN of CREATE TRIGGER. Rows for which it is not true send nothing.

Result: nothing.

Without queue_column and payload_column the payload is the empty text.
A transaction sends one wake-up for each distinct payload, when it commits.
Sessions that LISTEN to the channel hear it. oban_poll and oban_wait read it with prefix ''''.
There it is read by roles that may SELECT the table. LISTEN knows no rights.
A table has one watch for a channel. Another call for the channel replaces its options.
The same call again changes nothing and takes no lock. With a condition, it takes that of a SELECT while it looks.
The call replaces the watch if a name in condition means another column or function than before.
What was disabled stays so, also on a single partition.
Partitions of the table have the watch as well, also those that are created or attached later.
A watch is a trigger for each event. A dump has it, and DROP TABLE takes it along.
Names in condition are looked up once, by the search_path of the caller and with the rights of the table''s owner.
A wake-up never fails the statement. One that is too long is dropped, and counted in oban_stats. An error in condition fails it.
An UPDATE that moves a row to another partition counts as a delete and an insert.
A column to send that is renamed later is not found any more: oban_check and oban_watches show that.
A condition goes on with a column or function that is renamed later.
Rights: ownership of the table.

Errors:
22004: an argument without the default NULL is NULL, or an element of events is.
22023: channel is empty or too long; events is empty or names something else; both columns are given; the table stores no such column; condition is not exactly one expression, or Postgres refuses it for the table and the events.
42501: the role does not own the table; or a condition is for a superuser''s table, and the role is no superuser.
42809: it is a view, a foreign table, a temporary table, or no table at all.
42P01: there is no such table any more.
55P03: another transaction held a lock on the table for more than 2 s.
25006: the transaction is read-only.
55000: the server is in recovery, or the extension was dropped.';

COMMENT ON FUNCTION @extschema@.oban_unwatch(regclass) IS
'Ends all watches of a table.

Arguments:
queue_table: the table. Watches that a partition has from its partitioned table stay.

Result: nothing.

It drops the triggers that oban_watch has put on the table. Without such triggers it changes nothing, and takes no lock.
Rights: ownership of the table.

Errors:
22004: queue_table is NULL.
42501: the role does not own the table.
42809: it is a view, a foreign table, a temporary table, or no table at all.
42P01: there is no such table any more.
55P03: another transaction held a lock on the table for more than 2 s.
25006: the transaction is read-only.
55000: the server is in recovery, or the extension was dropped.';

COMMENT ON FUNCTION @extschema@.oban_notify(text, jsonb, text) IS
'Sends a JSON object on a channel of a prefix when this transaction commits.

Arguments:
channel: name of lower-case letters, digits and underscores, such as insert. The full name has at most 63 bytes.
payload: JSON object. On the wire it has at most 7,999 bytes (oban_encode).
prefix: schema of the job tables. The full name of the channel is <prefix>.oban_<channel>. With '''' channel is the full name.

Result: nothing.

A transaction or savepoint that is rolled back sends nothing.
Equal messages of a transaction are sent once.
obanrs.notifier says whether messages go through shared memory or by native NOTIFY.
Messages on signal and leader go natively in any case.
What the transaction sends by NOTIFY itself comes before them.
A message belongs to the schema. It goes to the channel of the name that the schema has when it is sent.
With prefix '''', a role that may write to no prefix of this database sends natively only. oban_poll does not see such messages.
Rights: INSERT on the prefix''s oban_jobs. For signal: UPDATE. For leader and leadership: ownership. With prefix '''': none.

Errors:
22023: channel is no channel name or is too long; or prefix has a dot; or payload is no JSON object.
42501: the role lacks that right.
3F000: prefix does not exist.
54000: payload has over 7,999 bytes after compression, or over 16 MB as text, or is nested over 500 levels deep; or the transaction has obanrs.max_transaction_messages messages or 64 MB of them.
22004: an argument is NULL.
42939: prefix is a schema of Postgres'' own.
0A000: PREPARE TRANSACTION raises it in a transaction that has called this function.
55000: the server is in recovery.
22P05: payload has a character that UTF-8 lacks, in a database of another encoding.
22021: payload is not UTF-8, in a database of encoding SQL_ASCII.';

COMMENT ON FUNCTION @extschema@.oban_notify_many(text, jsonb[], text) IS
'Sends several JSON objects on one channel: all of them, or none.

Arguments:
channel: as for oban_notify.
payloads: array of JSON objects, one message each. At most 1,048,576 elements and 128 MB. An empty array sends nothing.
prefix: as for oban_notify.

Result: nothing.

If one element is refused, no message is sent.
All else is as for oban_notify: they go when the transaction commits, and equal messages once.
Rights: INSERT on the prefix''s oban_jobs. For signal: UPDATE. For leader and leadership: ownership. With prefix '''': none.

Errors:
22023: channel is no channel name or is too long; or prefix has a dot; or an element is no JSON object.
42501: the role lacks that right.
3F000: prefix does not exist.
54000: payloads has over 1,048,576 elements or 128 MB; or an element or the transaction is too large, as for oban_notify.
22004: an argument, or an element of payloads, is NULL.
42939: prefix is a schema of Postgres'' own.
0A000: PREPARE TRANSACTION raises it in a transaction that has called this function.
55000: the server is in recovery.
22P05: an element has a character that UTF-8 lacks, in a database of another encoding.
22021: an element is not UTF-8, in a database of encoding SQL_ASCII.';

COMMENT ON FUNCTION @extschema@.oban_notify_text(text, text) IS
'Sends any text on a verbatim channel when this transaction commits.

Arguments:
channel: full name of the channel, as LISTEN takes it, at most 63 bytes.
payload: any text of at most 7,999 bytes in the server''s encoding.

Result: nothing.

A session that LISTENs to the channel hears the text as it is.
oban_poll and oban_wait read it with prefix ''''. There payload is the object if the text is a JSON object, else a JSON string.
A text that jsonb refuses comes as a string. So does one that is nested over 500 levels deep, or whose numbers are over 16 MB in print.
It is sent at the end of the transaction, merged and given room in shared memory as by oban_notify with prefix ''''.
Rights: none.

Errors:
22023: channel is empty, is over 63 bytes or has no UTF-8.
54000: payload has over 7,999 bytes; or the transaction has obanrs.max_transaction_messages messages or 64 MB of them.
22004: an argument is NULL.
0A000: PREPARE TRANSACTION raises it in a transaction that has called this function.
55000: the server is in recovery.';

COMMENT ON FUNCTION @extschema@.oban_listen_channels(text[], text) IS
'LISTENs in this session to channels of a prefix and returns their full names.

Arguments:
channels: names of channels, at most 64. Default: the four channels that Oban''s nodes use.
prefix: schema of the job tables. With '''' the names are full names, as LISTEN takes them.

Result: one row for each channel, with its full name <prefix>.oban_<channel>.

It takes effect at the end of this transaction. A rollback takes it back.
Call it again after ALTER SCHEMA ... RENAME: messages go to the channels of the name that the schema has when they are sent.
Behind a transaction pooler nothing is heard. Use oban_poll or oban_wait there.
It sets tcp_keepalives_* and tcp_user_timeout of this session, where they are unset, as oban_join does.
Rights: SELECT on the prefix''s oban_jobs or on a column of it. With prefix '''': none.

Errors:
22023: channels has over 64 elements, or one that is no channel name or is too long; or prefix has a dot.
42501: the role lacks that right; or a security-restricted operation, such as REINDEX, has called it.
3F000: prefix does not exist.
22004: an argument, or an element of channels, is NULL.
42939: prefix is a schema of Postgres'' own.
55000: the server is in recovery.
0A000: the process is no client''s session but a background process.';

COMMENT ON FUNCTION @extschema@.oban_unlisten_channels(text[], text) IS
'Ends what oban_listen_channels began, and returns the full names.

Arguments:
channels: names of channels, at most 64. Default: the four channels that Oban''s nodes use.
prefix: schema of the job tables, which need not exist. With '''' the names are full names.

Result: one row for each channel, with its full name, whether or not the session listened to it.

It takes effect at the end of this transaction. A rollback takes it back.
Rights: none.

Errors:
22023: channels has over 64 elements, or one that is no channel name or is too long; or prefix has a dot.
22004: an argument, or an element of channels, is NULL.
42501: a security-restricted operation, such as REINDEX, has called it.';

COMMENT ON FUNCTION @extschema@.oban_poll(text[], bigint, integer, text, text[]) IS
'Reads the messages that were sent on channels of a prefix after a position.

Arguments:
channels: names of channels, at most 64. Default: the four channels that Oban''s nodes use.
after: position from which to read on, as the last answer or oban_position gave it. NULL: from now on, so no messages.
max_messages: how many messages to return at most, 1 or more. An answer also ends at 16 MB. The next call goes on there.
prefix: schema of the job tables. With '''' the names are full names.
queues: names of queues, at most 1,024 of 255 bytes. Other queues'' messages are left out. NULL: all messages.

Result: always one row.
position: where to go on, the argument after of the next call.
missed: how many of the database''s messages were passed over unread. 0: none. After a gap it is an upper bound, as it counts all channels. NULL: unknown, as after a restart.
messages: array of {"seq", "channel", "payload", "sent_at"}, the oldest first. channel is the short name. No messages: [].

It does not wait, and it works through any pooler.
With queues, messages without a "queue" are returned, too, and those for the queue "*", which means every queue.
It reads what obanrs sends, not what programs send by NOTIFY themselves.
With prefix '''', payload is the object of a JSON object, and a JSON string of any other text (oban_notify_text).
With prefix '''', messages of a watched table come only to roles with SELECT on the table. Row policies do not count. If the table was dropped, they come to no role.
A character that client_encoding lacks comes as a JSON escape: a backslash, u and four digits. So no message keeps a reader from the next.
Rights: SELECT on the prefix''s oban_jobs or on a column of it. With prefix '''': none, but on watched tables.

Errors:
55000: obanrs is not preloaded, the server is in recovery, or the extension was dropped.
53400: the database has no place in obanrs.max_databases, or no ring is free (obanrs.max_rings).
42501: the role lacks that right.
3F000: prefix does not exist.
22023: after is negative, or max_messages is below 1; channels has over 64 elements or one that is no channel name or is too long; prefix has a dot; queues has over 1,024 elements or one that is empty or over 255 bytes.
22004: channels, max_messages or prefix, or an element of an array, is NULL.
42939: prefix is a schema of Postgres'' own.';

COMMENT ON PROCEDURE @extschema@.oban_wait(text[], bigint, interval, integer, text, bigint, bigint, jsonb, text[]) IS
'Waits for messages on channels of a prefix. CALL it with autocommit.

Arguments:
channels: names of channels, at most 64. Default: the four channels that Oban''s nodes use.
after: position from which to read on, as the last answer or oban_position gave it. NULL: from now on.
timeout: how long to wait, from 0 to a day.
max_messages: how many messages to return at most, 1 or more.
prefix: schema of the job tables. With '''' the names are full names.
position: leave it out or give NULL. It returns where to go on.
missed: leave it out or give NULL. It returns how many messages were passed over, as in oban_poll.
messages: leave it out or give NULL. It returns the messages, as in oban_poll.
queues: names of queues, at most 1,024 of 255 bytes. Other queues'' messages are left out. NULL: all messages.

Result: one row with position, missed and messages, as oban_poll returns them. After the timeout messages is [].

It returns with the first message (with queues: the first of these), or when messages were missed.
With prefix '''', messages of watched tables that the role may not read do not end the wait (oban_poll).
It commits before it waits. So it holds no snapshot and no lock meanwhile.
It occupies its connection while it waits. Behind a pooler that is one of the server''s connections.
Rights are tested again after the wait.
It sets tcp_keepalives_* and tcp_user_timeout of this session, where they are unset, as oban_join does.
Rights: SELECT on the prefix''s oban_jobs or on a column of it. With prefix '''': none, but on watched tables.

Errors:
25001: it was called in a transaction block, a function, an exception block, or a procedure with SET or SECURITY DEFINER.
55000: obanrs is not preloaded, the server is in recovery, or the extension was dropped.
53400: the database has no place in obanrs.max_databases, or no ring is free (obanrs.max_rings).
42501: the role lacks that right, or lost it during the wait.
3F000: prefix does not exist, or was dropped during the wait.
22023: timeout is negative or over a day; or another argument is wrong, as for oban_poll.
22004: channels, timeout, max_messages or prefix, or an element of an array, is NULL.
42939: prefix is a schema of Postgres'' own.';

COMMENT ON FUNCTION @extschema@.oban_position() IS
'Returns the position of this database''s last message.

Result: a position for the argument after of oban_poll and oban_wait. It never goes back.

Call it before looking at the table, then poll from there. So no message in between is lost.
Rights: none.

Errors:
55000: obanrs is not preloaded, the server is in recovery, or the extension was dropped.
53400: the database has no place in obanrs.max_databases, or no ring is free (obanrs.max_rings).';

COMMENT ON FUNCTION @extschema@.oban_encode(jsonb) IS
'Returns the wire form of a JSON object, as Oban''s nodes send it.

Arguments:
payload: JSON object.

Result: the object itself up to 7,999 bytes, else base64 of gzip (H4sI...).

Rights: none.

Errors:
22023: payload is no JSON object.
54000: payload has over 7,999 bytes even when compressed, or over 16 MB as text, or is nested over 500 levels deep.
22004: payload is NULL.
22P05: payload has a character that UTF-8 lacks, in a database of another encoding.
22021: payload is not UTF-8, in a database of encoding SQL_ASCII.';

COMMENT ON FUNCTION @extschema@.oban_decode(text) IS
'Returns the JSON of a wire form that Oban''s nodes send.

Arguments:
wire: JSON, or base64 of gzip (H4sI...), also with Z: before it. At most 7,999 bytes, as a notification has.

Result: the JSON value.

Rights: none.

Errors:
22023: wire is none of these; or jsonb cannot hold the value: a NUL, half a surrogate pair, a number out of range, or a character that the database''s encoding lacks.
54000: wire has over 7,999 bytes, unpacks to over 16 MB, or is nested over 500 levels deep.
22004: wire is NULL.';

COMMENT ON FUNCTION @extschema@.oban_join(text, text, interval, boolean, text, boolean) IS
'Makes this process a member of a name, whose members elect a leader.

Arguments:
node: name of this process, at most 255 bytes. Of each name and prefix one live member has it.
name: name of the instance, whose members have one leader, at most 127 bytes.
lease: how long the member lives without oban_renew, from 100 ms to a day. NULL binds the member to this session.
replace: true takes the place of a live member of the same node. The caller has to be the role that joined it, or a member of that role.
prefix: schema of the job tables.
candidate: false makes a member that is seen and never leads. Left out, it is true, but false where a foreign node leads.

Result: the member id, for oban_renew, oban_resign and oban_leave.

It takes effect at once, and a rollback does not take it back.
Without a lease the membership ends with oban_leave, the session or its DISCARD ALL.
With a lease it ends with oban_leave or the lease. oban_renew begins the lease anew, from any session.
With candidate left out, a member is no candidate where a foreign node leads the name or has led it since the server started. A NOTICE says so.
A foreign node is one of Oban''s own, which did not join.
Called again by the same session and role, again with a lease or again without, it returns the same id. The lease begins anew.
Then the member stays a candidate or not if candidate is left out.
It waits up to 1 s for the election. A sole candidate leads when it returns.
A WARNING says why no election can be held, if that is so.
Without a lease it sets tcp_keepalives_* and tcp_user_timeout of this session, where they are unset. So the server notices in about 8 s that the client''s host vanished.
Behind a transaction pooler join with a lease: there a session is not a process.
Rights: INSERT on the prefix''s oban_jobs.

Errors:
23505: another live member of the name has this node, and replace is false. The hint names its pid.
55000: obanrs is not preloaded, or the server is in recovery; or obanrs.require_lease is on and lease is NULL; or this session is another node of the name without a lease.
53400: obanrs.max_members have joined, or the role has its share of them (obanrs.role_share), or the database has no place in obanrs.max_databases.
42501: the role lacks that right, or replace is true and the member is another role''s; or a security-restricted operation has called it.
3F000: prefix does not exist.
22023: node, name or prefix is empty or too long; or lease is below 100 ms or over a day.
22004: an argument other than lease is NULL.
42939: prefix is a schema of Postgres'' own.';

COMMENT ON FUNCTION @extschema@.oban_renew(bigint) IS
'Begins a member''s lease anew, and returns the term if the member leads.

Arguments:
member: member id, as oban_join returned it.

Result: the term of the member''s leadership. NULL: it does not lead.

It takes effect at once, and a rollback does not take it back.
After half of the leadership''s lease it waits, up to 1 s, until the row in oban_peers is extended.
For a member without a lease it only returns the term.
Rights: the role that joined the member, or a member of that role, from any session.

Errors:
55000: it is no member any more, because its lease ended, it left, it was replaced, its session ended, or the schema was dropped; or the server is in recovery; or obanrs is not preloaded.
42501: another role joined the member.
22004: member is NULL.';

COMMENT ON FUNCTION @extschema@.oban_resign(bigint) IS
'Ends a member''s leadership, but not its membership.

Arguments:
member: member id, as oban_join returned it.

Result: true when it led, else false.

It takes effect at once, and a rollback does not take it back.
Another member leads at once, if there is one that is a candidate.
If there is no other, it stands for election again after obanrs.lease, or when another node has led. So Oban''s own nodes can take over.
Rights: the role that joined the member, or a member of that role, from any session.

Errors:
55000: it is no member any more; or the server is in recovery; or obanrs is not preloaded.
42501: another role joined the member.
22004: member is NULL.';

COMMENT ON FUNCTION @extschema@.oban_leave(bigint) IS
'Ends a membership, with its leadership.

Arguments:
member: member id, as oban_join returned it.

Result: true when it was a member. False: there is no such member.

It takes effect at once, and a rollback does not take it back.
If the member has no lease, the gossip of its node ends, too.
Rights: the role that joined the member, or a member of that role, from any session.

Errors:
42501: another role joined the member.
55000: obanrs is not preloaded.
22004: member is NULL.';

COMMENT ON FUNCTION @extschema@.oban_is_leader(text, text, text) IS
'Says whether this session''s member, or a named node, leads now.

Arguments:
name: name of the instance.
node: name of a node. NULL means the member that this session joined.
prefix: schema of the job tables.

Result: true when it leads and its lease has not ended. False: it does not, or there is no such member.

It reads shared memory only. Oban''s own nodes, which do not join, do not count. oban_leader shows these.
Behind a transaction pooler give the node.
Without a node, a prefix that does not exist gives false.
Rights: with a node, SELECT on the prefix''s oban_jobs or on a column of it. Without: none.

Errors:
55000: obanrs is not preloaded.
42501: the role lacks that right, with a node.
3F000: prefix does not exist, with a node.
22023: name, node or prefix is empty or too long.
22004: name or prefix is NULL.
42939: prefix is a schema of Postgres'' own, with a node.';

COMMENT ON FUNCTION @extschema@.oban_term(text, text, text) IS
'Returns the term of this session''s leadership, or of a named node''s.

Arguments:
name: name of the instance.
node: name of a node. NULL means the member that this session joined.
prefix: schema of the job tables.

Result: the term (a fencing token). NULL: it does not lead now.

A later leadership of any name in this database has a greater term.
Behind a transaction pooler give the node.
Without a node, a prefix that does not exist gives NULL.
Rights: with a node, SELECT on the prefix''s oban_jobs or on a column of it. Without: none.

Errors:
55000: obanrs is not preloaded.
42501: the role lacks that right, with a node.
3F000: prefix does not exist, with a node.
22023: name, node or prefix is empty or too long.
22004: name or prefix is NULL.
42939: prefix is a schema of Postgres'' own, with a node.';

COMMENT ON FUNCTION @extschema@.oban_leader(text, text) IS
'Returns the leader of a name, for people and dashboards.

Arguments:
name: name of the instance.
prefix: schema of the job tables.

Result: one row. No row: there is no leader.
node: name of the node that leads.
term: term of its leadership. NULL for a leadership that began before oban_install, until it is renewed.
started_at: when its leadership began.
expires_at: when its lease ends without a renewal.

It reads the unexpired row of oban_peers. So Oban''s own nodes are included, if they are of Oban for Elixir.
Oban for Python elects in a table of its own, and is not included.
Do not fence with this term: it may be another process''s. oban_renew and oban_term return the caller''s own.
On a standby it answers from the replicated row.
Rights: SELECT on the prefix''s oban_jobs or on a column of it. None on oban_peers.

Errors:
42501: the role lacks that right.
3F000: prefix does not exist.
22023: name or prefix is empty or too long.
22004: an argument is NULL.
42939: prefix is a schema of Postgres'' own.
55000: oban_peers is unlogged and the server is in recovery.';

COMMENT ON FUNCTION @extschema@.oban_fence(bigint, text, text) IS
'Fails unless a term is held, and keeps other leaders out until commit.

Arguments:
term: the caller''s own term, as oban_renew or oban_term returned it. NULL, which these return without leadership, is refused.
name: name of the instance.
prefix: schema of the job tables.

Result: nothing. It returns only if the term is held and its lease has not ended.

Call it at the beginning of each transaction that only a leader may commit.
Until the transaction ends, no other node becomes leader.
It locks the leader''s row in oban_peers against deletion. A renewal does not wait for that.
Rights: INSERT on the prefix''s oban_jobs. None on oban_peers.

Errors:
40001: the term is not held any more, is NULL, or its lease has ended; or this transaction''s snapshot (REPEATABLE READ, SERIALIZABLE) is older than the leadership. Roll back.
42501: the role lacks that right.
3F000: prefix does not exist.
25006: the transaction is read-only.
55000: obanrs is not preloaded, the server is in recovery, or prefix is not installed; or oban_peers has something that elections would have to ignore, which the hint names.
22023: name or prefix is empty or too long.
22004: name or prefix is NULL.
42939: prefix is a schema of Postgres'' own.';

COMMENT ON FUNCTION @extschema@.oban_gossip_put(text, text, jsonb, text, interval, text) IS
'Tells what one queue of a node does now: puts its entry in shared memory.

Arguments:
node: name of the node, at most 255 bytes.
queue: name of the queue, at most 508 bytes.
state: JSON object with the keys of Oban''s checks, at most 64 kB.
name: name of the instance, at most 127 bytes.
ttl: how long the entry lasts without another put, up to a year. NULL means obanrs.gossip_ttl.
prefix: schema of the job tables.

Result: nothing.

It takes effect at once, and a rollback does not take it back.
Known keys are uuid, limit or local_limit, paused, running, started_at, updated_at, shutdown_started_at, global_limit and rate_limit. Others are kept.
running is an array of job ids: integers, or strings such as uuids.
Known keys have to be of the right types, because readers of gossip would crash on others.
The server''s time counts for when an entry was updated, and for when it started unless the state says so.
An entry ends after ttl, by oban_gossip_delete, or with its node''s member that has no lease.
Every obanrs.gossip_interval the entries are sent to the sessions that LISTEN to the prefix''s gossip.
An entry belongs to the schema that prefix names at the call, also after a rename.
Where there is no room, the entry that would be replaced stays as it was.
Rights: INSERT on the prefix''s oban_jobs.

Errors:
22023: a known key of state has a wrong type; or state is no object, is over 64 kB, is nested over 100 levels deep, or has a number of over 300 digits; or a name is empty or too long; or ttl is not positive or over a year.
53400: obanrs.gossip_memory is full; or what the current role put last takes its share of it (obanrs.role_share). Superusers and the owner of the database have no limit.
42501: the role lacks that right.
3F000: prefix does not exist.
55000: obanrs is not preloaded, or the server is in recovery.
22004: an argument other than ttl is NULL.
42939: prefix is a schema of Postgres'' own.
22P05: state has a character that UTF-8 lacks, in a database of another encoding.
22021: state is not UTF-8, in a database of encoding SQL_ASCII.';

COMMENT ON FUNCTION @extschema@.oban_gossip_delete(text, text, text, text) IS
'Deletes the gossip entry of one queue, or of all queues, of a node.

Arguments:
node: name of the node.
queue: name of the queue. NULL deletes the entries of all queues of the node.
name: name of the instance.
prefix: schema of the job tables.

Result: how many entries were deleted.

It takes effect at once, and a rollback does not take it back.
Rights: INSERT on the prefix''s oban_jobs.

Errors:
42501: the role lacks that right.
3F000: prefix does not exist.
55000: obanrs is not preloaded.
22023: node, queue, name or prefix is empty or too long.
22004: an argument other than queue is NULL.
42939: prefix is a schema of Postgres'' own.';

COMMENT ON FUNCTION @extschema@.oban_orphans(text, interval) IS
'Lists jobs in state executing that no live process runs, and why.

Arguments:
prefix: schema of the job tables.
grace: how long a process must be silent before its jobs count, from 0 to a year. Under some seconds is for tests, as nodes gossip once a second.

Result: one row for each such job. No row: every executing job may still run.
id: id of the job.
queue: queue of the job.
worker: worker of the job.
node: node that took the job, the first element of attempted_by.
reason: gone, restarted, not running or unknown, as described below.
since: when the evidence begins, which is never before the attempt.

A process is a node and its uuid, the two elements of attempted_by.
gone: the process gossiped, its last entry has ended, and it was not heard again for grace. Or it claimed the job by oban_fetch or oban_take while a member stood for its node, and none does now. A call of this function found that grace ago or earlier.
restarted: the same, and another process gossips this queue of the node now, or has claimed jobs for the node with another uuid.
not running: the process gossips running for the queue, and two of its puts do not list the job. The first was made a grace or more after the attempt began, and a call of this function noted it. The second was made a grace or more after that call.
So a job whose fetch lost its answer is named by the second call at the earliest.
unknown: this server has not heard the process since it started or was promoted, or forgot it for lack of room in obanrs.gossip_memory. A node without gossip and without a member is always unknown.
A process that gossips by NOTIFY is also unknown if the relay did not listen all the time.
Never take unknown jobs by this alone: their processes may live.
It reads gossip first, then the rows that are committed by then.
It reads oban_jobs with the rights of the caller, so row level security applies.
Rights: SELECT on id, queue, worker, state, attempted_by and attempted_at of the prefix''s oban_jobs.

Errors:
55000: obanrs is not preloaded, or the server is in recovery.
42501: the role lacks that right.
3F000: prefix does not exist.
22023: grace is negative or over a year; or prefix is empty or too long.
22004: an argument is NULL.
42939: prefix is a schema of Postgres'' own.
40001: the schema was renamed meanwhile. Run it again.
42P01: prefix has no oban_jobs.
42703: oban_jobs lacks a column of Oban''s.
42809: oban_jobs is no table or view.';

COMMENT ON FUNCTION @extschema@.oban_pause_queue(text, text, text, text) IS
'Pauses a queue: its nodes begin no more jobs.

Arguments:
queue: name of the queue, at most 127 characters. * stands for all queues.
node: name of the node, at most 255 bytes. NULL: all nodes, of every instance name.
name: name of the instance to which node belongs, at most 127 bytes.
prefix: schema of the job tables.

Result: nothing.

The signal goes to the prefix''s channel signal when this transaction commits, natively, after those that it sent before.
Each call sends a signal, also if an equal one was sent before.
Jobs that run go on.
When the transaction commits, it is remembered in the prefix''s obanrs_queue_signals (oban_queue_signals, oban_queue_state).
Without that table a NOTICE says that it is not remembered, and it is sent all the same.
Rights: UPDATE on the prefix''s oban_jobs.

Errors:
22023: queue is empty or over 127 characters; or node, name or prefix is empty or too long; or prefix has a dot.
42501: the role lacks that right.
3F000: prefix does not exist.
25006: the transaction is read-only.
55000: the server is in recovery.
55P03: at the commit, another transaction has held a lock on obanrs_queue_signals for more than 2 s. Nothing is sent.
40001: at the commit, obanrs_queue_signals was replaced, or another transaction has written to it. Nothing is sent. Run it again.
54000: the transaction has obanrs.max_transaction_messages messages or 64 MB of them.
0A000: PREPARE TRANSACTION raises it in a transaction that has called this function.
22004: an argument other than node is NULL.
42939: prefix is a schema of Postgres'' own.';

COMMENT ON FUNCTION @extschema@.oban_resume_queue(text, text, text, text) IS
'Resumes a queue: its nodes begin jobs again.

Arguments:
queue: name of the queue, at most 127 characters. * stands for all queues.
node: name of the node, at most 255 bytes. NULL: all nodes, of every instance name.
name: name of the instance to which node belongs, at most 127 bytes.
prefix: schema of the job tables.

Result: nothing.

The signal goes to the prefix''s channel signal when this transaction commits, natively, after those that it sent before.
Each call sends a signal, also if an equal one was sent before.
When the transaction commits, it is remembered in the prefix''s obanrs_queue_signals (oban_queue_signals, oban_queue_state).
Without that table a NOTICE says that it is not remembered, and it is sent all the same.
Rights: UPDATE on the prefix''s oban_jobs.

Errors:
22023: queue is empty or over 127 characters; or node, name or prefix is empty or too long; or prefix has a dot.
42501: the role lacks that right.
3F000: prefix does not exist.
25006: the transaction is read-only.
55000: the server is in recovery.
55P03: at the commit, another transaction has held a lock on obanrs_queue_signals for more than 2 s. Nothing is sent.
40001: at the commit, obanrs_queue_signals was replaced, or another transaction has written to it. Nothing is sent. Run it again.
54000: the transaction has obanrs.max_transaction_messages messages or 64 MB of them.
0A000: PREPARE TRANSACTION raises it in a transaction that has called this function.
22004: an argument other than node is NULL.
42939: prefix is a schema of Postgres'' own.';

COMMENT ON FUNCTION @extschema@.oban_scale_queue(text, integer, text, text, text) IS
'Sets how many jobs of a queue each of its nodes runs at a time.

Arguments:
queue: name of the queue, at most 127 characters.
queue_limit: how many jobs each node runs at most, 1 or more.
node: name of the node, at most 255 bytes. NULL: all nodes, of every instance name.
name: name of the instance to which node belongs, at most 127 bytes.
prefix: schema of the job tables.

Result: nothing.

The signal goes to the prefix''s channel signal when this transaction commits, natively, after those that it sent before.
Each call sends a signal, also if an equal one was sent before.
Jobs that run go on, also if they are more.
When the transaction commits, it is remembered in the prefix''s obanrs_queue_signals (oban_queue_signals, oban_queue_state).
Without that table a NOTICE says that it is not remembered, and it is sent all the same.
Rights: UPDATE on the prefix''s oban_jobs.

Errors:
22023: queue is empty or over 127 characters, or is *; or queue_limit is below 1; or node, name or prefix is empty or too long; or prefix has a dot.
42501: the role lacks that right.
3F000: prefix does not exist.
25006: the transaction is read-only.
55000: the server is in recovery.
55P03: at the commit, another transaction has held a lock on obanrs_queue_signals for more than 2 s. Nothing is sent.
40001: at the commit, obanrs_queue_signals was replaced, or another transaction has written to it. Nothing is sent. Run it again.
54000: the transaction has obanrs.max_transaction_messages messages or 64 MB of them.
0A000: PREPARE TRANSACTION raises it in a transaction that has called this function.
22004: an argument other than node is NULL.
42939: prefix is a schema of Postgres'' own.';

COMMENT ON FUNCTION @extschema@.oban_start_queue(text, integer, text, text, text) IS
'Starts a queue on nodes that do not run it.

Arguments:
queue: name of the queue, at most 127 characters.
queue_limit: how many jobs each node runs at most, 1 or more.
node: name of the node, at most 255 bytes. NULL: all nodes, of every instance name.
name: name of the instance to which node belongs, at most 127 bytes.
prefix: schema of the job tables.

Result: nothing.

The signal goes to the prefix''s channel signal when this transaction commits, natively, after those that it sent before.
Each call sends a signal, also if an equal one was sent before.
The nodes begin jobs at once, also if the queue is remembered as paused. It is not remembered.
Rights: UPDATE on the prefix''s oban_jobs.

Errors:
22023: queue is empty or over 127 characters, or is *; or queue_limit is below 1; or node, name or prefix is empty or too long; or prefix has a dot.
42501: the role lacks that right.
3F000: prefix does not exist.
55000: the server is in recovery.
54000: the transaction has obanrs.max_transaction_messages messages or 64 MB of them.
0A000: PREPARE TRANSACTION raises it in a transaction that has called this function.
22004: an argument other than node is NULL.
42939: prefix is a schema of Postgres'' own.';

COMMENT ON FUNCTION @extschema@.oban_stop_queue(text, text, text, text) IS
'Stops a queue: its nodes let its jobs end, and run it no more.

Arguments:
queue: name of the queue, at most 127 characters.
node: name of the node, at most 255 bytes. NULL: all nodes, of every instance name.
name: name of the instance to which node belongs, at most 127 bytes.
prefix: schema of the job tables.

Result: nothing.

The signal goes to the prefix''s channel signal when this transaction commits, natively, after those that it sent before.
Each call sends a signal, also if an equal one was sent before.
A node that starts later runs the queue. It is not remembered.
Rights: UPDATE on the prefix''s oban_jobs.

Errors:
22023: queue is empty or over 127 characters, or is *; or node, name or prefix is empty or too long; or prefix has a dot.
42501: the role lacks that right.
3F000: prefix does not exist.
55000: the server is in recovery.
54000: the transaction has obanrs.max_transaction_messages messages or 64 MB of them.
0A000: PREPARE TRANSACTION raises it in a transaction that has called this function.
22004: an argument other than node is NULL.
42939: prefix is a schema of Postgres'' own.';

COMMENT ON FUNCTION @extschema@.oban_pkill_job(bigint, text) IS
'Ends the process of a running job, on the node that runs it.

Arguments:
job_id: id of the job.
prefix: schema of the job tables.

Result: nothing.

The signal goes to the prefix''s channel signal when this transaction commits, natively, after those that it sent before.
Each call sends a signal, also if an equal one was sent before.
It changes no row. Set the job''s state to cancelled first: what a node does to the row depends on its version.
Rights: UPDATE on the prefix''s oban_jobs.

Errors:
42501: the role lacks that right.
3F000: prefix does not exist.
22023: prefix is empty, is too long or has a dot.
55000: the server is in recovery.
54000: the transaction has obanrs.max_transaction_messages messages or 64 MB of them.
0A000: PREPARE TRANSACTION raises it in a transaction that has called this function.
22004: an argument is NULL.
42939: prefix is a schema of Postgres'' own.';

COMMENT ON FUNCTION @extschema@.oban_queue_state(text, text, text, text) IS
'Returns whether a node that starts has to begin a queue paused, and its limit.

Arguments:
queue: name of the queue, at most 127 characters.
node: name of the node. NULL: what concerns all nodes only.
name: name of the instance to which node belongs, at most 127 bytes.
prefix: schema of the job tables.

Result: always one row.
paused: whether the queue is paused by the last signal that concerns it. NULL: no such signal is remembered.
queue_limit: limit of the last scaling that concerns it. NULL: no such signal is remembered.
since: when the later of the two was sent. NULL: none is remembered.

A signal concerns the node if it was sent for the queue or for *, and for this node and name or for all nodes.
Of these signals the newest one counts, for paused and for queue_limit each by itself.
So the answer is what a node has that was there for all signals.
What this transaction has sent counts.
Without obanrs_queue_signals nothing is remembered: the columns are NULL.
Rights: SELECT on the prefix''s oban_jobs or on a column of it. None on obanrs_queue_signals.

Errors:
22023: queue is empty or over 127 characters; or node, name or prefix is empty or too long.
42501: the role lacks that right.
3F000: prefix does not exist.
22004: an argument other than node is NULL.
42939: prefix is a schema of Postgres'' own.
55000: obanrs_queue_signals is unlogged and the server is in recovery.';

COMMENT ON FUNCTION @extschema@.oban_rescue(text, interval, bigint, text, boolean) IS
'Gives jobs that no live process runs back to their queues, or discards them.

Arguments:
prefix: schema of the job tables.
grace: as for oban_orphans.
term: the caller''s own term, as oban_renew or oban_term returned it. Jobs are then rescued only if it is held, as by oban_fence. NULL: the call needs no leadership.
name: name of the instance to which term belongs.
include_unknown: whether to take jobs that oban_orphans calls unknown, too. Their processes may live.

Result: one row for each job that was rescued.
id: id of the job.
state: available, or discarded if the job has no attempt left.

It takes what oban_orphans finds at this call, so a job that is not running is taken by the second call at the earliest.
It takes a job only if its attempt is still the one that was found. Rows that another transaction has locked stay for the next call.
It sets state, and of a discarded job discarded_at, and adds an error to errors. attempt stays as it is.
It wakes the queues of the jobs that are available again.
In a table of Oban for Python it also counts the rescues of a job in meta, as that does.
It is an UPDATE with the rights of the caller, so triggers and row level security apply.
Rights: UPDATE on the prefix''s oban_jobs, and SELECT on it. With term: INSERT as well.

Errors:
40001: term is not held any more; or this transaction''s snapshot is older than the leadership, or than a change of a job (REPEATABLE READ, SERIALIZABLE); or the schema was renamed meanwhile. Roll back.
42501: the role lacks one of these rights.
3F000: prefix does not exist.
25006: the transaction is read-only.
55000: obanrs is not preloaded, or the server is in recovery; or with term, oban_peers is not installed or has an obstacle, as for oban_fence.
22023: grace is negative or over a year; or name or prefix is empty or too long.
22004: an argument other than term is NULL.
42939: prefix is a schema of Postgres'' own.
42P01: prefix has no oban_jobs.
42703: oban_jobs lacks a column of Oban''s.
42809: oban_jobs is no table or view.';

COMMENT ON FUNCTION @extschema@.oban_insert_job(text, jsonb, text, timestamptz, interval, integer, integer, text[], jsonb, interval, text[], text[], text) IS
'Inserts a job with the columns and values that Oban writes.

Arguments:
worker: name of the worker that runs the job, of 1 to 127 characters.
args: arguments of the job, a JSON object of at most 32 MB.
queue: queue of the job, of 1 to 127 characters.
scheduled_at: when the job is due, in the years 1 to 9999. NULL: at once, or as schedule_in says.
schedule_in: in how long the job is due, from 0 to a hundred years. NULL: at once, or as scheduled_at says.
priority: from 0 to 9; the least comes first.
max_attempts: how often the job is tried, from 1 to 32,767.
tags: at most 100 tags of at most 1,020 bytes. They are written in lower case, without space around them, each once.
meta: meta of the job, a JSON object of at most 32 MB.
unique_for: no job is inserted if an equal one is at most this old. A time over a hundred years is any age. NULL: any age if unique_keys or unique_states is given, else the job is not unique.
unique_keys: at most 32 keys of args. Jobs are equal if the values of these keys are. NULL, or none: the whole of args counts.
unique_states: states of an equal job. NULL: all but cancelled and discarded, as in Oban.
prefix: schema of the job tables.

Result: one row.
id: id of the job, or of the equal job that is there.
conflict: whether an equal job is there, so that none was inserted.

The state is scheduled if a time is given, also a past one, and available without. Something has to stage a scheduled job.
Jobs are equal if worker, queue and the values of args are. Numbers are equal as numbers, so 1 is equal to 1.0. A key that args lacks counts as null.
Calls for equal jobs wait for each other until the transaction of the first ends. lock_timeout applies.
A call sees an equal job that is committed by then, also in a transaction with an older snapshot. That snapshot does not show the job.
Calls with other unique_keys do not wait for each other, and neither do Oban''s nodes and these calls.
It needs no preload. It is an INSERT with the rights of the caller, so triggers and row level security apply.
Rights: INSERT on the prefix''s oban_jobs, SELECT on it, and USAGE on the sequence of its ids.

Errors:
42501: the role lacks one of these rights.
3F000: prefix does not exist.
42P01: prefix has no oban_jobs.
42703: oban_jobs lacks a column of Oban''s.
42809: oban_jobs is no table or view.
42804: scheduled_at of oban_jobs is a timestamptz. Oban''s is a timestamp in UTC.
27000: a trigger of oban_jobs has left the job out.
25006: the transaction is read-only.
55000: the server is in recovery.
22023: an argument is out of its range; or args or meta is no object, or over 32 MB; or both times are given; or unique_states names no state of a job; or prefix is empty or too long.
22004: an argument without a default of NULL is NULL, or an element of an array is.
42939: prefix is a schema of Postgres'' own.';

COMMENT ON FUNCTION @extschema@.oban_insert_jobs(jsonb, text) IS
'Inserts many jobs with the columns and values that Oban writes.

Arguments:
jobs: an array of at most 10,000 objects and 32 MB. The keys of each are the names of the arguments of oban_insert_job, without prefix.
prefix: schema of the job tables.

Result: one row for each job, in the order of the array.
id: id of the job, or of the equal job that is there.
conflict: whether an equal job is there, so that none was inserted.

A key that is missing or null has the default of the argument. Only worker has none.
scheduled_at is a string: a time of ISO 8601 with a zone, such as 2026-01-31T12:00:00Z.
schedule_in and unique_for are numbers of seconds, which may have a fraction.
At most 1,000 of the jobs are unique. Each of them holds a lock until the transaction ends.
A unique job is compared with those before it in the array, too.
Jobs that follow each other are inserted by one statement, if none is unique, and all or none are scheduled.
If one job is wrong, none is inserted. The error says which job it is; the first is jobs[0].
It needs no preload. It is an INSERT with the rights of the caller, so triggers and row level security apply.
Rights: INSERT on the prefix''s oban_jobs, SELECT on it, and USAGE on the sequence of its ids.

Errors:
42501: the role lacks one of these rights.
3F000: prefix does not exist.
42P01: prefix has no oban_jobs.
42703: oban_jobs lacks a column of Oban''s.
42809: oban_jobs is no table or view.
42804: scheduled_at of oban_jobs is a timestamptz. Oban''s is a timestamp in UTC.
27000: a trigger of oban_jobs has left a job out.
25006: the transaction is read-only.
55000: the server is in recovery.
22023: jobs is no array, or too large; or an element has an unknown key, a null in an array, or a value that oban_insert_job refuses; or prefix is empty or too long.
22004: an argument is NULL.
42939: prefix is a schema of Postgres'' own.';

COMMENT ON FUNCTION @extschema@.oban_fetch(text[], text, integer, text, text) IS
'Claims jobs of some queues, as Oban''s Basic engine does, and returns them.

Arguments:
queues: names of 1 to 32 queues.
node: node that runs the jobs. It is the first element of attempted_by.
max_jobs: the most jobs, from 1 to 10,000.
uuid: identity of the process that runs them, as it gossips it. It is the second element of attempted_by. NULL: there is none.
prefix: schema of the job tables.

Result: one row for each job, with the columns of oban_jobs. No row: there is no job to be had.
id: id of the job.
state: executing.
queue: queue of the job.
worker: name of the worker.
args: arguments of the job.
meta: meta of the job.
tags: tags of the job.
errors: errors of earlier attempts, as a JSON array.
attempt: number of this attempt, from 1. The calls that end the attempt name it.
max_attempts: how many attempts the job has.
priority: priority of the job; the least comes first.
attempted_by: node and uuid of this attempt.
inserted_at: when the job was inserted.
scheduled_at: when the job was due.
attempted_at: when this attempt began.

It takes the first jobs of each queue by priority, scheduled_at and id. Jobs that another transaction has locked are passed over.
It takes no job before its scheduled_at, and none without an attempt left.
It takes none of a queue that is paused for this node and the name Oban, as oban_queue_state says.
Which of several queues comes first is random, so no queue waits behind a full one for ever.
The jobs are claimed when the transaction commits. Commit before they are run: a claim that is rolled back gives them back.
It waits for no job, and needs no preload. It is an UPDATE with the rights of the caller, so triggers and row level security apply.
Rights: UPDATE on the prefix''s oban_jobs, and SELECT on it.

Errors:
42501: the role lacks one of these rights.
3F000: prefix does not exist.
42P01: prefix has no oban_jobs.
42703: oban_jobs lacks a column of Oban''s.
42809: oban_jobs is no table or view.
42804: scheduled_at of oban_jobs is a timestamptz. Oban''s is a timestamp in UTC.
25006: the transaction is read-only.
40001: oban_jobs is partitioned by state, and another session has claimed a job at the same time; or Postgres could not serialize the transaction.
55P03: another transaction has had obanrs_queue_signals locked for 2 s.
55000: the server is in recovery.
22023: queues is empty or has over 32 elements; or one of them is empty or over 127 characters; or max_jobs is not from 1 to 10,000; or node, uuid or prefix is empty or too long.
22004: an argument other than uuid is NULL, or an element of queues is.
42939: prefix is a schema of Postgres'' own.';

COMMENT ON PROCEDURE @extschema@.oban_take(text[], text, integer, interval, text, text, jsonb) IS
'Claims jobs of some queues, or waits for jobs. CALL it with autocommit.

Arguments:
queues: names of 1 to 32 queues.
node: node that runs the jobs. It is the first element of attempted_by.
max_jobs: the most jobs, from 1 to 10,000.
timeout: how long to wait for a job, from 0 to a day.
uuid: identity of the process that runs them, as it gossips it. It is the second element of attempted_by. NULL: there is none.
prefix: schema of the job tables.
jobs: leave it out or give NULL. It returns the jobs.

Result: one row with jobs, a JSON array of objects. Their keys are the columns of oban_fetch. After the timeout it is [].

It claims as oban_fetch does, and returns as soon as it has a job. It does not wait until there are max_jobs of them.
The claim is committed when the call returns. A client that dies before it has read the answer leaves its jobs to oban_rescue.
One session that waits is woken for a job, the one that has waited longest. It wakes the next one if more jobs may be there.
It is woken by the commit of what makes a job available: the triggers of oban_install, a due time, oban_rescue, oban_retry_job, oban_resume_queue.
It is not woken by what has no such trigger or has obanrs.wakeups off. The next call finds such jobs.
Nor is it woken when another program unlocks a job that it has not changed.
A job of more than 64 MB in print, or nested over 5,000 levels deep, comes with too_large as true. Its args, meta, tags and errors are null.
Sessions whose role row level security restricts are all woken for each job.
Each claim is a transaction of its own, at READ COMMITTED. Between them the session holds no snapshot and no lock.
It occupies its connection while it waits. Behind a pooler that is one of the server''s connections. One call at a time for a node is enough.
A character that the client''s encoding does not have becomes an escape, such as \u00e9, in a text of jobs.
Rights are tested again after the wait.
It sets tcp_keepalives_* and tcp_user_timeout of this session, where they are unset, as oban_join does.
Rights: UPDATE on the prefix''s oban_jobs, and SELECT on it.

Errors:
25001: it was called in a transaction block, a function or an exception block. Use autocommit, or oban_fetch.
55000: obanrs is not preloaded, the server is in recovery, or the extension was dropped.
42501: the role lacks one of these rights.
3F000: prefix does not exist.
42P01: prefix has no oban_jobs.
42703: oban_jobs lacks a column of Oban''s.
42809: oban_jobs is no table or view.
42804: scheduled_at of oban_jobs is a timestamptz. Oban''s is a timestamp in UTC.
25006: transactions of the session are read-only.
54000: the jobs are larger than 250 MB. Nothing was claimed. Take fewer.
40001: oban_jobs is partitioned by state, and another session has claimed a job at the same time. Run it again.
55P03: another transaction has had obanrs_queue_signals locked for 2 s.
22023: queues is empty or has over 32 elements; or one of them is empty or over 127 characters; or max_jobs is not from 1 to 10,000; or timeout is negative or over a day; or node, uuid or prefix is empty or too long.
22004: an argument other than uuid and jobs is NULL, or an element of queues is.
42939: prefix is a schema of Postgres'' own.';

COMMENT ON FUNCTION @extschema@.oban_complete_job(bigint, integer, text) IS
'Says that a job has been done.

Arguments:
id: id of the job.
attempt: number of the attempt that has ended, as oban_fetch returned it.
prefix: schema of the job tables.

Result: whether the job is completed now. False: it is not executing in that attempt, and nothing was changed.

It sets state and completed_at.
Rights: UPDATE on the prefix''s oban_jobs, and SELECT on it. It is an UPDATE with the rights of the caller.

Errors:
42501: the role lacks one of these rights.
3F000: prefix does not exist.
42P01: prefix has no oban_jobs.
42703: oban_jobs lacks a column of Oban''s.
42809: oban_jobs is no table or view.
42804: scheduled_at of oban_jobs is a timestamptz. Oban''s is a timestamp in UTC.
25006: the transaction is read-only.
55000: the server is in recovery.
22023: prefix is empty or too long.
22004: an argument is NULL.
42939: prefix is a schema of Postgres'' own.';

COMMENT ON FUNCTION @extschema@.oban_fail_job(bigint, integer, text, interval, text) IS
'Says that an attempt of a job has failed, and has it tried again or discarded.

Arguments:
id: id of the job.
attempt: number of the attempt that has failed, as oban_fetch returned it.
error: what went wrong. It is added to errors.
retry_in: when the job is due again, from 0 to a hundred years. NULL: after Oban''s delay, which is 15 s and 2 to the power of the attempt, of 20 in all, and up to a tenth more.
prefix: schema of the job tables.

Result: the new state: retryable, or discarded if this was the last attempt. NULL: the job is not executing in that attempt, and nothing was changed.

It sets state, errors, and scheduled_at or discarded_at.
Rights: UPDATE on the prefix''s oban_jobs, and SELECT on it. It is an UPDATE with the rights of the caller.

Errors:
42501: the role lacks one of these rights.
3F000: prefix does not exist.
42P01: prefix has no oban_jobs.
42703: oban_jobs lacks a column of Oban''s.
42809: oban_jobs is no table or view.
42804: scheduled_at of oban_jobs is a timestamptz. Oban''s is a timestamp in UTC.
25006: the transaction is read-only.
55000: the server is in recovery.
22023: error is over 1 MB; or retry_in is negative or over a hundred years; or prefix is empty or too long.
22004: an argument other than retry_in is NULL.
42939: prefix is a schema of Postgres'' own.';

COMMENT ON FUNCTION @extschema@.oban_snooze_job(bigint, integer, interval, text) IS
'Puts a job off that is executing, without an error.

Arguments:
id: id of the job.
attempt: number of the attempt, as oban_fetch returned it.
snooze_for: when the job is due again, from 0 to a hundred years.
prefix: schema of the job tables.

Result: whether the job is put off. False: it is not executing in that attempt, and nothing was changed.

It sets state and scheduled_at, and counts in meta how often the job was put off (snoozed). The job gets one attempt more, so no attempt is lost; Oban takes the attempt back instead.
Rights: UPDATE on the prefix''s oban_jobs, and SELECT on it. It is an UPDATE with the rights of the caller.

Errors:
42501: the role lacks one of these rights.
3F000: prefix does not exist.
42P01: prefix has no oban_jobs.
42703: oban_jobs lacks a column of Oban''s.
42809: oban_jobs is no table or view.
42804: scheduled_at of oban_jobs is a timestamptz. Oban''s is a timestamp in UTC.
25006: the transaction is read-only.
55000: the server is in recovery.
22023: snooze_for is negative or over a hundred years; or prefix is empty or too long.
22004: an argument is NULL.
42939: prefix is a schema of Postgres'' own.';

COMMENT ON FUNCTION @extschema@.oban_cancel_job(bigint, integer, text, text) IS
'Cancels a job.

Arguments:
id: id of the job.
attempt: number of the attempt to cancel. NULL: the job is cancelled unless it has ended.
reason: why. It is added to errors. NULL: nothing is added.
prefix: schema of the job tables.

Result: whether the job is cancelled now. False: it has ended, or is not executing in that attempt, and nothing was changed.

It sets state and cancelled_at. If the job is executing, it also sends the signal of oban_pkill_job when the transaction commits.
Rights: UPDATE on the prefix''s oban_jobs, and SELECT on it. It is an UPDATE with the rights of the caller.

Errors:
42501: the role lacks one of these rights.
3F000: prefix does not exist.
42P01: prefix has no oban_jobs.
42703: oban_jobs lacks a column of Oban''s.
42809: oban_jobs is no table or view.
42804: scheduled_at of oban_jobs is a timestamptz. Oban''s is a timestamp in UTC.
25006: the transaction is read-only.
55000: the server is in recovery.
54000: the transaction has obanrs.max_transaction_messages messages or 64 MB of them.
0A000: PREPARE TRANSACTION raises it in a transaction that has cancelled an executing job.
22023: reason is over 1 MB; or prefix is empty or too long.
22004: id or prefix is NULL.
42939: prefix is a schema of Postgres'' own.';

COMMENT ON FUNCTION @extschema@.oban_discard_job(bigint, integer, text, text) IS
'Ends a job for good that can''t be done.

Arguments:
id: id of the job.
attempt: number of the attempt to discard. NULL: the job is discarded unless it has ended.
error: what went wrong. It is added to errors. NULL: nothing is added.
prefix: schema of the job tables.

Result: whether the job is discarded now. False: it has ended, or is not executing in that attempt, and nothing was changed.

It sets state and discarded_at.
Rights: UPDATE on the prefix''s oban_jobs, and SELECT on it. It is an UPDATE with the rights of the caller.

Errors:
42501: the role lacks one of these rights.
3F000: prefix does not exist.
42P01: prefix has no oban_jobs.
42703: oban_jobs lacks a column of Oban''s.
42809: oban_jobs is no table or view.
42804: scheduled_at of oban_jobs is a timestamptz. Oban''s is a timestamp in UTC.
25006: the transaction is read-only.
55000: the server is in recovery.
22023: error is over 1 MB; or prefix is empty or too long.
22004: id or prefix is NULL.
42939: prefix is a schema of Postgres'' own.';

COMMENT ON FUNCTION @extschema@.oban_retry_job(bigint, text) IS
'Makes a job available again that has ended, or that waits for later.

Arguments:
id: id of the job.
prefix: schema of the job tables.

Result: whether the job is available again. False: it is available already, it is executing, or there is no such job.

It sets state and scheduled_at, clears the times of the end, and leaves at least one attempt. Its queue is woken when the transaction commits.
Rights: UPDATE on the prefix''s oban_jobs, and SELECT on it. It is an UPDATE with the rights of the caller.

Errors:
42501: the role lacks one of these rights.
3F000: prefix does not exist.
42P01: prefix has no oban_jobs.
42703: oban_jobs lacks a column of Oban''s.
42809: oban_jobs is no table or view.
42804: scheduled_at of oban_jobs is a timestamptz. Oban''s is a timestamp in UTC.
25006: the transaction is read-only.
55000: the server is in recovery.
22023: prefix is empty or too long.
22004: an argument is NULL.
42939: prefix is a schema of Postgres'' own.';

COMMENT ON FUNCTION @extschema@.oban_prune(text, interval, integer) IS
'Deletes jobs that ended some time ago, as Oban''s pruner does.

Arguments:
prefix: schema of the job tables.
max_age: how long ago, from 0 to a hundred years.
max_jobs: the most jobs, from 1 to 100,000.

Result: how many jobs were deleted. Fewer than max_jobs: no more are old enough, or the rest is locked.

It goes by cancelled_at and discarded_at, and for completed jobs by scheduled_at. In a table of Oban for Python it goes by completed_at.
Jobs that another transaction has locked are passed over, so two calls at a time do not wait for each other.
It needs no preload. It is a DELETE with the rights of the caller, so triggers and row level security apply.
Rights: DELETE on the prefix''s oban_jobs, SELECT on it, and UPDATE on it, which a lock of a row needs.

Errors:
42501: the role lacks one of these rights.
3F000: prefix does not exist.
42P01: prefix has no oban_jobs.
42703: oban_jobs lacks a column of Oban''s.
42809: oban_jobs is no table or view.
42804: scheduled_at of oban_jobs is a timestamptz. Oban''s is a timestamp in UTC.
40001: the transaction is REPEATABLE READ or SERIALIZABLE, and another one has changed or deleted a job. Run it again.
25006: the transaction is read-only.
55000: the server is in recovery.
22023: max_age is negative or over a hundred years; or max_jobs is not from 1 to 100,000; or prefix is empty or too long.
22004: an argument is NULL.
42939: prefix is a schema of Postgres'' own.';

COMMENT ON VIEW @extschema@.oban_members IS
'Shows the members that have joined in this database.

Columns:
prefix: schema of the job tables.
name: name of the instance.
node: name of the node.
member: member id, as oban_join returned it.
kind: session (ends with the session of pid) or lease (ends at expires_at).
pid: backend of a member of kind session, else NULL.
leader: whether it leads now.
joined_at: when it joined.
expires_at: end of its lease if it does not renew. NULL for kind session.

obanrs_memberships() shows these, and whether a member stands for election (candidate).
Rights: none. It shows the prefixes on whose oban_jobs the role has SELECT, or SELECT on a column.
Empty without preload.';

COMMENT ON VIEW @extschema@.oban_leadership IS
'Shows the current leaders of all prefixes in this database.

Columns:
prefix: schema of the job tables.
name: name of the instance.
node: name of the node that leads.
term: term of the leadership. NULL for a leadership that began before oban_install, until it is renewed.
started_at: when the leadership began.
expires_at: when its lease ends without a renewal.

It reads the unexpired rows of each oban_peers, so Oban''s own nodes are included, if they are of Oban for Elixir.
A table that is locked, or unlogged on a standby, is left out.
In a database of another encoding than UTF8, prefixes whose names are not ASCII are left out.
Rights: none. It shows the prefixes on whose oban_jobs the role has SELECT, or SELECT on a column.';

COMMENT ON VIEW @extschema@.oban_gossip IS
'Shows the queues that run in this database, by node.

Columns:
prefix: schema of the job tables.
name: name of the instance.
node: name of the node.
queue: name of the queue.
paused: whether the queue is paused, as state has it.
local_limit: how many jobs the queue runs at most: local_limit, or else limit, of state.
running: number of jobs that the queue runs, by running of state.
uuid: uuid of the process, as state has it.
started_at: when the queue started.
updated_at: when the entry was last put or heard.
expires_at: when the entry ends if it is not put or heard again.
state: what oban_gossip_put was given, or what the node gossiped.

It shows what was put here, and what Oban''s own nodes gossip (obanrs.gossip_ingest).
Each row is a consistent copy. All rows together are no snapshot.
Rights: none. It shows the prefixes on whose oban_jobs the role has SELECT, or SELECT on a column.
Empty without preload.';

COMMENT ON VIEW @extschema@.oban_watches IS
'The watches of tables in this database (oban_watch).

Columns:
queue_table: the table.
channel: the channel, as LISTEN has it.
queue_column: the column that is sent as {"queue": "value"}, if any.
events: what is watched: insert, update, delete.
payload_column: the column that is sent as plain text, if any.
condition: the condition as it was given; NULL if every row counts.
ok: false if the column is missing or virtual, or a trigger of the watch is disabled. Then nothing is sent.

Rights: none. Postgres shows every role the triggers of all tables.';

COMMENT ON VIEW @extschema@.oban_queue_signals IS
'Shows the last queue signals that are remembered, of all prefixes.

Columns:
prefix: schema of the job tables.
name: name of the instance that the call gave. Without a node, the signal concerned every name.
queue: name of the queue. * stands for all queues.
node: name of the node. NULL stands for all nodes.
paused: whether the last pause or resume was a pause. NULL: there was none.
queue_limit: limit of the last scaling. NULL: there was none.
since: when the last of these signals was sent.

It has one row for each name, queue and node of the calls oban_pause_queue, oban_resume_queue and oban_scale_queue.
Which of these rows counts for a queue of a node, oban_queue_state says.
A prefix keeps 2,000 rows. Beyond that the oldest ones go, those of single nodes first.
It reads each obanrs_queue_signals. A table that is locked, over 32 MB, or unlogged on a standby is left out.
In a database of another encoding than UTF8, prefixes whose names are not ASCII are left out.
Rights: none. It shows the prefixes on whose oban_jobs the role has SELECT, or SELECT on a column.';

COMMENT ON VIEW @extschema@.oban_workers IS
'Shows the background workers of obanrs in this server.

Columns:
kind: coordinator, keeper, relay or stager.
database: name of the database that it serves. NULL for the coordinator.
pid: process id, NULL when it does not run.
state: running, starting, waiting, backoff or stopping.
started_at: when the running process started.
restarts: how often it was started again.
last_error: what went wrong last, also with the elections of one prefix. It stays until something else goes wrong.
prefix: schema that a stager serves, NULL for other workers.

The coordinator is there once for the server.
Each database with the extension has a keeper, which holds elections.
It also has a relay, which sends notifications, and sends and hears gossip.
Each prefix that stages has a stager, which makes due jobs available.
waiting means that it is to be started, or that a DDL command keeps it away. backoff means a pause after a failure.
Rights: none. Only superusers and members of pg_read_all_stats see last_error, and the prefixes of other databases.
Empty without preload.';

COMMENT ON VIEW @extschema@.oban_stats IS
'Shows what obanrs has done in this database, as counters.

Columns:
counter: name of the counter.
value: its value.

Counters:
published: messages that were given a position.
relayed: messages that the relay sent.
merged: wake-ups that the relay left out, because an equal one in the same transaction stood for them.
unheard: messages that were not sent, because no session LISTENs.
relay_transactions: transactions in which the relay sent.
native: messages that transactions sent natively themselves. Those of transactions that then failed to commit are counted, too.
native_fallbacks: messages that were sent natively for lack of a relay or of room, also for other transactions.
gaps: transactions without room in the ring, or in their role''s share of it (obanrs.role_share). Readers are told that they missed something.
dropped: messages that could not be sent.
polls: calls of oban_poll and oban_wait.
elections: leaderships given to members.
lapses: leaderships of members that ended by their lease.
fences_refused: calls of oban_fence with a term that was not held.
gossip_puts: calls of oban_gossip_put that put something.
gossip_expired: entries of gossip that ended by their ttl.
gossip_broadcasts: how often entries were sent to other nodes.
gossip_shortened: checks that lost their oldest running jobs, or more, because even compressed they were too long for a notification.
gossip_taken_in: checks of other nodes that were taken in.
gossip_malformed: messages on a gossip channel that were no checks.
gossip_refused: checks of other nodes for which there was no room.
gossip_broadcast_entries: how many entries were sent the last time.
last_failover_us: microseconds without a leader before the last election that followed another leadership.
ring_waiting: messages in the ring that the relay has still to send.
ring_bytes_used: bytes of the ring in use.
ring_bytes: bytes of the ring.
gossip_entries: rows of oban_gossip, of all prefixes.
gossip_entries_taken_in: those of them that other nodes gossiped.
gossip_bytes: memory of all these entries.

It counts since the server started, or the extension was created.
dropped counts wake-ups of triggers that are over the transaction''s limit, before a PREPARE TRANSACTION, or while the queue of NOTIFY is full.
dropped counts statements on tables whose column queue or state is missing or cannot be read, and on temporary tables.
dropped counts messages to a schema that was dropped before they were sent, or renamed so that it has no channels.
dropped counts what was on its way when the extension was dropped.
Rights: none.
Empty without preload.';

COMMENT ON FUNCTION @extschema@.obanrs_memberships() IS
'Internal: the view oban_members calls it for its rows.

Result: the rows of oban_members, each with candidate: whether the member stands for election.';

COMMENT ON FUNCTION @extschema@.obanrs_leadership() IS
'Internal: the view oban_leadership calls it for its rows.';

COMMENT ON FUNCTION @extschema@.obanrs_queue_signals() IS
'Internal: the view oban_queue_signals calls it for its rows.';

COMMENT ON FUNCTION @extschema@.obanrs_gossip() IS
'Internal: the view oban_gossip calls it for its rows.';

COMMENT ON FUNCTION @extschema@.obanrs_workers() IS
'Internal: the view oban_workers calls it for its rows.';

COMMENT ON FUNCTION @extschema@.obanrs_stagers() IS
'Internal: the view oban_workers calls it for the rows of stagers.';

COMMENT ON FUNCTION @extschema@.obanrs_stats() IS
'Internal: the view oban_stats calls it for its rows.';

COMMENT ON FUNCTION @extschema@.obanrs_jobs_insert() IS
'Internal: the triggers on oban_jobs call it, to wake queues with new jobs.

oban_install puts the triggers on oban_jobs, for each row of an INSERT and of an UPDATE.
It wakes the queue of a row whose state is available, if before the UPDATE the state or the queue was another.
A transaction sends one wake-up for each queue.
With the argument stage it also tells the stager of the prefix when jobs are due.
A job that is available before it is due then wakes its queue when it is due.
It also serves the trigger of versions before 0.9.0, which fires once for each INSERT.
It never fails the statement. It drops a wake-up over obanrs.max_transaction_messages, or before a PREPARE TRANSACTION.

Errors:
39P01: it was not called by such a trigger.';

COMMENT ON FUNCTION @extschema@.obanrs_watches() IS
'Internal: the view oban_watches calls it for its rows.';

COMMENT ON FUNCTION @extschema@.obanrs_watched() IS
'Internal: the triggers of oban_watch call it, for rows of a watched table.

It never fails the statement. It drops a wake-up over obanrs.max_transaction_messages, or before a PREPARE TRANSACTION.

Errors:
39P01: it was not called by such a trigger.';

COMMENT ON FUNCTION @extschema@.obanrs_peers() IS
'Internal: the triggers on oban_peers call it, for rows that Oban''s nodes write.

oban_install puts the triggers on oban_peers. They hold Oban''s own nodes to the rules of elections.
A node that is no member renews its own row only. It gets a term and the server''s times.
An UPDATE of node hands the leadership over, as a DELETE and an INSERT would. The row gets a new term and no boot, and the UPDATE waits for fences.
Name, term and boot do not change, nor does started_at unless node does.
What is done to rows is told to shared memory when it commits.

Errors:
22023: an UPDATE changes name, term, boot, or started_at without node.
39P01: it was not called by such a trigger.';

COMMENT ON SEQUENCE @extschema@.obanrs_term IS
'Internal: elections and the triggers on oban_peers draw terms from it.

Its value is the last term given to a leadership in this database.';
