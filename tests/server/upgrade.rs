//! Updates: is a database that went through releases the same as a new one?
//!
//! sql/archive holds the install script of each release, as it was when it was released. The scripts in sql/
//! lead from one release to the next. A change of the SQL of an archived release needs a new version and its
//! script.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::sync::OnceLock;

use postgres::{Client, SimpleQueryMessage};

use crate::support::{Ask, Cluster, extensions_folder};

/// Returns everything that an extension consists of, with a line for each object or property, in order.
const SNAPSHOT: &str = "
    WITH members AS (
        SELECT d.classid, d.objid FROM pg_depend d JOIN pg_extension e ON e.oid = d.refobjid
        WHERE d.refclassid = 'pg_extension'::regclass AND e.extname = 'obanrs' AND d.deptype = 'e'
    ), lines AS (
        SELECT pg_describe_object(classid, objid, 0) || ': member; ' || COALESCE(obj_description(objid, classid::regclass::name), '') AS line
        FROM members
        UNION ALL
        SELECT pg_get_functiondef(p.oid) || ' ' || COALESCE(p.proacl::text, '') || ' ' || p.proowner::regrole::text
        FROM members m JOIN pg_proc p ON p.oid = m.objid AND m.classid = 'pg_proc'::regclass
        UNION ALL
        SELECT c.oid::regclass::text || ' ' || c.relkind::text || ' ' || COALESCE(c.relacl::text, '') || ' ' || c.relowner::regrole::text || ' '
            || COALESCE(c.reloptions::text, '') || ' ' || CASE c.relkind WHEN 'v' THEN pg_get_viewdef(c.oid) ELSE '' END
        FROM members m JOIN pg_class c ON c.oid = m.objid AND m.classid = 'pg_class'::regclass
        UNION ALL
        SELECT a.attrelid::regclass::text || '.' || a.attname::text || ' ' || a.attnum::text || ' ' || format_type(a.atttypid, a.atttypmod)
        FROM members m JOIN pg_attribute a ON a.attrelid = m.objid AND m.classid = 'pg_class'::regclass AND a.attnum > 0
        UNION ALL
        SELECT s.seqrelid::regclass::text || ' ' || (to_jsonb(s) - 'seqrelid')::text
        FROM members m JOIN pg_sequence s ON s.seqrelid = m.objid AND m.classid = 'pg_class'::regclass
        UNION ALL
        SELECT 'dumped: ' || t.config::regclass::text || ' ' || t.condition
        FROM pg_extension e, unnest(e.extconfig, e.extcondition) t (config, condition) WHERE e.extname = 'obanrs'
        UNION ALL
        SELECT 'initially ' || pg_describe_object(i.classoid, i.objoid, i.objsubid) || ' ' || i.initprivs::text
        FROM members m JOIN pg_init_privs i ON i.objoid = m.objid AND i.classoid = m.classid
    )
    SELECT line FROM lines ORDER BY line COLLATE \"C\"";

fn snapshot(client: &mut Client) -> Vec<String> {
    let lines = client.query(SNAPSHOT, &[]).unwrap();
    let lines: Vec<String> = lines.iter().map(|row| row.get(0)).collect();
    assert!(lines.len() > 80, "{} lines", lines.len());
    lines
}

/// The archived releases: the version and the file of each.
fn archive() -> Vec<(String, std::path::PathBuf)> {
    let files = fs::read_dir("sql/archive").expect("sql/archive is there");
    let files =
        files.map(|entry| entry.unwrap().path()).filter(|p| p.extension().is_some_and(|e| e == "sql"));
    let version = |p: &std::path::Path| {
        let name = p.file_stem().unwrap().to_string_lossy().into_owned();
        name.strip_prefix("obanrs--").unwrap_or_else(|| panic!("{name} is no install script")).to_owned()
    };
    files.map(|path| (version(&path), path)).collect()
}

/// The archived releases, each with the version under which CREATE EXTENSION finds it. The archived script of
/// the present version lies beside the present script, under another name.
fn installable() -> &'static [(String, String)] {
    static RELEASES: OnceLock<Vec<(String, String)>> = OnceLock::new();
    RELEASES.get_or_init(|| {
        let releases = archive();
        assert!(releases.iter().any(|(version, _)| version == "0.1.0"), "the first release is archived");
        let named = releases.into_iter().map(|(version, file)| {
            let same = version == env!("CARGO_PKG_VERSION");
            let name = if same { format!("{version}archived") } else { version.clone() };
            let script = extensions_folder().join(format!("obanrs--{name}.sql"));
            fs::copy(&file, &script).unwrap();
            // The server's user has to read the script, whatever the umask of the checkout was.
            fs::set_permissions(&script, fs::Permissions::from_mode(0o644)).unwrap();
            (version, name)
        });
        named.collect()
    })
}

