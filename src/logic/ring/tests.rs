use super::super::ids::{RoleOid, SchemaOid, TableOid};
use super::super::times::{ClockTime, WallTime};
use super::*;
use proptest::prelude::*;

struct Memory {
    head: RingHead,
    entries: Vec<RingEntry>,
    bytes: Vec<u8>,
    roles: Vec<RoleUsage>,
    waiters: Vec<Waiter>,
}

impl Memory {
    fn new(entries: usize, bytes: usize) -> Self {
        let mut memory = Self {
            head: RingHead::default(),
            entries: vec![RingEntry::default(); entries],
            bytes: vec![0; bytes],
            roles: vec![RoleUsage::default(); 3],
            waiters: vec![Waiter::default(); 4],
        };
        assert_eq!(memory.ring().open(1, 1000), Some(true));
        memory
    }
    fn ring(&mut self) -> Ring<'_> {
        let Self { head, entries, bytes, roles, waiters } = self;
        Ring { head, entries, bytes, roles, waiters }
    }
    fn view(&self) -> View<'_> {
        View { head: &self.head, entries: &self.entries, bytes: &self.bytes }
    }
    /// Sends one message in a transaction. The relay has to send it, unless there is no relay.
    fn send(&mut self, channel: &str, payload: &str) -> Route {
        let mut ring = self.ring();
        let route = reserve(&mut ring, 1, channel.len() + payload.len(), 0);
        if route == Route::Native {
            ring.skip(1);
        } else {
            let (channel, payload) = (&on(channel), payload.as_bytes());
            let settled = route == Route::RelayAndNative;
            ring.append(&Incoming { settled, ..incoming(channel, payload) }, WallTime(7), ClockTime(0));
        }
        route
    }
    fn read(&self, after: i64, channels: &[&str], most: usize) -> (Vec<String>, Progress) {
        let channels: Vec<Channel> = channels.iter().map(|c| on(c)).collect();
        let mut batch = Batch::new(most, 0);
        let progress = self.view().read(after, &channels, &mut batch);
        (payloads(&batch), progress)
    }
}

const ALL: Quota = Quota { entries: usize::MAX, bytes: usize::MAX };

/// Reserves room for a role without a limit.
fn reserve(ring: &mut Ring<'_>, entries: usize, bytes: usize, now: i64) -> Route {
    ring.reserve(&mut [Charge::new(RoleOid(0), entries, bytes)], ALL, || ClockTime(now))
}

fn give_back(ring: &mut Ring<'_>, entries: usize, bytes: usize) {
    ring.give_back(&[Charge::new(RoleOid(0), entries, bytes)]);
}

fn on(channel: &str) -> Channel {
    Channel::new(SchemaOid(1), channel.into())
}

/// Returns a message that the relay has to send. Its payload's length decides what else it has, so
/// that `payloads` can test it.
fn incoming<'a>(channel: &'a Channel, payload: &'a [u8]) -> Incoming<'a> {
    let table = TableOid(payload.len() as u32 / 2);
    let text = payload.len().is_multiple_of(2);
    Incoming { channel, table, payload, text, wakeup: false, settled: false, role_slot: 0 }
}

/// Returns the payloads of a batch. Each message has to have the table and the text that it was
/// sent with.
fn payloads(batch: &Batch) -> Vec<String> {
    let payload = |m: RingMessage<'_>| {
        let channel = on("");
        let Incoming { table, text, .. } = incoming(&channel, m.payload);
        assert_eq!((m.table, m.text), (table, text));
        String::from_utf8(m.payload.to_vec()).unwrap()
    };
    batch.messages().map(payload).collect()
}

fn at(position: i64) -> Progress {
    Progress { position, missed: Some(0), more: false }
}

