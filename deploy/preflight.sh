# shellcheck shell=bash
# Sourced before containers start: whether they can read what is mounted, and can use the configuration.
folder=$(setting OPTOUT_DEPLOYMENT)
folder=${folder%/}
if [ ! -f "$folder/config.toml" ]; then
    echo "$folder/config.toml is missing, or you may not read it: OPTOUT_DEPLOYMENT in .env names this folder" >&2
    exit 1
fi
mkdir -p "$folder/templates" "$folder/tls"
# Docker would make a folder of this name.
[ -e "$folder/ca.pem" ] || (umask 022 && : >"$folder/ca.pem")
# For a docker compose that somebody types: without this line it would add docker-compose.override.yml, the demo's.
if [ -z "$(sed -n 's/^COMPOSE_FILE=//p' .env 2>/dev/null)" ]; then remember COMPOSE_FILE "$COMPOSE_FILE"; fi

# Public files of the project, which a clone made with umask 027 or 077 keeps to its owner.
chmod -R a+rX deploy/redis.conf deploy/nginx deploy/monitoring 2>/dev/null || true

# A deployment of an earlier version: its containers ran as a user of their own.
read -r owner group < <(stat -Lc '%u %g' "$folder" 2>/dev/null || echo "10001 10001")
if [ -z "$(setting OPTOUT_UID)" ] && [ "$owner" != 0 ]; then
    remember OPTOUT_UID "$owner"
    remember OPTOUT_GID "$group"
fi
uid=$(setting OPTOUT_UID) gid=$(setting OPTOUT_GID)
uid=${uid:-10001} gid=${gid:-10001}

# A deployment of an earlier version has no console: its login, and its user of Redis that can only read.
random() { head -c 48 /dev/urandom | base64 | tr -d '/+=\n' | head -c 43; }
console_rights="resetkeys %R~optout:* %R~optout.* %R~_kombu.binding* resetchannels -@all +@read +@connection -@dangerous +info +time"
add_console() (
    umask 077
    password=$(random)
    printf 'operator:%s\n' "$(random)" >"$folder/secrets/console_login"
    case $(cat "$folder/secrets/redis_url" 2>/dev/null) in
    *@redis:*)
        printf 'redis://console:%s@redis:6379/0\n' "$password" >"$folder/secrets/console_redis_url"
        printf 'user console on %s >%s\n' "$console_rights" "$password" >"$folder/secrets/redis_console.conf"
        # A Redis that runs reads that file when it starts next.
        # shellcheck disable=SC2016
        docker compose exec -T redis sh -euc '
            REDISCLI_AUTH=$(sed -n "s/^requirepass //p" /run/secrets/redis_auth.conf)
            export REDISCLI_AUTH
            redis-cli ACL SETUSER console on $0 ">$1" >/dev/null
        ' "$console_rights" "$password" </dev/null 2>/dev/null || true
        ;;
    *) # another Redis: docs/how-to/restrict-redis.md
        cp "$folder/secrets/redis_url" "$folder/secrets/console_redis_url"
        : >"$folder/secrets/redis_console.conf"
        ;;
    esac
    made=("$folder"/secrets/{console_login,console_redis_url,redis_console.conf})
    chmod 640 "$folder/secrets/redis_console.conf"
    if [ "$(id -u)" = 0 ] && [ "$uid" != 0 ]; then chown "$uid:$gid" "${made[@]}"; fi
    echo "Made the console's login and its Redis user: $folder/secrets/console_login" >&2
)
if [ -e "$folder/secrets/redis_url" ] && [ ! -e "$folder/secrets/console_login" ]; then add_console; fi

