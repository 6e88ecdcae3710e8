#!/bin/sh
# Runs the units for real; see tests/service/units.rs. It is called in a container whose root has nothing
# but the host's /usr, with systemd as PID 1. The repository's contrib is /test/contrib, and the units
# in /test/units run /opt/result-cleaner.
set -eux

install -D -m 644 -t /etc/systemd/system /test/units/*.service
install -D -m 644 -t /etc/systemd/user /test/units/user/*.service
install -D -m 644 -t /etc/sysusers.d /test/contrib/systemd/sysusers.d/*.conf
install -D -m 644 -t /etc/default /test/contrib/default/result-cleaner
install -d -m 1777 /var/tmp
systemd-sysusers

# Publishes an expired pair in a directory, as its owner. It may be deleted as soon as it is complete.
publish() {
    : >"$1/$2.result.new"
    echo '{"expires_at": 1}' >"$1/$2.metadata.new"
    chown --reference="$1" "$1/$2.result.new" "$1/$2.metadata.new"
    mv "$1/$2.result.new" "$1/$2.result.json.lz4"
    mv "$1/$2.metadata.new" "$1/$2.metadata.json"
}

# Waits until a command succeeds.
wait_until() {
    set +x
    for _ in $(seq 600); do
        if "$@"; then
            set -x
            return
        fi
        sleep 0.1
    done
    echo "in vain waited until: $*"
    exit 1
}

# Ends the test if a command succeeds.
fails() {
    if "$@"; then
        exit 1
    fi
}

deleted() { ! [ -e "$1/$2.result.json.lz4" ] && ! [ -e "$1/$2.metadata.json" ]; }
stats() { /opt/result-cleaner status --json --url "http://127.0.0.1:$1"; }
# The figures follow the files, and a busy machine may answer late.
shows() { stats "$1" | grep "$2"; }
property() { systemctl show --value --property "$2" "$1"; }
# Writes the drop-in of a unit, as `systemctl edit` does.
edit() {
    mkdir -p "/etc/systemd/system/$1.d"
    cat >"/etc/systemd/system/$1.d/override.conf"
    systemctl daemon-reload
}
# Tries to create a file in each directory with what the sandbox of a unit lets root do there.
may_write() { nsenter --mount --target "$(property "$1" MainPID)" touch "$2/probe"; }

systemctl daemon-reload
: "the system-wide unit as it is"
cache=/var/lib/omnimemory/cached_results
systemctl start result-cleaner
publish $cache a
wait_until deleted $cache a
fails stats 8004
may_write result-cleaner $cache
fails may_write result-cleaner /var/lib
fails may_write result-cleaner /etc
systemctl stop result-cleaner
[ "$(property result-cleaner Result)" = success ]

: "settings from the file and from a drop-in, and a directory elsewhere"
useradd --create-home alice
install -d -o alice /srv/cache
echo RESULT_CLEANER_CHECK_INTERVAL=2h >>/etc/default/result-cleaner
edit result-cleaner.service <<'END'
[Service]
User=alice
Environment=RESULT_CLEANER_LISTEN=127.0.0.1:8004 RESULT_CLEANER_CACHE_DIR=/srv/cache
ReadWritePaths=/srv/cache
END
publish /srv/cache a
systemctl start result-cleaner
wait_until deleted /srv/cache a
wait_until shows 8004 '"check_interval_hours":2.0,.*"cache_directory":"/srv/cache"'
systemctl stop result-cleaner

: "wrong settings do not start it again and again"
echo RESULT_CLEANER_LOG_FORMAT=xml >>/etc/default/result-cleaner
fails systemctl start result-cleaner
[ "$(property result-cleaner SubState) $(property result-cleaner ExecMainStatus)" = "failed 2" ]
sed -i /LOG_FORMAT=xml/d /etc/default/result-cleaner

: "two instances, one with a path that has to be escaped"
strange='/home/my-cache/a b$HOME%n'
install -d -o omnimemory "$strange" /srv/other
one=$(systemd-escape --path --template=result-cleaner@.service "$strange")
two=$(systemd-escape --path --template=result-cleaner@.service /srv/other)
edit "$two" <<'END'
[Service]
EnvironmentFile=/etc/default/result-cleaner-srv-other
UnsetEnvironment=
END
echo RESULT_CLEANER_LISTEN=127.0.0.1:8004 >>/etc/default/result-cleaner
echo RESULT_CLEANER_LISTEN=127.0.0.1:8005 >/etc/default/result-cleaner-srv-other
systemctl start "$one" "$two"
publish "$strange" a
publish /srv/other a
wait_until deleted "$strange" a
wait_until deleted /srv/other a
fails stats 8004
wait_until shows 8005 '"check_interval_hours":2.0,.*"total_deleted":1,.*"cache_directory":"/srv/other"'
may_write "$one" "$strange"
fails may_write "$one" /srv/other
fails may_write "$two" "$strange"
may_write "$two" /srv/other
systemctl stop "$one" "$two"
[ "$(property "$one" Result) $(property "$two" Result)" = "success success" ]

: "the unit of one user, under a manager without a login"
cache=/home/alice/.omnimemory/cached_results
runtime=/run/user/$(id -u alice)
install -d -o alice "$runtime" /home/alice/.omnimemory $cache /home/alice/.config
echo RESULT_CLEANER_LISTEN=127.0.0.1:8006 >/home/alice/.config/result-cleaner.env
systemd-run --unit=alice --uid=alice --property=Type=notify --property=Delegate=yes \
    --setenv=HOME=/home/alice --setenv=XDG_RUNTIME_DIR="$runtime" /lib/systemd/systemd --user
as_alice() {
    setpriv --reuid=alice --regid="$(id -g alice)" --clear-groups \
        env HOME=/home/alice XDG_RUNTIME_DIR="$runtime" "$@"
}
# The container's is a deleted file, over which ProtectKernelLogs= can't mount anything.
umount /proc/kmsg || true
publish $cache a
as_alice systemctl --user start result-cleaner
wait_until deleted $cache a
wait_until shows 8006 "\"cache_directory\":\"$cache\""
as_alice systemctl --user stop result-cleaner
[ "$(as_alice systemctl --user show --value --property Result result-cleaner)" = success ]

echo "the units work"
