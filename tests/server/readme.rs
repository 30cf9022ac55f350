//! Are README and the pages of docs true? Their SQL runs as it stands there.

use std::fs;
use std::path::PathBuf;

use fallible_iterator::FallibleIterator;
use postgres::SimpleQueryMessage;

use crate::support::{Ask, Cluster, PATIENCE, code, wait_until};

/// A block of a document: SQL as it is typed, and the header of its result where the block shows one.
struct Shown {
    sql: String,
    columns: Option<Vec<String>>,
}

/// README and the pages that are written by hand. The reference is generated.
fn documents() -> Vec<PathBuf> {
    let pages =
        fs::read_dir("docs").expect("docs is there").map(|entry| entry.expect("it can be read").path());
    let mut documents: Vec<PathBuf> = pages.filter(|p| !p.ends_with("reference.md")).collect();
    documents.push("README.md".into());
    documents.sort();
    documents
}

/// Returns the blocks of SQL of all documents that contain this text.
pub fn blocks_with(text: &str) -> Vec<String> {
    let texts = documents().into_iter().map(|page| fs::read_to_string(page).expect("a document is text"));
    let blocks = texts.flat_map(|page| shown(&page)).map(|shown| shown.sql);
    blocks.filter(|sql| sql.contains(text)).collect()
}

/// Returns the SQL of a document from top to bottom: blocks of SQL, and what is typed after `=> `.
fn shown(document: &str) -> Vec<Shown> {
    let mut found = Vec::new();
    for (i, block) in document.split("```").enumerate().filter(|(i, _)| i % 2 == 1) {
        let (language, text) = block.split_once('\n').unwrap_or_else(|| panic!("block {i} has no lines"));
        if language == "sql" {
            found.push(Shown { sql: text.to_owned(), columns: None });
        }
        for typed in format!("\n{text}").split("\n=> ").skip(1).filter(|_| language.is_empty()) {
            let (sql, output) = typed.split_once(";").unwrap_or_else(|| panic!("no end: {typed}"));
            // A result has a header, a line below it, and rows. Text after a command has no such line, and is
            // no result.
            let mut lines = output.lines().skip(1);
            let header = lines.next().filter(|_| lines.next().is_some_and(|l| l.starts_with("--")));
            let columns = header.map(|h| h.split('|').map(|c| c.trim().to_owned()).collect());
            found.push(Shown { sql: sql.to_owned(), columns });
        }
    }
    found
}

/// Returns the statements of a block as psql sends them: each ends with a line that ends with a semicolon.
fn statements(block: &str) -> Vec<String> {
    let (mut statements, mut statement) = (Vec::new(), String::new());
    for line in block.lines() {
        let code = line.split(" -- ").next().unwrap_or_default().trim_end();
        statement.push_str(line);
        statement.push('\n');
        if code.ends_with(';') {
            statements.push(std::mem::take(&mut statement));
        }
    }
    statements.extend(Some(statement).filter(|rest| !rest.trim().is_empty()));
    statements
}

fn columns(messages: &[SimpleQueryMessage]) -> Vec<String> {
    let row = messages.iter().find_map(|m| match m {
        SimpleQueryMessage::RowDescription(columns) => Some(columns),
        _ => None,
    });
    row.map(|columns| columns.iter().map(|c| c.name().to_owned()).collect()).unwrap_or_default()
}

