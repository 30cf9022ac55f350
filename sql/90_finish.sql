-- Last: settings of functions, rights, comments.

-- DDL on users' tables: names mean what they say, and nobody waits long behind us.
ALTER FUNCTION @extschema@.oban_install(text, boolean) SET search_path = pg_catalog, pg_temp;
ALTER FUNCTION @extschema@.oban_install(text, boolean) SET lock_timeout = '2s';
ALTER FUNCTION @extschema@.oban_uninstall(text) SET search_path = pg_catalog, pg_temp;
ALTER FUNCTION @extschema@.oban_uninstall(text) SET lock_timeout = '2s';
ALTER FUNCTION @extschema@.oban_check() SET search_path = pg_catalog, pg_temp;

-- Functions test rights on the prefix themselves, views filter by them.
GRANT SELECT ON @extschema@.oban_members, @extschema@.oban_leadership, @extschema@.oban_gossip,
    @extschema@.oban_workers, @extschema@.oban_stats TO PUBLIC;
-- Or pg_dump by another role than a superuser would fail on the whole database. Terms are no secret.
GRANT SELECT ON SEQUENCE @extschema@.obanrs_term TO PUBLIC;

COMMENT ON FUNCTION @extschema@.oban_version() IS
    'The version of the library that this session runs.';
COMMENT ON FUNCTION @extschema@.oban_check() IS
    'What keeps obanrs from working here, one row a thing: ok, or detail says what to do. Looks at the preload, versions, workers, settings, and at each prefix that the caller has any right on: tables, columns, triggers, rights. Changes nothing.';
COMMENT ON FUNCTION @extschema@.oban_install(text, boolean) IS
    'Makes a prefix (schema) usable: creates what is missing of oban_jobs (as Oban''s migration 14 makes it) and oban_peers, adds the insert trigger to oban_jobs, and the columns term and boot and three triggers to oban_peers. Needs the ownership of tables that exist. Again without effect, and without a lock, when nothing is missing; waits at most 2 s for a lock (55P03); 22023 when a table that is there, or the type oban_job_state, is of another kind than Oban''s; 40001 when the schema or a table is renamed, dropped or replaced meanwhile. Nothing of a table''s owner is evaluated. stage => true is not supported yet (0A000). 25006 in a read-only transaction, 55000 in recovery. Run it again after adding a partition to oban_jobs, and after an update of the extension.';
COMMENT ON FUNCTION @extschema@.oban_uninstall(text) IS
    'Removes what oban_install added to the tables of a prefix: the triggers and the columns. Never removes a table. Needs their ownership; waits at most 2 s for a lock (55P03); 3F000 without such a schema, 40001 when it or a table is renamed, dropped or replaced meanwhile, 25006 in a read-only transaction, 55000 in recovery.';
COMMENT ON FUNCTION @extschema@.oban_notify(text, jsonb, text) IS
    'Sends a JSON object on <prefix>.oban_<channel> when this transaction commits; a transaction or savepoint that is rolled back sends nothing. Equal messages of a transaction are sent once. By obanrs.notifier they go through shared memory or natively. What the transaction sends by NOTIFY itself comes before them. Needs INSERT on the prefix''s oban_jobs (UPDATE for signal, ownership for leader); prefix '''' sends on the channel as it is named. 22023 for a channel that is no name or too long and for a payload that is no object, 54000 for one over 7,999 bytes after compression and for more than obanrs.max_transaction_messages in a transaction, 0A000 at a PREPARE TRANSACTION after it, 3F000 without such a prefix, 55000 in recovery.';
COMMENT ON FUNCTION @extschema@.oban_notify_many(text, jsonb[], text) IS
    'As oban_notify, one message for each element: all of them or, if one is refused, none. 54000 also for more than 1,048,576 elements, and for more than 128 MB of them.';
COMMENT ON FUNCTION @extschema@.oban_listen_channels(text[], text) IS
    'LISTENs in this session to the channels of a prefix, from the end of this transaction on, and returns their full names. Needs SELECT on the prefix''s oban_jobs, or on a column of it; prefix '''' listens to the channels as they are named. 22023 for more than 64 channels and what is no channel; 55000 in recovery.';