/// Creates a database with the extension in the version of this name, and with its tables.
pub fn installed(cluster: &Cluster, name: &str) -> Client {
    installable(); // the script is where Postgres looks for it
    cluster.client().batch_execute(&format!("CREATE DATABASE \"from {name}\"")).unwrap();
    let mut client = cluster.client_of(&format!("from {name}"));
    client.batch_execute(&format!("CREATE EXTENSION obanrs VERSION '{name}'")).unwrap();
    client.batch_execute("SELECT oban_install(); INSERT INTO oban_jobs (worker) VALUES ('w')").unwrap();
    client
}

#[test]
fn update_equals_fresh_install() {
    let cluster = Cluster::with_extension();
    let fresh = snapshot(&mut cluster.client());
    let current: String = cluster.client().one("SELECT oban_version()");
    for (version, name) in installable() {
        let mut client = installed(&cluster, name);
        if *version != current {
            client.batch_execute("ALTER EXTENSION obanrs UPDATE").unwrap();
        }
        let updated = snapshot(&mut client);
        let only =
            |a: &[String], b: &[String]| a.iter().filter(|l| !b.contains(l)).cloned().collect::<Vec<_>>();
        assert_eq!(
            (only(&updated, &fresh), only(&fresh, &updated)),
            (vec![], vec![]),
            "left: only after the update from {version}; right: only in a fresh install"
        );
        client.batch_execute("SELECT oban_install(); INSERT INTO oban_jobs (worker) VALUES ('w')").unwrap();
    }
}

/// Calls of clients of 0.4.0, and their results.
const CALLS: &[(&str, &str)] = &[
    ("SELECT oban_install()::text", ""),
    ("SELECT (oban_join('a', 'Old') > 0)::text", "true"),
    ("SELECT oban_is_leader('Old')::text", "true"),
    ("SELECT (oban_term('Old') > 0)::text", "true"),
    ("SELECT node FROM oban_leader('Old')", "a"),
    ("SELECT oban_fence(oban_term('Old'), 'Old')::text", ""),
    ("SELECT (oban_renew(member) > 0)::text FROM oban_members", "true"),
    ("SELECT oban_resign(member)::text FROM oban_members", "true"),
    (
        "SELECT concat(prefix, name, node, kind, pid = pg_backend_pid(), expires_at) FROM oban_members",
        "publicOldasessiont",
    ),
    ("SELECT count(*)::text FROM oban_leadership WHERE node = 'none'", "0"),
    ("SELECT oban_leave(member)::text FROM oban_members", "true"),
    ("SELECT oban_notify('news', '{}')::text", ""),
    ("SELECT oban_notify_many('news', '{\"{}\"}')::text", ""),
    ("SELECT oban_listen_channels('{news}')", "public.oban_news"),
    ("SELECT oban_unlisten_channels('{news}')", "public.oban_news"),
    ("SELECT (oban_position() > 0)::text", "true"),
    ("SELECT missed::text FROM oban_poll('{insert}', oban_position(), 10, 'public')", "0"),
    ("SELECT oban_decode(oban_encode('{}'))::text", "{}"),
    ("SELECT oban_gossip_put('a', 'default', '{\"running\": [1]}')::text", ""),
    ("SELECT running::text FROM oban_gossip", "1"),
    ("SELECT oban_gossip_delete('a')::text", "1"),
    ("SELECT count(*)::text FROM oban_workers WHERE kind = 'none'", "0"),
    ("SELECT (count(*) > 0)::text FROM oban_stats", "true"),
    ("SELECT ok::text FROM oban_check() WHERE item = 'preload'", "true"),
    ("SELECT (oban_version() <> '')::text", "true"),
    ("SELECT oban_uninstall()::text", ""),
];

