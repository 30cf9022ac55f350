\echo Use "ALTER EXTENSION obanrs UPDATE TO '0.3.0'" to load this file. \quit

-- Leadership. (SELECT oban_install() of each prefix adds the triggers to its oban_peers.)
CREATE FUNCTION @extschema@.oban_renew(member pg_catalog.int8) RETURNS pg_catalog.int8
VOLATILE PARALLEL UNSAFE LANGUAGE c AS 'MODULE_PATHNAME', 'oban_renew_wrapper';

CREATE FUNCTION @extschema@.oban_resign(member pg_catalog.int8) RETURNS pg_catalog.bool
VOLATILE PARALLEL UNSAFE LANGUAGE c AS 'MODULE_PATHNAME', 'oban_resign_wrapper';

CREATE FUNCTION @extschema@.oban_fence(
    term pg_catalog.int8,
    name pg_catalog.text DEFAULT 'Oban',
    prefix pg_catalog.text DEFAULT 'public'
) RETURNS void VOLATILE PARALLEL UNSAFE LANGUAGE c AS 'MODULE_PATHNAME', 'oban_fence_wrapper';

CREATE FUNCTION @extschema@.obanrs_peers() RETURNS trigger
LANGUAGE c AS 'MODULE_PATHNAME', 'obanrs_peers_wrapper';

COMMENT ON FUNCTION @extschema@.oban_install(text, boolean) IS
    'Makes a prefix (schema) usable: creates what is missing of oban_jobs (as Oban''s migration 14 makes it) and oban_peers, adds the insert trigger to oban_jobs, and the columns term and boot and three triggers to oban_peers. Needs the ownership of tables that exist. Again without effect, and without a lock, when nothing is missing; waits at most 2 s for a lock (55P03); 22023 when the tables that are there are of another kind than Oban''s. stage => true is not supported yet (0A000). 25006 in a read-only transaction, 55000 in recovery. Run it again after adding a partition to oban_jobs, and after an update of the extension.';
COMMENT ON FUNCTION @extschema@.oban_uninstall(text) IS
    'Removes what oban_install added to the tables of a prefix: the triggers and the columns. Never removes a table. Needs their ownership; waits at most 2 s for a lock (55P03); 3F000 without such a schema, 25006 in a read-only transaction, 55000 in recovery.';
COMMENT ON FUNCTION @extschema@.oban_join(text, text, interval, boolean, text) IS
    'Makes this process a member: what the node''s name stands for, in the instance name and prefix. Returns a member id. Takes part in elections from now on, whether or not this transaction commits: until oban_leave, the end of the session or its DISCARD ALL; with a lease (100 ms to a day) until oban_leave or the end of the lease, which oban_renew begins anew from any session. Waits up to 1 s for the election. The same session again: the same id. 23505 when another live one is that member, unless replace; 53400 when obanrs.max_members have joined; 55000 without preload and in recovery. Needs INSERT on the prefix''s oban_jobs. Without a lease it sets this session''s tcp_keepalives_* and tcp_user_timeout, where they are unset, so that a client whose host vanished is noticed in about 8 s.';
COMMENT ON FUNCTION @extschema@.oban_renew(bigint) IS
    'A leased member''s heartbeat: its lease begins anew, whether or not this transaction commits. Returns its term when it leads, else NULL. When half of the leadership''s lease is over it waits, up to 1 s, until the row in oban_peers is extended. 55000 when it is no member any more (its lease has ended, it left or was replaced) and in recovery. From any session of the role that joined it, or of a member of that role.';
COMMENT ON FUNCTION @extschema@.oban_resign(bigint) IS
    'Steps down and stays a member: another member leads at once if there is one. Alone it stands for election again after obanrs.lease, or when somebody else has led, so that nodes that are no members can take over. True when it led. 55000 when it is no member. For the role that joined it and members of that role.';
COMMENT ON FUNCTION @extschema@.oban_leave(bigint) IS
    'Ends a membership at once, with its leadership and, of a session-bound member, its node''s gossip. False when there is no such member. Only for the role that joined it and members of that role.';
COMMENT ON FUNCTION @extschema@.oban_is_leader(text, text, text) IS
    'Whether a member that this session joined (or the member of the named node) leads now, within its lease. Reads shared memory only. Behind a transaction pooler name the node. With a node it needs SELECT on the prefix''s oban_jobs, or on a column of it.';
COMMENT ON FUNCTION @extschema@.oban_term(text, text, text) IS
    'The term of the leadership that a member that this session joined (or the member of the named node) holds now, else NULL. With a node it needs SELECT on the prefix''s oban_jobs, or on a column of it. A later leadership of any name in this database has a greater term.';
COMMENT ON FUNCTION @extschema@.oban_leader(text, text) IS
    'Who leads a name, by the unexpired row of oban_peers: nodes of Oban for Elixir included (Oban for Python elects in a table of its own). For people and dashboards: who asks it for a term to fence with fences for somebody else. No row without a leader. On a standby it answers from the replicated row, 55000 when the table is unlogged. Needs SELECT on the prefix''s oban_jobs, or on a column of it.';
COMMENT ON FUNCTION @extschema@.oban_fence(bigint, text, text) IS
    'Lets this transaction go on only if that term is held and its lease unexpired; until it ends nobody else becomes leader. The term is one''s own, from oban_renew or oban_term. 40001 otherwise, also when this transaction''s snapshot (REPEATABLE READ, SERIALIZABLE) is older than the leadership: roll back. Locks the leader''s row in oban_peers against deletion; a renewal does not wait for it. Needs INSERT on the prefix''s oban_jobs. 25006 in a read-only transaction; 55000 in recovery and when the prefix is not installed.';
COMMENT ON VIEW @extschema@.oban_members IS
    'The members that have joined. kind: session (bound to the backend pid) or lease (until expires_at). leader: whether it leads now.';
COMMENT ON VIEW @extschema@.oban_leadership IS
    'The unexpired leaderships of all installed prefixes, nodes of Oban for Elixir included. A table that is locked, or unlogged on a standby, is left out.';
COMMENT ON VIEW @extschema@.oban_stats IS
    'What obanrs has done in this database since the server (or the extension) started. published: messages that were given a position. relayed: sent by the relay, in relay_transactions; merged: wake-ups that one of these stood for; unheard: not sent as no session LISTENs. native: sent by their own transactions, also if these failed to commit; native_fallbacks: those and others, for want of a relay or of room. gaps: transactions that found no room, so that readers are told they missed something. dropped: wake-ups of triggers that could not be sent: over the limit, before PREPARE TRANSACTION, with a column missing, with NOTIFY''s queue full; and what was on its way when the extension was dropped. polls: calls of oban_poll and oban_wait. ring_waiting: messages that the relay has still to send. ring_bytes_used, ring_bytes: memory of the ring. elections: leaderships given to members; lapses: those that ended by their lease; fences_refused: calls of oban_fence with a term that was not held; last_failover_us: for how many microseconds a name was without a leader before its last election.';
COMMENT ON FUNCTION @extschema@.obanrs_peers() IS
    'The triggers that oban_install puts on oban_peers: a node that is no member renews its own row only, with the server''s times, and gets a term; holder and term of a row do not change (22023). What is done to rows is told to shared memory when it commits.';
