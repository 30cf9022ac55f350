\echo Use "ALTER EXTENSION obanrs UPDATE TO '0.7.0'" to load this file. \quit

-- A new argument makes another function of the same name, and two of a name could not be called without it. So the
-- old function goes. What depends on it, such as a view, is an error that names it.

CREATE FUNCTION @extschema@.oban_join(
    node pg_catalog.text,
    name pg_catalog.text DEFAULT 'Oban',
    lease pg_catalog.interval DEFAULT NULL,
    replace pg_catalog.bool DEFAULT false,
    prefix pg_catalog.text DEFAULT 'public',
    candidate pg_catalog.bool DEFAULT true
) RETURNS pg_catalog.int8
VOLATILE PARALLEL UNSAFE LANGUAGE c AS 'MODULE_PATHNAME', 'oban_join_as_wrapper';

CREATE FUNCTION @extschema@.oban_poll(
    channels pg_catalog.text[] DEFAULT '{gossip,insert,leader,signal}',
    after pg_catalog.int8 DEFAULT NULL,
    max_messages pg_catalog.int4 DEFAULT 1000,
    prefix pg_catalog.text DEFAULT 'public',
    queues pg_catalog.text[] DEFAULT NULL
) RETURNS TABLE ("position" pg_catalog.int8, missed pg_catalog.int8, messages pg_catalog.jsonb)
VOLATILE PARALLEL UNSAFE LANGUAGE c AS 'MODULE_PATHNAME', 'oban_poll_queues_wrapper';

CREATE PROCEDURE @extschema@.oban_wait(
    channels pg_catalog.text[] DEFAULT '{gossip,insert,leader,signal}',
    after pg_catalog.int8 DEFAULT NULL,
    timeout pg_catalog.interval DEFAULT '5s',
    max_messages pg_catalog.int4 DEFAULT 1000,
    prefix pg_catalog.text DEFAULT 'public',
    INOUT "position" pg_catalog.int8 DEFAULT NULL,
    INOUT missed pg_catalog.int8 DEFAULT NULL,
    INOUT messages pg_catalog.jsonb DEFAULT NULL,
    queues pg_catalog.text[] DEFAULT NULL
) LANGUAGE c AS 'MODULE_PATHNAME', 'oban_wait_queues_wrapper';

CREATE FUNCTION @extschema@.oban_orphans(
    prefix pg_catalog.text DEFAULT 'public',
    grace pg_catalog.interval DEFAULT '60s'
) RETURNS TABLE (
    id pg_catalog.int8,
    queue pg_catalog.text,
    worker pg_catalog.text,
    node pg_catalog.text,
    reason pg_catalog.text,
    since pg_catalog.timestamptz
) VOLATILE PARALLEL UNSAFE LANGUAGE c AS 'MODULE_PATHNAME', 'oban_orphans_wrapper';

CREATE FUNCTION @extschema@.obanrs_memberships() RETURNS TABLE (
    prefix pg_catalog.text,
    name pg_catalog.text,
    node pg_catalog.text,
    member pg_catalog.int8,
    kind pg_catalog.text,
    pid pg_catalog.int4,
    leader pg_catalog.bool,
    joined_at pg_catalog.timestamptz,
    expires_at pg_catalog.timestamptz,
    candidate pg_catalog.bool
) STRICT VOLATILE PARALLEL RESTRICTED LANGUAGE c AS 'MODULE_PATHNAME', 'obanrs_memberships_wrapper';

CREATE OR REPLACE VIEW @extschema@.oban_members AS
    SELECT prefix, name, node, member, kind, pid, leader, joined_at, expires_at
    FROM @extschema@.obanrs_memberships();

-- The new functions take over owners, rights and settings. These are copied in the catalogs. A GRANT in an extension's
-- script would count as the extension's own, and pg_dump would leave the user's GRANTs and REVOKEs out.

