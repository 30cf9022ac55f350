//! Elections, fences and triggers on tables that contain their owner's code and foreign nodes' rows.
//!
//! The owner's code runs in the owner's own sessions only. No foreign row makes an election fail. The table
//! and its indexes agree.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use postgres::Client;

use crate::support::elixir::{Form, upsert};
use crate::support::{Ask, Cluster, code, wait_for, wait_until};

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

/// The tenant's code, in a schema of its own.
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

/// A server with the prefix public, on which leases are short: renewals come twice a second.
fn installed(settings: &[&str]) -> Cluster {
    let own = ["shared_preload_libraries = 'obanrs'", "obanrs.lease = 1s"];
    let cluster = Cluster::start(&[&own, settings].concat());
    cluster.client().batch_execute("CREATE EXTENSION obanrs; SELECT oban_install()").unwrap();
    cluster
}

/// A server with the prefix public, and the prefix and the code of a role `t` that is no superuser.
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

    /// A member of another prefix comes, leads, and goes.
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

    /// A member of the tenant's prefix that leads has its lease renewed, and goes.
    fn renew_and_leave(&mut self, id: i64, why: &str) {
        let ends =
            "SELECT (extract(epoch FROM expires_at) * 1e6)::bigint FROM t.oban_peers WHERE name = 'Oban'";
        let before: i64 = self.tenant.one(ends);
        wait_until(&format!("it is renewed: {why}"), || self.tenant.one::<i64>(ends) > before);
        self.tenant.query_one("SELECT oban_leave($1)", &[&id]).unwrap();
        let gone = "SELECT count(*) = 0 FROM t.oban_peers WHERE name = 'Oban'";
        wait_until(&format!("its row is gone: {why}"), || self.tenant.one(gone));
    }

    /// What oban_check says is in the way of the tenant's elections.
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

    /// The keeper is at rest and holds nothing.
    fn keeper_is_idle(&mut self) {
        let idle = "SELECT state = 'idle' AND NOT EXISTS (SELECT FROM pg_locks l WHERE l.pid = a.pid AND l.locktype IN ('advisory', 'relation', 'tuple'))
             FROM pg_stat_activity a WHERE backend_type = 'obanrs keeper'";
        wait_until("the keeper is idle and holds no lock", || self.root.one(idle));
    }
}

/// The warnings with which Postgres reports a leaked resource at the end of a transaction.
fn assert_no_leaks(cluster: &Cluster) {
    let log = cluster.log();
    let wrong = ["leak", "TRAP:", "PANIC", "was terminated by signal", "still referenced", "missing chunk"];
    let found: Vec<&str> = log.lines().filter(|line| wrong.iter().any(|word| line.contains(word))).collect();
    assert!(found.is_empty(), "{found:?}");
}

/// The warnings of keepers.
fn complaints(cluster: &Cluster) -> Vec<String> {
    let of_keeper = |line: &&str| {
        line.contains("obanrs keeper") && (line.contains(" WARNING: ") || line.contains(" ERROR: "))
    };
    cluster.log().lines().filter(of_keeper).map(str::to_owned).collect()
}

/// A kind of thing that a table may have and that elections would have to ignore.
struct Obstacle {
    what: &'static str,
    /// The tenant's statements.
    make: &'static [&'static str],
    /// A superuser's, before that.
    prepare: &'static str,
    /// In place of the DDL that oban_check names, where that has to be filled in by its reader.
    instead: &'static str,
    /// What is to be dropped after it.
    clean: &'static str,
}

const PLAIN: Obstacle = Obstacle { what: "", make: &[], prepare: "", instead: "", clean: "" };

