//! A server that belongs to one test.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

use postgres::error::DbError;
use postgres::{Client, NoTls};

use super::Ask;
use super::installation::installation;
use super::workspace::{output, workspace};

pub struct Cluster {
    folder: PathBuf,
    /// Variables that are added to the environment of the server.
    environment: Vec<(String, String)>,
    /// How many bytes of address space each process of the server may have. `None`: there is no limit.
    memory: Option<u64>,
    /// A shell in the server's own network. `None`: the server has no network of its own.
    network: Option<Mutex<Shell>>,
}

/// These make a server start and stop quickly. A crash of the machine may lose its data.
const SETTINGS: &str = "
listen_addresses = ''
port = 5432
fsync = off
shared_buffers = 16MB
max_connections = 60
max_worker_processes = 24
max_prepared_transactions = 10
log_min_messages = warning
log_line_prefix = '%m [%p] %b '
autovacuum = off
";

/// The script of the shell in the server's network. It runs each line that it gets, and answers whether the
/// line succeeded.
const NETWORK: &str = "
PATH=$PATH:/usr/sbin:/sbin
trap 'kill $(jobs -p) 2>/dev/null' EXIT
while read -r line; do
    if eval \"${line%;}\" </dev/null >/dev/null 2>&1; then echo yes; else echo no; fi
done
";

impl Cluster {
    /// Starts a server with obanrs preloaded, and with the extension in the database postgres.
    pub fn with_extension() -> Self {
        let cluster = Self::start(&["shared_preload_libraries = 'obanrs'"]);
        cluster.client().batch_execute("CREATE EXTENSION obanrs").expect("the extension can be created");
        cluster
    }

    /// Starts such a server, with the tables of the prefix public as well.
    pub fn installed() -> Self {
        let cluster = Self::with_extension();
        cluster.client().batch_execute("SELECT oban_install()").expect("the prefix can be installed");
        cluster
    }

    /// Starts a server with these lines in its configuration.
    pub fn start(settings: &[&str]) -> Self {
        Self::start_in(settings, &[])
    }

    /// Starts a server with these lines in its configuration and these variables in its environment.
    pub fn start_in(settings: &[&str], environment: &[(&str, &str)]) -> Self {
        let environment = environment.iter().map(|(name, value)| (name.to_string(), value.to_string()));
        let cluster = Self::prepared(settings, environment.collect());
        cluster.run(&["start", "-w", "-t", "60"]);
        cluster
    }

    /// Starts a server with a wall clock of its own, which `step_clock` steps.
    pub fn start_with_clock(settings: &[&str]) -> Self {
        let mut cluster = Self::prepared(settings, Vec::new());
        let file = cluster.clock_file();
        fs::write(&file, 0_i64.to_ne_bytes()).expect("its folder can be written");
        output(Command::new("chmod").arg("a+r").arg(&file));
        let text = |path: &Path| path.to_str().expect("our paths are text").to_owned();
        cluster.environment = vec![
            ("LD_PRELOAD".to_owned(), text(clock_library())),
            ("OBANRS_TEST_CLOCK".to_owned(), text(&file)),
        ];
        cluster.start_again();
        cluster
    }

    /// Steps the wall clock of a server that was started with one of its own. The step counts for all of its
    /// processes at once, and for those that start later. Its other clocks go on.
    pub fn step_clock(&self, seconds: i64) {
        let file = self.clock_file();
        let before = fs::read(&file).expect("the server was started with a clock");
        let before = i64::from_ne_bytes(before.try_into().expect("it is a number"));
        // One write changes the file in place, because processes have it mapped.
        let mut file = fs::OpenOptions::new().write(true).open(file).expect("it can be written");
        file.write_all(&(before + seconds).to_ne_bytes()).expect("it can be written");
    }

    fn clock_file(&self) -> PathBuf {
        self.folder.join("clock")
    }

    /// Starts a server in a network of its own, which has a loopback and nothing else. So its TCP ports
    /// disturb no other program.
    pub fn start_in_own_network(settings: &[&str]) -> Self {
        let mut cluster = Self::prepared(settings, Vec::new());
        let mut unshare = workspace().command("unshare".as_ref());
        unshare.args(["--user", "--map-current-user", "--net", "--keep-caps", "sh", "-c", NETWORK]);
        unshare.env("FOLDER", &cluster.folder).env("BIN", &installation().bin);
        cluster.network = Some(Mutex::new(Shell::start(&mut unshare)));
        let started = cluster.in_own_network(
            "ip link set lo up && $BIN/pg_ctl -D $FOLDER/data -l $FOLDER/log -s -w -o \"-c unix_socket_directories=$FOLDER\" start",
        );
        assert!(started, "it did not start:\n{}", cluster.log());
        cluster
    }

