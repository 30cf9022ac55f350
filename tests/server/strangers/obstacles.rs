//! Which things on a table stop its elections, and does the named statement remove each?

use super::{Strangers, assert_no_leaks};
use crate::support::{Ask, wait_until};

/// A kind of thing on a table that elections would have to ignore.
struct Obstacle {
    what: &'static str,
    /// The tenant's statements.
    make: &'static [&'static str],
    /// A superuser's statement before them.
    prepare: &'static str,
    /// The statement in place of the DDL that oban_check names, where its reader has to fill that in.
    instead: &'static str,
    /// The statement that drops what is left.
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

/// Only Postgres 18 has these.
const VIRTUAL: Obstacle = Obstacle {
    what: "a virtual generated column",
    make: &["ALTER TABLE t.oban_peers ADD COLUMN g text GENERATED ALWAYS AS (upper(name)) VIRTUAL"],
    ..PLAIN
};

/// Only servers with ICU have these.
const COLLATION: Obstacle = Obstacle {
    what: "a collation in which different names are equal",
    prepare: "CREATE COLLATION t.any (PROVIDER = icu, LOCALE = 'und-u-ks-level2', DETERMINISTIC = false);
         GRANT USAGE ON SCHEMA t TO PUBLIC",
    make: &["ALTER TABLE t.oban_peers ALTER COLUMN name TYPE text COLLATE t.any"],
    clean: "DROP COLLATION t.any",
    ..PLAIN
};

/// The statements that oban_check has named: in each part, the text after the last colon.
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
        // The DDL may uncover another obstacle, which is named then. Three rounds are enough for each of
        // these.
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

/// The table has all that access methods maintain, and all that elections do not fire.
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
    // The tenant's code runs in the tenant's own statements. So the watch works.
    strangers.root.batch_execute("INSERT INTO t.oban_peers VALUES ('other', 'n', now(), now())").unwrap();
    assert!(strangers.root.one::<bool>("SELECT is_called FROM public.strangers"), "the watch sees nothing");
    strangers.keeper_is_idle();
    assert_no_leaks(&strangers.cluster);
}
