//! Explores all interleavings of takers, of processes that commit jobs, of other programs that claim them,
//! and of pause and resume.

use std::cell::Cell;
use std::collections::HashSet;
use std::hash::{DefaultHasher, Hash, Hasher};

use super::*;

thread_local! {
    static LEFT_OUT: Cell<&'static str> = const { Cell::new("") };
}

pub fn holds(rule: &str) -> bool {
    LEFT_OUT.get() != rule
}

const TAKERS: usize = 3;
const QUEUES: usize = 2;
const DB: DatabaseOid = DatabaseOid(1);
const SCHEMA: SchemaOid = SchemaOid(2);

fn key(queue: usize) -> QueueKey {
    QueueKey(queue as u64 + 1, 0)
}

/// What a taker's own process does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Step {
    /// It does not wait.
    Away,
    /// It has begun a look, and takes its snapshot next.
    Snapshot,
    /// It has this snapshot: the queues that are paused, and how many jobs it has locked of each queue.
    Claimed([u8; QUEUES], Queues),
    /// It has committed its claim.
    Committed([u8; QUEUES], Queues),
    /// It has found nothing; the queues that were paused.
    Found(Queues),
    /// It waits on its latch.
    Asleep,
    /// It has ended for good.
    Ended,
}

#[derive(Clone, Hash)]
struct World {
    fifo: Fifo,
    slots: [TakerSlot<QUEUES>; TAKERS],
    steps: [Step; TAKERS],
    /// Committed jobs that nobody has locked.
    free: [u8; QUEUES],
    /// Jobs that a process has yet to commit, and jobs that it has committed and not published.
    to_commit: [u8; QUEUES],
    to_publish: [u8; QUEUES],
    /// Jobs that another program has locked.
    foreign: [u8; QUEUES],
    /// Another program has rolled a claim back, of which nobody hears.
    unheard: bool,
    /// The takers for which queue 0 is paused.
    paused: u8,
    to_pause: u8,
    to_resume: u8,
    resume_to_publish: bool,
    deaths: u8,
    aborts: u8,
    timeouts: u8,
    foreign_claims: u8,
}

/// A scenario: which queues each taker has, how many jobs it claims at a time, and what happens.
#[derive(Clone, Copy)]
struct Scenario {
    queues: [&'static [usize]; TAKERS],
    max: [u8; TAKERS],
    jobs: [u8; QUEUES],
    deaths: u8,
    aborts: u8,
    timeouts: u8,
    foreign_claims: u8,
    /// The takers for which queue 0 is paused, as bits; 0: there is no pause.
    pause: u8,
    /// Whether the queue is paused from the start.
    paused_first: bool,
    /// The takers that see no job of queue 0, as bits: they are restricted.
    blind: u8,
    /// The takers that are restricted and see all jobs, as bits.
    restricted: u8,
}

const SCENARIO: Scenario = Scenario {
    queues: [&[0, 1], &[0], &[1]],
    max: [1; TAKERS],
    jobs: [2, 1],
    deaths: 0,
    aborts: 0,
    timeouts: 0,
    foreign_claims: 0,
    pause: 0,
    paused_first: false,
    blind: 0,
    restricted: 0,
};

impl Scenario {
    fn is_restricted(&self, taker: usize) -> bool {
        (self.blind | self.restricted) & (1 << taker) != 0
    }

    fn sees(&self, taker: usize, queue: usize) -> bool {
        queue != 0 || self.blind & (1 << taker) == 0
    }
}

impl World {
    fn new(s: &Scenario) -> Self {
        Self {
            fifo: Fifo::default(),
            slots: [TakerSlot::default(); TAKERS],
            steps: s.queues.map(|queues| if queues.is_empty() { Step::Ended } else { Step::Away }),
            free: [0; QUEUES],
            to_commit: s.jobs,
            to_publish: [0; QUEUES],
            foreign: [0; QUEUES],
            unheard: false,
            paused: if s.paused_first { s.pause } else { 0 },
            to_pause: if s.paused_first { 0 } else { s.pause },
            to_resume: s.pause,
            resume_to_publish: false,
            deaths: s.deaths,
            aborts: s.aborts,
            timeouts: s.timeouts,
            foreign_claims: s.foreign_claims,
        }
    }

    fn takers(&mut self) -> Takers<'_, QUEUES> {
        Takers { fifo: &mut self.fifo, slots: &mut self.slots }
    }

    /// Returns the set of queues of a taker that are paused for it.
    fn paused_for(&self, taker: usize, s: &Scenario) -> Queues {
        let numbers = s.queues[taker].iter().enumerate();
        numbers
            .filter(|(_, q)| **q == 0 && self.paused & (1 << taker) != 0)
            .fold(0, |all, (n, _)| all | 1 << n)
    }

