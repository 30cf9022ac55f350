//! From the statement that is sent to the notification that is received, in another session.

use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use super::listener::Listener;
use super::report::Latency;
use super::support::{Cluster, PATIENCE};
use super::throughput::{insert, pgbench};
use super::{Arm, Plan, median, quantile};

/// Ratios to a statement trigger with native NOTIFY.
pub fn measure(cluster: &Cluster, plan: &Plan) -> Vec<Latency> {
    let idle = |arm| sample(cluster, arm, plan.latencies / plan.rounds, Duration::from_millis(3));
    let saturated = |arm| {
        let script = insert(arm, 1);
        let seconds = plan.cell.max(Duration::from_secs(2)) + Duration::from_secs(2);
        std::thread::scope(|scope| {
            let load = scope.spawn(move || pgbench(cluster, &script, 16, seconds, || {}));
            std::thread::sleep(Duration::from_millis(700)); // until it has connected
            let times =
                sample(cluster, arm, (plan.latencies / plan.rounds).min(150), Duration::from_millis(3));
            load.join().expect("it ends");
            times
        })
    };
    vec![compare("idle", plan, idle), compare("saturated, 16 clients", plan, saturated)]
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

/// In microseconds.
fn sample(cluster: &Cluster, arm: Arm, number: usize, pause: Duration) -> Vec<f64> {
    let mut listener = Listener::new(cluster, &format!("{}.oban_insert", arm.prefix()));
    let (heard, hears) = channel();
    let receiver = std::thread::spawn(move || {
        let mut left = number;
        listener.each(|payload| {
            // The load's own are of another queue.
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
            std::thread::sleep(pause);
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