const OBSTACLES: &[Obstacle] = &[
    Obstacle {
        what: "a CHECK that is not valid",
        make: &["ALTER TABLE t.oban_peers ADD CHECK (t.ok(name)) NOT VALID"],
        ..PLAIN
    },
    Obstacle {
        what: "an index on an expression",
        make: &["CREATE INDEX i ON t.oban_peers (t.same(name))"],
        ..PLAIN
    },
    Obstacle {
        what: "a partial index",
        make: &["CREATE INDEX i ON t.oban_peers (node) WHERE t.ok(name)"],
        ..PLAIN
    },
    Obstacle {
        what: "an index on an expression, made beside others",
        make: &["CREATE INDEX CONCURRENTLY i ON t.oban_peers (t.same(name))"],
        ..PLAIN
    },
    Obstacle {
        what: "a stored generated column",
        make: &["ALTER TABLE t.oban_peers ADD COLUMN g text GENERATED ALWAYS AS (t.same(name)) STORED"],
        ..PLAIN
    },
    Obstacle {
        what: "a rule",
        make: &["CREATE RULE r AS ON INSERT TO t.oban_peers DO ALSO SELECT t.see()"],
        ..PLAIN
    },
    Obstacle {
        what: "policies that bind the owner",
        make: &["CREATE POLICY p ON t.oban_peers USING (t.ok(name));
                 ALTER TABLE t.oban_peers ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY"],
        clean: "DROP POLICY p ON t.oban_peers; ALTER TABLE t.oban_peers DISABLE ROW LEVEL SECURITY",
        ..PLAIN
    },
    Obstacle { what: "a domain", make: &["ALTER TABLE t.oban_peers ALTER COLUMN node TYPE t.word"], ..PLAIN },
    Obstacle {
        what: "an added column of a domain",
        make: &["ALTER TABLE t.oban_peers ADD COLUMN w t.word"],
        ..PLAIN
    },
    Obstacle {
        what: "an added column with a default",
        make: &["ALTER TABLE t.oban_peers ADD COLUMN d text DEFAULT t.same('d')"],
        clean: "ALTER TABLE t.oban_peers DROP COLUMN d",
        ..PLAIN
    },
    Obstacle {
        what: "an added column that is NOT NULL",
        make: &["ALTER TABLE t.oban_peers ADD COLUMN d text NOT NULL"],
        clean: "ALTER TABLE t.oban_peers DROP COLUMN d",
        ..PLAIN
    },
    Obstacle {
        what: "an exclusion constraint",
        make: &["ALTER TABLE t.oban_peers ADD EXCLUDE USING btree (node WITH =)"],
        ..PLAIN
    },
    Obstacle {
        what: "a foreign key",
        make: &["CREATE TABLE t.nodes (node text PRIMARY KEY);
                 ALTER TABLE t.oban_peers ADD FOREIGN KEY (node) REFERENCES t.nodes"],
        clean: "DROP TABLE t.nodes",
        ..PLAIN
    },
    Obstacle {
        what: "a foreign key of another table",
        make: &["CREATE TABLE t.notes (name text REFERENCES t.oban_peers ON DELETE CASCADE);
                 CREATE TRIGGER act BEFORE DELETE ON t.notes FOR EACH ROW EXECUTE FUNCTION t.act()"],
        clean: "DROP TABLE t.notes",
        ..PLAIN
    },
    Obstacle {
        what: "a deferrable primary key",
        make: &[
            "ALTER TABLE t.oban_peers DROP CONSTRAINT oban_peers_pkey, ADD PRIMARY KEY (name) DEFERRABLE",
        ],
        ..PLAIN
    },
    Obstacle { what: "no key", make: &["ALTER TABLE t.oban_peers DROP CONSTRAINT oban_peers_pkey"], ..PLAIN },
    Obstacle {
        what: "a unique index on something else",
        make: &["CREATE UNIQUE INDEX u ON t.oban_peers (node, name)"],
        ..PLAIN
    },
    Obstacle {
        what: "a unique index that ignores spaces",
        make: &["CREATE UNIQUE INDEX u ON t.oban_peers (name bpchar_ops)"],
        ..PLAIN
    },
    Obstacle {
        what: "a partition",
        make: &["CREATE TABLE t.whole (LIKE t.oban_peers) PARTITION BY LIST (name);
                 ALTER TABLE t.whole ATTACH PARTITION t.oban_peers DEFAULT"],
        instead: "ALTER TABLE t.whole DETACH PARTITION t.oban_peers",
        clean: "DROP TABLE t.whole",
        ..PLAIN
    },
    Obstacle {
        what: "a table that inherits",
        make: &["CREATE TABLE t.base (name text NOT NULL); ALTER TABLE t.oban_peers INHERIT t.base"],
        instead: "ALTER TABLE t.oban_peers NO INHERIT t.base",
        clean: "DROP TABLE t.base",
        ..PLAIN
    },
    Obstacle {
        what: "a table that is inherited from",
        make: &["CREATE TABLE t.heir () INHERITS (t.oban_peers)"],
        instead: "ALTER TABLE t.heir NO INHERIT t.oban_peers",
        clean: "DROP TABLE t.heir",
        ..PLAIN
    },
    Obstacle {
        what: "a published table that nothing identifies a row of",
        prepare: "CREATE PUBLICATION p FOR TABLE t.oban_peers",
        make: &["ALTER TABLE t.oban_peers REPLICA IDENTITY NOTHING"],
        clean: "DROP PUBLICATION p; ALTER TABLE t.oban_peers REPLICA IDENTITY DEFAULT",
        ..PLAIN
    },
    Obstacle {
        what: "a name of ten characters",
        make: &["ALTER TABLE t.oban_peers ALTER COLUMN name TYPE varchar(10)"],
        ..PLAIN
    },
    Obstacle {
        what: "times without fractions",
        make: &["ALTER TABLE t.oban_peers ALTER COLUMN expires_at TYPE timestamp(0)"],
        ..PLAIN
    },
    Obstacle {
        what: "an operator class of its own",
        prepare: "CREATE OPERATOR CLASS t.words FOR TYPE text USING btree AS OPERATOR 1 <, OPERATOR 2 <=,
             OPERATOR 3 =, OPERATOR 4 >=, OPERATOR 5 >, FUNCTION 1 t.compare(text, text)",
        make: &["CREATE INDEX i ON t.oban_peers (node t.words)"],
        clean: "DROP OPERATOR FAMILY t.words USING btree",
        ..PLAIN
    },
    Obstacle {
        what: "an index on a range whose type has code",
        make: &[
            "ALTER TABLE t.oban_peers ADD COLUMN s t.span; CREATE INDEX i ON t.oban_peers USING gist (s)",
        ],
        clean: "ALTER TABLE t.oban_peers DROP COLUMN s",
        ..PLAIN
    },
    Obstacle {
        what: "an owner that may not write it",
        make: &["REVOKE INSERT, DELETE ON t.oban_peers FROM t"],
        ..PLAIN
    },
];

/// Only on Postgres 18.
const VIRTUAL: Obstacle = Obstacle {
    what: "a virtual generated column",
    make: &["ALTER TABLE t.oban_peers ADD COLUMN g text GENERATED ALWAYS AS (upper(name)) VIRTUAL"],
    ..PLAIN
};

/// Only on servers with ICU.
const COLLATION: Obstacle = Obstacle {
    what: "a collation in which different names are equal",
    prepare: "CREATE COLLATION t.any (PROVIDER = icu, LOCALE = 'und-u-ks-level2', DETERMINISTIC = false);
         GRANT USAGE ON SCHEMA t TO PUBLIC",
    make: &["ALTER TABLE t.oban_peers ALTER COLUMN name TYPE text COLLATE t.any"],
    clean: "DROP COLLATION t.any",
    ..PLAIN
};

/// The statements that oban_check has named: the text after the last colon of each part.
fn remedies(said: &str) -> Vec<String> {
    let said = said.rsplit("what it has: ").next().unwrap_or_default();
    said.split("; ").filter_map(|part| part.rsplit_once(": ")).map(|(_, ddl)| ddl.to_owned()).collect()
}

impl Strangers {
    fn meets(&mut self, obstacle: &Obstacle) {
        let what = obstacle.what;
        self.root.batch_execute(obstacle.prepare).unwrap_or_else(|e| panic!("{what}: {e:?}"));
        for sql in obstacle.make {
            self.tenant.batch_execute(sql).unwrap_or_else(|e| panic!("{what}: {e:?}"));
        }
        let id = self.join();
        assert!(!self.leads(), "{what}");
        self.others_elect();
        let said = self.obstacles().unwrap_or_else(|| panic!("oban_check says nothing of {what}"));
        let refused = self.tenant.batch_execute("SELECT oban_fence(1, prefix => 't')").expect_err(what);
        let refused = refused.as_db_error().expect("the server says it");
        assert_eq!(refused.code().code(), "55000", "{what}: {refused:?}");
        for remedy in remedies(&said) {
            assert!(refused.hint().is_some_and(|hint| hint.contains(&remedy)), "{what}: {refused:?}");
        }
        // What the DDL uncovers is named then: three rounds are more than any of these has.
        for _ in 0..3 {
            let Some(said) = self.obstacles() else { break };
            let ddl =
                if obstacle.instead.is_empty() { remedies(&said) } else { vec![obstacle.instead.into()] };
            assert!(!ddl.is_empty(), "{what}: no DDL in {said}");
            for ddl in ddl {
                self.tenant.batch_execute(&ddl).unwrap_or_else(|e| panic!("{what}: {ddl}: {e:?}"));
            }
        }
        assert_eq!(self.obstacles(), None, "{what}: after its DDL");
        wait_until(&format!("the prefix elects again, without {what}"), || self.leads());
        self.renew_and_leave(id, what);
        self.root.batch_execute(obstacle.clean).unwrap_or_else(|e| panic!("{what}: {e:?}"));
        self.nothing_was_seen(what);
    }
}

#[test]
fn what_elections_would_have_to_ignore_is_named_and_never_runs() {
    let mut strangers = Strangers::new();
    for obstacle in OBSTACLES {
        strangers.meets(obstacle);
    }
    if strangers.root.one::<bool>("SELECT current_setting('server_version_num')::int >= 180000") {
        strangers.meets(&VIRTUAL);
    }
    let probe = "CREATE COLLATION public.probe (PROVIDER = icu, LOCALE = 'und')";
    if strangers.root.batch_execute(probe).is_ok() {
        strangers.meets(&COLLATION);
    }
    strangers.keeper_is_idle();
    assert_no_leaks(&strangers.cluster);
}

/// A table with all that access methods maintain, and with all that elections do not fire.
#[test]
fn what_elections_honour_does_not_stop_them() {
    let mut strangers = Strangers::new();
    let mut triggers = String::new();
    for (i, (when, each)) in [
        ("BEFORE INSERT OR UPDATE OR DELETE", "ROW"),
        ("AFTER INSERT OR UPDATE OR DELETE", "ROW"),
        ("BEFORE INSERT OR UPDATE OR DELETE OR TRUNCATE", "STATEMENT"),
        ("AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE", "STATEMENT"),
    ]
    .into_iter()
    .enumerate()
    {
        triggers += &format!(
            "CREATE TRIGGER a{i} {when} ON t.oban_peers FOR EACH {each} EXECUTE FUNCTION t.act();
             ALTER TABLE t.oban_peers ENABLE ALWAYS TRIGGER a{i};"
        );
    }
    triggers += "CREATE CONSTRAINT TRIGGER late AFTER INSERT OR UPDATE OR DELETE ON t.oban_peers
             DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION t.act();
         ALTER TABLE t.oban_peers ENABLE ALWAYS TRIGGER late";
    for honoured in [
        triggers.as_str(),
        "ALTER TABLE t.oban_peers ADD COLUMN note text, ADD COLUMN span t.span, ADD COLUMN gone text",
        "ALTER TABLE t.oban_peers DROP COLUMN gone",
        "CREATE POLICY p ON t.oban_peers USING (t.ok(note)); ALTER TABLE t.oban_peers ENABLE ROW LEVEL SECURITY",
        "CREATE INDEX b ON t.oban_peers (node, expires_at DESC); CREATE INDEX h ON t.oban_peers USING hash (node);
         CREATE INDEX r ON t.oban_peers USING brin (expires_at); CREATE INDEX k ON t.oban_peers (term) INCLUDE (note)",
        "ALTER TABLE t.oban_peers ALTER COLUMN name TYPE varchar, ALTER COLUMN node TYPE varchar COLLATE \"C\"",
        "CREATE UNIQUE INDEX u ON t.oban_peers (name) INCLUDE (node, note)",
        "ALTER TABLE t.oban_peers DROP CONSTRAINT oban_peers_pkey; DROP INDEX t.b",
        "ALTER TABLE t.oban_peers REPLICA IDENTITY FULL, SET (fillfactor = 10)",
        "CREATE STATISTICS t.s ON name, node FROM t.oban_peers",
    ] {
        strangers.tenant.batch_execute(honoured).unwrap_or_else(|e| panic!("{honoured}: {e:?}"));
        let id = strangers.join();
        wait_until(&format!("it leads, with {honoured}"), || strangers.leads());
        assert_eq!(strangers.obstacles(), None, "{honoured}");
        let term: i64 = strangers.tenant.one("SELECT oban_term(prefix => 't')");
        strangers.tenant.batch_execute(&format!("SELECT oban_fence({term}, prefix => 't')")).unwrap();
        strangers.renew_and_leave(id, honoured);
        strangers.nothing_was_seen(honoured);
    }
    // The tenant's own statements run the tenant's code: what watches it works.
    strangers.root.batch_execute("INSERT INTO t.oban_peers VALUES ('other', 'n', now(), now())").unwrap();
    assert!(strangers.root.one::<bool>("SELECT is_called FROM public.strangers"), "the watch sees nothing");
    strangers.keeper_is_idle();
    assert_no_leaks(&strangers.cluster);
}

/// The opposite case: Postgres' own operator class calls a range type's code, once the index has a second
/// page.
#[test]
fn a_range_types_code_does_not_run_for_a_renewal() {
    let mut strangers = Strangers::new();
    strangers.join();
    wait_until("it leads", || strangers.leads());
    strangers
        .tenant
        .batch_execute(
            "ALTER TABLE t.oban_peers ADD COLUMN s t.span, DISABLE TRIGGER USER;
             INSERT INTO t.oban_peers
                 SELECT 'n' || i, 'x', now(), 'infinity', 1, NULL, t.span(i, i + 10) FROM generate_series(1, 2000) i;
             UPDATE t.oban_peers SET s = t.span(-100000, 100000) WHERE name = 'Oban';
             CREATE INDEX ON t.oban_peers USING gist (s); CREATE INDEX ON t.oban_peers (expires_at);
             ALTER TABLE t.oban_peers ENABLE TRIGGER USER",
        )
        .unwrap();
    let warned = |s: &Strangers| {
        complaints(&s.cluster).iter().any(|line| line.contains("a type that is not Postgres' own"))
    };
    wait_until("the keeper says that it leaves the prefix alone", || warned(&strangers));
    strangers.nothing_was_seen("a renewal");
}

/// An index that runs user's code is created and dropped while elections go on.
#[test]
fn an_index_that_comes_and_goes_runs_for_nobody_else() {
    let mut strangers = Strangers::new();
    let stop = Arc::new(AtomicBool::new(false));
    let members = {
        let (stop, mut client) = (stop.clone(), strangers.cluster.client_as("postgres", "t"));
        std::thread::spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                let id: i64 = client.one("SELECT oban_join('b', 'Often', '1 hour', prefix => 't')");
                client.query_one("SELECT oban_renew($1)", &[&id]).unwrap();
                client.query_one("SELECT oban_leave($1)", &[&id]).unwrap();
            }
        })
    };
    for _ in 0..30 {
        for ddl in [
            "CREATE INDEX CONCURRENTLY i ON t.oban_peers (t.same(name))",
            "DROP INDEX CONCURRENTLY t.i",
            "CREATE INDEX CONCURRENTLY i ON t.oban_peers (node) WHERE t.ok(node)",
            "DROP INDEX t.i",
            "CREATE INDEX CONCURRENTLY i ON t.oban_peers (node)",
            "DROP INDEX CONCURRENTLY t.i",
        ] {
            strangers.tenant.batch_execute(ddl).unwrap_or_else(|e| panic!("{ddl}: {e:?}"));
        }
        strangers.others_elect();
    }
    stop.store(true, Ordering::Relaxed);
    members.join().unwrap();
    let id = strangers.join();
    wait_until("it leads", || strangers.leads());
    strangers.renew_and_leave(id, "after all of them");
    strangers.nothing_was_seen("elections");
    strangers.keeper_is_idle();
    assert_no_leaks(&strangers.cluster);
}

/// REINDEX CONCURRENTLY keeps a second index of the same shape for as long as an old transaction runs.
#[test]
fn elections_go_on_while_an_index_is_built_anew() {
    let mut strangers = Strangers::new();
    strangers.tenant.batch_execute("CREATE INDEX i ON t.oban_peers (expires_at)").unwrap();
    let mut old = strangers.cluster.client();
    old.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM t.oban_peers").unwrap();
    let mut builder = strangers.cluster.client_as("postgres", "t");
    let built = std::thread::spawn(move || builder.batch_execute("REINDEX TABLE CONCURRENTLY t.oban_peers"));
    let waits = "SELECT count(*) = 1 FROM pg_stat_progress_create_index WHERE phase LIKE 'waiting%'";
    wait_until("it waits for the old transaction", || strangers.root.one(waits));
    let id = strangers.join();
    wait_until("it leads", || strangers.leads());
    strangers.renew_and_leave(id, "beside it");
    assert_eq!(strangers.obstacles(), None);
    old.batch_execute("ROLLBACK").unwrap();
    built.join().unwrap().unwrap();
    let id = strangers.join();
    wait_until("it leads by the new index", || strangers.leads());
    strangers.renew_and_leave(id, "by the new index");
    assert_no_leaks(&strangers.cluster);
}

/// Ends the loops of other threads when the test ends, also when it panics.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Leased members join, fence and leave. Only the fences may raise an error.
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

/// A schema's owner gives its name to another schema, and back, while elections are held there. Neither the
/// tables' owner nor the keeper runs code of the table that has taken the other's place.
#[test]
fn a_schema_that_takes_anothers_place_gets_no_code_run() {
    let cluster = Cluster::start(&["shared_preload_libraries = 'obanrs'"]);
    let mut root = cluster.client();
    root.batch_execute(&format!(
        "CREATE SCHEMA ext; GRANT USAGE ON SCHEMA ext TO PUBLIC; CREATE EXTENSION obanrs SCHEMA ext;
         ALTER DATABASE postgres SET search_path = ext; SET search_path = ext; {WATCH}
         CREATE ROLE dbo LOGIN; CREATE ROLE vic LOGIN; ALTER DATABASE postgres OWNER TO dbo;
         CREATE SCHEMA place AUTHORIZATION dbo; CREATE SCHEMA decoy AUTHORIZATION dbo; CREATE SCHEMA code AUTHORIZATION dbo;
         GRANT USAGE ON SCHEMA place, decoy, code, public TO PUBLIC; GRANT CREATE ON SCHEMA place TO vic"
    ))
    .unwrap();
    let mut vic = cluster.client_as("postgres", "vic");
    vic.batch_execute("SELECT oban_install('place')").unwrap();
    let mut dbo = cluster.client_as("postgres", "dbo");
    dbo.batch_execute("SELECT oban_install('decoy')").unwrap();
    let oid = |schema| format!("SELECT '{schema}.oban_peers'::regclass::oid");
    let tables: &[u32] = &[root.one(&oid("place")), root.one(&oid("decoy"))];
    let of_dbo = code_of("dbo").replace("dbo.", "code.");
    dbo.batch_execute(&of_dbo).unwrap();
    for code in [
        "CREATE TRIGGER a BEFORE INSERT OR UPDATE OR DELETE ON decoy.oban_peers FOR EACH ROW EXECUTE FUNCTION code.act();
         CREATE TRIGGER b AFTER INSERT OR UPDATE OR DELETE ON decoy.oban_peers FOR EACH ROW EXECUTE FUNCTION code.act();
         ALTER TABLE decoy.oban_peers ENABLE ALWAYS TRIGGER a, ENABLE ALWAYS TRIGGER b",
        "ALTER TABLE decoy.oban_peers ADD CHECK (code.ok(name)) NOT VALID",
        "CREATE INDEX i ON decoy.oban_peers (code.same(name))",
        "ALTER TABLE decoy.oban_peers ADD COLUMN g text GENERATED ALWAYS AS (code.same(name)) STORED",
    ] {
        dbo.batch_execute(code).unwrap();
        let stop = AtomicBool::new(false);
        // Only a superuser has rights in both.
        let mut member = cluster.client();
        std::thread::scope(|scope| {
            let _stop = Stop(&stop);
            scope.spawn(|| come_and_go(&mut member, "place", &stop));
            let mut swap = || {
                let swapped = "BEGIN; ALTER SCHEMA place RENAME TO nowhere; ALTER SCHEMA decoy RENAME TO place;
                     ALTER SCHEMA nowhere RENAME TO decoy; COMMIT";
                dbo.batch_execute(&format!("{swapped}; {swapped}")).unwrap();
            };
            (0..75).for_each(|_| swap());
            // It proves nothing without elections: between swaps, if both tables may hold some.
            let both = code.contains("CREATE TRIGGER");
            for table in if both { tables } else { &tables[..1] } {
                let inserted = format!("SELECT pg_stat_get_tuples_inserted({table}::oid)");
                let before: i64 = root.one(&inserted);
                wait_until("there are elections", || {
                    if both {
                        swap();
                    }
                    root.one::<i64>(&inserted) > before + 2
                });
            }
        });
        // An even number of swaps: everything has its own name.
        let seen: bool = root.one("SELECT is_called FROM public.strangers");
        let log = cluster.log();
        let lines: Vec<&str> = log.lines().filter(|line| line.contains("stranger: ")).collect();
        assert!(!seen && lines.is_empty(), "{code}: {lines:?}");
    }
    root.batch_execute("SELECT oban_join('x', prefix => 'place')").unwrap();
    wait_until("the prefix has a leader", || root.one("SELECT oban_is_leader(prefix => 'place')"));
    assert_no_leaks(&cluster);
}

/// A tenant locks all of its many tables. The keeper waits a moment for a table, and must not wait for all of
/// them while other prefixes have no leader.
#[test]
fn many_locked_tables_are_not_waited_for_one_by_one() {
    const TABLES: usize = 40;
    let mut strangers = Strangers::with(&["log_lock_waits = on", "deadlock_timeout = 10ms"]);
    let prefixes: Vec<String> = (0..TABLES).map(|i| format!("t{i}")).collect();
    for prefix in &prefixes {
        let join = format!(
            "CREATE SCHEMA {prefix}; SELECT oban_install('{prefix}'); SELECT oban_join('a', prefix => '{prefix}')"
        );
        strangers.tenant.batch_execute(&join).unwrap();
    }
    let everywhere = format!("SELECT count(*) = {TABLES} FROM oban_leadership");
    wait_until("each has a leader", || strangers.root.one(&everywhere));
    let tables: Vec<String> = prefixes.iter().map(|prefix| format!("{prefix}.oban_peers")).collect();
    let lock = format!("BEGIN; LOCK TABLE {} IN ACCESS EXCLUSIVE MODE", tables.join(", "));
    strangers.tenant.batch_execute(&lock).unwrap();
    // Every one of them is to be renewed twice a second.
    wait_until("the keeper has been at all of them", || {
        complaints(&strangers.cluster).iter().filter(|line| line.contains("wait for a lock")).count()
            == TABLES
    });
    strangers.others_elect();
    strangers.tenant.batch_execute("COMMIT").unwrap();
    strangers.others_elect();
    let log = strangers.cluster.log();
    let waits =
        log.lines().filter(|l| l.contains("obanrs keeper") && l.contains("still waiting for")).count();
    assert!((1..TABLES / 2).contains(&waits), "the keeper waited for {waits} of {TABLES} locked tables");
}

/// A large table that changes often is not read again after each change.
#[test]
fn a_large_table_takes_a_small_share_of_the_keepers_time() {
    const CHANGES: i64 = 60;
    let mut strangers = Strangers::new();
    strangers
        .tenant
        .batch_execute(
            "ALTER TABLE t.oban_peers DISABLE TRIGGER USER;
             INSERT INTO t.oban_peers
                 SELECT 'n' || i, 'x', now(), 'infinity', 1, NULL FROM generate_series(1, 400000) i;
             ALTER TABLE t.oban_peers ENABLE TRIGGER USER",
        )
        .unwrap();
    let scans = "SELECT pg_stat_get_numscans('t.oban_peers'::regclass)";
    let before: i64 = strangers.root.one(scans);
    let change = "INSERT INTO t.oban_peers VALUES (gen_random_uuid(), 'x', now(), now() + interval '1 hour')";
    strangers.tenant.batch_execute(change).unwrap();
    wait_until("the keeper has read it", || strangers.root.one::<i64>(scans) > before);
    let before: i64 = strangers.root.one(scans);
    for _ in 0..CHANGES {
        strangers.tenant.batch_execute(change).unwrap();
        strangers.others_elect();
    }
    let read = strangers.root.one::<i64>(scans) - before;
    assert!(read < CHANGES / 2, "it was read {read} times for {CHANGES} changes");
    wait_until("it is read at last", || strangers.root.one::<i64>(scans) - before > read);
}

/// A transaction can lock an index without its table.
#[test]
fn a_locked_index_is_waited_for_by_nobody_else() {
    let mut strangers = Strangers::new();
    for sql in [
        "SET allow_in_place_tablespaces = on",
        "CREATE TABLESPACE s LOCATION ''",
        "GRANT CREATE ON TABLESPACE s TO t",
    ] {
        strangers.root.batch_execute(sql).unwrap();
    }
    strangers.tenant.batch_execute("BEGIN; ALTER INDEX t.oban_peers_pkey SET TABLESPACE s").unwrap();
    // A monitor's question is answered.
    strangers.root.batch_execute("SET statement_timeout = '10s'").unwrap();
    let said = strangers.obstacles().expect("something is in the way");
    assert!(said.contains("lock"), "{said}");
    let mut member = strangers.cluster.client();
    member.batch_execute("SELECT oban_join('a', lease => '1 hour', prefix => 't')").unwrap();
    strangers.others_elect();
    strangers.tenant.batch_execute("COMMIT").unwrap();
    wait_until("it leads", || strangers.leads());
    assert_eq!(strangers.obstacles(), None);
}

/// What a foreign node's transaction has done when the keeper elects, and whether the node had a row before.
const FOREIGN: [(&str, bool); 6] = [
    ("INSERT INTO oban_peers VALUES ('Oban', 'f', now(), now() + interval '1 hour')", false),
    ("upsert", false),
    (
        "INSERT INTO oban_peers VALUES ('Oban', 'f', now(), now() + interval '1 hour') ON CONFLICT DO NOTHING",
        false,
    ),
    ("DELETE FROM oban_peers WHERE name = 'Oban'", true),
    ("upsert", true),
    ("UPDATE oban_peers SET expires_at = expires_at + interval '1 s' WHERE name = 'Oban'", true),
];

#[test]
fn an_open_transaction_of_a_foreign_node_delays_its_own_name_only() {
    let cluster = Cluster::installed();
    let (mut foreign, mut ours, mut watch) = (cluster.client(), cluster.client(), cluster.client());
    for (statement, has_row) in FOREIGN {
        let statement = match statement {
            "upsert" => upsert(Form::ByNode, "timezone('UTC', clock_timestamp())").replace("$1", "'f'"),
            own => own.to_owned(),
        };
        for end in ["COMMIT", "ROLLBACK"] {
            let what = format!("{statement}, {end}, with a row before: {has_row}");
            if has_row {
                let row = "INSERT INTO oban_peers VALUES ('Oban', 'f', now(), now() + interval '1 hour')";
                foreign.batch_execute(row).unwrap();
            }
            foreign.batch_execute(&format!("BEGIN; {statement}")).unwrap();
            let id: i64 = ours.one("SELECT oban_join('a', lease => '1 hour', candidate => true)");
            // Others do not wait: neither another name, nor this one's member.
            let other: i64 = watch.one("SELECT oban_join('b', 'Other', '1 hour')");
            let leads = "SELECT oban_is_leader('Other', node => 'b')";
            wait_until("another name has a leader", || watch.one(leads));
            watch.query_one("SELECT oban_leave($1)", &[&other]).unwrap();
            foreign.batch_execute(end).unwrap();
            wait_until(&format!("somebody leads: {what}"), || {
                watch.one("SELECT count(*) = 1 FROM oban_leader() WHERE node IN ('a', 'f')")
            });
            // It is ours as soon as the foreign node resigns.
            foreign.batch_execute("DELETE FROM oban_peers WHERE name = 'Oban' AND node = 'f'").unwrap();
            wait_until(&format!("ours leads: {what}"), || watch.one("SELECT oban_is_leader(node => 'a')"));
            ours.query_one("SELECT oban_leave($1)", &[&id]).unwrap();
            wait_until("no row is left", || watch.one("SELECT count(*) = 0 FROM oban_peers"));
        }
    }
    assert_eq!(complaints(&cluster), [] as [String; 0]);
    let log = cluster.log();
    assert!(!log.contains(" ERROR: "), "{log}");
    assert_no_leaks(&cluster);
}

/// Foreign nodes write nodes of any length, and names as long as an index entry can be.
#[test]
fn long_rows_of_foreign_nodes_are_no_burden_to_ours() {
    let cluster = installed(&[]);
    let (mut ours, mut foreign) = (cluster.client(), cluster.client());
    foreign
        .batch_execute(
            "INSERT INTO oban_peers SELECT 'long', string_agg(md5(i::text), ''), now(), now() + interval '1 hour'
                 FROM generate_series(1, 100000) i;
             INSERT INTO oban_peers SELECT string_agg(md5(i::text), ''), 'n', now(), now() + interval '1 hour'
                 FROM generate_series(1, 60) i;
             INSERT INTO oban_peers VALUES (repeat('n', 100000), 'n', now(), now() + interval '1 hour')",
        )
        .unwrap();
    ours.batch_execute("SELECT oban_join('a')").unwrap();
    wait_until("it leads", || ours.one("SELECT oban_is_leader(node => 'a')"));
    let joined: i64 = ours.one("SELECT oban_join('b', 'long', '1 hour', candidate => true)");
    assert!(!ours.one::<bool>("SELECT oban_is_leader('long', node => 'b')"), "that name has a leader");
    for _ in 0..20 {
        let ends = "SELECT expires_at::text FROM oban_peers WHERE name = 'Oban'";
        let before: String = ours.one(ends);
        wait_until("the lease is renewed", || ours.one::<String>(ends) != before);
        foreign
            .batch_execute(
                "UPDATE oban_peers SET expires_at = expires_at + interval '1 s' WHERE name <> 'Oban'",
            )
            .unwrap();
    }
    foreign.batch_execute("DELETE FROM oban_peers WHERE name = 'long'").unwrap();
    wait_until("ours leads", || ours.one("SELECT oban_is_leader('long', node => 'b')"));
    ours.query_one("SELECT oban_leave($1)", &[&joined]).unwrap();
    assert_eq!(complaints(&cluster), [] as [String; 0]);
    assert_no_leaks(&cluster);
}

fn bound(client: &mut Client) -> (i64, i64) {
    let id: i64 = client.one("SELECT oban_join('a')");
    wait_until("it leads", || client.one("SELECT oban_is_leader(node => 'a')"));
    (id, client.one("SELECT oban_term()"))
}

/// Whether a deletion of the row waits for another transaction. The deletion is rolled back.
fn deletion_waits(client: &mut Client) -> bool {
    client.batch_execute("SET lock_timeout = '300ms'; BEGIN").unwrap();
    let waits = match client.batch_execute("DELETE FROM oban_peers WHERE name = 'Oban'") {
        Ok(()) => false,
        Err(e) => {
            assert_eq!(e.code().map(|code| code.code()), Some("55P03"), "{e:?}");
            true
        }
    };
    client.batch_execute("ROLLBACK").unwrap();
    waits
}

#[test]
fn a_fence_holds_through_renewals_before_beside_and_after_it() {
    let cluster = installed(&[]);
    let (mut ours, mut worker, mut deleter) = (cluster.client(), cluster.client(), cluster.client());
    let mut renewer = cluster.client();
    let (_, term) = bound(&mut ours);
    renewer.batch_execute("SET session_replication_role = replica").unwrap();
    let renewal = "UPDATE oban_peers SET expires_at = expires_at + interval '1 s'";
    let fence = format!("SELECT oban_fence({term})");
    let ends = "SELECT expires_at::text FROM oban_peers";
    for level in ["READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"] {
        let begin = format!("BEGIN ISOLATION LEVEL {level}; SELECT 1");
        // After it: the keeper's renewal takes the lock along.
        worker.batch_execute(&format!("{begin}; {fence}")).unwrap();
        let before: String = ours.one(ends);
        wait_until("it is renewed under the fence", || ours.one::<String>(ends) != before);
        assert!(deletion_waits(&mut deleter), "{level}: a renewal after the fence");
        worker.batch_execute("COMMIT").unwrap();
        assert!(!deletion_waits(&mut deleter), "{level}: the fence is over");
        // Before it: no 40001, though the snapshot is older than the row's newest version.
        worker.batch_execute(&begin).unwrap();
        worker.batch_execute("SELECT count(*) FROM oban_jobs").unwrap();
        let before: String = ours.one(ends);
        wait_until("it is renewed after the snapshot", || ours.one::<String>(ends) != before);
        worker.batch_execute(&fence).unwrap();
        assert!(deletion_waits(&mut deleter), "{level}: a renewal before the fence");
        worker.batch_execute("COMMIT").unwrap();
        // Beside it: the version that is being written is the row soon.
        for end in ["COMMIT", "ROLLBACK"] {
            renewer.batch_execute(&format!("BEGIN; {renewal}")).unwrap();
            worker.batch_execute(&format!("{begin}; {fence}")).unwrap();
            renewer.batch_execute(end).unwrap();
            assert!(deletion_waits(&mut deleter), "{level}: a renewal beside the fence, {end}");
            worker.batch_execute("COMMIT").unwrap();
            assert!(!deletion_waits(&mut deleter), "{level}: the fence is over, {end}");
        }
    }
    assert_no_leaks(&cluster);
}

#[test]
fn a_fence_lasts_as_long_as_its_savepoint() {
    let cluster = Cluster::installed();
    let (mut ours, mut worker, mut deleter) = (cluster.client(), cluster.client(), cluster.client());
    let (_, term) = bound(&mut ours);
    let fence = format!("SELECT oban_fence({term})");
    for (statements, held) in [
        (format!("SAVEPOINT s; {fence}; ROLLBACK TO s"), false),
        (format!("SAVEPOINT s; {fence}; RELEASE s"), true),
        (format!("{fence}; SAVEPOINT s; {fence}; ROLLBACK TO s"), true),
        (format!("SAVEPOINT s; {fence}; ROLLBACK TO s; {fence}"), true),
        (format!("SAVEPOINT s; SAVEPOINT u; {fence}; RELEASE u; ROLLBACK TO s"), false),
        (
            format!(
                "DO $$ BEGIN PERFORM oban_fence({term}); RAISE division_by_zero; EXCEPTION WHEN division_by_zero THEN END $$"
            ),
            false,
        ),
        (
            format!(
                "DO $$ BEGIN PERFORM oban_fence(1); EXCEPTION WHEN serialization_failure THEN PERFORM oban_fence({term}); END $$"
            ),
            true,
        ),
    ] {
        worker.batch_execute(&format!("BEGIN; {statements}")).unwrap();
        assert_eq!(deletion_waits(&mut deleter), held, "{statements}");
        worker.batch_execute("ROLLBACK").unwrap();
        assert!(!deletion_waits(&mut deleter), "{statements}: it is over");
    }
    worker.batch_execute(&format!("BEGIN; {fence}; PREPARE TRANSACTION 'p'")).unwrap();
    assert!(deletion_waits(&mut deleter), "a prepared fence");
    deleter.batch_execute("ROLLBACK PREPARED 'p'").unwrap();
    assert!(!deletion_waits(&mut deleter), "it is over");
    assert_no_leaks(&cluster);
}

#[test]
fn a_fence_tests_what_sql_would_test() {
    let cluster = Cluster::installed();
    let (mut ours, mut root) = (cluster.client(), cluster.client());
    root.batch_execute("CREATE ROLE poor LOGIN; REVOKE ALL ON oban_peers FROM PUBLIC").unwrap();
    let mut poor = cluster.client_as("postgres", "poor");
    let (id, term) = bound(&mut ours);
    let fence = format!("SELECT oban_fence({term})");
    assert_eq!(code(&mut poor, &fence), "42501");
    root.batch_execute("GRANT INSERT ON oban_jobs TO poor").unwrap();
    assert_eq!(code(&mut poor, "SELECT * FROM oban_peers"), "42501", "it has no right on the table");
    poor.batch_execute(&fence).unwrap();
    for (before, expected) in [
        ("BEGIN READ ONLY", "25006"),
        ("BEGIN ISOLATION LEVEL SERIALIZABLE READ ONLY", "25006"),
        ("BEGIN; SET TRANSACTION READ ONLY", "25006"),
    ] {
        assert_eq!(code(&mut poor, &format!("{before}; {fence}")), expected, "{before}");
        poor.batch_execute("ROLLBACK").unwrap();
    }
    // A leadership that began after the snapshot, which may hold what this transaction does not see.
    poor.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1").unwrap();
    root.batch_execute("SELECT count(*) FROM oban_jobs").unwrap();
    ours.query_one("SELECT oban_leave($1)", &[&id]).unwrap();
    wait_until("nobody leads", || ours.one("SELECT count(*) = 0 FROM oban_peers"));
    let (_, next) = bound(&mut ours);
    assert!(next > term);
    assert_eq!(code(&mut poor, &format!("SELECT oban_fence({next})")), "40001");
    poor.batch_execute("ROLLBACK").unwrap();
    poor.batch_execute(&format!("SELECT oban_fence({next})")).unwrap();
    // A policy that does not bind the owner binds no election, and is none of the fence's.
    root.batch_execute("ALTER TABLE oban_peers ENABLE ROW LEVEL SECURITY").unwrap();
    poor.batch_execute(&format!("SELECT oban_fence({next})")).unwrap();
    root.batch_execute("ALTER TABLE oban_peers ADD CHECK (true) NOT VALID").unwrap();
    assert_eq!(code(&mut poor, &format!("SELECT oban_fence({next})")), "55000");
    assert_no_leaks(&cluster);
}

/// Unusual statements fire the triggers: each row gets a term, and no row is lost.
#[test]
fn foreign_rows_come_by_every_way_of_sql() {
    let cluster = Cluster::installed();
    let (mut client, mut other) = (cluster.client(), cluster.client());
    client.batch_execute("ALTER TABLE oban_peers ADD COLUMN gone text, ADD COLUMN kept int; ALTER TABLE oban_peers DROP COLUMN gone").unwrap();
    let row = |name: &str| {
        format!("INSERT INTO oban_peers VALUES ('{name}', 'f', now(), now() + interval '1 hour')")
    };
    let has_term = "SELECT bool_and(term IS NOT NULL) AND count(*) > 0 FROM oban_peers";
    // Other terms are drawn between this row's and its commit.
    let draws = "SELECT oban_join('z', 'Drawn', '1 hour', replace => true)";
    for level in ["READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"] {
        client
            .batch_execute(&format!(
                "BEGIN ISOLATION LEVEL {level}; {}; SAVEPOINT s; {}; ROLLBACK TO s; {}",
                row("one"),
                row("two"),
                row("three")
            ))
            .unwrap();
        other.batch_execute(draws).unwrap();
        client.batch_execute(&format!("{}; COMMIT", row("two"))).unwrap();
        assert!(client.one::<bool>(has_term), "{level}");
        client.batch_execute("DELETE FROM oban_peers").unwrap();
    }
    let mut copy = client.copy_in("COPY oban_peers (name, node, started_at, expires_at) FROM STDIN").unwrap();
    for i in 0..500 {
        use std::io::Write as _;
        writeln!(copy, "c{i}\tf\t2020-01-01\t2040-01-01").unwrap();
    }
    copy.finish().unwrap();
    client.batch_execute(
        "DO $$ BEGIN
             FOR i IN 1..100 LOOP
                 BEGIN
                     INSERT INTO oban_peers VALUES ('d' || i, 'f', now(), now() + interval '1 hour');
                     IF i % 2 = 0 THEN RAISE division_by_zero; END IF;
                 EXCEPTION WHEN division_by_zero THEN
                     INSERT INTO oban_peers VALUES ('e' || i, 'f', now(), now() + interval '1 hour');
                 END;
             END LOOP;
         END $$;
         WITH w AS (INSERT INTO oban_peers SELECT 'w' || i, 'f', now(), now() + interval '1 hour' FROM generate_series(1, 50) i RETURNING name)
             SELECT count(*) FROM w",
    )
    .unwrap();
    assert_eq!(
        client.one::<i64>("SELECT count(*) FROM oban_peers WHERE node = 'f' AND term IS NOT NULL"),
        650
    );
    assert_eq!(
        client.one::<i64>("SELECT count(*) - count(DISTINCT term) FROM oban_peers"),
        0,
        "terms are of one row each"
    );
    client.batch_execute("BEGIN; DELETE FROM oban_peers; PREPARE TRANSACTION 'p'").ok();
    client.batch_execute("ROLLBACK").unwrap();
    assert_no_leaks(&cluster);
}

/// The table's owner runs every kind of command on the table at once, beside members, fences and foreign
/// nodes.
#[test]
fn commands_on_the_table_break_no_election() {
    let mut strangers = Strangers::with(&["deadlock_timeout = 50ms"]);
    for sql in [
        "SET allow_in_place_tablespaces = on",
        "CREATE TABLESPACE s LOCATION ''",
        "GRANT CREATE ON TABLESPACE s TO t",
    ] {
        strangers.root.batch_execute(sql).unwrap();
    }
    let stop = AtomicBool::new(false);
    let mut clients: Vec<Client> = (0..3).map(|_| strangers.cluster.client_as("postgres", "t")).collect();
    std::thread::scope(|scope| {
        let (mut fencing, mut foreign, mut bound) =
            (clients.pop().unwrap(), clients.pop().unwrap(), clients.pop().unwrap());
        let stop = &stop;
        let _stop = Stop(stop);
        scope.spawn(move || come_and_go(&mut fencing, "t", stop));
        scope.spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                // The table may be gone, or another's by now.
                let row = "INSERT INTO t.oban_peers VALUES ('Oban', 'f', now(), now() + interval '1 hour') ON CONFLICT DO NOTHING";
                let _ = foreign.batch_execute(&format!("BEGIN ISOLATION LEVEL SERIALIZABLE; {row}; COMMIT"));
                let _ = foreign.batch_execute("ROLLBACK");
                let _ = foreign.batch_execute("DELETE FROM t.oban_peers WHERE node = 'f'");
            }
        });
        scope.spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                let id: i64 = bound.one("SELECT oban_join('a', prefix => 't', candidate => true)");
                let _ = bound.query("SELECT oban_fence(oban_term(prefix => 't'), prefix => 't')", &[]);
                bound.query_one("SELECT oban_leave($1)", &[&id]).unwrap();
            }
        });
        for _ in 0..12 {
            for ddl in [
                "TRUNCATE t.oban_peers",
                "BEGIN; TRUNCATE t.oban_peers; ROLLBACK",
                "VACUUM FULL t.oban_peers",
                "CLUSTER t.oban_peers USING oban_peers_pkey",
                "ALTER TABLE t.oban_peers SET TABLESPACE s; ALTER TABLE t.oban_peers SET TABLESPACE pg_default",
                "ALTER INDEX t.oban_peers_pkey SET TABLESPACE s; ALTER INDEX t.oban_peers_pkey SET TABLESPACE pg_default",
                "ALTER TABLE t.oban_peers SET LOGGED; ALTER TABLE t.oban_peers SET UNLOGGED",
                "BEGIN; LOCK TABLE t.oban_peers IN SHARE MODE; SELECT pg_sleep(0.06); COMMIT",
                "BEGIN; LOCK TABLE t.oban_peers IN SHARE ROW EXCLUSIVE MODE; COMMIT",
                "ALTER TABLE t.oban_peers ADD COLUMN x int DEFAULT 7; ALTER TABLE t.oban_peers ALTER COLUMN x DROP DEFAULT",
                "ALTER TABLE t.oban_peers DROP COLUMN x",
                "ALTER TABLE t.oban_peers ALTER COLUMN name TYPE varchar; ALTER TABLE t.oban_peers ALTER COLUMN name TYPE text",
                "ALTER TABLE t.oban_peers RENAME TO other; ALTER TABLE t.other RENAME TO oban_peers",
                "BEGIN; DROP TABLE t.oban_peers; ROLLBACK",
                "DROP TABLE t.oban_peers; SELECT oban_install('t')",
                "BEGIN; ALTER TABLE t.oban_peers ADD CHECK (t.ok(name)) NOT VALID; SAVEPOINT s; DROP TABLE t.oban_peers; ROLLBACK TO s; ROLLBACK",
                "CREATE UNIQUE INDEX u ON t.oban_peers (name); DROP INDEX t.u",
                "ALTER TABLE t.oban_peers ADD COLUMN k text; CREATE INDEX k ON t.oban_peers (k, expires_at); ALTER TABLE t.oban_peers DROP COLUMN k",
            ] {
                // Of a deadlock with itself only: it is what its author does.
                if let Err(e) = strangers.tenant.batch_execute(ddl) {
                    let db = e.as_db_error().unwrap_or_else(|| panic!("{ddl}: {e:?}"));
                    assert_eq!(db.code().code(), "40P01", "{ddl}: {e:?}");
                    strangers.tenant.batch_execute("ROLLBACK").unwrap();
                }
            }
            strangers.others_elect();
        }
    });
    strangers.tenant.batch_execute("SELECT oban_install('t')").unwrap();
    let id = strangers.join();
    wait_until("it leads", || strangers.leads());
    strangers.renew_and_leave(id, "after all of them");
    strangers.nothing_was_seen("commands");
    strangers.keeper_is_idle();
    assert_no_leaks(&strangers.cluster);
    let odd: Vec<String> = complaints(&strangers.cluster)
        .into_iter()
        .filter(|line| {
            !["wait for a lock", "holds no elections", "keeps changing"]
                .iter()
                .any(|known| line.contains(known))
        })
        .collect();
    assert_eq!(odd, [] as [String; 0]);
}