    /// Has a taker lock jobs of queues that are not paused.
    fn claim(&mut self, taker: usize, s: &Scenario) {
        let paused = self.paused_for(taker, s);
        let (mut locked, mut left) = ([0; QUEUES], s.max[taker]);
        for (number, queue) in s.queues[taker].iter().enumerate() {
            let sees = s.sees(taker, *queue) && paused & (1 << number) == 0;
            while sees && left > 0 && self.free[*queue] > 0 {
                self.free[*queue] -= 1;
                locked[*queue] += 1;
                left -= 1;
            }
        }
        let none = locked == [0; QUEUES];
        self.steps[taker] = if none { Step::Found(paused) } else { Step::Claimed(locked, paused) };
    }

    /// Returns all states that can follow.
    fn next(&self, s: &Scenario) -> Vec<(String, World)> {
        let mut all = Vec::new();
        let mut add = |name: String, change: &dyn Fn(&mut World)| {
            let mut world = self.clone();
            change(&mut world);
            all.push((name, world));
        };
        for q in 0..QUEUES {
            if self.to_commit[q] > 0 {
                add(format!("job of {q} commits"), &|w| {
                    w.to_commit[q] -= 1;
                    w.free[q] += 1;
                    w.to_publish[q] += 1;
                });
            }
            if self.to_publish[q] > 0 {
                add(format!("{q} is published"), &|w| {
                    w.to_publish[q] -= 1;
                    w.takers().publish(DB, SCHEMA, key(q), 1);
                });
            }
            if self.foreign_claims > 0 && self.free[q] > 0 {
                add(format!("another program claims of {q}"), &|w| {
                    w.foreign_claims -= 1;
                    w.free[q] -= 1;
                    w.foreign[q] += 1;
                });
            }
            if self.foreign[q] > 0 {
                add("the other program commits".into(), &|w| w.foreign[q] -= 1);
                add("the other program rolls back".into(), &|w| {
                    w.foreign[q] -= 1;
                    w.free[q] += 1;
                    w.unheard = true;
                });
            }
        }
        if self.to_pause > 0 {
            add("queue 0 is paused".into(), &|w| w.paused = std::mem::take(&mut w.to_pause));
        } else if self.to_resume > 0 {
            add("queue 0 is resumed".into(), &|w| {
                (w.paused, w.to_resume, w.resume_to_publish) = (0, 0, true);
            });
        }
        if self.resume_to_publish {
            add("the resume is published".into(), &|w| {
                w.resume_to_publish = false;
                w.takers().resume(DB, SCHEMA, Some(key(0)));
            });
        }
        for t in 0..TAKERS {
            let process = Process { pid: t as i32 + 1, procno: t as i32 };
            let ends = |w: &mut World, step: Step| {
                if let Step::Claimed(locked, _) = w.steps[t] {
                    (0..QUEUES).for_each(|q| w.free[q] += locked[q]);
                }
                w.takers().leave(t);
                w.steps[t] = step;
            };
            match self.steps[t] {
                Step::Away => add(format!("{t} arrives"), &|w| {
                    let keys: Vec<QueueKey> = s.queues[t].iter().map(|q| key(*q)).collect();
                    let mut takers = w.takers();
                    takers.arrive(t, process, DB, SCHEMA, &keys);
                    takers.begin_look(t, s.is_restricted(t));
                    w.steps[t] = Step::Snapshot;
                }),
                Step::Snapshot => add(format!("{t} claims"), &|w| w.claim(t, s)),
                Step::Claimed(locked, paused) => {
                    add(format!("{t} commits {locked:?}"), &|w| w.steps[t] = Step::Committed(locked, paused));
                    if self.aborts > 0 {
                        add(format!("{t} rolls back"), &|w| {
                            w.aborts -= 1;
                            ends(w, Step::Ended);
                        });
                    }
                }
                Step::Committed(locked, paused) => add(format!("{t} has taken"), &|w| {
                    let numbers = s.queues[t].iter().enumerate();
                    let of = numbers.filter(|(_, q)| locked[**q] > 0).fold(0, |all, (n, _)| all | 1 << n);
                    let is_full = locked.iter().sum::<u8>() == s.max[t];
                    w.takers().took(t, Claimed { jobs: 1, is_full, of, paused });
                    w.steps[t] = Step::Away;
                }),
                Step::Found(paused) => add(format!("{t} found nothing"), &|w| {
                    let (next, _) = w.takers().found_nothing(t, paused);
                    w.steps[t] = Step::Asleep;
                    if next == Next::Look {
                        w.takers().begin_look(t, s.is_restricted(t));
                        w.steps[t] = Step::Snapshot;
                    }
                }),
                Step::Asleep => {
                    if self.slots[t].is_woken() {
                        add(format!("{t} wakes"), &|w| {
                            w.takers().begin_look(t, s.is_restricted(t));
                            w.steps[t] = Step::Snapshot;
                        });
                    }
                    if self.timeouts > 0 {
                        add(format!("the time of {t} is up"), &|w| {
                            w.timeouts -= 1;
                            ends(w, Step::Ended);
                        });
                    }
                }
                Step::Ended => {}
            }
            if self.deaths > 0 && !matches!(self.steps[t], Step::Away | Step::Ended) {
                add(format!("{t} dies"), &|w| {
                    w.deaths -= 1;
                    ends(w, Step::Ended);
                });
            }
        }
        all
    }

