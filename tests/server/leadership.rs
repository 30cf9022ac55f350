//! The channel `leadership`: each change of leader is announced there, and only the owner of a table can
//! announce one.

use postgres::Client;

use crate::support::elixir::{Form, elect, resign};
use crate::support::{Ask, Cluster, code, heard, wait_until};

/// Returns the changes on `leadership` after a position, each as `kind node name`. Moves the position on.
fn changes(client: &mut Client, prefix: &str, position: &mut i64) -> Vec<String> {
    let sql = "SELECT position, messages::text FROM oban_poll('{leadership}', $1, prefix => $2)";
    let row = client.query_one(sql, &[&*position, &prefix]).unwrap();
    *position = row.get(0);
    let messages: serde_json::Value = serde_json::from_str(row.get(1)).unwrap();
    let told = messages.as_array().unwrap().iter().map(|message| {
        let payload = message["payload"].as_object().unwrap();
        let kind = if payload.contains_key("elected") { "elected" } else { "ended" };
        assert_eq!(payload.len(), 3, "{payload:?}");
        assert!(payload["term"].as_i64().is_some_and(|term| term > 1 << 40), "{payload:?}");
        format!("{kind} {} {}", payload[kind].as_str().unwrap(), payload["name"].as_str().unwrap())
    });
    told.collect()
}

fn until(client: &mut Client, prefix: &str, position: &mut i64, expected: &[&str]) {
    let mut told = Vec::new();
    wait_until(&format!("{expected:?}"), || {
        told.extend(changes(client, prefix, position));
        told.len() >= expected.len()
    });
    assert_eq!(told, expected);
}

#[test]
fn members_elections_and_ends_are_told_in_their_order() {
    let cluster = Cluster::installed();
    let (mut watch, mut first, mut second) = (cluster.client(), cluster.client(), cluster.client());
    let mut position: i64 = watch.one("SELECT oban_position()");
    first.batch_execute("SELECT oban_join('first'), oban_join('first', 'Cron \"quoted\"')").unwrap();
    until(&mut watch, "public", &mut position, &["elected first Oban", "elected first Cron \"quoted\""]);
    second.batch_execute("SELECT oban_join('second')").unwrap();
    drop(first);
    wait_until("the second leads", || second.one("SELECT oban_is_leader()"));
    let mut told = Vec::new();
    wait_until("all is told", || {
        told.extend(changes(&mut watch, "public", &mut position));
        told.len() >= 3
    });
    let of_oban: Vec<_> = told.iter().filter(|change| change.ends_with("Oban")).collect();
    assert_eq!(of_oban, ["ended first Oban", "elected second Oban"]);
    assert!(told.contains(&"ended first Cron \"quoted\"".to_owned()), "{told:?}");
    // The message has the leader's term.
    let term: i64 = second.one("SELECT oban_term()");
    let last =
        "SELECT (messages->-1->'payload'->>'term')::int8 FROM oban_poll('{leadership}', oban_position() - 3)
                WHERE messages->-1->'payload'->>'name' = 'Oban'";
    wait_until("it is", || {
        second.query_opt(last, &[]).unwrap().is_none_or(|row| row.get::<_, i64>(0) == term)
    });

    second.batch_execute("SELECT oban_resign(member) FROM oban_members").unwrap();
    until(&mut watch, "public", &mut position, &["ended second Oban"]);
}

#[test]
fn what_foreign_nodes_and_people_do_is_told() {
    let cluster = Cluster::installed();
    let (mut watch, mut elixir) = (cluster.client(), cluster.client());
    let mut position: i64 = watch.one("SELECT oban_position()");
    assert!(elect(&mut elixir, "elixir", Form::ByName, "0").unwrap());
    assert!(elect(&mut elixir, "elixir", Form::ByName, "0").unwrap(), "it renews");
    resign(&mut elixir, "elixir").unwrap();
    let row = ["elected elixir Oban", "ended elixir Oban"];
    until(&mut watch, "public", &mut position, &row);

    // A lease lapses, and the sweep announces that.
    assert!(elect(&mut elixir, "elixir", Form::ByName, "0").unwrap());
    elixir
        .batch_execute(
            "UPDATE oban_peers SET expires_at = timezone('utc', clock_timestamp()) + interval '500 ms'",
        )
        .unwrap();
    until(&mut watch, "public", &mut position, &row);

    // A rollback takes the change back, so there is no message.
    let mut transaction = elixir.transaction().unwrap();
    transaction
        .execute(
            "INSERT INTO oban_peers (name, node, started_at, expires_at) VALUES ('x', 'y', now(), now())",
            &[],
        )
        .unwrap();
    transaction.rollback().unwrap();
    assert_eq!(changes(&mut watch, "public", &mut position), [""; 0]);

    elixir.batch_execute("SELECT oban_join('ours', 'Own', candidate => true)").unwrap();
    until(&mut watch, "public", &mut position, &["elected ours Own"]);
    elixir.batch_execute("DELETE FROM oban_peers").unwrap();
    until(&mut watch, "public", &mut position, &["ended ours Own", "elected ours Own"]);
    elixir.batch_execute("TRUNCATE oban_peers").unwrap();
    until(&mut watch, "public", &mut position, &["ended ours Own", "elected ours Own"]);
    elixir.batch_execute("DROP TABLE oban_peers").unwrap();
    until(&mut watch, "public", &mut position, &["ended ours Own"]);
}

