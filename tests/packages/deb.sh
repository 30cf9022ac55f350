#!/usr/bin/env bash
# Inside a clean Debian root with the server: deb.sh MAJOR OLD.deb NEW.deb
set -euo pipefail
# Debian's folder of sockets; the stand-in of 16 was built with another.
export LC_ALL=C.UTF-8 PGHOST=/var/run/postgresql PGPORT=5432 database=jobs DEBIAN_FRONTEND=noninteractive

major=$1 old=$2 new=$3
# shellcheck source=tests/packages/lib.sh
. "$(dirname "$0")/lib.sh"
package=postgresql-$major-obanrs
library=/usr/lib/postgresql/$major/lib/obanrs.so
old_version=$(dpkg-deb -f "$old" Version) new_version=$(dpkg-deb -f "$new" Version)
old_extension=${old_version%-*} new_extension=${new_version%-*}

server() { pg_ctlcluster "$major" main "$@"; }
postmaster() { head -n 1 "/var/lib/postgresql/$major/main/postmaster.pid"; }
maps() { grep -c "$1" "/proc/$(postmaster)/maps" || true; }
preload() { pg_conftool "$major" main set shared_preload_libraries "$1"; }
# Every file, but those of clusters, logs and dpkg.
files() {
    find /etc /usr /var -xdev \( -path '/etc/postgresql/*' -o -path '/var/lib/postgresql/*' -o -path '/var/log/*' \
        -o -path '/var/lib/dpkg/*' -o -path '/var/cache/*' \) -prune -o -print | sort
}
log=/var/log/postgresql/postgresql-$major-main.log
crashes() { grep -hE 'PANIC|was terminated by signal|TRAP' /var/log/postgresql/*.log || true; }

step "a cluster as this Debian makes it; no TCP"
[ -e "/etc/postgresql/$major/main" ] || pg_createcluster "$major" main
pg_conftool "$major" main set listen_addresses ''
files >/tmp/before

step "installs $old_version"
output=$(dpkg -i "$old" 2>&1)
echo "$output"
contains "$output" "pg_conftool $major main set shared_preload_libraries obanrs"
contains "$output" "pg_ctlcluster $major main restart"
lacks "$output" "was upgraded"
equals "$(dpkg-query -W -f '${Status}' "$package")" "install ok installed"
lacks "$(pg_conftool "$major" main show all)" obanrs # the package changes no configuration

step "a server preloads it, and a database uses it"
preload obanrs
server start
sql 'CREATE DATABASE jobs' 2>/dev/null || database=postgres sql 'CREATE DATABASE jobs'
sql 'CREATE EXTENSION obanrs'
sql 'SELECT oban_install()'
sql "INSERT INTO oban_jobs (worker, args) VALUES ('Mailer', '{\"to\": \"ann@example.com\"}')"
well
equals "$(sql 'SELECT oban_version()')" "$old_extension"

step "upgrades to $new_version under the running server"
before=$(postmaster)
inode=$(stat -c %i "$library")
output=$(dpkg -i "$new" 2>&1)
echo "$output"
contains "$output" "was upgraded from $old_version"
contains "$output" "To be restarted here: pg_ctlcluster $major main restart"
# dpkg renamed: the server has the old file, which has no name any more, and knows nothing of the new one.
[ "$(stat -c %i "$library")" != "$inode" ] || fail "dpkg wrote into the old library"
[ "$(maps "obanrs.so (deleted)")" -gt 0 ] || fail "the running server lost the old library"
equals "$(postmaster)" "$before"
equals "$(sql 'SELECT oban_version()')" "$old_extension"
equals "$(sql "SELECT oban_join('web.1') > 0, oban_is_leader()")" "t|t"
sql "INSERT INTO oban_jobs (worker, args) VALUES ('Mailer', '{}')"

step "restarts, and updates the extension"
server restart
equals "$(maps "obanrs.so (deleted)")" 0
equals "$(sql 'SELECT oban_version()')" "$new_extension"
equals "$(sql 'SELECT count(*) FROM oban_jobs')" 2
sql 'ALTER EXTENSION obanrs UPDATE'
equals "$(sql "SELECT extversion FROM pg_extension WHERE extname = 'obanrs'")" "$new_extension"
sql 'SELECT oban_install()'
well
equals "$(sql 'SELECT count(*) FROM oban_jobs')" 2
equals "$(sql "SELECT oban_join('web.1') > 0, oban_is_leader()")" "t|t"

step "the same package again"
output=$(dpkg -i "$new" 2>&1)
contains "$output" "was upgraded from $new_version"
equals "$(sql 'SELECT oban_version()')" "$new_extension"

step "is removed while a server has it"
# The warning finds the setting wherever it is: here in what ALTER SYSTEM wrote, then in conf.d.
pg_conftool "$major" main remove shared_preload_libraries
sql 'ALTER SYSTEM SET shared_preload_libraries = obanrs'
output=$(dpkg -r "$package" 2>&1)
echo "$output"
contains "$output" "WARNING: the PostgreSQL cluster $major/main has obanrs in shared_preload_libraries"
contains "$output" "/var/lib/postgresql/$major/main/postgresql.auto.conf"
lacks "$output" "/etc/postgresql/$major/main/postgresql.conf"
[ ! -e "$library" ] || fail "the library is still there"
insert="INSERT INTO oban_jobs (worker, args) VALUES ('Mailer', '{}')"
# As the warning says. The server has the library, but Postgres looks for its file in each new session.
if output=$(sql "$insert" 2>&1); then fail "an INSERT went through without the library"; fi
contains "$output" 'obanrs": No such file or directory'
dpkg -i "$new" >/dev/null
sql "$insert"
equals "$(sql 'SELECT oban_version()')" "$new_extension"
sql 'ALTER SYSTEM RESET shared_preload_libraries'
echo "shared_preload_libraries = 'obanrs' # for jobs" >"/etc/postgresql/$major/main/conf.d/obanrs.conf"
output=$(dpkg -P "$package" 2>&1)
echo "$output"
contains "$output" "/etc/postgresql/$major/main/conf.d/obanrs.conf"

step "as the warning says, the server does not start with the setting, and starts without"
server stop
if output=$(server start 2>&1); then fail "the server started without the library"; fi
contains "$output" 'could not access file "obanrs"'
rm "/etc/postgresql/$major/main/conf.d/obanrs.conf"
server start
equals "$(sql 'SELECT count(*) FROM oban_jobs')" 3
if output=$(sql "$insert" 2>&1); then fail "an INSERT went through without the library"; fi
sql 'DROP EXTENSION obanrs CASCADE'
sql "$insert"
equals "$(sql 'SELECT count(*) FROM oban_jobs')" 4

step "a removal that concerns no server warns of nothing"
dpkg -i "$new" >/dev/null
output=$(dpkg -P "$package" 2>&1)
lacks "$output" WARNING

step "nothing is left of the package"
equals "$(dpkg-query -W -f '${Status}' "$package" 2>/dev/null || true)" ""
files >/tmp/after
equals "$(comm -13 /tmp/before /tmp/after)" ""
contains "$(cat "$log")" "database system is ready" # what is searched for crashes is the server's log
equals "$(crashes)" ""
server stop
echo
echo "deb.sh passed: Postgres $major, $old_version to $new_version"
