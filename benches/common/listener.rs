//! Sessions that LISTEN and only count what they hear. (The work of a driver would count as the server's,
//! because it runs on the same processors.)

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use super::support::Cluster;

pub struct Listener {
    socket: UnixStream,
    buffer: Vec<u8>,
}

impl Listener {
    /// Connects, and LISTENs to a channel if there is one.
    pub fn new(cluster: &Cluster, channel: &str) -> Self {
        let path = format!("{}/.s.PGSQL.5432", cluster.socket_folder());
        let socket = UnixStream::connect(path).expect("the server takes connections");
        let mut listener = Self { socket, buffer: Vec::new() };
        let mut startup = 196_608u32.to_be_bytes().to_vec(); // version 3.0 of the protocol
        startup.extend_from_slice(b"user\0postgres\0database\0postgres\0\0");
        listener.send(None, &startup);
        listener.read_until(b'Z');
        if !channel.is_empty() {
            listener.send(Some(b'Q'), format!("LISTEN \"{channel}\"\0").as_bytes());
            listener.read_until(b'Z');
        }
        listener
    }

    fn send(&mut self, kind: Option<u8>, body: &[u8]) {
        let mut message: Vec<u8> = kind.into_iter().collect();
        message.extend_from_slice(&(body.len() as u32 + 4).to_be_bytes());
        message.extend_from_slice(body);
        self.socket.write_all(&message).expect("the server reads");
    }

    fn read_until(&mut self, wanted: u8) {
        let mut found = false;
        while !found {
            self.read(|kind, _| found |= kind == wanted);
        }
    }

    /// Reads once, and calls `body` with each complete message: its kind and its content. Returns false at
    /// the end of the connection.
    fn read(&mut self, mut body: impl FnMut(u8, &[u8])) -> bool {
        let mut chunk = [0; 65_536];
        match self.socket.read(&mut chunk) {
            Ok(0) => return false,
            Ok(n) => self.buffer.extend_from_slice(&chunk[..n]),
            Err(_) => {} // the read has timed out
        }
        let mut at = 0;
        while self.buffer.len() >= at + 5 {
            let len =
                u32::from_be_bytes(self.buffer[at + 1..at + 5].try_into().expect("four bytes")) as usize;
            if self.buffer.len() < at + 1 + len {
                break;
            }
            body(self.buffer[at], &self.buffer[at + 5..at + 1 + len]);
            at += 1 + len;
        }
        self.buffer.drain(..at);
        true
    }

    /// Waits for notifications and calls `body` with the payload of each, until it returns false.
    pub fn each(&mut self, mut body: impl FnMut(&[u8]) -> bool) {
        let mut goes_on = true;
        while goes_on {
            let open = self.read(|kind, message| {
                if kind == b'A' {
                    // The number of the sending process, the channel and the payload. The last two end with a
                    // zero byte.
                    let payload = message[4..].splitn(3, |b| *b == 0).nth(1).unwrap_or_default();
                    goes_on &= body(payload);
                }
            });
            assert!(open, "the server has closed the connection");
        }
    }
}

/// Listeners, each in a thread.
pub struct Listeners {
    stop: Arc<AtomicBool>,
    counts: Vec<Arc<AtomicU64>>,
    threads: Vec<std::thread::JoinHandle<()>>,
}

impl Listeners {
    pub fn start(cluster: &Cluster, number: usize, channel: &str) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let counts: Vec<_> = (0..number).map(|_| Arc::new(AtomicU64::new(0))).collect();
        let threads = counts
            .iter()
            .map(|count| {
                let (mut listener, count, stop) =
                    (Listener::new(cluster, channel), count.clone(), stop.clone());
                listener.socket.set_read_timeout(Some(Duration::from_millis(50))).expect("it can be set");
                std::thread::spawn(move || {
                    while !stop.load(Ordering::Relaxed) {
                        let mut heard = 0;
                        assert!(listener.read(|kind, _| heard += u64::from(kind == b'A')), "closed");
                        count.fetch_add(heard, Ordering::Relaxed);
                    }
                })
            })
            .collect();
        Self { stop, counts, threads }
    }

    /// How many notifications each listener has heard.
    pub fn heard(&self) -> Vec<u64> {
        self.counts.iter().map(|count| count.load(Ordering::Relaxed)).collect()
    }

    pub fn stop(self) {
        self.stop.store(true, Ordering::Relaxed);
        self.threads.into_iter().for_each(|thread| thread.join().expect("it ends"));
    }
}