#[test]
fn listeners_hear_it_and_waiters_hear_it_if_they_ask_for_it() {
    let cluster = Cluster::installed();
    let (mut listener, mut waiter, mut client) = (cluster.client(), cluster.client(), cluster.client());
    listener.batch_execute("SELECT oban_listen_channels('{leadership}')").unwrap();
    let position: i64 = waiter.one("SELECT oban_position()");
    let waits = std::thread::spawn(move || {
        let call = format!("CALL oban_wait('{{leadership}}', {position}, '1 minute')");
        waiter.query_one(&call, &[]).unwrap().get::<_, serde_json::Value>(2)
    });
    client.batch_execute("SELECT oban_join('a')").unwrap();
    let messages = waits.join().unwrap();
    assert_eq!(messages[0]["channel"], "leadership");
    assert_eq!(messages[0]["payload"]["elected"], "a");
    let mut all = Vec::new();
    wait_until("the listener hears it", || {
        all.extend(heard(&mut listener));
        !all.is_empty()
    });
    assert_eq!(all[0].channel(), "public.oban_leadership");
    assert!(all[0].payload().starts_with(r#"{"elected":"a","name":"Oban","term":"#), "{}", all[0].payload());
    // Oban's own channels are the default.
    let others: i64 =
        client.one(&format!("SELECT jsonb_array_length(messages)::int8 FROM oban_poll(after => {position})"));
    assert_eq!(others, 0);
}

#[test]
fn only_the_owner_tells() {
    let cluster = Cluster::installed();
    let mut admin = cluster.client();
    admin.batch_execute("CREATE ROLE app LOGIN; GRANT ALL ON oban_jobs TO app").unwrap();
    let mut app = cluster.client_as("postgres", "app");
    assert_eq!(code(&mut app, "SELECT oban_notify('leadership', '{\"elected\": \"me\"}')"), "42501");
    assert_eq!(code(&mut app, "SELECT oban_notify_many('leadership', '{\"{}\"}')"), "42501");
    app.batch_execute("SELECT oban_notify('insert', '{}'); SELECT * FROM oban_poll('{leadership}')").unwrap();
    admin.batch_execute("SELECT oban_notify('leadership', '{\"elected\": \"me\"}')").unwrap();
}

/// A prefix of 48 to 51 bytes has Oban's channels, and no channel for `leadership`.
#[test]
fn a_name_that_is_too_long_for_the_channel_holds_nothing_up() {
    let cluster = Cluster::installed();
    let mut client = cluster.client();
    let prefix = "p".repeat(51);
    client.batch_execute(&format!("SELECT oban_install('{prefix}')")).unwrap();
    assert_eq!(
        code(&mut client, &format!("SELECT oban_poll('{{leadership}}', prefix => '{prefix}')")),
        "22023"
    );
    client.batch_execute(&format!("SELECT oban_join('a', prefix => '{prefix}')")).unwrap();
    assert!(client.one::<bool>(&format!("SELECT oban_is_leader(prefix => '{prefix}')")));
    client.batch_execute(&format!("DELETE FROM {prefix}.oban_peers")).unwrap();
    let mut foreign = cluster.client();
    foreign
        .batch_execute(&format!(
            "INSERT INTO {prefix}.oban_peers (name, node, started_at, expires_at) VALUES ('Other', 'x', now(), now())"
        ))
        .unwrap();
    assert_eq!(client.one::<i64>("SELECT value FROM oban_stats WHERE counter = 'dropped'"), 0);
}

/// Elections alone take no ring from the pool, and need none.
#[test]
fn elections_take_no_ring() {
    let cluster = Cluster::installed();
    let mut admin = cluster.client();
    admin.batch_execute("CREATE DATABASE other").unwrap();
    let mut other = cluster.client_of("other");
    other.batch_execute("CREATE EXTENSION obanrs; SELECT oban_install()").unwrap();
    other.batch_execute("SELECT oban_join('a')").unwrap();
    wait_until("it leads", || other.one("SELECT oban_is_leader()"));
    let ring: String = other.one("SELECT detail FROM oban_check() WHERE item = 'ring'");
    assert!(ring.starts_with("none yet"), "{ring}");
    let mut listener = cluster.client_of("other");
    listener.batch_execute("LISTEN \"public.oban_leadership\"").unwrap();
    other.batch_execute("SELECT oban_resign(member) FROM oban_members").unwrap();
    let mut all = Vec::new();
    wait_until("it is told natively", || {
        all.extend(heard(&mut listener));
        !all.is_empty()
    });
    assert!(all[0].payload().starts_with(r#"{"ended":"a""#));
}

fn queues(client: &mut Client, call: &str) -> Vec<String> {
    let messages: serde_json::Value = client.query_one(call, &[]).unwrap().get("messages");
    let queue = |m: &serde_json::Value| m["payload"]["queue"].as_str().unwrap_or("none").to_owned();
    messages.as_array().unwrap().iter().map(queue).collect()
}

#[test]
fn a_reader_gets_what_is_for_its_queues() {
    let cluster = Cluster::installed();
    let mut client = cluster.client();
    let position: i64 = client.one("SELECT oban_position()");
    client
        .batch_execute(
            "INSERT INTO oban_jobs (queue, worker) VALUES ('mail', 'W'), ('media', 'W'), ('größe', 'W');
             SELECT oban_notify('signal', '{\"action\": \"pause\", \"queue\": \"media\"}');
             SELECT oban_notify('signal', '{\"action\": \"pkill\", \"job_id\": 1}');
             SELECT oban_notify('signal', '{\"action\": \"pause\", \"queue\": \"*\"}');
             SELECT oban_notify('insert', jsonb_build_object('queue', 'mail', 'padding', string_agg(md5(i::text), '')))
             FROM generate_series(1, 300) i",
        )
        .unwrap();
    let poll = |queues: &str, more: &str| {
        format!("SELECT * FROM oban_poll(after => {position}{more}, queues => {queues})")
    };
    assert_eq!(queues(&mut client, &poll("NULL", "")).len(), 7);
    assert_eq!(queues(&mut client, &poll("'{mail}'", "")), ["mail", "none", "*", "mail"]);
    assert_eq!(queues(&mut client, &poll("'{größe,mail}'", "")).len(), 5);
    assert_eq!(queues(&mut client, &poll("'{}'", "")), ["none", "*"]);
    assert_eq!(queues(&mut client, &poll("'{mail}'", ", max_messages => 2")), ["mail", "none"]);
    // Polls for one message at a time get all of them.
    let (mut at, mut all) = (position, Vec::new());
    loop {
        let next =
            format!("SELECT * FROM oban_poll(after => {at}, max_messages => 1, queues => '{{größe,mail}}')");
        let got = queues(&mut client, &next);
        at = client.query_one(&next, &[]).unwrap().get("position");
        if got.is_empty() {
            break;
        }
        all.extend(got);
    }
    assert_eq!((all, at), (["mail", "größe", "none", "*", "mail"].map(str::to_owned).to_vec(), position + 7));
    // Messages for other queues are passed, and do not count as missed.
    let row = client.query_one(&poll("'{nothing}'", ""), &[]).unwrap();
    assert_eq!((row.get::<_, i64>("position"), row.get::<_, Option<i64>>("missed")), (position + 7, Some(0)));
    for (call, expected) in [
        ("'{NULL}'::text[]", "22004"),
        ("array_fill('a'::text, '{1025}')", "22023"),
        ("ARRAY[repeat('a', 256)]", "22023"),
        ("ARRAY['']", "22023"),
    ] {
        assert_eq!(code(&mut client, &poll(call, "")), expected, "{call}");
    }
}

#[test]
fn a_waiter_sleeps_on_for_other_queues() {
    let cluster = Cluster::installed();
    let (mut waiter, mut client) = (cluster.client(), cluster.client());
    let pid: i32 = waiter.one("SELECT pg_backend_pid()");
    let waits = std::thread::spawn(move || {
        queues(&mut waiter, "CALL oban_wait('{insert}', timeout => '1 minute', queues => '{mail}')")
    });
    let asleep = format!("SELECT wait_event_type = 'Extension' FROM pg_stat_activity WHERE pid = {pid}");
    wait_until("it waits", || client.one::<Option<bool>>(&asleep) == Some(true));
    for _ in 0..20 {
        client.batch_execute("INSERT INTO oban_jobs (queue, worker) VALUES ('media', 'W')").unwrap();
    }
    assert!(!waits.is_finished());
    client.batch_execute("INSERT INTO oban_jobs (queue, worker) VALUES ('mail', 'W')").unwrap();
    assert_eq!(waits.join().unwrap(), ["mail"]);
    // A timeout ends the wait, whatever others send.
    let mut waiter = cluster.client();
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let stopped = stop.clone();
    let others = std::thread::spawn(move || {
        while !stopped.load(std::sync::atomic::Ordering::Relaxed) {
            client.batch_execute("INSERT INTO oban_jobs (queue, worker) VALUES ('media', 'W')").unwrap();
        }
    });
    let empty = queues(&mut waiter, "CALL oban_wait('{insert}', timeout => '300 ms', queues => '{mail}')");
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    others.join().unwrap();
    assert_eq!(empty, [""; 0]);
}
