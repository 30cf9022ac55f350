\echo Use "ALTER EXTENSION obanrs UPDATE TO '0.4.0'" to load this file. \quit

-- Gossip.
CREATE OR REPLACE VIEW @extschema@.oban_gossip AS
    SELECT
        g.prefix, g.name, g.node, g.queue,
        (g.state OPERATOR(pg_catalog.->>) 'paused')::pg_catalog.bool AS paused,
        COALESCE(
            g.state OPERATOR(pg_catalog.->>) 'local_limit',
            g.state OPERATOR(pg_catalog.->>) 'limit'
        )::pg_catalog.int4 AS local_limit,
        pg_catalog.jsonb_array_length(g.state OPERATOR(pg_catalog.->) 'running') AS running,
        g.state OPERATOR(pg_catalog.->>) 'uuid' AS uuid,
        g.started_at, g.updated_at, g.expires_at, g.state
    FROM @extschema@.obanrs_gossip() g;

COMMENT ON FUNCTION @extschema@.oban_gossip_put(text, text, jsonb, text, interval, text) IS
    'Inserts or replaces the entry of one queue on one node in shared memory, whether or not this transaction commits. state is an object of up to 64 kB with the keys of Oban''s checks: uuid, limit or local_limit, paused, running (the ids of jobs), started_at, shutdown_started_at, global_limit, rate_limit; others are kept. Wrong types of these are 22023, as readers of gossip would crash on them; so are more than 100 levels and numbers of more than 300 digits. When it was updated, and started if the state does not say so, is the server''s time. The entry ends after ttl (default obanrs.gossip_ttl, at most a year), by oban_gossip_delete, or with the node''s session-bound member. Every obanrs.gossip_interval the entries are sent to those who listen to the prefix''s gossip. 53400 when obanrs.gossip_memory is full: an entry that would be replaced stays as it was. 55000 without preload and in recovery. Needs INSERT on the prefix''s oban_jobs.';
COMMENT ON VIEW @extschema@.oban_gossip IS
    'The queues that run, by node: what was put here, and what Oban''s own nodes gossip (obanrs.gossip_ingest). running is the number of running jobs, state what was put. Each row is a consistent copy, the whole no snapshot.';
COMMENT ON VIEW @extschema@.oban_workers IS
    'The background workers: the coordinator of the server, and for each database that has the extension a keeper, which holds elections, and a relay, which sends notifications, and sends and hears gossip. state: running, starting, waiting (to be started, or kept off by a DDL command), backoff (after a failure), stopping. last_error: what went wrong last, also with elections of one prefix; it stays until something else does, and only superusers and members of pg_read_all_stats see it.';
COMMENT ON VIEW @extschema@.oban_stats IS
    'What obanrs has done in this database since the server (or the extension) started. published: messages that were given a position. relayed: sent by the relay, in relay_transactions; merged: wake-ups that one of these stood for; unheard: not sent as no session LISTENs. native: sent by their own transactions, also if these failed to commit; native_fallbacks: those and others, for want of a relay or of room. gaps: transactions that found no room, so that readers are told they missed something. dropped: wake-ups of triggers that could not be sent: over the limit, before PREPARE TRANSACTION, with a column missing, with NOTIFY''s queue full; and what was on its way when the extension was dropped. polls: calls of oban_poll and oban_wait. ring_waiting: messages that the relay has still to send. ring_bytes_used, ring_bytes: memory of the ring. elections: leaderships given to members; lapses: those that ended by their lease; fences_refused: calls of oban_fence with a term that was not held; last_failover_us: for how many microseconds a name was without a leader before its last election. gossip_puts: calls of oban_gossip_put; gossip_expired: entries that ended by their ttl; gossip_broadcasts: how often entries were sent, the last time gossip_broadcast_entries of them; gossip_shortened: checks that were sent without their oldest running jobs, or more, as they are longer than a notification may be; gossip_taken_in: checks of other nodes; gossip_malformed: what came there and was none; gossip_refused: those for which there was no room. gossip_entries: the rows of oban_gossip, of which gossip_entries_taken_in are other nodes'', and their memory gossip_bytes.';