COMMENT ON FUNCTION @extschema@.oban_unlisten_channels(text[], text) IS
    'Ends what oban_listen_channels began, for the channels of a prefix, and returns their full names. 22023 for more than 64 channels and what is no channel.';
COMMENT ON FUNCTION @extschema@.oban_poll(text[], bigint, integer, text) IS
    'What was sent on these channels behind a position: always one row, with the position to go on from, how many of the database''s messages were passed over unread (0; after a gap an upper bound, as it counts all channels; NULL when nobody knows, as after a restart), and the messages as [{"seq", "channel", "payload", "sent_at"}], the oldest first. after NULL is from now on: nothing but the position. An answer ends after max_messages or 16 MB; the next one goes on there. What others NOTIFY by themselves is not among it. Through any pooler. Needs SELECT on the prefix''s oban_jobs, or on a column of it; prefix '''' reads channels as they are named. 22023 for a negative position, max_messages below 1, more than 64 channels and what is no channel; 55000 without preload, in recovery and when the extension was dropped; 53400 when the database has no place in obanrs.max_databases.';
COMMENT ON PROCEDURE @extschema@.oban_wait(text[], bigint, interval, integer, text, bigint, bigint, jsonb) IS
    'As oban_poll, waiting up to timeout (at most a day) for the first message, or for a gap. CALL it with autocommit: it commits before it waits, so that it holds no snapshot and no lock meanwhile; 25001 in a transaction block. It occupies its connection, behind a pooler one of the server''s, as long as it waits.';
COMMENT ON FUNCTION @extschema@.oban_position() IS
    'The position of this database''s last message, for oban_poll and oban_wait to go on from. It never goes back. 55000 without preload and in recovery, 53400 when the database has no place in obanrs.max_databases.';
COMMENT ON FUNCTION @extschema@.oban_encode(jsonb) IS
    'The wire form of a JSON object: itself up to 7,999 bytes, base64 of gzip (H4sI...) above; 54000 when that is longer, too, or the object is longer than 16 MB as text or nested more than 500 levels deep; 22023 for what is no object.';
COMMENT ON FUNCTION @extschema@.oban_decode(text) IS
    'Reads all wire forms of Oban''s nodes: JSON, H4sI..., and Z:H4sI.... 54000 for more than 7,999 bytes, which no notification has, for what unpacks to more than 16 MB and for what is nested more than 500 levels deep; 22023 for anything else, also for JSON that jsonb can''t hold (a NUL, half a surrogate pair, a number out of range).';
COMMENT ON FUNCTION @extschema@.oban_join(text, text, interval, boolean, text) IS
    'Makes this process a member: what the node''s name stands for, in the instance name and prefix. Returns a member id. Takes part in elections from now on, whether or not this transaction commits: until oban_leave, the end of the session or its DISCARD ALL; with a lease (100 ms to a day) until oban_leave or the end of the lease, which oban_renew begins anew from any session. Waits up to 1 s for the election. The same session again: the same id. 23505 when another live one is that member, unless replace; 53400 when obanrs.max_members have joined, or the role has its share of them (obanrs.role_share); 55000 without preload and in recovery. Needs INSERT on the prefix''s oban_jobs. Without a lease it sets this session''s tcp_keepalives_* and tcp_user_timeout, where they are unset, so that a client whose host vanished is noticed in about 8 s.';
COMMENT ON FUNCTION @extschema@.oban_renew(bigint) IS
    'A leased member''s heartbeat: its lease begins anew, whether or not this transaction commits. Returns its term when it leads, else NULL. When half of the leadership''s lease is over it waits, up to 1 s, until the row in oban_peers is extended. 55000 when it is no member any more (its lease has ended, it left or was replaced, or the prefix''s schema was dropped) and in recovery. From any session of the role that joined it, or of a member of that role.';
COMMENT ON FUNCTION @extschema@.oban_resign(bigint) IS
    'Steps down and stays a member: another member leads at once if there is one. Alone it stands for election again after obanrs.lease, or when somebody else has led, so that nodes that are no members can take over. True when it led. 55000 when it is no member. For the role that joined it and members of that role.';
COMMENT ON FUNCTION @extschema@.oban_leave(bigint) IS
    'Ends a membership at once, with its leadership and, of a session-bound member, its node''s gossip. False when there is no such member. Only for the role that joined it and members of that role.';
COMMENT ON FUNCTION @extschema@.oban_is_leader(text, text, text) IS
    'Whether a member that this session joined (or the member of the named node) leads now, within its lease. False for a prefix without a schema. Reads shared memory only. Behind a transaction pooler name the node. With a node it needs SELECT on the prefix''s oban_jobs, or on a column of it.';
COMMENT ON FUNCTION @extschema@.oban_term(text, text, text) IS
    'The term of the leadership that a member that this session joined (or the member of the named node) holds now, else NULL. With a node it needs SELECT on the prefix''s oban_jobs, or on a column of it. A later leadership of any name in this database has a greater term.';
COMMENT ON FUNCTION @extschema@.oban_leader(text, text) IS
    'Who leads a name, by the unexpired row of oban_peers: nodes of Oban for Elixir included (Oban for Python elects in a table of its own). For people and dashboards: who asks it for a term to fence with fences for somebody else. No row without a leader. On a standby it answers from the replicated row, 55000 when the table is unlogged. Needs SELECT on the prefix''s oban_jobs, or on a column of it.';
COMMENT ON FUNCTION @extschema@.oban_fence(bigint, text, text) IS
    'Lets this transaction go on only if that term is held and its lease unexpired; until it ends nobody else becomes leader. The term is one''s own, from oban_renew or oban_term. 40001 otherwise, also when this transaction''s snapshot (REPEATABLE READ, SERIALIZABLE) is older than the leadership: roll back. Locks the leader''s row in oban_peers against deletion; a renewal does not wait for it. Needs INSERT on the prefix''s oban_jobs. 25006 in a read-only transaction; 55000 in recovery, when the prefix is not installed and when its oban_peers has what elections would have to ignore (the hint names it).';
COMMENT ON FUNCTION @extschema@.oban_gossip_put(text, text, jsonb, text, interval, text) IS
    'Inserts or replaces the entry of one queue on one node in shared memory, whether or not this transaction commits. state is an object of up to 64 kB with the keys of Oban''s checks: uuid, limit or local_limit, paused, running (the ids of jobs), started_at, shutdown_started_at, global_limit, rate_limit; others are kept. Wrong types of these are 22023, as readers of gossip would crash on them; so are more than 100 levels and numbers of more than 300 digits. When it was updated, and started if the state does not say so, is the server''s time. The entry ends after ttl (default obanrs.gossip_ttl, at most a year), by oban_gossip_delete, or with the node''s session-bound member. Every obanrs.gossip_interval the entries are sent to those who listen to the prefix''s gossip. 53400 when obanrs.gossip_memory is full, or when the entries that the current role put last take its share of it (obanrs.role_share; superusers and the owner of the database have no limit): an entry that would be replaced stays as it was. An entry is of the schema that the prefix names at the call, also when that is renamed. 55000 without preload and in recovery. Needs INSERT on the prefix''s oban_jobs.';
COMMENT ON FUNCTION @extschema@.oban_gossip_delete(text, text, text, text) IS
    'Deletes the entry of a node''s queue, or all entries of the node when queue is NULL; how many. Needs INSERT on the prefix''s oban_jobs.';

COMMENT ON VIEW @extschema@.oban_members IS
    'The members that have joined. kind: session (bound to the backend pid) or lease (until expires_at). leader: whether it leads now.';
COMMENT ON VIEW @extschema@.oban_leadership IS
    'The unexpired leaderships of all prefixes with a table of leaders, nodes of Oban for Elixir included. A table that is locked, or unlogged on a standby, is left out.';
COMMENT ON VIEW @extschema@.oban_gossip IS
    'The queues that run, by node: what was put here, and what Oban''s own nodes gossip (obanrs.gossip_ingest). running is the number of running jobs, state what was put. Each row is a consistent copy, the whole no snapshot.';
COMMENT ON VIEW @extschema@.oban_workers IS
    'The background workers: the coordinator of the server, and for each database that has the extension a keeper, which holds elections, and a relay, which sends notifications, and sends and hears gossip. state: running, starting, waiting (to be started, or kept off by a DDL command), backoff (after a failure), stopping. last_error: what went wrong last, also with elections of one prefix; it stays until something else does, and only superusers and members of pg_read_all_stats see it.';
COMMENT ON VIEW @extschema@.oban_stats IS
    'What obanrs has done in this database since the server (or the extension) started. published: messages that were given a position. relayed: sent by the relay, in relay_transactions; merged: wake-ups that one of these stood for; unheard: not sent as no session LISTENs. native: sent by their own transactions, also if these failed to commit; native_fallbacks: those and others, for want of a relay or of room. gaps: transactions that found no room, so that readers are told they missed something. dropped: wake-ups of triggers that could not be sent: over the limit, before PREPARE TRANSACTION, with a column missing, with NOTIFY''s queue full; and what was on its way when the extension was dropped. polls: calls of oban_poll and oban_wait. ring_waiting: messages that the relay has still to send. ring_bytes_used, ring_bytes: memory of the ring. elections: leaderships given to members; lapses: those that ended by their lease; fences_refused: calls of oban_fence with a term that was not held; last_failover_us: for how many microseconds a name was without a leader before its last election. gossip_puts: calls of oban_gossip_put; gossip_expired: entries that ended by their ttl; gossip_broadcasts: how often entries were sent, the last time gossip_broadcast_entries of them; gossip_shortened: checks that were sent without their oldest running jobs, or more, as they are longer than a notification may be; gossip_taken_in: checks of other nodes; gossip_malformed: what came there and was none; gossip_refused: those for which there was no room. gossip_entries: the rows of oban_gossip, of which gossip_entries_taken_in are other nodes'', and their memory gossip_bytes.';

COMMENT ON FUNCTION @extschema@.obanrs_members() IS 'The rows of the view oban_members.';
COMMENT ON FUNCTION @extschema@.obanrs_leadership() IS 'The rows of the view oban_leadership.';
COMMENT ON FUNCTION @extschema@.obanrs_gossip() IS 'The rows of the view oban_gossip.';
COMMENT ON FUNCTION @extschema@.obanrs_workers() IS 'The rows of the view oban_workers.';
COMMENT ON FUNCTION @extschema@.obanrs_stats() IS 'The rows of the view oban_stats.';
COMMENT ON FUNCTION @extschema@.obanrs_jobs_insert() IS
    'The trigger that oban_install puts on oban_jobs: tells each queue that got available jobs. It never fails the INSERT: a wake-up over obanrs.max_transaction_messages, or before a PREPARE TRANSACTION, is dropped.';
COMMENT ON FUNCTION @extschema@.obanrs_peers() IS
    'The triggers that oban_install puts on oban_peers: a node that is no member renews its own row only, with the server''s times, and gets a term; holder and term of a row do not change (22023). What is done to rows is told to shared memory when it commits.';
COMMENT ON SEQUENCE @extschema@.obanrs_term IS 'The last term given to a leadership in this database.';