#[test]
fn readers_go_on_where_they_were_and_hear_their_channels_only() {
    let mut memory = Memory::new(8, 100);
    assert_eq!(memory.read(1000, &["a"], 9), (vec![], at(1000)));
    for (channel, payload) in [("a", "1"), ("b", "2"), ("a", "3")] {
        assert_eq!(memory.send(channel, payload), Route::RelayAndNative);
    }
    assert_eq!(memory.read(1000, &["a"], 9), (vec!["1".into(), "3".into()], at(1003)));
    assert_eq!(
        memory.read(1000, &["a", "b"], 2),
        (vec!["1".into(), "2".into()], Progress { more: true, ..at(1002) })
    );
    assert_eq!(memory.read(1002, &["b"], 9), (vec![], at(1003)));
    let verbatim = [Channel::new(SchemaOid(0), b"a".to_vec())];
    let mut batch = Batch::new(9, 0);
    memory.view().read(1000, &verbatim, &mut batch);
    assert_eq!(batch.len(), 0, "a verbatim channel is another one");
}

#[test]
fn readers_are_told_what_they_missed() {
    let mut memory = Memory::new(3, 100);
    for n in 1..=5 {
        memory.send("a", &n.to_string());
    }
    let three: Vec<String> = ["3", "4", "5"].map(Into::into).into();
    assert_eq!(memory.read(1000, &["a"], 9), (three.clone(), Progress { missed: Some(2), ..at(1005) }));
    // The position is from before a restart, or from a server that was ahead. The number of missed
    // messages is not known, and the reader gets all messages that are there.
    for after in [0, 999, 1006, i64::MAX] {
        assert_eq!(memory.read(after, &["a"], 9), (three.clone(), Progress { missed: None, ..at(1005) }));
    }
    memory.ring().skip(4);
    assert_eq!(memory.read(1004, &["a"], 9), (vec!["5".into()], Progress { missed: Some(4), ..at(1009) }));
    memory.send("a", "6");
    assert_eq!(memory.read(1005, &["a"], 9), (vec!["6".into()], Progress { missed: Some(4), ..at(1010) }));
    assert_eq!(memory.read(1010, &["a"], 9), (vec![], at(1010)));
    let mut batch = Batch::new(9, 0);
    memory.view().read(1002, &[on("a")], &mut batch);
    assert_eq!(batch.messages().map(|m| m.missed).collect::<Vec<_>>(), [1, 1, 5]);
}

#[test]
fn what_the_relay_has_not_sent_is_not_overwritten() {
    let mut memory = Memory::new(3, 100);
    memory.ring().attach_relay(5);
    for n in 1..=3 {
        assert_eq!(memory.send("a", &n.to_string()), Route::Relay);
    }
    assert_eq!(memory.send("a", "4"), Route::Native);
    let mut batch = Batch::new(2, 0);
    assert_eq!(
        (memory.view().unsent(&mut batch), payloads(&batch)),
        ((2, true), vec!["1".into(), "2".into()])
    );
    memory.ring().passed_by_others(2);
    assert_eq!(memory.send("a", "5"), Route::Relay);
    // The relay is away for a moment: later messages do not overtake those that wait for it. After
    // that moment each transaction sends its own.
    memory.ring().detach_relay(5);
    assert_eq!(memory.send("a", "6"), Route::Relay);
    assert_eq!(memory.send("a", "7"), Route::Native);
    memory.ring().passed_by_others(4);
    assert!(!memory.view().is_stranded(|| ClockTime(RELAY_MAY_BE_AWAY - 1)));
    assert!(memory.view().is_stranded(|| ClockTime(RELAY_MAY_BE_AWAY)));
    assert_eq!(reserve(&mut memory.ring(), 1, 2, RELAY_MAY_BE_AWAY), Route::RelayAndNative);
    give_back(&mut memory.ring(), 1, 2);
    batch.clear();
    assert_eq!((memory.view().unsent(&mut batch), payloads(&batch)), ((5, false), vec!["6".into()]));
    memory.ring().passed_by_others(5);
    assert_eq!(memory.send("a", "8"), Route::RelayAndNative, "nothing waits, nobody comes");
    assert_eq!((memory.view().backlog(), memory.view().stranded_at()), (0, None));
}