    /// Returns whether a wakeup is lost: nothing is under way, and a job waits that a sleeping taker may
    /// claim.
    fn is_lost(&self, s: &Scenario) -> bool {
        let under_way = self.to_publish != [0; QUEUES] || self.resume_to_publish || self.unheard;
        let asleep = |t: usize| self.steps[t] == Step::Asleep && !self.slots[t].is_woken();
        let ended = |t: usize| self.steps[t] == Step::Ended;
        let waits = |t: usize| {
            let paused = self.paused_for(t, s);
            let numbers = s.queues[t].iter().enumerate();
            let may_claim = |n: usize, q: usize| s.sees(t, q) && paused & (1 << n) == 0 && self.free[q] > 0;
            asleep(t) && numbers.into_iter().any(|(n, q)| may_claim(n, *q))
        };
        !under_way && (0..TAKERS).all(|t| asleep(t) || ended(t)) && (0..TAKERS).any(waits)
    }
}

/// Returns how many states a scenario has. `Err`: the steps that lose a wakeup.
fn explore(s: &Scenario) -> Result<usize, Vec<String>> {
    let fingerprint = |world: &World| {
        let mut hasher = DefaultHasher::new();
        world.hash(&mut hasher);
        hasher.finish()
    };
    let first = World::new(s);
    let mut seen = HashSet::from([fingerprint(&first)]);
    // Depth first: each entry has its successors that are still to be explored.
    let mut path: Vec<(String, Vec<(String, World)>)> = vec![("start".into(), first.next(s))];
    while let Some((_, left)) = path.last_mut() {
        let Some((name, world)) = left.pop() else {
            path.pop();
            continue;
        };
        if !seen.insert(fingerprint(&world)) {
            continue;
        }
        if world.is_lost(s) {
            let steps = path.into_iter().map(|(name, _)| name).chain([name]);
            return Err(steps.skip(1).collect());
        }
        let next = world.next(s);
        path.push((name, next));
    }
    Ok(seen.len())
}

fn scenarios() -> Vec<Scenario> {
    const NONE: &[usize] = &[]; // a taker that does not come
    vec![
        Scenario { jobs: [1, 1], deaths: 1, aborts: 1, ..SCENARIO },
        Scenario { queues: [&[0, 1], &[1, 0], NONE], max: [2, 1, 1], jobs: [2, 1], aborts: 1, ..SCENARIO },
        Scenario { queues: [&[0], &[0], &[0]], jobs: [2, 0], deaths: 1, foreign_claims: 1, ..SCENARIO },
        Scenario { queues: [&[0], &[0], NONE], jobs: [3, 0], timeouts: 1, aborts: 1, ..SCENARIO },
        Scenario { queues: [&[0, 1], &[0], NONE], pause: 0b111, jobs: [2, 1], timeouts: 1, ..SCENARIO },
        Scenario { queues: [&[0], &[0], NONE], pause: 0b001, jobs: [2, 0], deaths: 1, ..SCENARIO },
        Scenario {
            queues: [&[0, 1], &[0, 1], NONE],
            pause: 0b011,
            paused_first: true,
            jobs: [1, 1],
            aborts: 1,
            ..SCENARIO
        },
        Scenario { queues: [&[0, 1], &[0], NONE], blind: 0b001, jobs: [2, 1], aborts: 1, ..SCENARIO },
        Scenario {
            queues: [&[0], &[0], &[0]],
            restricted: 0b001,
            jobs: [2, 0],
            aborts: 1,
            deaths: 1,
            ..SCENARIO
        },
        Scenario { queues: [&[0, 1], &[0], &[0]], blind: 0b001, restricted: 0b010, jobs: [2, 1], ..SCENARIO },
    ]
}

#[test]
fn no_wakeup_is_lost() {
    for (number, scenario) in scenarios().iter().enumerate() {
        let states =
            explore(scenario).unwrap_or_else(|steps| panic!("scenario {number}: {}", steps.join(" -> ")));
        println!("scenario {number}: {states} states");
    }
}

#[test]
fn without_any_of_the_rules_a_wakeup_is_lost() {
    for rule in [
        "resume_during_a_look",
        "paused_is_passed_on",
        "success_wakes_the_next",
        "a_look_that_fails_is_passed_on",
        "a_sleeper_that_leaves_passes_on",
        "restricted_takers_are_woken_besides",
    ] {
        LEFT_OUT.set(rule);
        let lost = scenarios().iter().find_map(|scenario| explore(scenario).err());
        println!("without {rule}: {}", lost.as_ref().map_or("nothing is lost".into(), |l| l.join(" -> ")));
        assert!(lost.is_some(), "{rule}");
        LEFT_OUT.set("");
    }
}