/// Pseudo-random numbers, the same in each run.
struct Dice(u64);

impl Dice {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 33) % n
    }
}

/// Runs `work` again and again until `stop`, with a new connection after each lost one. Returns how often it
/// succeeded. Ignores only errors that other threads' work can cause.
fn worker(
    cluster: &Arc<Cluster>,
    stop: &Arc<AtomicBool>,
    mut work: impl FnMut(&mut Client) -> Result<(), postgres::Error> + Send + 'static,
) -> JoinHandle<u32> {
    let (cluster, stop) = (cluster.clone(), stop.clone());
    std::thread::spawn(move || {
        let mut done = 0;
        while !stop.load(Ordering::Relaxed) {
            let Ok(mut client) = cluster.try_client("postgres", "postgres") else { continue };
            while !stop.load(Ordering::Relaxed) && !client.is_closed() {
                match work(&mut client) {
                    Ok(()) => done += 1,
                    Err(e) => {
                        let Some(e) = e.as_db_error().filter(|e| e.severity() == "ERROR") else { continue };
                        let expected =
                            ["40001", "40P01", "55000", "23505", "55P03", "42P07", "42704", "25P02"];
                        let code = e.code().code();
                        assert!(expected.contains(&code) || code.starts_with("57"), "{e:?}");
                    }
                }
            }
        }
        done
    })
}