    /// Runs a line of sh in the server's own network. Returns whether the line succeeded. FOLDER is the
    /// server's folder.
    pub fn in_own_network(&self, line: &str) -> bool {
        let network = self.network.as_ref().expect("it has a network of its own");
        network.lock().expect("no test has failed in it").ask(line) == "yes"
    }

    /// Makes a server's folder, with these lines in its configuration.
    fn prepared(settings: &[&str], environment: Vec<(String, String)>) -> Self {
        let cluster = Self { folder: Self::new_folder(), environment, memory: None, network: None };
        let mut copy = workspace().command("cp".as_ref());
        output(copy.arg("-a").arg(template()).arg(&cluster.folder));
        cluster.configure(settings);
        cluster
    }

    fn new_folder() -> PathBuf {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        workspace().folder.join(format!("c{}", COUNT.fetch_add(1, Ordering::Relaxed)))
    }

    /// Adds lines to the configuration. They count after a restart or a reload.
    pub fn configure(&self, settings: &[&str]) {
        let file = self.folder.join("data/postgresql.conf");
        let mut text = fs::read_to_string(&file).expect("the configuration is there");
        for line in settings {
            text.push_str(line);
            text.push('\n');
        }
        fs::write(file, text).expect("the configuration can be written");
    }

    pub fn restart(&self) {
        self.run(&["restart", "-w", "-m", "fast", "-t", "60"]);
    }

    /// Stops the server, and starts it again with so many bytes of address space for each of its processes.
    /// Beyond them an allocation fails, as on a machine that does not overcommit.
    pub fn restart_with_memory(&mut self, bytes: u64) {
        self.stop("fast");
        self.memory = Some(bytes);
        self.start_again();
    }

    /// Stops the server in a mode of pg_ctl: smart, fast or immediate. Ten seconds are far more than a stop
    /// takes. Without the limit, a worker that does not end would hold the test up for ever.
    pub fn stop(&self, mode: &str) {
        self.run(&["stop", "-w", "-m", mode, "-t", "10"]);
    }

    pub fn start_again(&self) {
        self.run(&["start", "-w", "-t", "60"]);
    }

    /// Starts a standby of this server, with the server's settings and these.
    pub fn standby(&self, settings: &[&str]) -> Self {
        let environment = self.environment.clone();
        let standby = Self { folder: Self::new_folder(), environment, memory: None, network: None };
        let mut mkdir = workspace().command("mkdir".as_ref());
        output(mkdir.arg(&standby.folder));
        let mut basebackup = self.program("pg_basebackup");
        output(
            basebackup
                .args(["--write-recovery-conf", "--checkpoint=fast", "--pgdata"])
                .arg(standby.data_folder()),
        );
        standby.configure(settings);
        standby.run(&["start", "-w", "-t", "60"]);
        standby
    }

    /// Promotes a standby.
    pub fn promote(&self) {
        self.run(&["promote", "-w", "-t", "60"]);
    }

    /// Waits until the standby can read everything that was written so far.
    pub fn wait_for_standby(&self, standby: &Self) {
        let written: String = self.client().one("SELECT pg_current_wal_flush_lsn()::text");
        let mut client = standby.client();
        let replayed = format!("SELECT pg_last_wal_replay_lsn() >= '{written}'");
        super::wait_until("the standby has it", || client.one(&replayed));
    }

    fn run(&self, what: &[&str]) {
        let mut command = self.pg_ctl();
        command
            .arg("-D")
            .arg(self.folder.join("data"))
            .arg("-l")
            .arg(self.log_file())
            .args(["-s"])
            .args(what);
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        command.arg("-o").arg(format!("-c unix_socket_directories={}", self.folder.display()));
        let result = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status();
        assert!(result.expect("pg_ctl starts").success(), "pg_ctl {what:?} failed:\n{}", self.log());
    }

    fn pg_ctl(&self) -> Command {
        let program = installation().bin.join("pg_ctl");
        let Some(bytes) = self.memory else { return workspace().command(&program) };
        let mut shell = workspace().command("sh".as_ref());
        shell.args(["-c", "ulimit -v \"$0\" && exec \"$@\"", &(bytes / 1024).to_string()]).arg(program);
        shell
    }

