//! Updates: a database that went through releases is as one that was made new.
//!
//! sql/archive holds the install script of each release, as it was when it was released; scripts of
//! sql/ lead from one to the next. Whoever changes the SQL of a release that is in the archive has to
//! raise the version and write the script.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use postgres::Client;

use crate::support::{Ask, Cluster, extensions_folder};

/// Everything that an extension consists of, a line an object or a property, in order.
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

/// The archived releases, and the file of each.
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

#[test]
fn update_equals_fresh_install() {
    let releases = archive();
    assert!(releases.iter().any(|(version, _)| version == "0.1.0"), "the first release is archived");
    let cluster = Cluster::with_extension();
    let fresh = snapshot(&mut cluster.client());
    let current: String = cluster.client().one("SELECT oban_version()");
    for (version, file) in releases {
        // The same version beside its own, under another name: what is archived is what is installed.
        let same = version == current;
        let name = if same { format!("{version}archived") } else { version.clone() };
        let script = extensions_folder().join(format!("obanrs--{name}.sql"));
        fs::copy(&file, &script).unwrap();
        // The server's user reads it, whatever the umask of the checkout was.
        fs::set_permissions(&script, fs::Permissions::from_mode(0o644)).unwrap();
        cluster.client().batch_execute(&format!("CREATE DATABASE \"from {version}\"")).unwrap();
        let mut client = cluster.client_of(&format!("from {version}"));
        client.batch_execute(&format!("CREATE EXTENSION obanrs VERSION '{name}'")).unwrap();
        client.batch_execute("SELECT oban_install(); INSERT INTO oban_jobs (worker) VALUES ('w')").unwrap();
        if !same {
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