/// Asserts that the table and its indexes have the same rows. amcheck has to say so, too, where it is
/// installed.
fn assert_stored_right(client: &mut Client) {
    let indexes = client
        .query(
            "SELECT c.relname::text, a.amname::text, pg_get_indexdef(c.oid, 1, false), c.oid
             FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid JOIN pg_am a ON a.oid = c.relam
             WHERE i.indrelid = 'oban_peers'::regclass AND i.indisvalid",
            &[],
        )
        .unwrap();
    assert!(indexes.len() >= 4, "{} indexes", indexes.len());
    let amcheck: bool = client.one("SELECT count(*) = 1 FROM pg_available_extensions WHERE name = 'amcheck'");
    if amcheck {
        client.batch_execute("CREATE EXTENSION IF NOT EXISTS amcheck").unwrap();
        let wrong = client.query("SELECT msg FROM verify_heapam('oban_peers')", &[]).unwrap();
        assert_eq!(wrong.iter().map(|row| row.get(0)).collect::<Vec<String>>(), [] as [String; 0]);
    }
    for index in indexes {
        let (name, method, column): (String, String, String) = (index.get(0), index.get(1), index.get(2));
        let oid: u32 = index.get(3);
        if method == "btree" && amcheck {
            client
                .query("SELECT bt_index_check($1::oid::regclass, true)", &[&oid])
                .unwrap_or_else(|e| panic!("{name}: {e:?}"));
        }
        // Each value that the table has is looked up by itself.
        let by = |client: &mut Client, how: &str| -> (i64, i64, String) {
            client.batch_execute(how).unwrap();
            let row = client
                .query_one(
                    &format!(
                        "SELECT count(*), count(DISTINCT p.ctid), coalesce(string_agg(p.ctid::text, ' ' ORDER BY p.ctid), '')
                         FROM (SELECT DISTINCT {column} AS v FROM oban_peers) x, LATERAL (SELECT ctid FROM oban_peers WHERE {column} = x.v OFFSET 0) p"
                    ),
                    &[],
                )
                .unwrap();
            (row.get(0), row.get(1), row.get(2))
        };
        // Under one snapshot: leases end, and the keeper goes on.
        client.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ").unwrap();
        let sequential = by(
            client,
            "SET enable_seqscan = on; SET enable_indexscan = off; SET enable_bitmapscan = off; SET enable_indexonlyscan = off",
        );
        let bitmap = if method == "brin" { "on" } else { "off" };
        let indexed = by(
            client,
            &format!("SET enable_seqscan = off; SET enable_indexscan = on; SET enable_bitmapscan = {bitmap}"),
        );
        client.batch_execute("ROLLBACK").unwrap();
        assert_eq!(sequential, indexed, "index {name} on {column}");
        assert_eq!(sequential.0, sequential.1, "index {name} on {column}");
    }
    let names: i64 = client.one("SELECT count(*) - count(DISTINCT name) FROM oban_peers");
    assert_eq!(names, 0, "each name has one row");
}

