//! The time from when a statement is sent until another session receives its notification.

use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use super::common::{median, quantile};
use super::listener::Listener;
use super::report::Latency;
use super::support::{Cluster, PATIENCE};
use super::throughput::{Load, insert};
use super::{Arm, Plan};

/// Measures obanrs against a statement trigger with native NOTIFY, idle and under load.
pub fn measure(cluster: &Cluster, plan: &Plan) -> Vec<Latency> {
    let number = plan.latencies / plan.rounds;
    let idle = |arm| sample(cluster, arm, number);
    let mut all = vec![compare("idle", plan, idle)];
    // Each load has so many transactions of the same kind a second. Without a number it has as many as 16
    // clients can do.
    for (load, rate) in [("1,000/s", Some(1_000)), ("3,000/s", Some(3_000)), ("saturated, 16 clients", None)]
    {
        all.push(compare(load, plan, |arm| loaded(cluster, arm, number.min(150), rate)));
    }
    all
}

fn loaded(cluster: &Cluster, arm: Arm, number: usize, rate: Option<u32>) -> Vec<f64> {
    let script = insert(arm, 1);
    let load = Load::start(cluster, &script, 16, rate);
    std::thread::sleep(Duration::from_millis(700)); // until the load has connected
    let times = sample(cluster, arm, number);
    load.stop(); // the load has run until here
    times
}

fn compare(load: &'static str, plan: &Plan, sample: impl Fn(Arm) -> Vec<f64>) -> Latency {
    let (mut p50, mut p99, mut all) = (Vec::new(), Vec::new(), [Vec::new(), Vec::new()]);
    for round in 0..plan.rounds {
        let mut times = [Vec::new(), Vec::new()];
        for turn in 0..2 {
            let which = (turn + round) % 2;
            times[which] = sample([Arm::Bus, Arm::Statement][which]);
        }
        p50.push(quantile(&times[0], 0.5) / quantile(&times[1], 0.5));
        p99.push(quantile(&times[0], 0.99) / quantile(&times[1], 0.99));
        for (all, times) in all.iter_mut().zip(times) {
            all.extend(times);
        }
    }
    let [bus, native] = all.map(|times| (quantile(&times, 0.5), quantile(&times, 0.99)));
    eprintln!(
        "latency {load}: p50 {:?} p99 {:?} bus {bus:?} native {native:?}",
        median(p50.clone()),
        median(p99.clone())
    );
    Latency { load, bus, native, p50: median(p50), p99: median(p99) }
}

/// Returns the times in microseconds.
fn sample(cluster: &Cluster, arm: Arm, number: usize) -> Vec<f64> {
    let mut listener = Listener::new(cluster, &format!("{}.oban_insert", arm.prefix()));
    let (heard, hears) = channel();
    let receiver = std::thread::spawn(move || {
        let mut left = number;
        listener.each(|payload| {
            // The notifications of the load are of another queue.
            if payload.windows(6).any(|w| w == b"probe-") {
                let _ = heard.send(Instant::now());
                left -= 1;
            }
            left > 0
        });
    });
    let mut client = cluster.client();
    let sql = format!("INSERT INTO \"{}\".oban_jobs (worker, queue) VALUES ('Worker', $1)", arm.prefix());
    let insert = client.prepare(&sql).expect("it can be prepared");
    let times = (0..number)
        .map(|n| {
            std::thread::sleep(Duration::from_millis(3)); // longer than the relay's interval
            let queue = format!("probe-{n}");
            let sent = Instant::now();
            client.execute(&insert, &[&queue]).expect("it inserts");
            let received: Instant = hears.recv_timeout(PATIENCE).expect("it is heard");
            received.saturating_duration_since(sent).as_secs_f64() * 1e6
        })
        .collect();
    receiver.join().expect("it has heard them all");
    times
}