#[test]
fn messages_are_stranded_when_no_relay_has_sent_for_too_long() {
    let mut memory = Memory::new(9, 100);
    let send = |memory: &mut Memory, now: i64| {
        let mut ring = memory.ring();
        assert_eq!(reserve(&mut ring, 1, 2, now), Route::Relay);
        ring.append(&incoming(&on("a"), b"1"), WallTime(7), ClockTime(now));
    };
    memory.ring().attach_relay(5);
    send(&mut memory, 100);
    send(&mut memory, 200);
    send(&mut memory, 300);
    assert_eq!(memory.view().stranded_at(), None, "there is a relay");
    // Relays that come and send nothing do not make messages wait longer. A relay that sends does.
    for _ in 0..3 {
        memory.ring().detach_relay(5);
        assert_eq!(memory.view().stranded_at(), Some(ClockTime(100 + RELAY_MAY_BE_AWAY)));
        memory.ring().attach_relay(5);
    }
    memory.ring().passed_by_relay(1, ClockTime(400));
    memory.ring().detach_relay(5);
    assert_eq!(memory.view().stranded_at(), Some(ClockTime(400 + RELAY_MAY_BE_AWAY)));
    // A transaction that sends in the relay's place does not, or the messages that are left would
    // wait again.
    memory.ring().passed_by_others(2);
    assert_eq!(memory.view().stranded_at(), Some(ClockTime(400 + RELAY_MAY_BE_AWAY)));
    memory.ring().passed_by_others(3);
    assert_eq!(memory.view().stranded_at(), None, "nothing waits");
}

#[test]
fn a_role_has_its_quota_and_no_more() {
    let mut memory = Memory::new(8, 100);
    memory.ring().attach_relay(5);
    let quota = Quota { entries: 2, bytes: 10 };
    let mut ring = memory.ring();
    let mut ask = |role, entries, bytes| {
        let mut charges = [Charge::new(role, entries, bytes)];
        (ring.reserve(&mut charges, quota, || ClockTime(0)), charges[0])
    };
    assert_eq!(ask(RoleOid(1), 3, 3).0, Route::Native, "three entries");
    assert_eq!(ask(RoleOid(1), 1, 11).0, Route::Native, "eleven bytes");
    let (route, first) = ask(RoleOid(1), 2, 4);
    assert_eq!((route, ask(RoleOid(1), 1, 1).0), (Route::Relay, Route::Native), "three together");
    let (route, second) = ask(RoleOid(2), 2, 4);
    assert_eq!(
        (route, ask(RoleOid(0), 1, 50).0),
        (Route::Relay, Route::Relay),
        "other roles, and those without a limit"
    );
    let (route, third) = ask(RoleOid(3), 1, 1);
    assert_eq!((route, ask(RoleOid(4), 1, 1).0), (Route::Relay, Route::Native), "the table of roles is full");
    // A transaction of two roles reserves for both or for none.
    let mut both = [Charge::new(RoleOid(3), 1, 1), Charge::new(RoleOid(2), 1, 1)];
    assert_eq!(memory.ring().reserve(&mut both, quota, || ClockTime(0)), Route::Native);
    memory.ring().give_back(&[first, second]);
    assert_eq!(memory.ring().reserve(&mut both, quota, || ClockTime(0)), Route::Relay);
    // A message in the ring counts until the relay has passed it.
    let (role_slot, channel) = (third.role_slot(), on("a"));
    let message = Incoming { role_slot, ..incoming(&channel, b"") };
    memory.ring().append(&message, WallTime(7), ClockTime(0));
    memory.ring().give_back(&both[1..]);
    memory.ring().append(&message, WallTime(7), ClockTime(0));
    let full = |memory: &mut Memory| {
        memory.ring().reserve(&mut [Charge::new(RoleOid(3), 1, 1)], quota, || ClockTime(0))
    };
    assert_eq!(full(&mut memory), Route::Native);
    memory.ring().passed_by_others(1);
    assert_eq!(full(&mut memory), Route::Relay);
}