# allows MODE OWNER GROUP UID GID BITS: as the kernel decides; the first class that applies counts alone.
allows() {
    local bits=$((8#$1))
    if [ "$2" = "$4" ]; then bits=$((bits >> 6)); elif [ "$3" = "$5" ]; then bits=$((bits >> 3)); fi
    [ $((bits & $6)) = "$6" ]
}

mounted() {
    printf '%s\0' "$folder" "$folder/config.toml"
    find "$folder" -mindepth 1 \( -path "$folder/tls/*" -o -path "$folder/secrets/redis_*.conf" \) -prune \
        -o \( -path "$folder/secrets/*" -o -path "$folder/templates*" -o -path "$folder/studies" \
            -o -name '*.toml' -o -name ca.pem \) -print0
    case $COMPOSE_FILE in *docker-compose.tls.yml*) find "$folder/tls" -mindepth 1 -print0 ;; esac
}

fixes() {
    local path mode owner group need
    while IFS= read -r -d '' path; do
        read -r mode owner group < <(stat -Lc '%a %u %g' "$path" 2>/dev/null) || continue
        need=4
        [ ! -d "$path" ] || need=5
        if allows "$mode" "$owner" "$group" "$uid" "$gid" "$need"; then continue; fi
        if [ "$owner" = "$uid" ]; then echo "  chmod u+rX '$path'"; else echo "  chown $uid:$gid '$path'"; fi
    done < <(mounted)
    for path in "$folder"/secrets/redis_{auth,console}.conf; do
        read -r mode owner group < <(stat -Lc '%a %u %g' "$path" 2>/dev/null) || continue
        if ! allows "$mode" "$owner" "$group" 999 "$gid" 4; then echo "  chgrp $gid '$path' && chmod 640 '$path'"; fi
    done
}

# With rootless Docker the containers' root is the caller, who can read everything that is his own.
if [ "$uid" != 0 ] && needed=$(fixes) && [ -n "$needed" ]; then
    echo "The containers run as user $uid, group $gid (.env: OPTOUT_UID, OPTOUT_GID) and cannot read these files. Run:" >&2
    echo "$needed" >&2
    exit 1
fi

# SELinux lets containers read only what has their label. A label set here holds until the next `restorecon`; see
# docs/how-to/install-docker.md for one that stays.
if command -v selinuxenabled >/dev/null && selinuxenabled; then
    for path in "$folder" deploy/redis.conf deploy/nginx deploy/monitoring; do
        if [ -e "$path" ] && ! chcon -R -t container_file_t "$path" 2>/dev/null; then
            echo "SELinux is on, and $path cannot be labelled for containers. Run as its owner or as root:" >&2
            echo "  chcon -R -t container_file_t '$path'" >&2
            exit 1
        fi
    done
fi

# validate [all]: what new containers would read, in one of them, without Redis and without a network. Returns only if
# every process would start; with `all`, only if every study has its secrets, too (code 3 of optout check).
validate() {
    local code=0
    docker compose run --rm --no-deps -T worker optout check --config-only >&2 || code=$?
    if [ "$code" = 0 ] || { [ "$code" = 3 ] && [ "${1-}" != all ]; }; then return; fi
    echo "Nothing was changed: correct what is listed above, then run the command again." >&2
    exit 1
}

# What processes read only when they start, or what compose reads. Everything else counts without a restart.
restart_digest() {
    {
        grep -vE '^OPTOUT_(CONFIGURATION|STARTED|WEBS|WORKERS)=' .env || true
        tr ':' '\n' <<<"$COMPOSE_FILE" | xargs cat "$folder/services.env" 2>/dev/null || true
        find "$folder/secrets" "$folder/ca.pem" -maxdepth 1 -type f -exec stat -c '%n %Y %s' {} + | sort
    } | sha256sum | cut -c 1-12
}

# From now on compose replaces the containers that started with other files. Of secrets only time and size count.
note_configuration() {
    local digest
    digest=$(
        {
            find "$folder" -name '*.toml' -print0 | sort -z | xargs -0 cat
            find "$folder/secrets" "$folder/ca.pem" -type f -exec stat -c '%n %Y %s' {} + | sort
        } | sha256sum
    )
    remember OPTOUT_CONFIGURATION "${digest:0:12}"
    remember OPTOUT_STARTED "$(restart_digest)"
}
