//! Elections, fences and triggers on tables that contain their owner's code and foreign nodes' rows.
//!
//! The owner's code runs in the owner's own sessions only. No foreign row makes an election fail. The table
//! and its indexes agree. Each file here answers one question about that. This file has what they share.

mod crashes;
mod fences;
mod obstacles;
mod owners_code;
mod statements;
mod waits;

use std::sync::atomic::{AtomicBool, Ordering};

use postgres::Client;

use crate::support::{Ask, Cluster, wait_until};

/// The function that all of the tenant's code calls. It counts and logs a call when the role is not `author`,
/// when the process is no client's backend, and when session_replication_role is not origin. It counts in a
/// sequence, because a rollback does not take that back.
const WATCH: &str = "
    CREATE SEQUENCE public.strangers;
    GRANT USAGE ON SEQUENCE public.strangers TO PUBLIC;
    CREATE FUNCTION public.watch(author name) RETURNS boolean LANGUAGE plpgsql AS $$
    DECLARE kind text := (SELECT backend_type FROM pg_stat_get_activity(pg_backend_pid()));
    BEGIN
        IF current_user <> author OR session_user <> author OR kind IS DISTINCT FROM 'client backend'
            OR current_setting('session_replication_role') <> 'origin' THEN
            PERFORM nextval('public.strangers');
            RAISE WARNING 'stranger: code of % ran as %, session of %, in a % (%)', author, current_user,
                session_user, kind, current_setting('session_replication_role');
        END IF;
        RETURN true;
    END $$;";

/// Statements that create the tenant's code, in a schema of its own.
fn code_of(tenant: &str) -> String {
    format!(
        "CREATE FUNCTION {tenant}.see() RETURNS boolean LANGUAGE plpgsql AS
             $$ BEGIN RETURN public.watch('{tenant}'); END $$;
         CREATE FUNCTION {tenant}.ok(x anyelement) RETURNS boolean IMMUTABLE LANGUAGE plpgsql AS
             $$ BEGIN RETURN {tenant}.see(); END $$;
         CREATE FUNCTION {tenant}.same(x text) RETURNS text IMMUTABLE LANGUAGE plpgsql AS
             $$ BEGIN PERFORM {tenant}.see(); RETURN x; END $$;
         CREATE FUNCTION {tenant}.compare(a text, b text) RETURNS int IMMUTABLE LANGUAGE plpgsql AS
             $$ BEGIN PERFORM {tenant}.see(); RETURN bttextcmp(a, b); END $$;
         CREATE FUNCTION {tenant}.difference(a int, b int) RETURNS float8 IMMUTABLE LANGUAGE plpgsql AS
             $$ BEGIN PERFORM {tenant}.see(); RETURN a - b; END $$;
         CREATE FUNCTION {tenant}.act() RETURNS trigger LANGUAGE plpgsql AS
             $$ BEGIN PERFORM {tenant}.see(); RETURN CASE TG_OP WHEN 'DELETE' THEN OLD ELSE NEW END; END $$;
         CREATE DOMAIN {tenant}.word AS text CHECK ({tenant}.ok(VALUE));
         CREATE TYPE {tenant}.span AS RANGE (SUBTYPE = int4, SUBTYPE_DIFF = {tenant}.difference);"
    )
}

/// Starts a server with the prefix public. Its leases are short: renewals come twice a second.
fn installed(settings: &[&str]) -> Cluster {
    let own = ["shared_preload_libraries = 'obanrs'", "obanrs.lease = 1s"];
    let cluster = Cluster::start(&[&own, settings].concat());
    cluster.client().batch_execute("CREATE EXTENSION obanrs; SELECT oban_install()").unwrap();
    cluster
}

/// A server with the prefix public, and with the prefix and the code of a role `t` that is no superuser.
struct Strangers {
    cluster: Cluster,
    root: Client,
    tenant: Client,
    joined: u32,
}

impl Strangers {
    fn new() -> Self {
        Self::with(&[])
    }

    fn with(settings: &[&str]) -> Self {
        let cluster = installed(settings);
        let mut root = cluster.client();
        root.batch_execute(WATCH).unwrap();
        root.batch_execute(
            "CREATE ROLE t LOGIN; CREATE SCHEMA t AUTHORIZATION t; GRANT CREATE ON DATABASE postgres TO t",
        )
        .unwrap();
        let mut tenant = cluster.client_as("postgres", "t");
        tenant.batch_execute(&format!("SELECT oban_install('t'); {}", code_of("t"))).unwrap();
        Self { cluster, root, tenant, joined: 0 }
    }