/// Each document gets a database of its own. README and the page on installing create the extension there.
/// For the other pages it is created before.
#[test]
fn every_statement_in_the_documents_runs_as_it_stands_there() {
    let cluster = Cluster::start(&["shared_preload_libraries = 'obanrs'", "max_worker_processes = 64"]);
    let (mut run, mut databases) = (0, 0);
    for document in documents() {
        let page = document.display().to_string();
        let blocks = shown(&fs::read_to_string(&document).expect("a document is text"));
        if blocks.is_empty() {
            continue;
        }
        databases += 1;
        let database = format!("page_{databases}");
        cluster.client().batch_execute(&format!("CREATE DATABASE {database}")).unwrap();
        let mut client = cluster.client_of(&database);
        if !blocks[0].sql.contains("CREATE EXTENSION") {
            client.batch_execute("CREATE EXTENSION obanrs").unwrap();
            client.batch_execute("SELECT oban_install()").unwrap();
        }
        if blocks.iter().any(|block| block.sql.contains("oban_fence(oban_term())")) {
            client.batch_execute("SELECT oban_join('page.1')").unwrap();
            wait_until("the session leads, as that page says", || client.one("SELECT oban_is_leader()"));
        }
        for Shown { sql: block, columns: header } in blocks {
            for sql in statements(&block) {
                let messages = client.simple_query(&sql).unwrap_or_else(|e| panic!("{page}: {sql}: {e:?}"));
                if let Some(header) = &header {
                    assert_eq!(&columns(&messages), header, "{page}: {sql}");
                }
                run += 1;
            }
        }
        if page.ends_with("rights.md") {
            grants_are_enough(&cluster, &database);
        }
        if page.ends_with("installing.md") {
            assert_eq!(client.one::<i64>("SELECT count(*) FROM pg_extension WHERE extname = 'obanrs'"), 0);
            assert_eq!(client.one::<i64>("SELECT count(*) FROM oban_jobs"), 0, "and the tables are there");
        }
    }
    assert!(run > 40 && databases > 7, "{run} statements of {databases} documents");
}