#[test]
fn what_is_reserved_is_kept_and_given_back() {
    let mut memory = Memory::new(3, 10);
    memory.ring().attach_relay(5);
    let mut ring = memory.ring();
    assert_eq!(reserve(&mut ring, 2, 4, 0), Route::Relay);
    assert_eq!(reserve(&mut ring, 2, 4, 0), Route::Native, "three entries");
    assert_eq!(reserve(&mut ring, 1, 7, 0), Route::Native, "ten bytes");
    give_back(&mut ring, 2, 4);
    assert_eq!(reserve(&mut ring, 3, 10, 0), Route::Relay);
    assert_eq!(reserve(&mut ring, 1, 11, 0), Route::Native);
}

#[test]
fn the_relay_is_woken_once_and_only_for_something_to_send() {
    let mut memory = Memory::new(9, 100);
    memory.ring().attach_relay(5);
    assert!(memory.ring().relay_starts_waiting());
    memory.ring().skip(1);
    assert_eq!(memory.ring().wake_relay(), None);
    memory.send("a", "1");
    assert_eq!(memory.ring().wake_relay(), Some(5));
    memory.send("a", "2");
    assert_eq!(memory.ring().wake_relay(), None, "it is on its way");
    assert!(!memory.ring().relay_starts_waiting(), "there is something to do");
    memory.ring().passed_by_others(2);
    assert!(memory.ring().relay_starts_waiting());
    memory.ring().detach_relay(4);
    assert_eq!(memory.head.relay, 6, "that was another one");
    memory.ring().detach_relay(5);
    memory.send("a", "3");
    assert_eq!(memory.ring().wake_relay(), None);
}

#[test]
fn waiters_are_woken_once_and_for_their_channels_only() {
    let mut memory = Memory::new(9, 100);
    let mut ring = memory.ring();
    ring.start_waiting(0, &[on("a")]);
    ring.start_waiting(1, &[on("b"), on("c")]);
    let many: Vec<Channel> = (0..9).map(|n| on(&n.to_string())).collect();
    ring.start_waiting(2, &many);
    ring.start_waiting(3, &[on("a")]);
    ring.stop_waiting(3);
    ring.stop_waiting(3);
    let mut woken = [0; 4];
    let taken = |memory: &mut Memory, audience: Audience<'_>, woken: &mut [i32]| {
        let count = memory.ring().wake(audience, woken);
        woken[..count].sort();
        woken[..count].to_vec()
    };
    memory.send("a", "1");
    let mut keys = [0; 2];
    let keys = memory.ring().keys(1, &mut keys).unwrap().to_vec();
    assert_eq!(taken(&mut memory, Audience::Keys(&keys), &mut woken), [0, 2], "too many channels are any");
    assert_eq!(taken(&mut memory, Audience::Keys(&keys), &mut woken), [0; 0]);
    memory.ring().start_waiting(0, &[on("a")]);
    assert_eq!(taken(&mut memory, Audience::All, &mut woken[..1]), [0], "as many as there is room for");
    assert_eq!(taken(&mut memory, Audience::All, &mut woken), [1]);
    assert_eq!(memory.head.waiters, 0);
    memory.send("b", "2");
    memory.send("a", "3");
    assert_eq!(memory.ring().keys(3, &mut [0; 1]), None);
    assert_eq!(memory.ring().keys(3, &mut [0; 2]).map(<[u32]>::len), Some(2));
}

