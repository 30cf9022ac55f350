//! A folder below /var/tmp that belongs to this process. In whatever way the process ends, the folder ends
//! with it, and so do the servers that run in it.
//!
//! A guard process waits for the end of a pipe whose other end only this process holds. So the guard sees an
//! exit, a panic and a death by SIGKILL alike. Then it stops the servers and removes the folder.

use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Mutex, OnceLock};

pub struct Workspace {
    pub folder: PathBuf,
    /// Root can't run servers, because Postgres refuses it. This user runs them then.
    pub server_user: Option<User>,
    guard: Mutex<Option<(Child, ChildStdin)>>,
}

#[derive(Clone, Copy)]
pub struct User {
    pub uid: u32,
    pub gid: u32,
}

const GUARD: &str = r#"
trap '' INT TERM HUP
read -r end
for file in "$1"/*/data/postmaster.pid; do
    [ -f "$file" ] || continue
    pid=$(head -n 1 "$file")
    # Only a process that is what the file says: a server on a data folder of ours.
    while tr '\0' ' ' <"/proc/$pid/cmdline" 2>/dev/null | grep -qF "$(dirname "$file")"; do
        kill -QUIT "$pid" 2>/dev/null
        sleep 0.05
    done
done
rm -rf "$1"
"#;

pub fn workspace() -> &'static Workspace {
    static WORKSPACE: OnceLock<Workspace> = OnceLock::new();
    WORKSPACE.get_or_init(|| {
        let server_user = server_user();
        let mut mktemp = Command::new("mktemp");
        as_server_user(&mut mktemp, server_user);
        // The server's user owns the folder. It is in /var/tmp, because a path to a socket has to be short.
        let folder = output(mktemp.args(["-d", "/var/tmp/obanrs.XXXXXX"]));
        let mut guard = Command::new("sh")
            .args(["-c", GUARD, "guard", &folder])
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("sh starts");
        let pipe = guard.stdin.take().expect("its standard input is a pipe");
        Workspace { folder: folder.into(), server_user, guard: Mutex::new(Some((guard, pipe))) }
    })
}

impl Workspace {
    /// Removes the folder now, and waits until it is gone.
    pub fn close(&self) {
        if let Some((mut guard, pipe)) = self.guard.lock().unwrap().take() {
            drop(pipe);
            guard.wait().expect("the guard ends");
        }
    }

    /// A command that runs as the server's user. It starts outside of folders that the user may not enter,
    /// and without settings that would change what servers and clients say.
    pub fn command(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        as_server_user(&mut command, self.server_user);
        command.current_dir("/").env("LC_ALL", "C.UTF-8").env("HOME", &self.folder);
        for (name, _) in std::env::vars() {
            if name.starts_with("PG") || name.starts_with("RUST") || name.starts_with("CARGO") {
                command.env_remove(name);
            }
        }
        command
    }
}

fn as_server_user(command: &mut Command, user: Option<User>) {
    use std::os::unix::process::CommandExt;
    if let Some(user) = user {
        command.uid(user.uid).gid(user.gid);
    }
}

/// The user that runs the servers. `None` means that this process may run them as itself.
fn server_user() -> Option<User> {
    if output(Command::new("id").arg("-u")) != "0" {
        return None;
    }
    let names =
        std::env::var("OBANRS_SERVER_USER").map_or(vec!["postgres".into(), "nobody".into()], |u| vec![u]);
    let passwd = std::fs::read_to_string("/etc/passwd").expect("/etc/passwd is there");
    let found = names.iter().find_map(|name| {
        let mut fields = passwd.lines().find(|l| l.split(':').next() == Some(name))?.split(':').skip(2);
        Some(User { uid: fields.next()?.parse().ok()?, gid: fields.next()?.parse().ok()? })
    });
    Some(found.unwrap_or_else(|| panic!("Postgres does not run as root, and there is no user {names:?}")))
}

/// Runs a command, which has to succeed. Returns what it prints.
pub fn output(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    assert!(
        output.status.success(),
        "{command:?} failed\n{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}