CREATE TEMPORARY TABLE pg_temp.obanrs_replaced AS
    SELECT old::pg_catalog.oid AS old, new::pg_catalog.oid AS new
    FROM (VALUES
        (
            '@extschema@.oban_join(text, text, interval, boolean, text)'::pg_catalog.regprocedure,
            '@extschema@.oban_join(text, text, interval, boolean, text, boolean)'::pg_catalog.regprocedure
        ),
        (
            '@extschema@.oban_poll(text[], bigint, integer, text)'::pg_catalog.regprocedure,
            '@extschema@.oban_poll(text[], bigint, integer, text, text[])'::pg_catalog.regprocedure
        ),
        (
            '@extschema@.oban_wait(text[], bigint, interval, integer, text, bigint, bigint, jsonb)'::pg_catalog.regprocedure,
            '@extschema@.oban_wait(text[], bigint, interval, integer, text, bigint, bigint, jsonb, text[])'::pg_catalog.regprocedure
        ),
        (
            '@extschema@.obanrs_members()'::pg_catalog.regprocedure,
            '@extschema@.obanrs_memberships()'::pg_catalog.regprocedure
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

DROP FUNCTION @extschema@.oban_join(text, text, interval, boolean, text);
DROP FUNCTION @extschema@.oban_poll(text[], bigint, integer, text);
DROP PROCEDURE @extschema@.oban_wait(text[], bigint, interval, integer, text, bigint, bigint, jsonb);
DROP FUNCTION @extschema@.obanrs_members();

-- Comments that are new or say more.
COMMENT ON FUNCTION @extschema@.oban_check() IS
    'What keeps obanrs from working here, one row a thing: ok, or detail says what to do. Looks at the preload, versions, workers, settings, and at each prefix that the caller has any right on: tables, columns, triggers, rights, publications, and what elections need, also before the first member joins. A schema with Oban''s tables and nothing of obanrs'' is ok; that no schema is installed is not. Changes nothing.';
COMMENT ON FUNCTION @extschema@.oban_install(text, boolean) IS
    'Makes a prefix (schema) usable: creates what is missing of oban_jobs (as Oban''s migration 14 makes it) and oban_peers, adds the insert trigger to oban_jobs, and the columns term and boot and three triggers to oban_peers. Needs the ownership of tables that exist. Again without effect, and without a lock, when nothing is missing; waits at most 2 s for a lock (55P03); 22023 when a table that is there, or the type oban_job_state, is of another kind than Oban''s (the columns are named), or of its migrations before 11; 42939 for a schema of Postgres'' own; 40001 when the schema or a table is renamed, dropped or replaced meanwhile. Nothing of a table''s owner is evaluated. stage => true is not supported yet (0A000). 25006 in a read-only transaction, 55000 in recovery, also when nothing is missing. Run it again after adding a partition to oban_jobs, and after an update of the extension.';
COMMENT ON FUNCTION @extschema@.oban_listen_channels(text[], text) IS
    'LISTENs in this session to the channels of a prefix, from the end of this transaction on, and returns their full names. Call it again after ALTER SCHEMA ... RENAME: messages go to the channels of the name that the schema has when they are sent. Needs SELECT on the prefix''s oban_jobs, or on a column of it; prefix '''' listens to the channels as they are named. Sets this session''s tcp_keepalives_* and tcp_user_timeout as oban_join does, where they are unset. 22023 for more than 64 channels and what is no channel; 55000 in recovery.';
COMMENT ON FUNCTION @extschema@.oban_poll(text[], bigint, integer, text, text[]) IS
    'What was sent on these channels behind a position: always one row, with the position to go on from, how many of the database''s messages were passed over unread (0; after a gap an upper bound, as it counts all channels; NULL when nobody knows, as after a restart), and the messages as [{"seq", "channel", "payload", "sent_at"}], the oldest first. after NULL is from now on: nothing but the position. queues: of messages with a "queue", only those of these queues, and of "*", which is each queue. An answer ends after max_messages or 16 MB; the next one goes on there. What others NOTIFY by themselves is not among it. A character that the session''s client_encoding does not have comes as text: a backslash, u and four digits, as JSON escapes it; so no message keeps a reader from the next. Through any pooler. Needs SELECT on the prefix''s oban_jobs, or on a column of it; prefix '''' reads channels as they are named. 22023 for a negative position, max_messages below 1, more than 64 channels, what is no channel, and more than 1,024 queues or one of more than 255 bytes; 55000 without preload, in recovery and when the extension was dropped; 53400 when the database has no place in obanrs.max_databases, or no ring is free (obanrs.max_rings).';
COMMENT ON PROCEDURE @extschema@.oban_wait(text[], bigint, interval, integer, text, bigint, bigint, jsonb, text[]) IS
    'As oban_poll, waiting up to timeout (at most a day) for the first message (of these queues, if queues are given), or for a gap. CALL it with autocommit: it commits before it waits, so that it holds no snapshot and no lock meanwhile; 25001 in a transaction block. It occupies its connection, behind a pooler one of the server''s, as long as it waits. It sets this session''s tcp_keepalives_* and tcp_user_timeout as oban_join does, where they are unset.';
COMMENT ON FUNCTION @extschema@.oban_decode(text) IS
    'Reads all wire forms of Oban''s nodes: JSON, H4sI..., and Z:H4sI.... 54000 for more than 7,999 bytes, which no notification has, for what unpacks to more than 16 MB and for what is nested more than 500 levels deep; 22023 for anything else, also for JSON that jsonb can''t hold (a NUL, half a surrogate pair, a number out of range, a character that the database''s encoding does not have).';
COMMENT ON FUNCTION @extschema@.oban_join(text, text, interval, boolean, text, boolean) IS
    'Makes this process a member: what the node''s name stands for, in the instance name and prefix. Returns a member id. Stands for election from now on, whether or not this transaction commits: until oban_leave, the end of the session or its DISCARD ALL; with a lease (100 ms to a day) until oban_leave or the end of the lease, which oban_renew begins anew from any session. Waits up to 1 s for the election. candidate false makes a member that is seen and never leads. Left out, candidate is true, but false with a NOTICE where a foreign node (one of Oban''s own, which did not join) leads the name or has led it since the server started. The same session again: the same id, which stays a candidate or not if candidate is left out. A WARNING says why no election can be held, if that is so. 23505 when another live one is that member, unless replace; 53400 when obanrs.max_members have joined, when the role has its share of them (obanrs.role_share), or when the database has no place in obanrs.max_databases; 55000 without preload, in recovery, without a lease while obanrs.require_lease is on, and for a second node of the name without a lease in one session. Needs INSERT on the prefix''s oban_jobs. Without a lease it sets this session''s tcp_keepalives_* and tcp_user_timeout, where they are unset, so that a client whose host vanished is noticed in about 8 s.';
COMMENT ON FUNCTION @extschema@.oban_fence(bigint, text, text) IS
    'Lets this transaction go on only if that term is held and its lease unexpired; until it ends nobody else becomes leader. The term is one''s own, from oban_renew or oban_term. 40001 otherwise, for NULL (what these return to a process that does not lead), and when this transaction''s snapshot (REPEATABLE READ, SERIALIZABLE) is older than the leadership: roll back. Locks the leader''s row in oban_peers against deletion; a renewal does not wait for it. Needs INSERT on the prefix''s oban_jobs. 25006 in a read-only transaction; 55000 in recovery, when the prefix is not installed and when its oban_peers has what elections would have to ignore (the hint names it).';
COMMENT ON FUNCTION @extschema@.oban_gossip_put(text, text, jsonb, text, interval, text) IS
    'Inserts or replaces the entry of one queue on one node in shared memory, whether or not this transaction commits. state is an object of up to 64 kB with the keys of Oban''s checks: uuid, limit or local_limit, paused, running (the ids of jobs: integers, or strings such as uuids), started_at, shutdown_started_at, global_limit, rate_limit; others are kept. Wrong types of these are 22023, as readers of gossip would crash on them; so are more than 100 levels and numbers of more than 300 digits. When it was updated, and started if the state does not say so, is the server''s time. The entry ends after ttl (default obanrs.gossip_ttl, at most a year), by oban_gossip_delete, or with the node''s session-bound member. Every obanrs.gossip_interval the entries are sent to those who listen to the prefix''s gossip. 53400 when obanrs.gossip_memory is full, or when the entries that the current role put last take its share of it (obanrs.role_share; superusers and the owner of the database have no limit): an entry that would be replaced stays as it was. An entry is of the schema that the prefix names at the call, also when that is renamed. 55000 without preload and in recovery. Needs INSERT on the prefix''s oban_jobs.';
COMMENT ON FUNCTION @extschema@.oban_orphans(text, interval) IS
    'The jobs of a prefix in state executing that no live process runs, since when, and why. gone: the process (attempted_by: its node and its uuid) gossiped, its last entry has ended, and it was not heard again for grace (up to a year; less than some seconds is for tests, as nodes gossip once a second); restarted: the same, and another process gossips the queue of that node. not running: the process gossips running for the queue and does not list the job, neither by a put a grace after the attempt began, when a call of this function notes it, nor by one a grace after that call: a fetch whose answer was lost. Such a job is named by a second call at the earliest. unknown: a process that this server has not heard since it started, was promoted, or forgot it for want of room (obanrs.gossip_memory), also a node without gossip; or what it says by NOTIFY was not listened to all the time. Of these nobody knows whether they live: never take them by this alone. since is when the evidence begins: not before the attempt. Reads gossip, then the rows that are committed by then, with the rights of the caller: needs SELECT on those columns of the prefix''s oban_jobs, row level security applies. 22023 for another grace, 55000 without preload and in recovery, 40001 when the schema is renamed meanwhile.';
COMMENT ON VIEW @extschema@.oban_members IS
    'The members that have joined. kind: session (bound to the backend pid) or lease (until expires_at). leader: whether it leads now. obanrs_memberships() shows beside these whether a member stands for election (candidate). Empty without preload.';
COMMENT ON VIEW @extschema@.oban_leadership IS
    'The unexpired leaderships of all prefixes with a table of leaders, nodes of Oban for Elixir included. A table that is locked, or unlogged on a standby, is left out. So is a prefix whose name is not ASCII, in a database of another encoding than UTF8.';
COMMENT ON VIEW @extschema@.oban_gossip IS
    'The queues that run, by node: what was put here, and what Oban''s own nodes gossip (obanrs.gossip_ingest). running is the number of running jobs, state what was put. Each row is a consistent copy, the whole no snapshot. Empty without preload.';
COMMENT ON VIEW @extschema@.oban_workers IS
    'The background workers: the coordinator of the server, and for each database that has the extension a keeper, which holds elections, and a relay, which sends notifications, and sends and hears gossip. state: running, starting, waiting (to be started, or kept off by a DDL command), backoff (after a failure), stopping. last_error: what went wrong last, also with elections of one prefix; it stays until something else does, and only superusers and members of pg_read_all_stats see it. Empty without preload.';
COMMENT ON VIEW @extschema@.oban_stats IS
    'What obanrs has done in this database since the server (or the extension) started. published: messages that were given a position. relayed: sent by the relay, in relay_transactions; merged: wake-ups that one of these stood for; unheard: not sent as no session LISTENs. native: sent by their own transactions, also if these failed to commit; native_fallbacks: those and others, for want of a relay or of room. gaps: transactions that found no room, or none in their role''s share (obanrs.role_share), so that readers are told they missed something. dropped: wake-ups of triggers that could not be sent: over the limit, before PREPARE TRANSACTION, with a column missing, with NOTIFY''s queue full; messages to a schema that was dropped, or renamed so that it has no channels, before they were sent; and what was on its way when the extension was dropped. polls: calls of oban_poll and oban_wait. ring_waiting: messages that the relay has still to send. ring_bytes_used, ring_bytes: memory of the ring. elections: leaderships given to members; lapses: those that ended by their lease; fences_refused: calls of oban_fence with a term that was not held; last_failover_us: for how many microseconds a name was without a leader before its last election. gossip_puts: calls of oban_gossip_put; gossip_expired: entries that ended by their ttl; gossip_broadcasts: how often entries were sent, the last time gossip_broadcast_entries of them; gossip_shortened: checks that were sent without their oldest running jobs, or more, as even compressed they are longer than a notification may be; gossip_taken_in: checks of other nodes; gossip_malformed: what came there and was none; gossip_refused: those for which there was no room. gossip_entries: the rows of oban_gossip, of which gossip_entries_taken_in are other nodes'', and their memory gossip_bytes. Empty without preload.';
COMMENT ON FUNCTION @extschema@.obanrs_memberships() IS 'The rows of the view oban_members, and whether each member stands for election (candidate).';
COMMENT ON FUNCTION @extschema@.obanrs_peers() IS
    'The triggers that oban_install puts on oban_peers: a node that is no member renews its own row only, with the server''s times, and gets a term. An UPDATE of node hands the leadership over, as a DELETE and an INSERT: the row gets a new term and no boot, and the UPDATE waits for fences. Name, term, boot and, without node, started_at do not change (22023). What is done to rows is told to shared memory when it commits.';