    fn log_file(&self) -> PathBuf {
        self.folder.join("log")
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.log_file()).unwrap_or_default()
    }

    /// The folder of the server's socket, for clients outside of this process.
    pub fn socket_folder(&self) -> &str {
        self.folder.to_str().expect("our path is text")
    }

    /// Connects as superuser to the database postgres.
    pub fn client(&self) -> Client {
        self.client_as("postgres", "postgres")
    }

    pub fn client_of(&self, database: &str) -> Client {
        self.client_as(database, "postgres")
    }

    pub fn client_as(&self, database: &str, user: &str) -> Client {
        self.try_client(database, user).unwrap_or_else(|e| panic!("can't connect: {e}\n{}", self.log()))
    }

    pub fn try_client(&self, database: &str, user: &str) -> Result<Client, postgres::Error> {
        let mut config = postgres::Config::new();
        config.host_path(&self.folder).user(user).dbname(database).connect(NoTls)
    }

    /// Connects as superuser. Returns the connection, and a list that collects each NOTICE and WARNING.
    pub fn client_with_notices(&self) -> (Client, Arc<Mutex<Vec<DbError>>>) {
        let told: Arc<Mutex<Vec<DbError>>> = Arc::default();
        let kept = told.clone();
        let mut config = postgres::Config::new();
        config.host_path(&self.folder).user("postgres").dbname("postgres");
        config.notice_callback(move |notice| kept.lock().expect("no thread panics here").push(notice));
        (config.connect(NoTls).expect("it listens"), told)
    }

    /// Starts psql as a process that a test can kill.
    pub fn shell(&self) -> Shell {
        let mut command = workspace().command(&installation().bin.join("psql"));
        command.args(["-X", "-q", "-A", "-t", "-U", "postgres", "-h", self.socket_folder(), "postgres"]);
        Shell::start(&mut command)
    }

    /// A program of the installation, with the connection's settings in its environment.
    pub fn program(&self, name: &str) -> Command {
        let mut command = workspace().command(&installation().bin.join(name));
        command.env("PGHOST", self.socket_folder()).env("PGUSER", "postgres");
        command
    }

    pub fn data_folder(&self) -> PathBuf {
        self.folder.join("data")
    }

    /// Sends a signal to a process of this server.
    /// Kills a backend, so that the server restarts all of its processes. Returns when the server before has
    /// ended its sessions: until then it takes connections as if nothing had happened.
    pub fn crash(&self, pid: i32) {
        let mut witness = self.client();
        self.signal("KILL", pid);
        super::wait_until("the server has noticed the crash", || witness.batch_execute("SELECT").is_err());
    }

    pub fn signal(&self, signal: &str, pid: i32) {
        // The shell has a kill of its own. A bare machine may have no other.
        output(Command::new("sh").arg("-c").arg(format!("kill -s {signal} {pid}")));
    }

    /// Removes the workspace with all servers now, before the process ends.
    pub fn close_all() {
        workspace().close();
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- the server's log:\n{}", self.log());
        }
        if self.folder.join("data/postmaster.pid").exists() {
            let mut command = workspace().command(&installation().bin.join("pg_ctl"));
            command.arg("-D").arg(self.folder.join("data")).args(["stop", "-s", "-w", "-m", "immediate"]);
            let _ = command.stdout(Stdio::null()).stderr(Stdio::null()).status();
        }
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// A server's folder as initdb makes it. It is made once for the process.
fn template() -> &'static PathBuf {
    static TEMPLATE: OnceLock<PathBuf> = OnceLock::new();
    TEMPLATE.get_or_init(|| {
        let folder = workspace().folder.join("template");
        let mut initdb = workspace().command(&installation().bin.join("initdb"));
        initdb.arg("-D").arg(folder.join("data"));
        output(initdb.args(["-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-locale", "--no-sync"]));
        let file = folder.join("data/postgresql.conf");
        let text = fs::read_to_string(&file).expect("initdb writes it");
        fs::write(file, text + SETTINGS).expect("the configuration can be written");
        folder
    })
}

/// The library that gives a server a wall clock of its own. It is built once for the process.
fn clock_library() -> &'static PathBuf {
    static LIBRARY: OnceLock<PathBuf> = OnceLock::new();
    LIBRARY.get_or_init(|| {
        let library = workspace().folder.join("clock.so");
        let built = Command::new("cc")
            .args(["-shared", "-fPIC", "-o"])
            .arg(&library)
            .arg("tests/support/clock.c")
            .status();
        assert!(built.is_ok_and(|s| s.success()), "cc builds tests/support/clock.c");
        output(Command::new("chmod").arg("a+rx").arg(&library));
        library
    })
}

/// A client process that takes statements and prints results.
pub struct Shell {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Shell {
    fn start(command: &mut Command) -> Self {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("psql starts");
        let input = child.stdin.take().expect("a pipe");
        let output = BufReader::new(child.stdout.take().expect("a pipe"));
        Self { child, input, output }
    }

    /// Runs a statement that gives one row of one column. Returns its value as text.
    pub fn ask(&mut self, sql: &str) -> String {
        self.tell(sql);
        let mut line = String::new();
        self.output.read_line(&mut line).expect("psql answers");
        line.trim().to_owned()
    }

    /// Begins a statement and does not wait for its end.
    pub fn tell(&mut self, sql: &str) {
        writeln!(self.input, "{sql};").and_then(|()| self.input.flush()).expect("psql reads");
    }

    /// Kills the process with SIGKILL.
    pub fn kill(mut self) {
        self.child.kill().expect("it runs");
        self.child.wait().expect("it was ours");
    }
}
