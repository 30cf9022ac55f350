//! Which values does a call get: useful ones, or hostile ones?

use crate::memory::packed;
use crate::splitbrain::Dice;

pub fn pick<T: Copy>(dice: &mut Dice, of: &[T]) -> T {
    of[dice.below(of.len() as u64) as usize]
}

/// Returns one of the lines, without its indentation.
pub fn line(dice: &mut Dice, lines: &'static str) -> &'static str {
    let lines: Vec<&str> = lines.trim_matches('\n').lines().collect();
    lines[dice.below(lines.len() as u64) as usize].trim_start()
}

/// Returns one of the parts between bars.
pub fn one_of(dice: &mut Dice, of: &'static str) -> String {
    let of: Vec<&str> = of.split(" | ").collect();
    of[dice.below(of.len() as u64) as usize].to_owned()
}

/// The text as an SQL literal.
pub fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

/// Returns an SQL expression for a hostile text.
fn odd_text(dice: &mut Dice) -> String {
    match dice.below(12) {
        0 => quoted(&"x".repeat(63)),
        1 => quoted(&"x".repeat(64)),
        2 => quoted(&format!("{}x", "é".repeat(31))),
        3 => quoted(&format!("x{}", "é".repeat(32))),
        4 => quoted(pick(dice, &["", " ", "a\nb", "a\r\nb", "\t\u{1}\u{7f}", "\u{202e}abc", "\u{feff}"])),
        5 => line(dice, ODD_TEXTS).into(),
        _ => quoted(&one_of(dice, ODD_WORDS)),
    }
}

const ODD_WORDS: &str = "a.b | . | p\"q | \" | it's | \\ | $1 | %s%n%d | -- | /* | ; DROP TABLE | * | Odd | \
    ünï | 日本語 | 😀 | e\u{301} | NaN | null | pg_catalog | pg_toast | pg_temp | pg_temp_3 | pg_foo | \
    information_schema | shadow | ext | nowhere | PUBLIC | oban_jobs | public.oban_insert | Z: | H4sI | \
    H4sIAAAA | {} | {\"a\":";

/// Expressions for texts that the statement builds, or fails to build.
const ODD_TEXTS: &str = r#"
    NULL
    pg_catalog.repeat('x', 255)
    pg_catalog.repeat('x', 256)
    pg_catalog.repeat('日', 100)
    pg_catalog.repeat('x', 8000)
    pg_catalog.repeat('x', 5000000)
    pg_catalog.chr(0)
    E'\xff'
    pg_catalog.convert_from('\xc3', 'UTF8')
"#;

/// JSON that is unusual, and texts that are no JSON.
const ODD_JSON: &str = r#"
    []
    1
    null
    "x"
    true
    {"a":1,"a":2}
    {"":""}
    {"a":1e131071}
    {"a":-1e-16383}
    {"a":1e131072}
    {"a":123456789012345678901234567890.5}
    {"a":"\u0000"}
    {"a":"\\u0000"}
    {"a":"\ud83d\ude00\u2028"}
    {"a":"\ud800"}
    {"\u0001":"\u001f"}
    {"queue":null}
    {"queue":["a"]}
    {"queue":"default"}
    {"running":[1,2]}
    {"running":[null,{},1e300,"x"]}
    {"running":1}
    {"paused":"maybe"}
    {"paused":1}
    {"paused":null}
    {"limit":10000000000}
    {"limit":-1}
    {"local_limit":1.5}
    {"local_limit":null,"limit":3}
    {"local_limit":"3"}
    {"uuid":{}}
    {"uuid":"x"}
    {"started_at":"infinity"}
    {"started_at":"now"}
    {"started_at":"2026-01-01T00:00:00Z"}
    {"started_at":"0000-00-00T00:00:00Z"}
    {"started_at":"9999-12-31T23:59:60Z","shutdown_started_at":"-4713-01-01T00:00:00Z"}
    {"started_at":12}
    {"name":"x","node":"y","queue":"z"}
    {"global_limit":{"allowed":1e300}}
    {"rate_limit":{"windows":[{"curr_count":1}]}}
    {"action":"pkill","job_id":1}
    {"é":"日本😀"}
"#;

/// Expressions for documents that the statement builds.
const LONG_JSON: &str = "
    NULL
    pg_catalog.jsonb_build_object('a', pg_catalog.repeat('x', 7980))
    pg_catalog.jsonb_build_object('a', pg_catalog.repeat('x', 70000))
    pg_catalog.jsonb_build_object('a', pg_catalog.repeat('x', 20000000))
    pg_catalog.jsonb_build_object(pg_catalog.repeat('é', 4000), 1)
    pg_catalog.to_jsonb(pg_catalog.array_fill(1, ARRAY[20000]))
";

/// Returns an SQL expression for a payload, a state or another document.
pub fn odd_json(dice: &mut Dice) -> String {
    match dice.below(8) {
        0 => {
            let depth = pick(dice, &[50usize, 99, 101, 499, 501, 5_000]);
            quoted(&format!("{{\"a\":{}{}}}", "[".repeat(depth), "]".repeat(depth)))
        }
        1 => line(dice, LONG_JSON).into(),
        _ => quoted(line(dice, ODD_JSON)),
    }
}

pub fn wire(dice: &mut Dice) -> String {
    let json =
        one_of(dice, r#"{} | [1] | {"a":"\u0000"} | {"a":"\ud800"} | 1e1000000 | nonsense | {"a":[[[[]]]]}"#);
    let mut wire = packed(&json);
    match dice.below(5) {
        0 => wire = packed(&"[".repeat(100_000)),
        1 => wire = packed(&format!("\"{}\"", "x".repeat(20_000_000))),
        2 => wire.truncate(dice.below(wire.len() as u64) as usize),
        3 => wire.replace_range(12..13, "A"),
        _ => {}
    }
    quoted(&format!("{}{wire}", pick(dice, &["", "Z:", "z:", " "])))
}

/// Expressions for arrays of texts.
const ARRAYS: &str = r#"
    NULL
    '{}'
    ARRAY[NULL]::text[]
    '{insert,NULL}'
    '{{insert,signal},{gossip,leader}}'
    '[-5:-4]={insert,signal}'
    '[2147483645:2147483646]={a,b}'
    '{""}'
    '{Insert}'
    '{insert,insert,insert}'
    (ARRAY['a', 'insert', NULL])[2:2]
    pg_catalog.array_fill('a'::text, ARRAY[64])
    pg_catalog.array_fill('a'::text, ARRAY[65])
    pg_catalog.array_fill('a'::text, ARRAY[100000])
    pg_catalog.array_fill(NULL::text, ARRAY[10], ARRAY[-3])
    pg_catalog.array_fill('a'::text, ARRAY[2,2,2,2,2,2])
    pg_catalog.string_to_array('a,b,,c', ',')
"#;

/// Expressions for arrays of documents.
const ARRAYS_OF_JSON: &str = r#"
    NULL
    '{}'
    ARRAY[NULL]::jsonb[]
    ARRAY['{}', NULL]::jsonb[]
    '{{"{}","{}"},{"{}","[]"}}'
    '[-5:-4]={"{}","{}"}'
    pg_catalog.array_fill('{}'::jsonb, ARRAY[1000])
    pg_catalog.array_fill('{}'::jsonb, ARRAY[1048577])
    (SELECT pg_catalog.array_agg(pg_catalog.jsonb_build_object('i', i)) FROM pg_catalog.generate_series(1, 400) i)
    (SELECT pg_catalog.array_agg(pg_catalog.jsonb_build_object('i', i)) FROM pg_catalog.generate_series(1, 100) i)
"#;

/// Intervals.
const INTERVALS: &str = r#"
    NULL
    '0'
    '1 microsecond'
    '99 ms'
    '100 ms'
    '-1 s'
    '1 day'
    '24:00:00.000001'
    '1 mon -30 days'
    '-1 mon 31 days'
    '366 days'
    '178000000 years'
    '-178000000 years'
    'infinity'
    '-infinity'
    '2147483647 days'
    '-2147483648 mons'
    '2562047788:00:54.775807'
    '-9223372036854775808 microseconds'
    pg_catalog.make_interval(2147483647)
    ''
"#;

/// Positions, terms and members.
const NUMBERS: &str = "NULL | 0 | -1 | 1 | 2 | 7 | 30 | 2147483648 | 1099511627776 | 9223372036854775807 \
    | -9223372036854775808 | 9223372036854775808 | 'x'";

/// Useful values, by the name of the argument.
const OF_USE: [(&str, &str); 28] = [
    ("after", "NULL | 0 | ext.oban_position()"),
    ("channel", "'insert' | 'gossip' | 'signal' | 'leader' | 'sonar'"),
    ("channels", "'{insert}' | '{gossip,insert,leader,signal}' | '{sonar}'"),
    ("condition", "NULL | 'true' | 'NEW IS NOT NULL' | 'OLD IS DISTINCT FROM NEW'"),
    ("events", "'{insert}' | '{insert,update}' | '{insert,update,delete}'"),
    ("args", "'{}' | '{\"a\": 1}'"),
    (
        "jobs",
        "'[]' | '[{\"worker\": \"w\"}, {\"worker\": \"w\", \"unique_keys\": []}]' | '[{\"worker\": \"w\", \"args\": {\"a\": 1}, \"unique_keys\": [\"a\"]}]'",
    ),
    ("lease", "NULL | '100 ms' | '1 s' | '1 min'"),
    ("max_jobs", "1 | 10"),
    ("max_messages", "1 | 10 | 1000"),
    ("name", "'Oban' | 'Oban' | 'Other'"),
    ("node", "'web.1' | 'web.2' | 'web.3' | pg_catalog.gen_random_uuid()::text"),
    ("payload", "'{}' | '{\"queue\": \"default\"}' | '{\"a\": 1}'"),
    ("payloads", "ARRAY['{}']::jsonb[] | ARRAY['{\"a\": 1}', '{\"b\": 2}']::jsonb[]"),
    ("prefix", "'public' | 'public' | 'app' | 'r1' | 'r2' | 'R 3' | 'p\"q'"),
    ("queue", "'default' | 'mail'"),
    ("queue_column", "NULL | 'queue' | 'name'"),
    (
        "queue_table",
        "pg_catalog.to_regclass('public.oban_jobs') | pg_catalog.to_regclass('app.oban_jobs') | pg_catalog.to_regclass('r1.oban_peers')",
    ),
    ("queues", "'{default}' | '{default,mail}'"),
    ("replace", "true | false"),
    (
        "state",
        "'{}' | '{\"limit\": 10, \"running\": [1], \"paused\": false}' | pg_catalog.jsonb_build_object('pad', pg_catalog.repeat('x', 20000))",
    ),
    ("stage", "NULL | NULL | false"),
    ("timeout", "'0' | '1 ms' | '50 ms'"),
    ("ttl", "NULL | '1 s' | '1 min'"),
    ("unique_keys", "NULL | '{}' | '{a}'"),
    ("uuid", "NULL | 'u'"),
    ("wire", "'{}' | 'H4sIAAAAAAAAA6uuBQBDv6ajAgAAAA=='"),
    ("term", "1 | (SELECT o.term FROM ext.oban_leadership o LIMIT 1)"),
];

/// Returns a value for an argument: a useful one, if there is one and `hostile` is false.
pub fn value(dice: &mut Dice, name: &str, kind: &str, hostile: bool) -> String {
    if !hostile && let Some((_, of_use)) = OF_USE.iter().find(|(of, _)| *of == name) {
        return one_of(dice, of_use);
    }
    match kind {
        "text" if name == "wire" && dice.below(2) == 0 => wire(dice),
        "text" => odd_text(dice),
        "text[]" => match dice.below(3) {
            0 => format!("ARRAY['insert', {}]::text[]", odd_text(dice)),
            _ => line(dice, ARRAYS).into(),
        },
        "jsonb" => odd_json(dice),
        "jsonb[]" => match dice.below(3) {
            0 => format!("ARRAY['{{}}', {}]::jsonb[]", odd_json(dice)),
            _ => line(dice, ARRAYS_OF_JSON).into(),
        },
        "name" => odd_text(dice),
        "regclass" => one_of(
            dice,
            "NULL | 0 | 99999999 | 'pg_catalog.pg_class' | 'ext.oban_members' | 'ext.obanrs_term' | 'public.oban_jobs'",
        ),
        "bigint" => one_of(dice, NUMBERS),
        "integer" => one_of(dice, "NULL | 0 | -1 | 1 | 2147483647 | -2147483648 | 2147483648 | 1e300"),
        "boolean" => one_of(dice, "NULL | true | false"),
        "interval" => line(dice, INTERVALS).into(),
        "timestamptz" | "timestamp with time zone" => one_of(
            dice,
            "NULL | 'infinity' | '-infinity' | 'epoch' | '0001-01-01 BC' | '294276-12-31' | pg_catalog.now() | ''",
        ),
        other => panic!("what is a hostile {other}? Say so here"),
    }
}