#[test]
fn generations_of_a_ring() {
    let mut memory = Memory::new(4, 100);
    memory.send("a", "1");
    assert_eq!(memory.ring().open(1, 5000), Some(false), "the same generation goes on");
    assert_eq!(memory.view().position(), 1001);
    memory.ring().start_waiting(2, &[on("a")]);
    assert_eq!(memory.ring().close(1), 1001);
    assert!(memory.ring().open(1, 5000).is_none() && !memory.view().is_of(1), "a late reader is told");
    assert_eq!(memory.ring().open(2, 500), Some(true));
    assert!(memory.view().position() > 1001, "positions never go back");
    assert_eq!(memory.read(1001, &["a"], 9).0, [""; 0]);
    assert_eq!(memory.ring().open(1, 5000), None);
    memory.ring().close(1);
    assert!(memory.view().is_of(2), "a later generation is not ended");
    memory.ring().close(4);
    assert_eq!(memory.ring().open(3, 0), None, "nor begun by a late process");
    memory.ring().stop_waiting(2);
    assert_eq!(memory.head.waiters, 0);
}

#[test]
fn capacity_uses_the_memory() {
    let (entries, bytes) = capacity(8 << 20);
    assert_eq!(entries * size_of::<RingEntry>() + bytes, 8 << 20);
    assert!(entries > 40_000 && bytes > 6 << 20);
}

#[derive(Clone, Debug)]
enum Step {
    /// A transaction of a role, with messages of these lengths on channel `a` or `b`.
    Commit(u32, Vec<(bool, usize)>),
    /// A transaction that reserves so much, and ends later.
    Open(u32, usize, usize),
    Abort,
    Relay(usize),
    RelayComes(bool),
    /// Reads from so far behind the last position.
    Read(i64, usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        6 => (0u32..5, prop::collection::vec((any::<bool>(), 0usize..40), 1..4))
            .prop_map(|(r, m)| Step::Commit(r, m)),
        1 => (0u32..5, 1usize..5, 0usize..80).prop_map(|(r, e, b)| Step::Open(r, e, b)),
        1 => Just(Step::Abort),
        4 => (1usize..6).prop_map(Step::Relay),
        1 => any::<bool>().prop_map(Step::RelayComes),
        4 => (-2i64..40, 1usize..9).prop_map(|(b, m)| Step::Read(b, m)),
    ];
    prop::collection::vec(step, 0..120)
}