/// A process that does what README's first session does leads, and sees its queue.
#[test]
fn the_first_session_of_readme_ends_well() {
    let cluster = Cluster::start(&["shared_preload_libraries = 'obanrs'"]);
    let readme = fs::read_to_string("README.md").unwrap();
    let mut client = cluster.client();
    for sql in statements(&shown(&readme)[0].sql) {
        client.batch_execute(&sql).unwrap_or_else(|e| panic!("{sql}: {e:?}"));
    }
    assert!(client.one::<bool>("SELECT oban_is_leader('Web')"), "at once, without waiting");
    assert_eq!(client.one::<i64>("SELECT count(*) FROM oban_gossip"), 1);
    let wrong: Option<String> =
        client.one("SELECT string_agg(item || ': ' || detail, '; ') FROM oban_check() WHERE NOT ok");
    assert_eq!(wrong, None);
    let heard = client.notifications().timeout_iter(PATIENCE).next().unwrap().expect("the job is told");
    assert_eq!((heard.channel(), heard.payload()), ("public.oban_insert", r#"{"queue":"default"}"#));
}

/// The page on operating has a row for each row of oban_check. `…` stands for a name there.
#[test]
fn each_row_of_oban_check_is_on_the_page() {
    let page = fs::read_to_string("docs/operating.md").unwrap();
    let known: Vec<&str> = page.lines().filter_map(|l| l.strip_prefix("| `")?.split(" | ").next()).collect();
    let known: Vec<&str> =
        known.iter().flat_map(|cell| cell.split("`, `")).map(|i| i.trim_end_matches('`')).collect();
    let cluster = Cluster::installed();
    let mut client = cluster.client();
    client.batch_execute("SELECT oban_join('web.1')").unwrap();
    let items = client.query("SELECT item FROM oban_check()", &[]).unwrap();
    assert!(items.len() > 15, "{}", items.len());
    for item in items.iter().map(|row| row.get::<_, &str>(0)) {
        let fits = |known: &&str| match known.split_once('…') {
            Some((before, after)) => item.starts_with(before) && item.ends_with(after),
            None => item == *known,
        };
        assert!(known.iter().any(fits), "{item} is not on the page: {known:?}");
    }
}

/// The query for long transactions leaves out sessions that wait, which hold nothing back. It leaves out no
/// other.
#[test]
fn what_the_pages_say_of_waiters() {
    let cluster = Cluster::installed();
    let alert = blocks_with("AS age FROM pg_stat_activity").pop().expect("a page has the query");
    let alert = format!("SELECT array_agg(pid) FROM ({}) a", alert.trim().trim_end_matches(';'));
    let mut long = cluster.client();
    long.batch_execute("BEGIN; SELECT 1").unwrap();
    let mut waiter = cluster.client();
    let pid: i32 = waiter.one("SELECT pg_backend_pid()");
    let waiting =
        std::thread::spawn(move || code(&mut waiter, "CALL oban_wait('{sonar}', timeout => '1 hour')"));
    let mut client = cluster.client();
    let waits = format!(
        "SELECT count(*) = 1 FROM pg_stat_activity WHERE pid = {pid} AND state = 'active'
             AND xact_start IS NOT NULL AND backend_xmin IS NULL AND wait_event_type = 'Extension'"
    );
    wait_until("it waits", || client.one(&waits));
    let alerted: Vec<i32> = client.one(&alert);
    assert!(!alerted.contains(&pid));
    assert!(alerted.contains(&long.one::<i32>("SELECT pg_backend_pid()")));
    client.execute("SELECT pg_cancel_backend($1)", &[&pid]).unwrap();
    assert_eq!(waiting.join().unwrap(), "57014");

    client.batch_execute("SET statement_timeout = '100ms'").unwrap();
    assert_eq!(code(&mut client, "CALL oban_wait('{sonar}', timeout => '1 hour')"), "57014");
    client.batch_execute("CALL oban_wait('{sonar}', timeout => '1 ms')").unwrap();
}

/// A poll returns a message about a job that an older snapshot does not see.
#[test]
fn what_the_pages_say_of_polls_in_an_older_snapshot() {
    let cluster = Cluster::installed();
    let mut client = cluster.client();
    let start: i64 = client.one("SELECT oban_position()");
    client.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1 FROM oban_jobs").unwrap();
    cluster.client().batch_execute("INSERT INTO oban_jobs (worker) VALUES ('w')").unwrap();
    let told = format!("SELECT jsonb_array_length(messages) FROM oban_poll('{{insert}}', {start})");
    assert_eq!(client.one::<i32>(&told), 1);
    assert_eq!(client.one::<i64>("SELECT count(*) FROM oban_jobs"), 0);
    client.batch_execute("COMMIT").unwrap();
    assert_eq!(client.one::<i64>("SELECT count(*) FROM oban_jobs"), 1);
}

/// With the grants of the page on rights one role does all that an application does. Another does all that a
/// dashboard does.
fn grants_are_enough(cluster: &Cluster, database: &str) {
    let mut app = cluster.client_as(database, "app");
    for sql in [
        "SELECT oban_listen_channels()",
        "SELECT oban_join('app.1', 'App')",
        "SELECT oban_gossip_put('app.1', 'default')",
        "INSERT INTO oban_jobs (worker) VALUES ('Mailer')",
        "WITH next AS (SELECT id FROM oban_jobs WHERE state = 'available' LIMIT 1 FOR UPDATE SKIP LOCKED)
         UPDATE oban_jobs SET state = 'executing' FROM next WHERE oban_jobs.id = next.id",
        "SELECT oban_notify('signal', '{\"action\": \"pause\", \"queue\": \"default\"}')",
        "SELECT oban_is_leader('App'), oban_term('App'), oban_is_leader(node => 'web.1')",
        "SELECT * FROM oban_leader(), oban_members, oban_leadership, oban_gossip, oban_workers",
        "SELECT * FROM oban_orphans()",
        "SELECT oban_gossip_delete('app.1')",
    ] {
        app.batch_execute(sql).unwrap_or_else(|e| panic!("{sql}: {e:?}"));
    }
    let wrong: Option<String> =
        app.one("SELECT string_agg(item || ': ' || detail, '; ') FROM oban_check() WHERE NOT ok");
    assert_eq!(wrong, None);

    let mut dashboard = cluster.client_as(database, "dashboard");
    dashboard.batch_execute("SELECT oban_listen_channels(); SELECT * FROM oban_leader()").unwrap();
    assert!(dashboard.one::<i64>("SELECT count(*) FROM oban_members") > 0);
    assert!(dashboard.batch_execute("SELECT oban_notify('insert', '{}')").is_err());
    assert!(dashboard.batch_execute("SELECT args FROM oban_jobs").is_err());
}