/// All that writes the table and all that rebuilds it, with crashes in the middle of both.
fn storage(kills: u32) {
    let settings = [
        "shared_preload_libraries = 'obanrs'",
        "obanrs.lease = 1s",
        "restart_after_crash = on",
        "deadlock_timeout = 100ms",
    ];
    let cluster = Arc::new(Cluster::start(&settings));
    let mut client = cluster.client();
    client
        .batch_execute(
            "CREATE EXTENSION obanrs; SELECT oban_install(); ALTER TABLE oban_peers ADD COLUMN gone text, ADD COLUMN note text;
             ALTER TABLE oban_peers DROP COLUMN gone; ALTER TABLE oban_peers SET LOGGED;
             CREATE INDEX by_end ON oban_peers (expires_at); CREATE INDEX by_node ON oban_peers USING hash (node);
             CREATE INDEX by_block ON oban_peers USING brin (term) WITH (pages_per_range = 1); CREATE INDEX by_term ON oban_peers (term) INCLUDE (boot);
             INSERT INTO oban_peers SELECT 'long', string_agg(md5(i::text), ''), now(), now() + interval '1 hour' FROM generate_series(1, 1000) i",
        )
        .unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let mut workers = Vec::new();
    for i in 0..2u64 {
        let mut dice = Dice(i);
        workers.push(("members", worker(&cluster, &stop, move |client| {
            let name = format!("n{}", dice.below(4));
            let node = format!("m{i}");
            let id: i64 = client.query_one("SELECT oban_join($1, $2, '1 s', replace => true, candidate => true)", &[&node, &name])?.get(0);
            for _ in 0..dice.below(6) {
                let term: Option<i64> = client.query_one("SELECT oban_renew($1)", &[&id])?.get(0);
                if let Some(term) = term {
                    client.batch_execute(&format!("BEGIN; SELECT oban_fence({term}, '{name}'); SAVEPOINT s; SELECT oban_fence({term}, '{name}'); ROLLBACK TO s; COMMIT"))
                        .or_else(|e| client.batch_execute("ROLLBACK").and(Err(e)))?;
                }
            }
            client.query_one("SELECT oban_leave($1)", &[&id]).map(drop)
        })));
    }
    let mut dice = Dice(7);
    workers.push((
        "foreign nodes",
        worker(&cluster, &stop, move |client| {
            let form = [Form::ByName, Form::ByNode, Form::DoNothing][dice.below(3) as usize];
            let name = format!("'n{}'", dice.below(5));
            let sql = upsert(form, "timezone('UTC', clock_timestamp())")
                .replace("'Oban'", &name)
                .replace("$1", "'f'");
            let end = if dice.below(4) == 0 { "ROLLBACK" } else { "COMMIT" };
            client
                .batch_execute(&format!("BEGIN; {sql}; {end}"))
                .or_else(|e| client.batch_execute("ROLLBACK").and(Err(e)))?;
            client.batch_execute(&match dice.below(3) {
                0 => format!("DELETE FROM oban_peers WHERE name = {name} AND node = 'f'"),
                1 => format!("INSERT INTO oban_peers VALUES ({name}, 'g', now(), now() + interval '1 s')"),
                _ => "UPDATE oban_peers SET expires_at = expires_at + interval '1 ms' WHERE name = 'long'"
                    .to_owned(),
            })
        }),
    ));
    let mut dice = Dice(8);
    workers.push((
        "builders",
        worker(&cluster, &stop, move |client| {
            client.batch_execute(
                [
                    "VACUUM (INDEX_CLEANUP on) oban_peers",
                    "VACUUM (FREEZE) oban_peers",
                    "REINDEX TABLE CONCURRENTLY oban_peers",
                    "CREATE INDEX CONCURRENTLY extra ON oban_peers (started_at, name)",
                    "DROP INDEX CONCURRENTLY IF EXISTS extra",
                    "CREATE INDEX extra ON oban_peers (started_at)",
                    "DROP INDEX IF EXISTS extra",
                    "REINDEX TABLE oban_peers",
                    "ALTER TABLE oban_peers SET (fillfactor = 50)",
                ][dice.below(9) as usize],
            )
        }),
    ));
    let mut dice = Dice(9);
    for _ in 0..kills {
        let mut watch = wait_for("the server is up", || cluster.try_client("postgres", "postgres").ok());
        // So much was written since the last time.
        let written = "SELECT pg_current_wal_lsn() - '0/0' > $1::text::numeric";
        let most: String = watch.one("SELECT (pg_current_wal_lsn() - '0/0' + 300000)::text");
        wait_until("there is something to lose", || {
            watch.query_one(written, &[&most]).is_ok_and(|row| row.get(0))
        });
        let of = if dice.below(2) == 0 {
            "backend_type = 'obanrs keeper'"
        } else {
            "backend_type = 'client backend' AND pid <> pg_backend_pid() AND state = 'active'"
        };
        let victim = watch.query_opt(&format!("SELECT pid FROM pg_stat_activity WHERE {of} LIMIT 1"), &[]);
        let Ok(Some(victim)) = victim else { continue };
        cluster.signal("KILL", victim.get(0));
        wait_until("the server has noticed", || {
            watch.is_closed() || watch.batch_execute("SELECT 1").is_err()
        });
    }
    let mut watch = wait_for("the server is up", || cluster.try_client("postgres", "postgres").ok());
    let keeper = "SELECT count(*) = 1 FROM pg_stat_activity WHERE backend_type = 'obanrs keeper'";
    wait_until("there is a keeper", || watch.one(keeper));
    let mut last = wait_for("somebody joins", || {
        watch
            .query_one("SELECT oban_join('last', 'last', '1 hour', replace => true, candidate => true)", &[])
            .ok()
    });
    wait_until("elections go on", || {
        watch.query_one("SELECT oban_is_leader('last', node => 'last')", &[]).is_ok_and(|row| row.get(0))
    });
    last = watch.query_one("SELECT oban_leave($1)", &[&last.get::<_, i64>(0)]).unwrap();
    drop(last);
    stop.store(true, Ordering::Relaxed);
    for (what, thread) in workers {
        let done = thread.join().expect("only what was expected went wrong");
        assert!(done > 0, "{what} did nothing");
    }
    assert_stored_right(&mut watch);
    let log = cluster.log();
    let wrong =
        ["leak", "TRAP:", "PANIC", "signal 6", "signal 11", "still referenced", "missing chunk", "XX00"];
    let found: Vec<&str> = log.lines().filter(|line| wrong.iter().any(|word| line.contains(word))).collect();
    assert!(found.is_empty(), "{found:?}");
}

#[test]
fn the_table_and_its_indexes_agree_after_crashes_under_load() {
    storage(4);
}

#[test]
#[ignore = "minutes: make soak"]
fn soak_the_table_and_its_indexes_agree_after_crashes_under_load() {
    storage(60);
}