proptest! {
    /// The model keeps every message for ever. The ring holds the tail of the model, each message
    /// whole. Messages that a reader did not get are counted. Messages that the relay has not sent
    /// are always there.
    #[test]
    fn it_is_the_tail_of_everything_sent(
        steps in steps(), slots in 1usize..12, space in 42usize..200, part in 1usize..5
    ) {
        let mut memory = Memory::new(slots, space);
        memory.ring().attach_relay(1);
        // (position, channel, payload), and what the relay still has to send.
        let mut sent: Vec<(i64, bool, String)> = Vec::new();
        let mut unsent: Vec<String> = Vec::new();
        let mut relay = true;
        let quota = Quota { entries: slots.div_ceil(part), bytes: space.div_ceil(part) };
        let mut open: Vec<Charge> = Vec::new();
        for (n, step) in steps.into_iter().enumerate() {
            match step {
                Step::Commit(role, messages) => {
                    let payload = |len: usize, i: usize| {
                        let padded = format!("{n}.{i}.{}", "x".repeat(len));
                        padded.chars().take(len.max(1)).collect::<String>()
                    };
                    let messages: Vec<(bool, String)> =
                        messages.into_iter().enumerate().map(|(i, (b, len))| (b, payload(len, i))).collect();
                    let bytes = messages.iter().map(|(_, p)| p.len() + 1).sum();
                    let mut charges = [Charge::new(RoleOid(role), messages.len(), bytes)];
                    let route = memory.ring().reserve(&mut charges, quota, || ClockTime(0));
                    for (b, payload) in messages {
                        let position = memory.view().position() + 1;
                        if route == Route::Native {
                            memory.ring().skip(1);
                            continue;
                        }
                        let channel = &on(if b { "b" } else { "a" });
                        let settled = route == Route::RelayAndNative;
                        let role_slot = charges[0].role_slot();
                        let message = incoming(channel, payload.as_bytes());
                        let message = Incoming { wakeup: b, settled, role_slot, ..message };
                        memory.ring().append(&message, WallTime(7), ClockTime(0));
                        if !settled {
                            unsent.push(payload.clone());
                        }
                        sent.push((position, b, payload));
                    }
                }
                Step::Open(role, entries, bytes) => {
                    let mut charges = [Charge::new(RoleOid(role), entries, bytes)];
                    if memory.ring().reserve(&mut charges, quota, || ClockTime(0)) != Route::Native {
                        open.extend(charges);
                    }
                }
                Step::Abort => open.pop().into_iter().for_each(|charge| memory.ring().give_back(&[charge])),
                Step::RelayComes(comes) => {
                    if comes { memory.ring().attach_relay(1) } else { memory.ring().detach_relay(1) }
                    relay = comes;
                }
                Step::Relay(most) if relay => {
                    let mut batch = Batch::new(most, 0);
                    let (upto, more) = memory.view().unsent(&mut batch);
                prop_assert_eq!(more, upto < memory.head.next);
                    let taken = payloads(&batch);
                    prop_assert!(unsent.starts_with(&taken));
                    unsent.drain(..taken.len());
                    memory.ring().passed_by_others(upto);
                }
                Step::Relay(_) => {}
                Step::Read(behind, most) => {
                    let head = memory.view().position();
                    let after = head - behind;
                    let (read, progress) = memory.read(after, &["a"], most);
                    let known = (1000..=head).contains(&after);
                    prop_assert_eq!(progress.missed.is_some(), known);
                    if !known { continue; }
                    let is_passed = |(p, ..): &&(i64, bool, String)| *p > after && *p <= progress.position;
                    let passed: Vec<_> = sent.iter().filter(is_passed).collect();
                    let on_a = passed.iter().filter(|(_, b, _)| !b);
                    let heard: Vec<&String> = on_a.map(|(.., payload)| payload).collect();
                    prop_assert!(heard.ends_with(&read.iter().collect::<Vec<_>>()), "{heard:?} {read:?}");
                    let lost = heard.len() - read.len();
                    let missed = progress.missed.unwrap();
                    let gaps = progress.position - after - passed.len() as i64;
                    let unread = progress.position - after - read.len() as i64;
                    prop_assert!(missed >= gaps + lost as i64 && missed <= unread);
                    prop_assert!(progress.more || progress.position == head);
                    prop_assert!(!progress.more || read.len() == most, "it stops only when it is full");
                }
            }
            let Memory { head, .. } = &memory;
            prop_assert!(head.first <= head.relayed && head.relayed <= head.next);
            prop_assert!(head.next - head.first <= slots as u64 && head.end - head.begin <= space as u64);
            prop_assert_eq!((head.reserved_entries, head.reserved_bytes), total(&open));
            // The usage of each role is what a count gives, and is within the quota.
            for (at, role_slot) in memory.roles.iter().enumerate() {
                let of_it = |h: u16| usize::from(h) == at + 1;
                let reserved: Vec<Charge> = open.iter().filter(|c| of_it(c.role_slot)).copied().collect();
                let waiting = (head.relayed..head.next).map(|n| *memory.view().entry(n));
                let waiting = waiting.filter(|e| of_it(e.role_slot));
                let (entries, bytes) = waiting.fold(total(&reserved), |(n, b), e| (n + 1, b + e.len()));
                prop_assert_eq!((u64::from(role_slot.entries), role_slot.bytes), (entries, bytes));
                prop_assert!(entries <= quota.entries as u64 && bytes <= quota.bytes as u64);
                let others = memory.roles[..at].iter().filter(|h| h.entries > 0 && h.role == role_slot.role);
                prop_assert!(role_slot.entries == 0 || others.count() == 0, "a role has one place");
            }
        }
        let mut batch = Batch::new(1000, 100_000);
        memory.view().unsent(&mut batch);
        prop_assert_eq!(payloads(&batch), unsent);
    }
}