    /// Makes a member of another prefix join, lead and leave.
    fn others_elect(&mut self) {
        self.joined += 1;
        let name = format!("n{}", self.joined);
        let id: i64 = self.root.one(&format!("SELECT oban_join('x', '{name}', '1 hour')"));
        let leads = format!("SELECT oban_is_leader('{name}', node => 'x')");
        wait_until("another prefix has a leader", || self.root.one(&leads));
        self.root.query_one("SELECT oban_leave($1)", &[&id]).unwrap();
        let gone = format!("SELECT count(*) = 0 FROM public.oban_peers WHERE name = '{name}'");
        wait_until("its row is gone", || self.root.one(&gone));
    }

    fn join(&mut self) -> i64 {
        self.tenant.one("SELECT oban_join('a', prefix => 't', candidate => true)")
    }

    fn leads(&mut self) -> bool {
        self.tenant.one("SELECT oban_is_leader(prefix => 't', node => 'a')")
    }

    /// Waits until the lease of the tenant's leader is renewed, and makes it leave.
    fn renew_and_leave(&mut self, id: i64, why: &str) {
        let ends =
            "SELECT (extract(epoch FROM expires_at) * 1e6)::bigint FROM t.oban_peers WHERE name = 'Oban'";
        let before: i64 = self.tenant.one(ends);
        wait_until(&format!("it is renewed: {why}"), || self.tenant.one::<i64>(ends) > before);
        self.tenant.query_one("SELECT oban_leave($1)", &[&id]).unwrap();
        let gone = "SELECT count(*) = 0 FROM t.oban_peers WHERE name = 'Oban'";
        wait_until(&format!("its row is gone: {why}"), || self.tenant.one(gone));
    }

    /// The obstacles to the tenant's elections that oban_check names.
    fn obstacles(&mut self) -> Option<String> {
        let check = "SELECT string_agg(detail, '; ') FROM oban_check()
             WHERE NOT ok AND item IN ('elections in t', 'owner of t.oban_peers')";
        self.root.one(check)
    }

    fn nothing_was_seen(&mut self, when: &str) {
        let log = self.cluster.log();
        let seen: Vec<&str> = log.lines().filter(|line| line.contains("stranger: ")).collect();
        assert!(!self.root.one::<bool>("SELECT is_called FROM public.strangers"), "{when}: {seen:?}");
        assert!(seen.is_empty(), "{when}: {seen:?}");
    }

    /// Waits until the keeper is idle and holds no lock.
    fn keeper_is_idle(&mut self) {
        let idle = "SELECT state = 'idle' AND NOT EXISTS (SELECT FROM pg_locks l WHERE l.pid = a.pid AND l.locktype IN ('advisory', 'relation', 'tuple'))
             FROM pg_stat_activity a WHERE backend_type = 'obanrs keeper'";
        wait_until("the keeper is idle and holds no lock", || self.root.one(idle));
    }
}

/// Asserts that the log has none of the warnings with which Postgres reports a leaked resource.
fn assert_no_leaks(cluster: &Cluster) {
    let log = cluster.log();
    let wrong = ["leak", "TRAP:", "PANIC", "was terminated by signal", "still referenced", "missing chunk"];
    let found: Vec<&str> = log.lines().filter(|line| wrong.iter().any(|word| line.contains(word))).collect();
    assert!(found.is_empty(), "{found:?}");
}

/// The warnings and errors of keepers in the log.
fn complaints(cluster: &Cluster) -> Vec<String> {
    let of_keeper = |line: &&str| {
        line.contains("obanrs keeper") && (line.contains(" WARNING: ") || line.contains(" ERROR: "))
    };
    cluster.log().lines().filter(of_keeper).map(str::to_owned).collect()
}

/// Ends the loops of other threads when it is dropped, also when the test panics.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Makes leased members join, fence and leave. Only the fences may raise an error.
fn come_and_go(client: &mut Client, prefix: &str, stop: &AtomicBool) {
    while !stop.load(Ordering::Relaxed) {
        let join = format!("SELECT oban_join('m', 'Short', '1 hour', prefix => '{prefix}', replace => true)");
        let id: i64 = client.one(&join);
        let term: Option<i64> = client.one(&format!("SELECT oban_renew({id})"));
        let fence = format!("SELECT oban_fence({}, 'Short', '{prefix}')", term.unwrap_or(1));
        if let Err(e) = client.batch_execute(&fence) {
            let code = e.as_db_error().expect("the server refuses it").code().code().to_owned();
            assert!(["40001", "55000"].contains(&code.as_str()), "{e:?}");
        }
        client.query_one("SELECT oban_leave($1)", &[&id]).unwrap();
    }
}