/// The library is new, and ALTER EXTENSION UPDATE has not run yet.
#[test]
fn an_old_extension_is_served_until_it_is_updated() {
    let cluster = Cluster::with_extension();
    for name in ["0.4.0", "0.6.0"] {
        assert!(installable().iter().any(|(_, n)| n == name));
        let mut client = installed(&cluster, name);
        let functions = "SELECT DISTINCT p.proname::text FROM pg_proc p JOIN pg_depend d ON d.objid = p.oid
            JOIN pg_extension e ON e.oid = d.refobjid
            WHERE d.classid = 'pg_proc'::regclass AND e.extname = 'obanrs' AND p.proname NOT LIKE 'obanrs%'";
        for function in client.query(functions, &[]).unwrap() {
            let function: String = function.get(0);
            let called = CALLS.iter().any(|(sql, _)| sql.contains(&format!("{function}(")));
            assert!(called || function == "oban_wait", "{function} of {name} is not called");
        }
        for (sql, expected) in CALLS {
            let got: String = client.one(sql);
            assert_eq!(got, *expected, "{sql} of {name}");
        }
        let waited = client.simple_query("CALL oban_wait('{insert}', NULL, '10 ms', 10, 'public')").unwrap();
        let row =
            waited.iter().find_map(|m| if let SimpleQueryMessage::Row(row) = m { Some(row) } else { None });
        assert_eq!(row.map(|row| (row.len(), row.get("missed"))), Some((3, Some("0"))));
        client.batch_execute("SELECT oban_install(); ALTER EXTENSION obanrs UPDATE").unwrap();
        assert_eq!(client.one::<String>("SELECT oban_is_leader('Old')::text"), "false");
    }
}

/// Objects that users have built on those of 0.4.0 outlive the update.
#[test]
fn an_update_keeps_rights_owners_settings_and_views() {
    let cluster = Cluster::with_extension();
    assert!(!installable().is_empty());
    let mut client = installed(&cluster, "0.4.0");
    client
        .batch_execute(
            "CREATE ROLE app; CREATE ROLE other; CREATE ROLE \"the owner\";
             REVOKE EXECUTE ON FUNCTION oban_join FROM PUBLIC;
             GRANT EXECUTE ON FUNCTION oban_join TO app WITH GRANT OPTION;
             REVOKE ALL ON FUNCTION oban_poll FROM PUBLIC, CURRENT_USER;
             ALTER PROCEDURE oban_wait OWNER TO \"the owner\";
             GRANT EXECUTE ON PROCEDURE oban_wait TO other;
             ALTER FUNCTION oban_poll SET work_mem = '1MB';
             CREATE VIEW mine AS SELECT node, leader FROM oban_members;
             GRANT SELECT ON mine TO app;
             SET client_min_messages = warning",
        )
        .unwrap();
    let state = "SELECT string_agg(p.proname || ' ' || p.proowner::regrole || ' ' || coalesce(p.proacl::text, '') || ' '
            || coalesce(p.proconfig::text, ''), '; ' ORDER BY p.proname COLLATE \"C\")
        FROM pg_proc p WHERE p.proname IN ('oban_join', 'oban_poll', 'oban_wait')";
    let before: String = client.one(state);
    client.batch_execute("ALTER EXTENSION obanrs UPDATE").unwrap();
    assert_eq!(client.one::<String>(state), before);
    assert!(before.contains("app=X*/"), "{before}");
    assert_eq!(client.one::<i64>("SELECT count(*) FROM mine"), 0);
    // The roles can't be dropped while they have rights, and can be dropped afterwards.
    for role in ["app", "other", "the owner"] {
        let refused = client.batch_execute(&format!("DROP ROLE \"{role}\"")).unwrap_err();
        assert_eq!(refused.code().unwrap().code(), "2BP01", "{role}");
        client
            .batch_execute(&format!("REASSIGN OWNED BY \"{role}\" TO CURRENT_USER; DROP OWNED BY \"{role}\""))
            .unwrap();
        client.batch_execute(&format!("DROP ROLE \"{role}\"")).unwrap();
    }
    let initial: i64 = client.one(
        "SELECT count(*) FROM pg_init_privs i JOIN pg_proc p ON p.oid = i.objoid AND i.classoid = 'pg_proc'::regclass
         WHERE p.proname LIKE 'oban%'",
    );
    assert_eq!(initial, 0, "pg_dump writes them all");
}

#[test]
fn an_update_names_a_view_that_depends_on_a_function_that_changes() {
    let cluster = Cluster::with_extension();
    assert!(!installable().is_empty());
    let mut client = installed(&cluster, "0.4.0");
    client.batch_execute("CREATE VIEW news AS SELECT position FROM oban_poll()").unwrap();
    let refused = client.batch_execute("ALTER EXTENSION obanrs UPDATE").unwrap_err();
    let refused = refused.as_db_error().unwrap();
    assert_eq!(refused.code().code(), "2BP01");
    assert!(refused.detail().unwrap_or_default().contains("view news depends"), "{refused:?}");
    client.batch_execute("DROP VIEW news; ALTER EXTENSION obanrs UPDATE").unwrap();
}
